package cli

import (
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/admin/client"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

func (e *env) addGroups(parent *cobra.Command) {
	c := &cobra.Command{
		Use: "groups", Aliases: []string{"group"}, Short: "Manages groups of keys",
		Long: "Manages groups of keys, each under a budget that its keys share. A group is named\nby its name or its ID.",
	}
	e.menu(c)
	parent.AddCommand(c)
	group := []completer{completeGroup}
	e.add(c, command{
		use: "list", aliases: []string{"ls"}, short: "Lists groups, the newest first",
		long: "Lists groups, the newest first. KEYS counts those directly in a group.",
		example: `caddy llm-quota groups list
caddy llm-quota groups list --parent engineering`,
		flags: func(fs *pflag.FlagSet) {
			fs.String("parent", "", "only those directly below this group")
			fs.StringP("search", "q", "", "only those with this in their name, in any case")
			fs.String("status", "", "only those that are active or deleted")
			listFlags(fs)
		},
		run: listGroups,
	})
	e.add(c, command{
		use: "show <group>", short: "Shows a group: its settings, and where it stands",
		long:    "Shows a group: its settings, what its keys inherit, and where it stands with each\nof its limits.",
		example: "caddy llm-quota groups show engineering",
		run:     showGroup, complete: group,
	})
	e.add(c, command{
		use: "create <name>", short: "Creates a group",
		long: `Creates a group. Its limits are for all its keys together; the --member flags are
the defaults of each key in it that sets none itself.`,
		example: `caddy llm-quota groups create engineering --quota "5M monthly" --member-tokens-per-minute 40k
caddy llm-quota groups create backend --parent engineering`,
		flags: groupFlags, run: createGroup,
	})
	e.add(c, command{
		use: "edit <group>", short: "Changes settings of a group",
		long: `Changes the settings that are given, and no others; none clears one. Nothing is
changed if somebody else changes the group at the same time.`,
		example: `caddy llm-quota groups edit engineering --quota "8M monthly" --quota-month-day last
caddy llm-quota groups edit engineering --member-quota none --alert-at 80%,100%`,
		flags: func(fs *pflag.FlagSet) { groupFlags(fs); fs.String("name", "", "new name") },
		run:   editGroup, complete: group,
	})
	e.add(c, command{
		use: "move <group> <parent|none>", short: "Puts a group below another, or at the top",
		long: "Puts a group below another, or at the top. What was used stays charged where it was\nspent.", example: "caddy llm-quota groups move backend engineering\ncaddy llm-quota groups move backend none",
		run: moveGroup, complete: []completer{completeGroup, completeGroupOrNone},
	})
	e.add(c, command{
		use: "delete <group>", aliases: []string{"rm"}, short: "Deletes a group for good",
		long: "Deletes a group for good. One that has keys or groups in it is deleted with --force\nalone, which moves them out to its parent. Its history stays.", example: "caddy llm-quota groups delete backend --force --yes",
		flags: func(fs *pflag.FlagSet) {
			fs.Bool("force", false, "move its keys and groups out first")
			yesFlag(fs)
		},
		run: deleteGroup, complete: group,
	})
}

func listGroups(r *run, _ []string) error {
	limit, err := r.limit()
	if err != nil {
		return err
	}
	q := url.Values{}
	if s := r.text("parent"); s != "" {
		q.Set("parent", client.Ref(quota.KindGroup, s))
	}
	for flag, param := range map[string]string{"search": "q", "status": "status"} {
		if s := r.text(flag); s != "" {
			q.Set(param, s)
		}
	}
	p, err := r.pages("/groups", "groups", q, limit)
	if err != nil {
		return fmt.Errorf("listing groups: %w", err)
	}
	if r.json {
		return r.printPage("groups", p)
	}
	groups, err := decoded[admin.Group](p)
	if err != nil {
		return err
	}
	t := table{head: []string{"NAME", "ID", "PARENT", ">KEYS", "QUOTA", ">USED", ">SHARE", "LAST USED"}}
	for i := range groups {
		g := &groups[i]
		r.names[g.ID.String()] = g.Name
		n, part := used(g.Effective, g.State)
		t.row(g.Name, g.ID, r.name(quota.ID(g.Parent)), amount(g.Keys), quotaText(g.Quota), n, part, since(r.now(), g.LastUsedAt))
	}
	t.print(r.env)
	r.noteMore(p, "groups")
	return nil
}

func showGroup(r *run, args []string) error {
	var g admin.Group
	a, err := r.get(client.Request{Path: client.Path(quota.KindGroup, args[0])}, &g)
	if err != nil {
		return fmt.Errorf("showing %s: %w", titled(quota.KindGroup, args[0]), err)
	}
	if r.json {
		return r.printRaw(a)
	}
	r.printGroup(&g)
	return nil
}

func (r *run) printGroup(g *admin.Group) {
	state := ""
	if g.DeletedAt != nil {
		state = "  " + r.styled(red, "deleted")
	}
	r.printf("%s  %s%s\n", r.styled(bold, clean(g.Name)), g.ID, state)
	r.facts(
		"parent", r.name(quota.ID(g.Parent)), "keys", amount(g.Keys), "source", string(g.Source),
		"alert at", alertsText(g.AlertAt), "metadata", metadataText(g.Metadata),
		"set", limitsText(g.Quota, g.Limits), "members", limitsText(g.Member.Quota, g.Member.Limits),
		"created", r.clock(g.CreatedAt), "updated", r.clock(g.UpdatedAt), "last used", since(r.now(), g.LastUsedAt),
	)
	r.printState(g.Effective, g.State)
}

func createGroup(r *run, args []string) error {
	body, err := r.groupSettings()
	if err != nil {
		return err
	}
	body["name"] = args[0]
	var g admin.Group
	a, err := r.get(client.Request{Method: http.MethodPost, Path: "/groups", Body: body}, &g)
	if err != nil {
		return fmt.Errorf("creating %s: %w", titled(quota.KindGroup, args[0]), err)
	}
	if r.json {
		return r.printRaw(a)
	}
	r.notef("Group %s (%s) is created.\n", clean(g.Name), g.ID)
	return nil
}

func editGroup(r *run, args []string) error {
	p, err := r.groupSettings()
	if err != nil {
		return err
	}
	return edit(r, quota.KindGroup, args[0], p)
}

// edit changes settings of an account as it is when it is read here.
func edit(r *run, kind quota.Kind, name string, p patch) error {
	if r.flags.Changed("name") {
		p["name"] = r.text("name")
	}
	if len(p) == 0 {
		return misused("no setting is given that should change")
	}
	a, err := r.get(client.Request{Path: client.Path(kind, name)}, nil)
	if err != nil {
		return fmt.Errorf("editing %s: %w", titled(kind, name), err)
	}
	return change(r, kind, name, nil, a.ETag, p, "changed")
}

// change patches an account, and says what was done. If-Match is sent when etag
// is not empty.
func change(r *run, kind quota.Kind, name string, q url.Values, etag string, p patch, done string) error {
	a, err := r.get(client.Request{
		Method: http.MethodPatch, Path: client.Path(kind, name), Query: q, IfMatch: etag, Body: p,
	}, nil)
	if err != nil {
		return fmt.Errorf("changing %s: %w", titled(kind, name), err)
	}
	if r.json {
		return r.printRaw(a)
	}
	r.notef("The %s is %s.\n", clean(titled(kind, name)), done)
	return nil
}

func moveGroup(r *run, args []string) error {
	p := patch{}
	groupPatch(p, "parent", args[1])
	return change(r, quota.KindGroup, args[0], nil, "", p, "moved")
}

func deleteGroup(r *run, args []string) error {
	var g admin.Group
	path := client.Path(quota.KindGroup, args[0])
	a, err := r.get(client.Request{Path: path}, &g)
	if err != nil {
		return fmt.Errorf("deleting %s: %w", titled(quota.KindGroup, args[0]), err)
	}
	text := fmt.Sprintf("Delete group %s (%s) for good?", g.Name, g.ID)
	q := client.Request{Method: http.MethodDelete, Path: path, IfMatch: a.ETag}
	if r.flag("force") {
		q.Query = url.Values{"force": {"true"}}
		text = fmt.Sprintf("Delete group %s (%s, with %s) for good, and move what is in it out?", g.Name, g.ID, plural(g.Keys, "key"))
	}
	if err := r.confirm(text); err != nil {
		return err
	}
	if _, err := r.get(q, nil); err != nil {
		return fmt.Errorf("deleting group %s: %w", g.Name, err)
	}
	r.notef("Group %s (%s) is deleted.\n", clean(g.Name), g.ID)
	return nil
}
