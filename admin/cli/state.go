package cli

import (
	"cmp"
	"fmt"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/admin/client"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

func (e *env) addState(parent *cobra.Command) {
	e.add(parent, command{
		use: "status", short: "Shows how the gate and its store do",
		long:    "Shows the version that runs, how its store does, what is under way, and what was\nused today. The exit code is 0 also while the store fails.",
		example: "caddy llm-quota status",
		run:     showStatus,
	})
	e.add(parent, command{
		use: "verify", short: "Computes every counter again from the ledger",
		long:    "Computes every counter again from the ledger, and shows those that differ. The\nexit code is 1 when any do.",
		example: "caddy llm-quota verify",
		run:     verify,
	})
}

func showStatus(r *run, _ []string) error {
	var s admin.Status
	a, err := r.get(client.Request{Path: "/status"}, &s)
	if err != nil {
		return fmt.Errorf("showing the status: %w", err)
	}
	if r.json {
		return r.printRaw(a)
	}
	store := s.Store.Engine + ", " + humanize.Bytes(uint64(max(s.Store.SizeBytes, 0)))
	synced := "never"
	if s.Store.LastSync != nil {
		synced = since(r.now(), s.Store.LastSync)
	}
	health := cell{"works", green}
	if !s.Store.Healthy {
		health = cell{"fails", red}
		if s.Store.Since != nil {
			health.text += ", since " + r.clock(*s.Store.Since)
		}
		if s.Store.Problem != "" {
			health.text += ": " + s.Store.Problem
		}
	}
	t := table{head: []string{"", ""}}
	t.row("version", s.Version)
	t.row("store", health)
	t.row("", store)
	t.row("last sync", synced)
	t.row("accounts", plural(s.Keys, "key")+", "+plural(s.Groups, "group"))
	t.row("under way", plural(s.OpenReservations, "call"))
	if today := s.Totals; today != nil {
		t.row("today", fmt.Sprintf("%s (%s failed), and %s refused", plural(today.Requests, "request"), amount(today.Failed), amount(today.Refused)))
		t.row("", fmt.Sprintf("%s: %s of input, %s of output", plural(today.Total, "token"), amount(today.Input), amount(today.Output)))
	} else {
		t.row("today", "cannot be read")
	}
	t.print(r.env)
	return nil
}

func verify(r *run, _ []string) error {
	var v admin.Verification
	a, err := r.get(client.Request{Path: "/verify"}, &v)
	if err != nil {
		return fmt.Errorf("verifying the counters: %w", err)
	}
	if r.json {
		if err := r.printRaw(a); err != nil {
			return err
		}
	} else {
		r.printVerification(&v)
	}
	if !v.OK {
		return errFailed
	}
	return nil
}

func (r *run) printVerification(v *admin.Verification) {
	if v.OK {
		r.printf("%s: %s checked, no differences\n", r.styled(green, "ok"), plural(int64(v.Checked), "counter"))
		return
	}
	r.printf("%s: %s checked, %s\n\n", r.styled(red, "differences"), plural(int64(v.Checked), "counter"), plural(int64(len(v.Differences)), "difference"))
	t := table{head: []string{"ACCOUNT", "NAME", "COUNTER", ">STORED", ">COMPUTED", ">DIFFERENCE"}}
	for _, d := range v.Differences {
		t.row(cmp.Or(d.Account.String(), "-"), cmp.Or(r.name(quota.ID(d.Account)), "-"), d.Counter, humanize.Comma(d.Stored), humanize.Comma(d.Computed), humanize.Comma(d.Stored-d.Computed))
	}
	t.print(r.env)
}
