package cli

import (
	"fmt"
	"io"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/llm-quota/caddy-llm-quota/admin/client"
)

func (e *env) addBackup(parent *cobra.Command) {
	e.add(parent, command{
		use: "backup <file|->", short: "Writes a backup of the store while it runs",
		long: `Writes a consistent backup of the store, while it runs. The file has mode 0600,
and takes the place of an older one once it is complete. Of secrets it holds the
hashes alone; keep it as safe as the store. restore makes a store of it again.`,
		example: "caddy llm-quota backup ledger.backup\ncaddy llm-quota backup - > ledger.backup",
		run:     backup, complete: []completer{nil},
	})
}

func backup(r *run, args []string) error {
	defer r.catch()()
	resp, err := r.api.Open(r.ctx, client.Request{Path: "/backup"})
	if err != nil {
		return fmt.Errorf("backing up: %w", err)
	}
	defer resp.Body.Close()
	p := &progress{r: r, what: "backed up", total: resp.ContentLength, bytes: true}
	in := p.reader(resp.Body)
	var n int64
	if args[0] == "-" {
		n, err = io.Copy(r.out, in)
	} else {
		n, err = writeFile(args[0], in)
	}
	p.end()
	if err != nil {
		return fmt.Errorf("backing up to %s: %w", args[0], err)
	}
	r.notef("%s are backed up to %s.\n", humanize.Bytes(uint64(n)), args[0])
	return nil
}
