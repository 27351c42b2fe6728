package badger

import (
	"fmt"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

// The year of BenchmarkReport: so many keys, of so many groups, that all use
// each of the models each day.
const (
	yearKeys   = 10_000
	yearGroups = 20
	yearDays   = 365
)

var yearModels = [...]string{"claude-sonnet-4-20250514", "gemini-2.5-pro", "gpt-4o-2024-08-06"}

// fillYear writes the rows of a year of days, as checkpoints would have left
// them, that ends with the day of end. It returns a key and a group.
func fillYear(b *testing.B, s *Store, end time.Time) (key, group quota.ID) {
	b.Helper()
	var ids []*quota.Key
	var groups []*quota.Group
	id := quota.ID(0)
	for i := range yearGroups {
		id = quota.NextID(quota.KindGroup, id, end.AddDate(-1, 0, 0))
		groups = append(groups, &quota.Group{ID: id, Name: fmt.Sprint("group ", i)})
	}
	for i := range yearKeys {
		id = quota.NextID(quota.KindKey, id, end.AddDate(-1, 0, 0))
		ids = append(ids, &quota.Key{ID: id, Name: fmt.Sprint("key ", i), Group: groups[i%yearGroups].ID})
	}
	ok(b, s.Put(ids, groups))
	batch := s.tables.db.NewWriteBatch()
	set := func(row []byte, n int64) {
		t := quota.Totals{Requests: 40 * n, Failed: n, Input: 60_000 * n, Cached: 20_000 * n, Output: 9000 * n, Total: 69_000 * n}
		ok(b, batch.Set(row, appendTotals(nil, &t)))
	}
	for _, k := range ids {
		for day := range yearDays {
			slot := quota.Slot{Step: quota.StepDay, Start: quota.StepDay.Start(end.AddDate(0, 0, day+1-yearDays).Unix()), Key: k.ID, Group: k.Group}
			for _, slot.Model = range yearModels {
				set(usageRow(&slot), 1)
			}
		}
	}
	for _, g := range groups {
		for day := range yearDays {
			slot := quota.Slot{Step: quota.StepDay, Start: quota.StepDay.Start(end.AddDate(0, 0, day+1-yearDays).Unix()), Group: g.ID}
			for _, slot.Model = range yearModels {
				set(sumsRow(&slot), yearKeys/yearGroups)
			}
		}
	}
	ok(b, batch.Flush())
	return ids[yearKeys/2].ID, groups[3].ID
}

// BenchmarkReport asks for a year of days in the ways that the API and the
// dashboard do.
func BenchmarkReport(b *testing.B) {
	now := time.Date(2026, 5, 20, 12, 0, 0, 0, time.UTC)
	s := openIn(b, b.TempDir(), b.Logf)
	start := time.Now()
	key, group := fillYear(b, s, now)
	b.Logf("the year was written in %v", time.Since(start))
	l, err := ledger.Open(s, now, func(op string, err error) { b.Errorf("%s: %v", op, err) })
	ok(b, err)
	for _, c := range []struct {
		name string
		q    ledger.ReportQuery
	}{
		{"by model", ledger.ReportQuery{By: ledger.By{Model: true}, Cells: true}},
		{"by group and model", ledger.ReportQuery{By: ledger.By{Group: true, Model: true}, Cells: true}},
		{"by key", ledger.ReportQuery{By: ledger.By{Key: true}}},
		{"by key of 30 days", ledger.ReportQuery{By: ledger.By{Key: true}, From: now.AddDate(0, 0, -30)}},
		{"by key of a group", ledger.ReportQuery{By: ledger.By{Key: true}, Group: group}},
		{"of a key by model", ledger.ReportQuery{By: ledger.By{Model: true}, Key: key, Cells: true}},
	} {
		b.Run(c.name, func(b *testing.B) {
			c.q.Step, c.q.To = ledger.PerDay, now
			if c.q.From.IsZero() {
				c.q.From = now.AddDate(0, 0, 1-yearDays)
			}
			for b.Loop() {
				r, err := l.Report(now, c.q)
				ok(b, err)
				if r.Totals.Requests == 0 {
					b.Fatal("nothing was used")
				}
			}
		})
	}
	b.Run("keys in groups", func(b *testing.B) {
		for b.Loop() {
			counts, err := l.KeysIn(group)
			ok(b, err)
			if counts[group] != yearKeys/yearGroups {
				b.Fatal(counts)
			}
		}
	})
	ok(b, l.Close(now))
}
