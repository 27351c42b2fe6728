package cli

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/admin/client"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

func (e *env) addLogs(parent *cobra.Command) {
	e.add(parent, command{
		use: "alerts", short: "Shows the alerts that were fired, the newest first",
		long:    "Shows the alerts that were fired, the newest first, and whether webhooks were told.",
		example: "caddy llm-quota alerts\ncaddy llm-quota alerts --limit 5 --json",
		flags:   listFlags,
		run:     alerts,
	})
	e.add(parent, command{
		use: "audit", short: "Shows the changes that were made, the newest first",
		long: `Shows every change that was made through the API, the dashboard, this command or
the configuration, the newest first: who made it, and what it changed.`,
		example: "caddy llm-quota audit\ncaddy llm-quota audit --all --json",
		flags:   listFlags,
		run:     audit,
	})
	e.add(parent, command{
		use: "refusals", short: "Shows the calls that were refused lately, the newest first",
		long: `Shows the calls of known keys that were refused lately, or that observe admitted
though they would have been, the newest first: by which reason, and by which
limit of which key or group. The gate keeps the last 1000, of each key the last
100, until Caddy is stopped.`,
		example: "caddy llm-quota refusals --key Ada\ncaddy llm-quota refusals --group engineering --all --json",
		flags: func(fs *pflag.FlagSet) {
			fs.String("key", "", "only this key's")
			fs.StringP("group", "g", "", "only those of keys in this group, and in those below it")
			listFlags(fs)
		},
		run: refusals,
	})
}

// logOf reads a list of what has happened. It is done when it has been printed
// as JSON.
func (r *run) logOf(path, field string) (p *page, done bool, err error) {
	limit, err := r.limit()
	if err != nil {
		return nil, false, err
	}
	if p, err = r.pages(path, field, url.Values{}, limit); err != nil {
		return nil, false, err
	}
	if r.json {
		return p, true, r.printPage(field, p)
	}
	return p, false, nil
}

func alerts(r *run, _ []string) error {
	p, done, err := r.logOf("/alerts", "alerts")
	if err != nil {
		return fmt.Errorf("showing the alerts: %w", err)
	}
	if done {
		return nil
	}
	all, err := decoded[admin.Alert](p)
	if err != nil {
		return err
	}
	t := table{head: []string{"TIME", "KIND", "ACCOUNT", "LIMIT", ">AT", ">USED", ">MAX", "TOLD"}}
	for i := range all {
		a := &all[i]
		who, at, n, most := "-", "", "", ""
		if a.Account != 0 {
			who = titled(a.Account.Kind(), cmp.Or(a.Name, a.Account.String()))
			at, n, most = strconv.FormatFloat(a.Threshold, 'f', -1, 64)+"%", amount(a.Used), amount(a.Max)
		}
		t.row(r.clock(a.Time), kindOf(a), who, string(a.Limit), at, n, most, told(a.Deliveries))
	}
	t.print(r.env)
	r.noteMore(p, "alerts")
	return nil
}

func kindOf(a *admin.Alert) cell {
	style := yellow
	switch a.Kind {
	case quota.AlertExceeded, quota.AlertStoreDegraded:
		style = red
	case quota.AlertStoreRecovered:
		style = green
	}
	return cell{string(a.Kind), style}
}

// told says how far webhooks were told.
func told(all []quota.Delivery) string {
	if len(all) == 0 {
		return "-"
	}
	var states []string
	for _, d := range all {
		s := string(d.State)
		if d.Error != "" && d.State != quota.DeliveryDelivered {
			s += " (" + d.Error + ")"
		}
		states = append(states, s)
	}
	return strings.Join(states, ", ")
}

func audit(r *run, _ []string) error {
	p, done, err := r.logOf("/audit", "entries")
	if err != nil {
		return fmt.Errorf("showing the audit log: %w", err)
	}
	if done {
		return nil
	}
	all, err := decoded[admin.AuditEntry](p)
	if err != nil {
		return err
	}
	t := table{head: []string{"TIME", "ACTOR", "SOURCE", "ACTION", "OBJECT", "CHANGE"}}
	for i := range all {
		e := &all[i]
		t.row(r.clock(e.Time), cmp.Or(e.Actor, "-"), e.Source, e.Action, objectOf(e), r.changeOf(e))
	}
	t.print(r.env)
	r.noteMore(p, "changes")
	return nil
}

func refusals(r *run, _ []string) error {
	limit, err := r.limit()
	if err != nil {
		return err
	}
	const most = 1000 // on a page, which is all that are kept
	if limit == 0 || limit > most {
		limit = most
	}
	q := url.Values{"limit": {strconv.Itoa(limit)}}
	r.ofAccounts(q)
	var list admin.Refusals
	a, err := r.get(client.Request{Path: "/refusals", Query: q}, &list)
	if err != nil {
		return fmt.Errorf("showing the refusals: %w", err)
	}
	if r.json {
		return r.printRaw(a)
	}
	t := table{head: []string{"TIME", "KEY", "MODEL", "REASON", "LIMIT", "OF"}}
	for i := range list.Refusals {
		f := &list.Refusals[i]
		reason, of := cell{string(f.Reason), red}, ""
		if f.Decision == admin.Observe {
			reason = cell{string(f.Reason) + " (observed)", yellow}
		}
		if id := quota.ID(f.Account); id != 0 {
			of = titled(id.Kind(), r.name(id))
		}
		t.row(r.clock(f.Time), r.name(f.Key), cmp.Or(f.Model, "-"), reason, cmp.Or(string(f.Limit), "-"), cmp.Or(of, "-"))
	}
	t.print(r.env)
	r.noteMore(&page{rows: make([]json.RawMessage, len(list.Refusals)), next: list.NextCursor}, "refusals")
	r.notef("All since %s are kept.\n", r.clock(list.Since))
	return nil
}

func objectOf(e *admin.AuditEntry) string {
	return titled(e.Object.Kind(), cmp.Or(e.Name, e.Object.String()))
}

// changeOf says in a line what an entry of the audit log has changed.
func (r *run) changeOf(e *admin.AuditEntry) string {
	var before, after map[string]json.RawMessage
	if json.Unmarshal(e.Before, &before) != nil || json.Unmarshal(e.After, &after) != nil || before == nil || after == nil {
		return "" // made, or gone: the action says so
	}
	r.nameGroups(before)
	r.nameGroups(after)
	return strings.Join(differences(before, after), ", ")
}

// nameGroups puts the names of groups into settings that name them by their IDs.
func (r *run) nameGroups(settings map[string]json.RawMessage) {
	for _, field := range []string{"group", "parent"} {
		var id quota.ID
		if v := settings[field]; v == nil || json.Unmarshal(v, &id) != nil || id == 0 {
			continue
		}
		if name, err := json.Marshal(r.name(id)); err == nil {
			settings[field] = name
		}
	}
}

// differences lists the fields that differ, those of objects one by one.
func differences(before, after map[string]json.RawMessage) (all []string) {
	was, is := flat(before), flat(after)
	paths := maps.Clone(was)
	maps.Copy(paths, is)
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		if was[path] != is[path] && path != "updated_at" {
			all = append(all, fmt.Sprintf("%s: %s → %s", path, cmp.Or(was[path], "-"), cmp.Or(is[path], "-")))
		}
	}
	return all
}

// flat returns the values of an object by their paths, without those that are
// null.
func flat(object map[string]json.RawMessage) map[string]string {
	all := map[string]string{}
	for name, v := range object {
		var inner map[string]json.RawMessage
		if json.Unmarshal(v, &inner) == nil && inner != nil {
			for path, text := range flat(inner) {
				all[name+"."+path] = text
			}
		} else if text := valueOf(v); text != "" {
			all[name] = text
		}
	}
	return all
}

// valueOf writes a value in a line; "" is null.
func valueOf(v json.RawMessage) string {
	if len(v) == 0 || string(v) == "null" {
		return ""
	}
	var b bytes.Buffer
	if json.Compact(&b, v) != nil {
		return "?"
	}
	return strings.Trim(b.String(), `"`)
}
