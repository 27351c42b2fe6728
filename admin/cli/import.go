package cli

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/admin/client"
)

func (e *env) addImport(parent *cobra.Command) {
	e.add(parent, command{
		use: "import <file|->", short: "Makes keys and groups what a file says",
		long: `Makes keys and groups what a file of YAML or JSON says: those that are not there
are made, and those that differ are changed. They are told by their names. An
account in the file is wholly described there: what it leaves out is unset, but for
"disabled", which stays as it is. Accounts that the file lacks stay as they are,
unless --prune deletes them; what the configuration sets is never deleted.

  groups:
    - name: engineering
      quota: 5M monthly
      member:
        limits: {tokens_per_minute: 40k}
  keys:
    - name: ci
      group: engineering
      quota: {tokens: 100k, reset: daily, time_zone: America/New_York, at: "06:00"}
      limits: {requests_per_minute: 60}
      models: [gpt-4o*, claude-*]

The fields are those of the API: of both name, quota, limits, alert_at, metadata;
of keys group, disabled, expires_at, models, allowed_ips and, when the key is made,
an existing secret; of groups parent and member.

All is checked before anything is changed. When a change fails, those before it are
undone; deletions come last. The secrets of keys that are made are printed once, each
in a line after the key's name and a tab, or written to a file.`,
		example: `caddy llm-quota import accounts.yaml --dry-run
caddy llm-quota import accounts.yaml --secrets-to secrets.tsv
caddy llm-quota export | caddy llm-quota import - --prune`,
		flags: func(fs *pflag.FlagSet) {
			fs.Bool("dry-run", false, "show what would be done, and do nothing")
			fs.Bool("prune", false, "delete keys and groups that the file lacks")
			fs.String("secrets-to", "", "new file, with mode 0600, for the secrets of keys that are made")
		},
		run: runImport, complete: []completer{nil},
	})
}

// imported is what an import has done, as JSON.
type imported struct {
	DryRun    bool              `json:"dry_run"`
	Groups    done              `json:"groups"`
	Keys      done              `json:"keys"`
	Unchanged int               `json:"unchanged"`
	Secrets   map[string]string `json:"secrets,omitempty"` // by name of the key
}

// done names what was made, changed and deleted.
type done struct {
	Created []string `json:"created"`
	Changed []string `json:"changed"`
	Deleted []string `json:"deleted"`
}

func runImport(r *run, args []string) error {
	data, err := r.readInput(args[0])
	if err != nil {
		return fmt.Errorf("reading the file: %w", err)
	}
	name := args[0]
	if name == "-" {
		name = "standard input"
	}
	f, err := readFile(name, data)
	if err != nil {
		return fmt.Errorf("importing: %w", err)
	}
	dir, err := r.readDirectory()
	if err != nil {
		return fmt.Errorf("importing: %w", err)
	}
	p, err := makePlan(name, f, dir, r.flag("prune"), r.appZone)
	if err != nil {
		return fmt.Errorf("importing: %w", err)
	}
	if r.flag("dry-run") {
		if r.json {
			return r.printJSON(p.imported(true))
		}
		p.print(r)
		r.notef("Not done: %s.\n", p.summary())
		return nil
	}
	return r.carryOut(p, dir)
}

// appZone returns the app's time zone.
func (r *run) appZone() (string, error) {
	var u admin.Usage
	if _, err := r.get(client.Request{Path: "/usage"}, &u); err != nil {
		return "", fmt.Errorf("finding the app's time zone: %w", err)
	}
	return u.TimeZone, nil
}

// carryOut does what a plan says, and tells of it.
func (r *run) carryOut(p *plan, dir *directory) error {
	defer r.catch()()
	secrets := map[string]string{}
	a := &applier{run: r, dir: dir, bar: &progress{r: r, what: "imported", total: int64(len(p.steps()))}}
	a.keep = func(keys []admin.Key) error {
		for i := range keys {
			secrets[keys[i].Name] = keys[i].Secret
			if !r.json {
				r.printf("%s\n", secretLine(&keys[i]))
			}
		}
		return r.out.failed
	}
	var err error
	if file := r.text("secrets-to"); file != "" && len(p.keys) > 0 {
		err = a.applyWithFile(p, file)
	} else {
		err = a.apply(p)
	}
	a.bar.end()
	if r.json && (err == nil || len(a.undo) > 0) { // there may be secrets among it
		result := p.imported(false)
		result.Secrets = secrets
		err = errors.Join(err, r.printJSON(result))
	}
	if err != nil {
		return fmt.Errorf("importing: %w", err)
	}
	if !r.json {
		r.notef("Done: %s.\n", p.summary())
	}
	return nil
}

// applyWithFile is apply with the secrets written to a new file.
func (a *applier) applyWithFile(p *plan, name string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("making the file for secrets: %w", err)
	}
	a.keep = func(keys []admin.Key) error { return writeSecrets(f, keys) }
	err = a.apply(p)
	if closing := f.Close(); err == nil && closing != nil {
		err = fmt.Errorf("writing secrets: %w", closing)
	}
	if err != nil && len(a.undo) == 0 { // none of its keys is there
		err = errors.Join(err, os.Remove(name))
	}
	return err
}

// secretLine is a key with its secret. Names hold no tabs.
func secretLine(k *admin.Key) string { return k.Name + "\t" + k.Secret }

// writeSecrets writes a line for each key, so that it lasts.
func writeSecrets(f *os.File, keys []admin.Key) error {
	for i := range keys {
		if _, err := f.WriteString(secretLine(&keys[i]) + "\n"); err != nil {
			return fmt.Errorf("writing secrets: %w", err)
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("writing secrets: %w", err)
	}
	return nil
}

// imported lists what a plan does.
func (p *plan) imported(dry bool) *imported {
	none := func() done { return done{[]string{}, []string{}, []string{}} }
	i := &imported{DryRun: dry, Groups: none(), Keys: none(), Unchanged: p.unchanged, Secrets: map[string]string{}}
	for _, s := range p.steps() {
		to := &i.Keys
		if s.kind != 0 {
			to = &i.Groups
		}
		switch {
		case s.want == nil:
			to.Deleted = append(to.Deleted, s.name)
		case s.was == nil:
			to.Created = append(to.Created, s.name)
		default:
			to.Changed = append(to.Changed, s.name)
		}
	}
	return i
}
