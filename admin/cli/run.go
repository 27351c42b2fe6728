package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/admin/client"
)

// The exit codes.
const (
	exitFailed = 1 // also: differences were found
	exitUsage  = 2
)

// command is one command.
type command struct {
	use, short, long string
	// example holds one command a line.
	example string
	aliases []string
	flags   func(*pflag.FlagSet)
	run     func(*run, []string) error
	// complete completes the arguments, by their position.
	complete []completer
}

// run is one run of a command.
type run struct {
	*env
	ctx   context.Context
	flags *pflag.FlagSet
	json  bool
	api   *client.Client
	names map[string]string // of accounts, by ID, as far as they are known
}

// errFailed ends a run that has said already what is wrong.
var errFailed = errors.New("failed")

// negative matches how a number below 0 is complained of that was taken for a
// flag.
var negative = regexp.MustCompile(`^unknown shorthand flag: '[0-9.]'`)

// usageError is a command that was not written rightly.
type usageError struct{ error }

func misused(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// add makes a command below parent.
func (e *env) add(parent *cobra.Command, d command) *cobra.Command {
	c := &cobra.Command{
		Use: d.use, Aliases: d.aliases, Short: d.short, Long: d.long,
		Example: "  " + strings.ReplaceAll(d.example, "\n", "\n  "),
		RunE:    func(c *cobra.Command, args []string) error { return e.start(c, d.run, args) },
		Args:    cobra.ArbitraryArgs, // start looks at them, for the exit code
	}
	c.SetFlagErrorFunc(e.misuse)
	if d.flags != nil {
		d.flags(c.Flags())
	}
	c.ValidArgsFunction = e.completeArgs(d.complete)
	e.completeFlags(c)
	parent.AddCommand(c)
	return c
}

// menu makes c a command that has only commands below it.
func (e *env) menu(c *cobra.Command) {
	c.SetFlagErrorFunc(e.misuse)
	c.Args = cobra.ArbitraryArgs
	c.SuggestionsMinimumDistance = 2
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		text := fmt.Sprintf("there is no command %q", args[0])
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			text += "; did you mean " + strings.Join(near, " or ") + "?"
		}
		return e.misuse(c, errors.New(text))
	}
}

// start runs f and turns its error into words and an exit code.
func (e *env) start(c *cobra.Command, f func(*run, []string) error, args []string) error {
	if err := checkArgs(c.Use, args); err != nil {
		return e.misuse(c, err)
	}
	ctx := c.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	r := &run{env: e, ctx: ctx, flags: c.Flags(), names: map[string]string{}}
	r.json, _ = c.Flags().GetBool("json")
	err := r.connect()
	if err == nil {
		defer r.api.Close()
		err = f(r, args)
	}
	if err == nil && e.out.failed != nil {
		err = fmt.Errorf("writing the output: %w", e.out.failed)
	}
	if err == nil {
		return nil
	}
	if _, is := errors.AsType[usageError](err); is {
		return e.misuse(c, err)
	}
	c.SilenceErrors, c.SilenceUsage = true, true
	if errors.Is(err, errFailed) {
		return err
	}
	if r.ctx.Err() != nil {
		err = fmt.Errorf("interrupted: %w", err)
	}
	e.err.printf("Error: %s\n", clean(err.Error()))
	if hint := hintFor(err); hint != "" {
		e.err.printf("Hint: %s\n", hint)
	}
	return errFailed
}

// catch lets an interruption end the context, where there is something to be
// cleaned up; a second one kills the process.
func (r *run) catch() (release func()) {
	whole := r.ctx
	ctx, stop := signal.NotifyContext(whole, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	r.ctx = ctx
	return func() {
		if ctx.Err() == nil { // stop would make it look interrupted
			r.ctx = whole
		}
		stop()
	}
}

// misuse says that a command was not written rightly.
func (e *env) misuse(c *cobra.Command, err error) error {
	if negative.MatchString(err.Error()) {
		err = errors.New(`a number below 0 comes after "--", lest it be taken for a flag`)
	}
	e.err.printf("Error: %s\nUsage: %s\nTry '%s --help'.\n", clean(err.Error()), c.UseLine(), c.CommandPath())
	c.SilenceErrors, c.SilenceUsage = true, true
	// Only so does Caddy's main learn of an exit code.
	return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return exitUsage, nil })(c, nil)
}

// checkArgs checks that there are as many arguments as the usage names.
func checkArgs(use string, args []string) error {
	want := strings.Fields(use)[1:]
	if len(args) < len(want) {
		return fmt.Errorf("%s is missing", want[len(args)])
	}
	if len(args) > len(want) {
		return fmt.Errorf("%q is one argument too many", args[len(want)])
	}
	return nil
}

// connect finds the admin endpoint. It makes no request.
func (r *run) connect() error {
	var values [3]string
	for i, name := range []string{"address", "config", "adapter"} {
		values[i], _ = r.flags.GetString(name)
	}
	if values[2] != "" && values[1] == "" {
		return misused("--adapter is of no use without --config")
	}
	address, err := caddycmd.DetermineAdminAPIAddress(values[0], nil, values[1], values[2])
	if err != nil {
		return fmt.Errorf("finding the admin endpoint: %w", err)
	}
	r.api, err = client.New(address, admin.CLIAgent+moduleVersion(), r.actor)
	return err
}

// hintFor returns what helps against an error; "" if nothing is known.
func hintFor(err error) string {
	if un, is := errors.AsType[*client.UnreachableError](err); is {
		text := "is Caddy running? Its admin endpoint was looked for at " + un.Address + "; --address or --config name another"
		if errors.Is(err, os.ErrPermission) {
			text = "this user may not use the socket"
		}
		return text
	}
	refused, is := errors.AsType[*client.Error](err)
	if !is {
		return ""
	}
	switch {
	case refused.Status == http.StatusNotFound && refused.Message == "":
		return "the Caddy that runs has no llm_quota module, or an older one; see: caddy list-modules"
	case refused.Status == http.StatusNotFound && strings.Contains(refused.Message, "running configuration"):
		return "add the global option llm_quota to the configuration of the running Caddy, and reload it"
	case refused.Status == http.StatusNotFound && strings.Contains(refused.Message, "nothing at this path"):
		return "the gate that runs is older than this command"
	case refused.Status == http.StatusConflict && strings.Contains(refused.Message, "is not empty"):
		return "--force moves what is in it out first"
	case refused.Status == http.StatusPreconditionFailed:
		return "somebody else has changed it meanwhile; look at it, and try again"
	case refused.Status == http.StatusForbidden:
		return "the admin endpoint allows only some origins; see admin.origins in Caddy's configuration"
	}
	return ""
}

// get reads an answer into v, and returns it as it came.
func (r *run) get(q client.Request, v any) (*client.Answer, error) {
	a, err := r.api.Do(r.ctx, q)
	if err != nil {
		return nil, err
	}
	if v != nil {
		if err := json.Unmarshal(a.Body, v); err != nil {
			return nil, fmt.Errorf("reading the answer: %w", err)
		}
	}
	return a, nil
}

func (r *run) printf(format string, args ...any) { r.out.printf(format, args...) }

// notef tells a person what no other program should read.
func (r *run) notef(format string, args ...any) { r.err.printf(format, args...) }

func (r *run) printJSON(v any) error {
	enc := json.NewEncoder(r.out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	return nil
}

// printRaw prints an answer as it came.
func (r *run) printRaw(a *client.Answer) error {
	if _, err := r.out.Write(a.Body); err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	return nil
}

// text returns the value of a flag.
func (r *run) text(flag string) string { s, _ := r.flags.GetString(flag); return s }
func (r *run) flag(flag string) bool   { b, _ := r.flags.GetBool(flag); return b }
func (r *run) number(flag string) int  { n, _ := r.flags.GetInt(flag); return n }

func moduleVersion() string { return admin.Version() }

// duration reads the value of a flag like 90s, 24h or 7d.
func (r *run) duration(flag string) (time.Duration, error) {
	d, err := caddy.ParseDuration(r.text(flag))
	if err != nil || d < 0 {
		return 0, misused("--%s: %q is not a duration like 90s, 24h or 7d", flag, r.text(flag))
	}
	return d, nil
}
