package cli_test

import (
	"testing"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

func TestAuditGolden(t *testing.T) {
	b := newBench(t)
	for _, command := range []string{
		`groups create engineering --quota "5M monthly"`,
		`keys create Ada --group engineering --quota "100k manual" --models "gpt-4o*"`,
		`keys edit Ada --quota 200k --requests-per-minute 60 --models none --metadata team=platform`,
		"keys disable Ada", "keys move Ada none", "keys rotate Ada", "grant Ada 5000", "reset Ada", "keys delete Ada --yes",
	} {
		b.run(command).ok()
	}
	golden(t, "audit", b.run("audit"), b.run("audit --limit 2"))
	a := read[admin.Audit](b.run("audit --all --json"))
	if len(a.Entries) != 9 || a.NextCursor != nil || a.Entries[8].Actor != "tester" || a.Entries[8].Source != quota.ByCLI {
		t.Errorf("%+v", a)
	}
}

func TestAlertsGolden(t *testing.T) {
	b := newBench(t)
	b.run(`keys create Ada --quota "100k manual"`).ok()
	none := b.run("alerts")
	b.spend("Ada", "gpt-4o", 86_000)
	b.until("alert", func() bool { return len(read[admin.Alerts](b.run("alerts --json")).Alerts) == 1 })
	first := b.run("alerts")
	b.spend("Ada", "gpt-4o", 20_000)
	b.until("second alert", func() bool { return len(read[admin.Alerts](b.run("alerts --json")).Alerts) == 2 })
	golden(t, "alerts", none, first, b.run("alerts"), b.run("alerts --limit 1"))
}

// What was refused is there for who asks later, also after a reload.
func TestRefusalsGolden(t *testing.T) {
	b := newBench(t)
	b.run("groups create engineering --requests-per-day 1").ok()
	secret := b.run("keys create Ada --group engineering --models \"gpt-4o*\"").ok().out
	none := b.run("refusals")
	for model, want := range map[string]int{"gpt-4o": 200, "claude": 403} {
		if got := b.call(secret, model); got != want {
			t.Errorf("%s: status %d", model, got)
		}
	}
	if got := b.call(secret, "gpt-4o-mini"); got != 429 {
		t.Errorf("status %d", got)
	}
	b.load(`{}`)
	golden(t, "refusals", none, b.run("refusals --group engineering"), b.run("refusals --key Ada --limit 1"), b.run("refusals --key nobody"))
	all := read[admin.Refusals](b.run("refusals --all --json"))
	if len(all.Refusals) != 2 || all.NextCursor != nil || all.ByReason[quota.RateLimited] != 1 || all.ByReason[quota.ModelNotAllowed] != 1 {
		t.Errorf("%+v", all)
	}
}
