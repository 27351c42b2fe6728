package ledger

import (
	"errors"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// While the store cannot be written, usage is told all the same: of what the
// tables hold, of a checkpoint that failed and of all since. Once the store
// works again, nothing has been counted twice.
func TestUsageWhileTheStoreFails(t *testing.T) {
	now := time.Date(2026, 5, 10, 12, 0, 30, 0, time.UTC)
	l := newAiling(t, now, OnStoreError{})
	defer func() { l.store.failing.Store(false); l.Close(now) }()
	g, err := l.CreateGroup(now, NewGroup{Name: "g"})
	if err != nil {
		t.Fatal(err)
	}
	made, err := l.CreateKeys(now, []NewKey{{Name: "in", Group: g.ID}, {Name: "out"}})
	if err != nil {
		t.Fatal(err)
	}
	calls := func() {
		t.Helper()
		for i := range made {
			a, err := l.Account(now, made[i].Key.ID)
			if err != nil {
				t.Fatal(err)
			}
			r := reserve(t, l.Ledger, now, a, 10)
			err = l.Settle(now, r, quota.Outcome{Tokens: quota.Tokens{Input: 10}})
			if err != nil && !errors.Is(err, errDisk) {
				t.Fatal(err)
			}
		}
	}
	check := func(when string, n int64) {
		t.Helper()
		for _, q := range []struct {
			ReportQuery
			keys int64
		}{
			{ReportQuery{}, 2}, {ReportQuery{By: By{Key: true}}, 2}, {ReportQuery{By: By{Group: true, Model: true}}, 2},
			{ReportQuery{Key: made[0].Key.ID}, 1}, {ReportQuery{Group: g.ID}, 1}, {ReportQuery{Model: "other"}, 0},
			{ReportQuery{Step: PerMinute, From: now.Add(-time.Hour), To: now.Add(-time.Minute)}, 0},
		} {
			if q.Step == "" {
				q.Step, q.From, q.To = PerDay, now, now.Add(time.Second)
			}
			r, err := l.Report(now, q.ReportQuery)
			if err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			if got := r.Totals; got.Requests != n*q.keys || got.Total != 10*n*q.keys {
				t.Errorf("%s: %+v: %+v, want %d calls", when, q, got, n*q.keys)
			}
			if q.By != (By{}) && len(r.Lines) != 2 {
				t.Errorf("%s: lines %+v", when, r.Lines)
			}
		}
		for _, id := range []quota.ID{made[1].Key.ID, g.ID} {
			if got, err := l.UsedSince(now, id, now.Add(-time.Hour).Unix()); err != nil || got.Total != 10*n {
				t.Errorf("%s: %s used %+v, %v", when, id, got, err)
			}
		}
	}
	calls()
	check("well", 1)
	calls()
	l.store.failing.Store(true)
	calls()
	check("failing", 3)
	calls()
	check("failing still", 4)
	l.store.failing.Store(false)
	check("well again", 4)
}

// A checkpoint that failed in the tables alone waits, and is counted.
func TestUsageWhileTheTablesFail(t *testing.T) {
	now := time.Date(2026, 5, 10, 12, 0, 30, 0, time.UTC)
	l := newAiling(t, now, OnStoreError{})
	defer func() { l.store.tables.Store(false); l.Close(now) }()
	k := l.key(t, now, nil, quota.Limits{})
	for n := range int64(3) {
		settle := reserve(t, l.Ledger, now, k, 10)
		if err := l.Settle(now, settle, quota.Outcome{Tokens: quota.Tokens{Input: 10}}); err != nil {
			t.Fatal(err)
		}
		l.store.tables.Store(true)
		got, err := l.UsedSince(now, k.ID(), 0)
		if l.store.tables.Store(n == 1); err != nil || got.Total != 10*(n+1) {
			t.Errorf("after %d calls %+v, %v", n+1, got, err)
		}
	}
}
