package main

import (
	"io"
	"strings"
	"testing"
)

// TestUnknownCommands: a word that is no command is an error, below commands too.
func TestUnknownCommands(t *testing.T) {
	commands := [][]string{{}}
	for _, c := range newRootCommand().Commands() {
		if c.HasSubCommands() {
			commands = append(commands, []string{c.Name()})
		}
	}
	if len(commands) < 2 {
		t.Fatal("there is no command with others below it")
	}
	for _, c := range commands {
		root := newRootCommand()
		root.SetArgs(append(c, "frob"))
		root.SetOut(io.Discard)
		root.SetErr(io.Discard)
		if err := root.Execute(); err == nil || !strings.Contains(err.Error(), `unknown command "frob"`) {
			t.Errorf("fairway %s: %v", strings.Join(append(c, "frob"), " "), err)
		}
	}
}
