package cli

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/admin/client"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

func (e *env) addKeys(parent *cobra.Command) {
	c := &cobra.Command{
		Use: "keys", Aliases: []string{"key"}, Short: "Manages API keys",
		Long: "Manages API keys. A key is named by its name or its ID.",
	}
	e.menu(c)
	parent.AddCommand(c)
	key := []completer{completeKey}
	e.add(c, command{
		use: "list", aliases: []string{"ls"}, short: "Lists keys, the newest first",
		long: "Lists keys, the newest first. USED is of the current period of a key's quota.\nDeleted keys are shown by --status deleted alone.",
		example: `caddy llm-quota keys list
caddy llm-quota keys list --group engineering --status disabled
caddy llm-quota keys list --sort used --limit 10
caddy llm-quota keys list --all --json`,
		flags: func(fs *pflag.FlagSet) {
			fs.StringP("group", "g", "", "only those directly in this group")
			fs.StringP("search", "q", "", "only those with this in their name or prefix, in any case")
			fs.String("status", "", "only those that are active, disabled, expired or deleted")
			fs.String("sort", "", "order: created, name, last_used or used (share of the quota); a - before it turns it around")
			listFlags(fs)
		},
		run: listKeys,
	})
	e.add(c, command{
		use: "show <key>", short: "Shows a key: its settings, and where it stands",
		long:    "Shows a key: its settings, and where it stands with each limit that holds for it.",
		example: "caddy llm-quota keys show Ada",
		run:     showKey, complete: key,
	})
	e.add(c, command{
		use: "create <name>", short: "Creates a key and prints its secret",
		long: `Creates a key. Its secret is printed on the standard output, this once; what else
there is to say goes to the standard error. --secret-from brings along a secret
that exists already.`,
		example: `SECRET=$(caddy llm-quota keys create Ada)
caddy llm-quota keys create ci --group engineering --quota "100k daily" --quota-time-zone America/New_York --quota-at 06:00
caddy llm-quota keys create build --requests-per-minute 60 --models "gpt-4o*,claude-*" --allowed-ips 10.0.0.0/8 --expires 2099-01-01 --metadata team=platform --alert-at 50%,90%`,
		flags: func(fs *pflag.FlagSet) {
			keyFlags(fs)
			fs.String("secret-from", "", "file that holds an existing secret, or - for the standard input")
		},
		run: createKey,
	})
	e.add(c, command{
		use: "edit <key>", short: "Changes settings of a key",
		long: `Changes the settings that are given, and no others; none clears one. Nothing is
changed if somebody else changes the key at the same time.`,
		example: `caddy llm-quota keys edit Ada --requests-per-minute unlimited --tokens-per-day 500k
caddy llm-quota keys edit Ada --quota none --models none
caddy llm-quota keys edit Ada --name "Ada Lovelace"`,
		flags: func(fs *pflag.FlagSet) { keyFlags(fs); fs.String("name", "", "new name") },
		run:   editKey, complete: key,
	})
	e.addKeyActions(c, key)
}

// addKeyActions adds what is done with a key besides editing it.
func (e *env) addKeyActions(c *cobra.Command, key []completer) {
	e.add(c, command{
		use: "rotate <key>", short: "Gives a key a new secret and prints it",
		long: `Gives a key a new secret, which is printed alone on the standard output, this
once. The old one works until the grace ends. Those of earlier rotations keep the
grace that they were given; disable stops all of them at once.`,
		example: "SECRET=$(caddy llm-quota keys rotate Ada --grace 24h)",
		flags:   func(fs *pflag.FlagSet) { fs.String("grace", "0", "how long the old secret still works, up to 30d") },
		run:     rotateKey, complete: key,
	})
	e.add(c, command{
		use: "disable <key>", short: "Refuses the calls of a key",
		long: "Refuses the calls of a key from now on. Those under way end as they would.", example: "caddy llm-quota keys disable Ada",
		run: func(r *run, args []string) error { return r.disableKey(args[0], true) }, complete: key,
	})
	e.add(c, command{
		use: "enable <key>", short: "Lets a disabled key call again",
		long: "Lets a disabled key call again.", example: "caddy llm-quota keys enable Ada",
		run: func(r *run, args []string) error { return r.disableKey(args[0], false) }, complete: key,
	})
	e.add(c, command{
		use: "move <key> <group|none>", short: "Moves a key into another group, or into none",
		long: `Moves a key into another group, or into none. What it has used stays charged to
the groups it was in, unless --carry moves the current period's use along.`,
		example: `caddy llm-quota keys move Ada engineering
caddy llm-quota keys move Ada none --carry`,
		flags: func(fs *pflag.FlagSet) { fs.Bool("carry", false, "move the use of the current period along") },
		run:   moveKey, complete: []completer{completeKey, completeGroupOrNone},
	})
	e.add(c, command{
		use: "delete <key>", aliases: []string{"rm"}, short: "Deletes a key for good",
		long: "Deletes a key for good: its secret never works again. Its name is free, and its\nhistory stays.", example: "caddy llm-quota keys delete Ada --yes",
		flags: yesFlag, run: deleteKey, complete: key,
	})
}

func listFlags(fs *pflag.FlagSet) {
	fs.Int("limit", 50, "how many at most")
	fs.Bool("all", false, "all of them")
}

func yesFlag(fs *pflag.FlagSet) {
	fs.BoolP("yes", "y", false, "do not ask")
}

func listKeys(r *run, _ []string) error {
	limit, err := r.limit()
	if err != nil {
		return err
	}
	q := url.Values{}
	if s := r.text("group"); s != "" {
		q.Set("group", client.Ref(quota.KindGroup, s))
	}
	for flag, param := range map[string]string{"search": "q", "status": "status", "sort": "sort"} {
		if s := r.text(flag); s != "" {
			q.Set(param, s)
		}
	}
	p, err := r.pages("/keys", "keys", q, limit)
	if err != nil {
		return fmt.Errorf("listing keys: %w", err)
	}
	if r.json {
		return r.printPage("keys", p)
	}
	keys, err := decoded[admin.Key](p)
	if err != nil {
		return err
	}
	t := table{head: []string{"NAME", "ID", "GROUP", "STATUS", "QUOTA", ">USED", ">SHARE", "LAST USED"}}
	for i := range keys {
		k := &keys[i]
		n, part := used(k.Effective, k.State)
		quotaShown := "-"
		if q := k.Effective.Quota; q != nil {
			quotaShown = strings.TrimSpace(bound(q.Tokens) + " " + string(q.Reset))
		}
		t.row(k.Name, k.ID, r.name(quota.ID(k.Group)), r.status(k), quotaShown, n, part, since(r.now(), k.LastUsedAt))
	}
	t.print(r.env)
	r.noteMore(p, "keys")
	return nil
}

// noteMore tells that a list is empty or goes on.
func (r *run) noteMore(p *page, what string) {
	switch {
	case len(p.rows) == 0:
		r.notef("There are no such %s.\n", what)
	case p.next != nil:
		r.notef("There are more %s: --all shows them.\n", what)
	}
}

func showKey(r *run, args []string) error {
	var k admin.Key
	a, err := r.get(client.Request{Path: client.Path(quota.KindKey, args[0])}, &k)
	if err != nil {
		return fmt.Errorf("showing %s: %w", titled(quota.KindKey, args[0]), err)
	}
	if r.json {
		return r.printRaw(a)
	}
	r.printKey(&k)
	return nil
}

func (r *run) printKey(k *admin.Key) {
	var ips []string
	for _, p := range k.AllowedIPs {
		ips = append(ips, p.String())
	}
	expires := ""
	if k.ExpiresAt != nil {
		expires = r.clock(*k.ExpiresAt) + ", " + since(r.now(), k.ExpiresAt)
	}
	r.printf("%s  %s  %s\n", r.styled(bold, clean(k.Name)), k.ID, r.styled(r.status(k).style, r.status(k).text))
	r.facts(
		"group", r.name(quota.ID(k.Group)), "secret", k.Prefix+"…", "source", string(k.Source),
		"expires", expires, "models", strings.Join(k.Models, ", "), "allowed ips", strings.Join(ips, ", "),
		"alert at", alertsText(k.AlertAt), "metadata", metadataText(k.Metadata),
		"set", limitsText(k.Quota, k.Limits),
		"created", r.clock(k.CreatedAt), "updated", r.clock(k.UpdatedAt), "last used", since(r.now(), k.LastUsedAt),
	)
	r.printState(k.Effective, k.State)
}

func createKey(r *run, args []string) error {
	body, err := r.keyPatch()
	if err != nil {
		return err
	}
	body["name"] = args[0]
	if file := r.text("secret-from"); file != "" {
		if body["secret"], err = r.readSecret(file); err != nil {
			return err
		}
	}
	return r.madeSecret("is created. Its", "creating", args[0], client.Request{Method: http.MethodPost, Path: "/keys", Body: body})
}

// madeSecret makes a request whose answer is a key with a new secret, and
// prints that alone.
func (r *run) madeSecret(done, doing, name string, q client.Request) error {
	var k admin.Key
	a, err := r.get(q, &k)
	if err != nil {
		return fmt.Errorf("%s %s: %w", doing, titled(quota.KindKey, name), err)
	}
	if r.json {
		return r.printRaw(a)
	}
	r.notef("Key %s (%s) %s secret is shown this once:\n", clean(k.Name), k.ID, done)
	r.printf("%s\n", k.Secret)
	return nil
}

func rotateKey(r *run, args []string) error {
	grace, err := r.duration("grace")
	if err != nil {
		return err
	}
	done := "is rotated, and the old secret works no more. The new"
	if grace > 0 {
		done = "is rotated, and the old secret works for another " + r.text("grace") + ". The new"
	}
	body := patch{"grace": r.text("grace")}
	return r.madeSecret(done, "rotating", args[0], client.Request{
		Method: http.MethodPost, Path: client.Path(quota.KindKey, args[0], "rotate"), Body: body,
	})
}

func editKey(r *run, args []string) error {
	p, err := r.keyPatch()
	if err != nil {
		return err
	}
	return edit(r, quota.KindKey, args[0], p)
}

func (r *run) disableKey(name string, disabled bool) error {
	return change(r, quota.KindKey, name, nil, "", patch{"disabled": disabled},
		map[bool]string{true: "disabled", false: "enabled"}[disabled])
}

func moveKey(r *run, args []string) error {
	var q url.Values
	if r.flag("carry") {
		q = url.Values{"carry": {"true"}}
	}
	p := patch{}
	groupPatch(p, "group", args[1])
	return change(r, quota.KindKey, args[0], q, "", p, "moved")
}

func deleteKey(r *run, args []string) error {
	var k admin.Key
	path := client.Path(quota.KindKey, args[0])
	a, err := r.get(client.Request{Path: path}, &k)
	if err != nil {
		return fmt.Errorf("deleting %s: %w", titled(quota.KindKey, args[0]), err)
	}
	if err := r.confirm(fmt.Sprintf("Delete key %s (%s) for good?", k.Name, k.ID)); err != nil {
		return err
	}
	if _, err := r.get(client.Request{Method: http.MethodDelete, Path: path, IfMatch: a.ETag}, nil); err != nil {
		return fmt.Errorf("deleting key %s: %w", k.Name, err)
	}
	r.notef("Key %s (%s) is deleted.\n", clean(k.Name), k.ID)
	return nil
}
