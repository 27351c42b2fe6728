// Package cli is the command `caddy llm-quota`: a client of the admin API of a
// gate that runs. Only its command restore works on files.
package cli

import (
	"io"
	"os"
	"os/user"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// Restore writes what GET /llm_quota/backup has sent into a directory, which
// must be empty or not exist.
type Restore func(dir string, r io.Reader) error

// Register makes the command one of Caddy's.
func Register(restore Restore) {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "llm-quota",
		Usage: "<command>",
		Short: "Manages the keys, groups and quotas of a running llm_quota gate",
		CobraFunc: func(c *cobra.Command) {
			build(c, system(restore))
		},
	})
}

// env is what commands have around them.
type env struct {
	in       io.Reader
	out, err *output
	// asks tells whether somebody can be asked; shows whether somebody sees the
	// progress of long work; colour whether the output may be coloured.
	asks, shows, colour bool
	now                 func() time.Time
	actor               string
	restore             Restore
}

// system returns the environment of this process.
func system(restore Restore) *env {
	in, out, err := terminal(os.Stdin), terminal(os.Stdout), terminal(os.Stderr)
	return &env{
		in: os.Stdin, out: &output{w: os.Stdout}, err: &output{w: os.Stderr},
		asks: in && err, shows: err, colour: out && coloured(os.Getenv),
		now: time.Now, actor: actor(), restore: restore,
	}
}

func terminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// coloured tells whether whoever uses a terminal wants colours.
func coloured(getenv func(string) string) bool {
	return getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"
}

// actor is who makes changes, for the audit log.
func actor() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return os.Getenv("USER")
}

// build makes the commands below c.
func build(c *cobra.Command, e *env) {
	c.Long = `Manages the keys, groups and quotas of the gate that runs in Caddy, shows what
they use, and keeps its store safe. It speaks with the admin API of the running
Caddy; only restore works on files.

Keys and groups are named by their name or their ID. Where a command takes
either a key or a group, a group is written group:<name>. "name:" before a name
says that it is one, even if it looks like an ID.

A new secret is printed alone on the standard output and everything else on the
standard error, so that SECRET=$(caddy llm-quota keys create Ada) works. --json
prints what the API answers.

The exit code is 0 when all went well, 1 when it did not or when verify has found
differences, and 2 when the command was not written rightly.`
	c.Example = `  caddy llm-quota groups create engineering --quota "5M monthly"
  caddy llm-quota keys create Ada --group engineering --requests-per-minute 60
  caddy llm-quota usage --since 7d --by model`
	flags := c.PersistentFlags()
	flags.String("address", "", "address of Caddy's admin endpoint, such as localhost:2019 or unix//run/caddy.sock")
	flags.StringP("config", "c", "", "configuration file in which that address is looked for")
	flags.StringP("adapter", "a", "", "name of the config adapter for that file")
	flags.Bool("json", false, "print the API's answer as JSON")
	e.menu(c)
	e.addKeys(c)
	e.addGroups(c)
	e.addUsage(c)
	e.addState(c)
	e.addExplain(c)
	e.addActions(c)
	e.addLogs(c)
	e.addTail(c)
	e.addBackup(c)
	e.addRestore(c)
	e.addImport(c)
	e.addExport(c)
	e.add(c, command{
		use: "version", short: "Shows the version of this module and of Caddy",
		long:    "Shows the version of this module and of Caddy in this binary. Which one runs is\nshown by status.",
		example: "caddy llm-quota version",
		run:     showVersion,
	})
}

func showVersion(r *run, _ []string) error {
	version, _ := caddy.Version()
	if r.json {
		return r.printJSON(map[string]string{"version": moduleVersion(), "caddy": version})
	}
	r.printf("%s (Caddy %s)\n", moduleVersion(), version)
	return nil
}
