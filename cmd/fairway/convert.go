package main

import (
	"errors"
	"fmt"
	"io"

	"fairway.dev/fairway/internal/dialect"
	"github.com/spf13/cobra"
)

func newConvertCommand() *cobra.Command {
	var manifests manifestFlags
	var output, namespace string
	cmd := &cobra.Command{
		Use:   "convert -f FILE|DIRECTORY|URL|-",
		Short: "Print older and informal manifests as the Kubernetes API takes them",
		Long: `Convert reads manifests that the Kubernetes API refuses today but whose meaning
is plain, and prints them in the form that it takes. Each change is told on
stderr. What the API takes as it is passes through untouched. No cluster is
asked.`,
		Example: `  fairway convert -f old-ingress.yaml > ingress.yaml
  helm template my-chart | fairway convert -f - | kubectl apply -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			write := dialect.YAML
			switch output {
			case "yaml":
			case "json":
				write = dialect.JSON
			default:
				return fmt.Errorf("--output %s: want yaml or json", output)
			}
			inputs, errs := manifests.read(cmd.Context(), cmd.InOrStdin())
			result := dialect.Convert(inputs, dialect.Options{Namespace: namespace})
			failed := tell(cmd.ErrOrStderr(), result, errs)
			if len(result.Objects) > 0 {
				text, err := write(result.Objects)
				if err != nil {
					return err
				}
				if _, err := cmd.OutOrStdout().Write(text); err != nil {
					return err
				}
			}
			if failed {
				return reported()
			}
			return noObjects(result)
		},
	}
	manifests.register(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "yaml", "`format`: yaml or json")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "`namespace` that objects without one are meant for, to find the Services they name (nothing is written into them)")
	return cmd
}

// tell prints what was changed and what is wrong, and reports whether
// something is wrong.
func tell(w io.Writer, result dialect.Result, errs []error) bool {
	for _, r := range result.Remarks {
		fmt.Fprintln(w, r)
	}
	errs = append(errs, result.Problems...)
	for _, err := range errs {
		fmt.Fprintln(w, "error:", err)
	}
	return len(errs) > 0
}

// noObjects is the error of an input in which nothing is wrong and nothing is.
func noObjects(result dialect.Result) error {
	if len(result.Objects) == 0 {
		return errors.New("the input holds no object")
	}
	return nil
}
