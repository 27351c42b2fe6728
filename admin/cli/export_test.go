package cli

import (
	"bytes"
	"context"
	"io"
	"reflect"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// For the tests outside the package, which need the module and so cannot be in
// it.

// World is what a command has around it in a test.
type World struct {
	In           string
	Asks, Colour bool
	Shows        bool
	Actor        string
	Restore      Restore
	Stdout       io.Writer // nil: Out
	Out, Err     bytes.Buffer
	Now          func() time.Time
}

// Tree returns Caddy's command with ours below it.
func (w *World) Tree() *cobra.Command {
	e := &env{
		in: strings.NewReader(w.In), out: &output{w: &w.Out}, err: &output{w: &w.Err}, asks: w.Asks, shows: w.Shows, colour: w.Colour,
		now: func() time.Time { return time.Now().UTC() }, actor: w.Actor, restore: w.Restore,
	}
	if w.Stdout != nil {
		e.out.w = w.Stdout
	}
	if w.Now != nil {
		e.now = w.Now
	}
	root := &cobra.Command{Use: "caddy", SilenceUsage: true}
	root.SetOut(&w.Out)
	root.SetErr(&w.Err)
	c := &cobra.Command{Use: "llm-quota <command>"}
	build(c, e)
	root.AddCommand(c)
	return root
}

// Run runs a command, and returns its exit code as Caddy's main would.
func (w *World) Run(ctx context.Context, args ...string) int {
	root := w.Tree()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	// Caddy does not export the type of this error.
	if code := reflect.Indirect(reflect.ValueOf(err)); code.Kind() == reflect.Struct {
		if field := code.FieldByName("ExitCode"); field.IsValid() {
			return int(field.Int())
		}
	}
	return 1
}
