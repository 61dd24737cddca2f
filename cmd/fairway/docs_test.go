package main

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// pages is where the documentation of commands lies.
const pages = "../../docs/commands"

// TestEveryCommandHasAPage walks all commands: each has a page, and the page
// tells of each of its flags.
func TestEveryCommandHasAPage(t *testing.T) {
	known := map[string]bool{}
	for _, cmd := range newRootCommand().Commands() {
		known[cmd.Name()] = true
		t.Run(cmd.Name(), func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join(pages, cmd.Name()+".md"))
			if err != nil {
				t.Fatalf("the command has no page: %v", err)
			}
			if want := regexp.MustCompile(`\A# fairway ` + cmd.Name() + `\n`); !want.Match(text) {
				t.Errorf("the page does not begin with %q", want)
			}
			checkFlags(t, cmd, text)
			for _, sub := range cmd.Commands() { // those stand on the same page
				if !regexp.MustCompile(`(?m)^## ` + sub.CommandPath() + `$`).Match(text) {
					t.Errorf("the page has no section for %s", sub.CommandPath())
				}
				checkFlags(t, sub, text)
			}
		})
	}
	found, err := filepath.Glob(filepath.Join(pages, "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range found {
		if name := filepath.Base(path[:len(path)-len(".md")]); !known[name] {
			t.Errorf("%s is about a command that does not exist", path)
		}
	}
}

// checkFlags looks for each flag as code, `--name`, perhaps with a value.
func checkFlags(t *testing.T, cmd *cobra.Command, page []byte) {
	t.Helper()
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		if !regexp.MustCompile("`--" + regexp.QuoteMeta(f.Name) + "[` ]").Match(page) {
			t.Errorf("the page does not tell of --%s (%s)", f.Name, f.Usage)
		}
		if f.Shorthand != "" && !regexp.MustCompile("`-"+regexp.QuoteMeta(f.Shorthand)+"[` ]").Match(page) {
			t.Errorf("the page does not tell of -%s, short for --%s", f.Shorthand, f.Name)
		}
	})
}
