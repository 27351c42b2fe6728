package storetest

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

func testUsage(t *testing.T, open Opener) {
	t.Run("Random", func(t *testing.T) { usageAgreesWithModel(t, open) })
	for name, test := range map[string]func(*testing.T, *store){
		"Bounds":     queriesAreHalfOpen,
		"LongModels": longModelsAreKept,
		"Errors":     errorsOfTheCallerReturn,
		"Nested":     callbacksMayUseTheStore,
		"Pruned":     whatIsPrunedIsKnown,
	} {
		t.Run(name, func(t *testing.T) { test(t, start(t, open)) })
	}
}

// The few values of which slots are made, so that they meet.
var (
	starts = []int64{math.MinInt64, -86400, -60, 0, 60, 120, 900, 3600, 86400, 1 << 40}
	keys   = []quota.ID{0, 2, 4, 256, 1 << 40, math.MaxUint64 - 1, math.MaxUint64}
	groups = []quota.ID{0, 1, 3, math.MaxUint64}
	models = []string{"", "a", "ab", "b", "\xff", "\x00", "gpt-4o"}
)

// model is a naive store of usage.
type model map[quota.Slot]quota.Totals

func (m model) add(r quota.Row) {
	t := m[r.Slot]
	t.Add(&r.Totals)
	m[r.Slot] = t
}

func (m model) query(q quota.RowQuery) model {
	got := model{}
	for slot, t := range m {
		if slot.Step != q.Step || slot.Start < q.From || slot.Start >= q.To || slot.Account != q.Account ||
			(q.Account == 0 && q.Key != 0 && slot.Key != q.Key) {
			continue
		}
		if q.Key == 0 && !q.ByKey {
			slot.Key = 0
		}
		got.add(quota.Row{Slot: slot, Totals: t})
	}
	return got
}

func (m model) prune(before [len(quota.Steps)]int64) {
	for slot := range m {
		if slot.Start < before[slot.Step] {
			delete(m, slot)
		}
	}
}

// usageAgreesWithModel uses one store for all runs, since opening one takes
// longer than a run: each begins with dropping all rows.
func usageAgreesWithModel(t *testing.T, open Opener) {
	s := start(t, open)
	rapid.Check(t, func(rt *rapid.T) {
		want := model{}
		ok(rt, s.Prune([...]int64{math.MaxInt64, math.MaxInt64, math.MaxInt64}))
		for range rapid.IntRange(1, 6).Draw(rt, "changes") {
			switch rapid.IntRange(0, 9).Draw(rt, "change") {
			case 0:
				var before [len(quota.Steps)]int64
				for i := range before {
					before[i] = rapid.SampledFrom(starts).Draw(rt, "before")
				}
				want.prune(before)
				ok(rt, s.Prune(before))
			case 1:
				s = s.again()
			default:
				rows := rapid.SliceOfN(rapid.Custom(drawRow), 0, 30).Draw(rt, "rows")
				for _, r := range rows {
					want.add(r)
				}
				s.fill(rows...)
			}
			for range 3 {
				q := drawQuery(rt)
				same(rt, fmt.Sprintf("%+v", q), want.query(q), s.query(rt, q))
			}
		}
	})
}

// query returns what Usage yields.
func (s *store) query(t failer, q quota.RowQuery) model {
	got := model{}
	ok(t, s.Usage(q, func(r *quota.Row) error {
		if _, twice := got[r.Slot]; twice {
			t.Fatalf("row %+v comes twice", r.Slot)
		}
		got[r.Slot] = r.Totals
		r.Key, r.Start, r.Totals = 1, 2, quota.Totals{} // fn may do as it likes
		return nil
	}))
	return got
}

func drawQuery(t *rapid.T) quota.RowQuery {
	q := quota.RowQuery{
		Step:  rapid.SampledFrom(quota.Steps[:]).Draw(t, "step"),
		From:  rapid.SampledFrom(starts).Draw(t, "from"),
		To:    rapid.SampledFrom(append(starts, math.MaxInt64)).Draw(t, "to"),
		ByKey: rapid.Bool().Draw(t, "by key"),
	}
	if rapid.Bool().Draw(t, "of one key") {
		q.Key = rapid.SampledFrom(keys).Draw(t, "key")
	}
	if rapid.IntRange(0, 2).Draw(t, "as account") == 0 {
		q.Account = rapid.SampledFrom(groups).Draw(t, "account")
	}
	return q
}

func drawRow(t *rapid.T) quota.Row {
	number := rapid.Int64Range(-5, 1<<40)
	row := quota.Row{
		Slot: quota.Slot{
			Step: rapid.SampledFrom(quota.Steps[:]).Draw(t, "step"), Start: rapid.SampledFrom(starts).Draw(t, "start"),
			Key: rapid.SampledFrom(keys).Draw(t, "key"), Group: rapid.SampledFrom(groups).Draw(t, "group"),
			Model: rapid.SampledFrom(models).Draw(t, "model"),
		},
		Totals: quota.Totals{
			Requests: number.Draw(t, "requests"), Refused: number.Draw(t, "refused"), Failed: 3, Input: number.Draw(t, "input"),
			Cached: 5, CacheWrite: 6, Output: number.Draw(t, "output"), Reasoning: 8, Total: number.Draw(t, "total"), Estimated: 10,
		},
	}
	if rapid.IntRange(0, 2).Draw(t, "charged to a group") == 0 {
		row.Slot = quota.Slot{Step: row.Step, Start: row.Start, Account: rapid.SampledFrom(groups).Draw(t, "charged")}
	}
	return row
}

// fill writes rows through one checkpoint.
func (s *store) fill(rows ...quota.Row) {
	s.t.Helper()
	r := record(1)
	s.Append(&r)
	_, through := s.cut()
	ok(s.t, s.Checkpoint(&quota.Checkpoint{Through: through, Rows: rows, Trim: true}))
}

func queriesAreHalfOpen(t *testing.T, s *store) {
	var rows []quota.Row
	for i := range int64(5) {
		rows = append(rows, quota.Row{Slot: quota.Slot{Start: i * 60, Key: quota.ID(i%2 + 1)}, Totals: quota.Totals{Requests: 1 << i}})
	}
	s.fill(rows...)
	for _, c := range []struct {
		q    quota.RowQuery
		want int64
	}{
		{quota.RowQuery{From: 60, To: 180}, 2 + 4},
		{quota.RowQuery{From: 60, To: 180, ByKey: true}, 2 + 4},
		{quota.RowQuery{From: 60, To: 181, Key: 2}, 2 + 8},
		{quota.RowQuery{From: 60, To: 180, Key: 2}, 2},
		{quota.RowQuery{From: 60, To: 60}, 0},
		{quota.RowQuery{From: 180, To: 60, ByKey: true}, 0},
		{quota.RowQuery{From: 0, To: 999, Key: 3}, 0},
		{quota.RowQuery{From: 0, To: 999, Step: quota.StepDay}, 0},
	} {
		var sum int64
		ok(t, s.Usage(c.q, func(r *quota.Row) error { sum += r.Requests; return nil }))
		same(t, fmt.Sprintf("%+v", c.q), c.want, sum)
	}
}

func longModelsAreKept(t *testing.T, s *store) {
	var rows []quota.Row
	for i := range 3000 {
		rows = append(rows, quota.Row{
			Slot:   quota.Slot{Key: quota.ID(i), Model: strings.Repeat("m", 1000) + fmt.Sprintf("%05d", i)},
			Totals: quota.Totals{Requests: 1},
		})
	}
	s.fill(rows...)
	rows[0].Model = strings.Repeat("endless", 50000) // what is kept of it is the engine's choice
	s.fill(rows...)
	byKey, summed := s.again().total()
	same(t, "requests by key", int64(6000), byKey)
	same(t, "requests summed", int64(6000), summed)
}

func errorsOfTheCallerReturn(t *testing.T, s *store) {
	s.fill(quota.Row{Slot: quota.Slot{Key: 2}}, quota.Row{Slot: quota.Slot{Key: 4}})
	mine := errors.New("mine")
	for _, q := range []quota.RowQuery{{To: 1}, {To: 1, ByKey: true}, {To: 1, Key: 2}} {
		n := 0
		is(t, s.Usage(q, func(*quota.Row) error { n++; return mine }), mine)
		same(t, "calls", 1, n)
	}
}

func callbacksMayUseTheStore(t *testing.T, s *store) {
	var g ids
	key := g.key("name", 1)
	s.fill(quota.Row{Slot: quota.Slot{Key: key.ID}})
	ok(t, s.Usage(quota.RowQuery{To: 1}, func(*quota.Row) error {
		ok(t, s.Put([]*quota.Key{key}, nil))
		_, err := s.Key(key.ID)
		return err
	}))
	ok(t, s.Keys(0, func(k *quota.Key) bool {
		k.Disabled = true
		ok(t, s.Put([]*quota.Key{k}, nil))
		return true
	}))
}

func whatIsPrunedIsKnown(t *testing.T, s *store) {
	check := func(want [len(quota.Steps)]int64) {
		t.Helper()
		for _, s := range []*store{s, s.crashed()} {
			got, err := s.Pruned()
			ok(t, err)
			same(t, "pruned", want, got)
		}
	}
	check([...]int64{math.MinInt64, math.MinInt64, math.MinInt64})
	ok(t, s.Prune([...]int64{500, -5, 7}))
	check([...]int64{500, -5, 7})
	ok(t, s.Prune([...]int64{400, 0, 7})) // as after a retention that was made longer
	check([...]int64{500, 0, 7})
}
