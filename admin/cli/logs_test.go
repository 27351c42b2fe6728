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
