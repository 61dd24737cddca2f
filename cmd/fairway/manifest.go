package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"fairway.dev/fairway/internal/dialect"
	"github.com/spf13/cobra"
)

// manifestFlags are the flags that name manifests, as in kubectl.
type manifestFlags struct {
	files     []string
	recursive bool
}

func (m *manifestFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringSliceVarP(&m.files, "filename", "f", nil, "`file`, directory, or - for standard input (repeatable)")
	cmd.Flags().BoolVarP(&m.recursive, "recursive", "R", false, "go into the directories of directories")
	_ = cmd.MarkFlagRequired("filename")
	_ = cmd.MarkFlagFilename("filename", "yaml", "yml", "json")
}

// read reads all manifests. What cannot be read is among the errors, and the
// rest is returned all the same.
func (m *manifestFlags) read(stdin io.Reader) (inputs []dialect.Input, errs []error) {
	for _, name := range m.files {
		if name == "-" {
			data, err := io.ReadAll(stdin)
			if err != nil {
				errs = append(errs, fmt.Errorf("standard input: %w", err))
				continue
			}
			inputs = append(inputs, dialect.Input{Name: "-", Data: data})
			continue
		}
		found, err := m.find(name)
		if err != nil {
			errs = append(errs, err)
		}
		for _, file := range found {
			data, err := os.ReadFile(file)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			inputs = append(inputs, dialect.Input{Name: file, Data: data})
		}
	}
	return inputs, errs
}

// find returns a file, or the manifests of a directory by name.
func (m *manifestFlags) find(name string) (files []string, err error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{name}, nil
	}
	err = filepath.WalkDir(name, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != name && !m.recursive {
				return filepath.SkipDir
			}
			return nil
		}
		if slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)) {
			files = append(files, path)
		}
		return nil
	})
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("%s: holds no file that ends in .yaml, .yml or .json; name the files, or go deeper with -R", name)
	}
	return files, err
}
