package cli

import (
	"fmt"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (e *env) addRestore(parent *cobra.Command) {
	e.add(parent, command{
		use: "restore <file|->", short: "Puts a backup into an empty directory",
		long: `Puts what backup has written into a directory, which must be empty or not exist.
It works on files, and asks no running Caddy. Then let the store of the
configuration be that directory, and start Caddy.`,
		example: "caddy llm-quota restore --dir /var/lib/caddy/llm_quota_restored ledger.backup",
		flags: func(fs *pflag.FlagSet) {
			fs.String("dir", "", "directory of the store that is made")
		},
		run: restore, complete: []completer{nil},
	})
}

func restore(r *run, args []string) error {
	dir := r.text("dir")
	if dir == "" {
		return misused("--dir is missing")
	}
	in, size, err := r.input(args[0])
	if err != nil {
		return fmt.Errorf("opening the backup: %w", err)
	}
	defer in.Close()
	defer r.catch()()
	p := &progress{r: r, what: "restored", total: size, bytes: true}
	err = r.restore(dir, p.reader(in))
	p.end()
	if err != nil {
		return fmt.Errorf("restoring %s: %w", args[0], err)
	}
	r.notef("%s are restored into %s.\n", humanize.Bytes(uint64(p.done)), dir)
	return nil
}
