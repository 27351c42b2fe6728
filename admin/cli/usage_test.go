package cli_test

import (
	"encoding/csv"
	"strings"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/admin"
)

func TestUsageGolden(t *testing.T) {
	b := newBench(t)
	b.run("groups create engineering").ok()
	b.run("keys create Ada --group engineering").ok()
	b.run("keys create ci").ok()
	all := []*result{b.run("usage --by model")}
	withinHour()
	b.spend("Ada", "gpt-4o", 86_000)
	b.spend("Ada", "claude", 4_000)
	b.spend("ci", "gpt-4o", 1_234_567)
	golden(t, "usage", append(all,
		b.run("usage --since 7d"), b.run("usage --by model"), b.run("usage --by key,group --model gpt-4o"), b.run("usage --by key --top 1"),
		b.run("usage --group engineering --by group,model"), b.run("usage --key nobody"), b.run("usage --by colour"),
	)...)
}

func TestUsageMachines(t *testing.T) {
	b := newBench(t)
	b.run("keys create Ada").ok()
	b.spend("Ada", "gpt-4o", 86_000)
	u := read[admin.Usage](b.run("usage --by model --since 3d --json"))
	if u.Totals.Total != 86_000 || u.Step != "hour" || len(u.Breakdown) != 1 || *u.Breakdown[0].Model != "gpt-4o" {
		t.Errorf("%+v", u)
	}
	rows, err := csv.NewReader(strings.NewReader(b.run("usage --by model --since 30d --csv").ok().out)).ReadAll()
	if err != nil || len(rows) < 31 || strings.Join(rows[0][:3], ",") != "start,model,requests" {
		t.Errorf("%d rows, the first %v (%v)", len(rows), rows[0], err)
	}
}

// A year can be looked at where the app's days are not those of UTC, and it is
// said that they are not exact.
func TestUsageRough(t *testing.T) {
	b := benchWith(t, `{"time_zone":"Europe/Berlin"}`)
	b.run("keys create Ada").ok()
	b.spend("Ada", "gpt-4o", 86_000)
	b.run("usage --since 365d").ok().prints("Europe/Berlin, by month", "86,000").says("days of UTC are shown for those of Europe/Berlin")
	if r := b.run("usage --since 30d").ok(); strings.Contains(r.err, "days of UTC") {
		t.Errorf("30 days are said not to be exact: %s", r.err)
	}
}

// The step fits the span, and is one that is still kept.
func TestUsageStep(t *testing.T) {
	b := newBench(t)
	ago := func(d time.Duration) string { return clock().Add(-d).UTC().Format(time.RFC3339) }
	const day = 24 * time.Hour
	for flags, want := range map[string]string{
		"":             "hour",
		"--since 90m":  "minute",
		"--since 2d":   "hour",
		"--since 7d":   "day",
		"--since 365d": "month",
		"--step hour":  "hour",
		"--from " + ago(20*day) + " --to " + ago(20*day-time.Hour):   "hour",
		"--from " + ago(120*day) + " --to " + ago(120*day-time.Hour): "day",
	} {
		if u := read[admin.Usage](b.run("usage --json " + flags)); u.Step != want {
			t.Errorf("%s: by %s, want %s", flags, u.Step, want)
		}
	}
}

// withinHour waits while what is used now could be of two hours, or days.
func withinHour() {
	for now := time.Now(); now.Add(20*time.Second).Hour() != now.Hour(); now = time.Now() {
		time.Sleep(time.Second)
	}
}
