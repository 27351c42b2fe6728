package storetest

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

func testSnapshot(t *testing.T, open Opener) {
	for name, test := range map[string]func(*testing.T, *store){
		"Empty":      snapshotsOfNothing,
		"Whole":      snapshotsAreWhole,
		"Unchanged":  snapshotsStayAsTheyAre,
		"Errors":     snapshotsReturnErrors,
		"Closed":     snapshotsAreClosed,
		"WhileInUse": snapshotsAreTakenWhileInUse,
	} {
		t.Run(name, func(t *testing.T) { test(t, start(t, open)) })
	}
}

// content is what a snapshot holds.
type content struct {
	Through  uint64
	Accounts []quota.AccountCounters
	Open     []uint64
	Tail     []quota.Record // after Through
	Usage    model
}

func contentOf(t testing.TB, sn quota.Snapshot) (c content) {
	t.Helper()
	c.Through, c.Usage = sn.Through(), model{}
	ok(t, sn.Accounts(func(a *quota.AccountCounters) error { c.Accounts = append(c.Accounts, *a); return nil }))
	slices.SortFunc(c.Accounts, func(a, b quota.AccountCounters) int { return cmp.Compare(a.ID, b.ID) })
	ok(t, sn.Open(func(r *quota.Record) error { c.Open = append(c.Open, r.ID); return nil }))
	slices.Sort(c.Open)
	var before uint64
	ok(t, sn.Tail(func(r *quota.Record) error {
		if r.Seq <= before {
			t.Errorf("record %d after record %d", r.Seq, before)
		}
		if before = r.Seq; r.Seq > c.Through {
			c.Tail = append(c.Tail, clone(r))
		}
		return nil
	}))
	for _, step := range quota.Steps {
		q := quota.RowQuery{Step: step, From: -1 << 40, To: 1 << 40, ByKey: true}
		ok(t, sn.Usage(q, func(r *quota.Row) error { c.Usage.add(*r); return nil }))
	}
	return c
}

func (s *store) snapshot() quota.Snapshot {
	s.t.Helper()
	sn, err := s.Snapshot()
	ok(s.t, err)
	s.t.Cleanup(func() { ok(s.t, sn.Close()) })
	return sn
}

func snapshotsOfNothing(t *testing.T, s *store) {
	sn := s.snapshot()
	same(t, "content", content{Usage: model{}}, contentOf(t, sn))
	ok(t, sn.Close())
}

// some puts something of everything into a store, in two checkpoints and a
// tail.
func (s *store) some() (want content) {
	s.t.Helper()
	want.Usage = model{}
	for i := range 2 {
		open := quota.Record{Kind: quota.RecordOpen, Key: 2, Reserved: 5, Shares: []quota.Share{{Account: 2}}}
		s.Append(&open)
		r := record(uint64(i))
		s.Append(&r)
		_, through := s.cut()
		row := quota.Row{Slot: quota.Slot{Step: quota.Steps[i], Start: 3600, Key: 2, Model: "m"}, Totals: quota.Totals{Requests: int64(i) + 1}}
		a := quota.AccountCounters{ID: quota.ID(i+1) << 1, Counters: quota.Counters{Seq: through, QuotaUsed: int64(i) * 7}}
		ok(s.t, s.Checkpoint(&quota.Checkpoint{
			Through: through, Rows: []quota.Row{row}, Accounts: []quota.AccountCounters{a}, Opened: []quota.Record{open}, Trim: true,
		}))
		want.Through = through
		want.Usage.add(row)
		want.Accounts = append(want.Accounts, a)
		want.Open = append(want.Open, open.ID)
	}
	for i := range 3 {
		r := record(uint64(10 + i))
		s.Append(&r)
		want.Tail = append(want.Tail, r)
	}
	ok(s.t, s.Flush(want.Tail[2].Seq))
	return want
}

func snapshotsAreWhole(t *testing.T, s *store) {
	want := s.some()
	sn := s.snapshot()
	same(t, "content", want, contentOf(t, sn))
	same(t, "content, once more", want, contentOf(t, sn))
	ok(t, sn.Close())
	s = s.again()
	sn = s.snapshot()
	same(t, "content after a restart", want, contentOf(t, sn))
	ok(t, sn.Close())
}

func snapshotsStayAsTheyAre(t *testing.T, s *store) {
	want := s.some()
	sn, other := s.snapshot(), s.snapshot()
	for range 3 {
		r := record(99)
		s.Append(&r)
		_, through := s.cut()
		ok(t, s.Checkpoint(&quota.Checkpoint{
			Through: through, Resolved: want.Open, Trim: true,
			Rows:     []quota.Row{{Slot: quota.Slot{Start: 3600, Key: 2, Model: "m"}, Totals: quota.Totals{Requests: 100}}},
			Accounts: []quota.AccountCounters{{ID: 2, Counters: quota.Counters{Seq: through, QuotaUsed: 1000}}, {ID: 44}},
		}))
	}
	ok(t, s.Prune([len(quota.Steps)]int64{1 << 40, 1 << 40, 1 << 40}))
	same(t, "content", want, contentOf(t, sn))
	ok(t, sn.Close())
	same(t, "content of another", want, contentOf(t, other))
	ok(t, other.Close())
	later := contentOf(t, s.snapshot())
	if later.Through <= want.Through || len(later.Open) > 0 {
		t.Errorf("a later one: %+v", later)
	}
}

func snapshotsReturnErrors(t *testing.T, s *store) {
	s.some()
	sn := s.snapshot()
	mine := errors.New("mine")
	for what, err := range map[string]error{
		"Accounts": sn.Accounts(func(*quota.AccountCounters) error { return mine }),
		"Open":     sn.Open(func(*quota.Record) error { return mine }),
		"Tail":     sn.Tail(func(*quota.Record) error { return mine }),
		"Usage":    sn.Usage(quota.RowQuery{To: 1 << 40}, func(*quota.Row) error { return mine }),
	} {
		if !errors.Is(err, mine) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := sn.WriteTo(fails{mine}); !errors.Is(err, mine) {
		t.Errorf("WriteTo: %v", err)
	}
}

type fails struct{ err error }

func (f fails) Write([]byte) (int, error) { return 0, f.err }

func snapshotsAreClosed(t *testing.T, s *store) {
	s.some()
	sn := s.snapshot()
	ok(t, sn.Close())
	ok(t, sn.Close())
	ok(t, s.Close())
	_, err := s.Snapshot()
	is(t, err, quota.ErrClosed)
	is(t, s.Guard(epoch), quota.ErrClosed)
	if s.SnapshotDue(epoch) {
		t.Error("one is due of a closed store")
	}
}

// snapshotsAreTakenWhileInUse takes snapshots between checkpoints, while calls
// are made: every record that was flushed before is in one, once.
func snapshotsAreTakenWhileInUse(t *testing.T, s *store) {
	var writers sync.WaitGroup
	for range 4 {
		writers.Go(func() {
			for range 400 {
				r := record(5)
				if err := s.Flush(s.Append(&r)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	var counted uint64
	for last := false; !last; {
		select {
		case <-done:
			last = true
		default:
		}
		_, through := s.cut()
		ok(t, s.Checkpoint(&quota.Checkpoint{
			Through: through, Trim: true,
			Rows: []quota.Row{{Slot: quota.Slot{Key: 2}, Totals: quota.Totals{Requests: int64(through - counted)}}},
		}))
		counted = through
		before := s.Append(&quota.Record{Kind: quota.RecordRefuse})
		ok(t, s.Flush(before))
		sn := s.snapshot()
		c := contentOf(t, sn)
		ok(t, sn.Close())
		next := c.Through
		for _, r := range c.Tail {
			if next++; r.Seq != next {
				t.Fatalf("record %d after record %d", r.Seq, next-1)
			}
		}
		if next < before {
			t.Fatalf("the last record is %d, %d was flushed", next, before)
		}
		var requests int64
		for _, sum := range c.Usage {
			requests += sum.Requests
		}
		same(t, "requests", int64(c.Through), requests)
	}
}
