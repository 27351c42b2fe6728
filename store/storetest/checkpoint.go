package storetest

import (
	"math"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

func testCheckpoint(t *testing.T, open Opener) {
	for name, test := range map[string]func(*testing.T, *store){
		"Counters":     countersAreKept,
		"Reservations": openReservationsAreKept,
		"Provisional":  provisionalChargesAreKept,
		"Once":         usageIsCountedOnce,
		"Repeated":     repeatedCheckpointsCountOnce,
		"Bounds":       checkpointsAreBounded,
		"Most":         theMostRowsFit,
	} {
		t.Run(name, func(t *testing.T) { test(t, start(t, open)) })
	}
}

func countersAreKept(t *testing.T, s *store) {
	var g ids
	most := quota.Counters{
		Seq: math.MaxUint64, QuotaNumber: math.MaxUint32, QuotaPeriod: quota.Period{Start: math.MinInt64, End: math.MaxInt64},
		QuotaUsed: math.MaxInt64, QuotaGranted: math.MinInt64, DayNumber: math.MaxUint32, DayPeriod: quota.Period{Start: -1, End: 1},
		DayRequests: math.MaxInt64, DayTokens: math.MinInt64, MinuteNumber: math.MaxUint32,
		RequestsBucket: math.MaxInt64, TokensBucket: math.MinInt64, LastUsed: math.MinInt64,
		QuotaOffset: quota.OffsetUnknown, DayRequestsOffset: math.MaxInt64, DayTokensOffset: -1,
	}
	for i := range most.Requests {
		most.Requests[i], most.Tokens[i] = math.MaxUint32-uint32(i), math.MinInt64+int64(i)
	}
	most.Seq = 1 // a store may hold it against the journal
	r := record(1)
	ok(t, s.Flush(s.Append(&r)))
	accounts := []quota.AccountCounters{
		{ID: g.next(quota.KindKey), Counters: most},
		{ID: g.next(quota.KindGroup)},
		{ID: g.next(quota.KindKey), Counters: quota.Counters{QuotaUsed: 5}},
	}
	ok(t, s.Checkpoint(&quota.Checkpoint{Accounts: accounts}))
	accounts[2].QuotaUsed, accounts[2].DayTokens = 6, 7
	ok(t, s.Checkpoint(&quota.Checkpoint{Accounts: accounts[2:]}))
	for _, s := range []*store{s.crashed(), s.again()} {
		for _, a := range accounts {
			got := most // what was in it before must be gone
			ok(t, s.Counters(a.ID, &got))
			same(t, "counters", a.Counters, got)
		}
		same(t, "through", uint64(0), s.through)
	}
}

func provisionalChargesAreKept(t *testing.T, s *store) {
	later := func(key quota.ID, name string, opened int64) quota.Record {
		return quota.Record{
			Kind: quota.RecordSettle, Seq: 7, ID: 3, Key: key, Opened: opened, Reserved: 500,
			Shares:  []quota.Share{{Account: key, Quota: 2}},
			Outcome: quota.Outcome{Tokens: quota.Tokens{Input: 500}, Estimated: true, Later: name},
		}
	}
	first, other, old := later(2, "a", 1e18), later(4, "a", 1e18), later(2, "ab", 1e9)
	ok(t, s.Checkpoint(&quota.Checkpoint{Provisional: []quota.Record{first, other, old}}))
	ok(t, s.Checkpoint(&quota.Checkpoint{Corrected: []quota.Later{{Key: 4, Name: "a"}, {Key: 4, Name: "never"}}}))
	s = s.crashed()
	got, err := s.Provisional(quota.Later{Key: 2, Name: "a"})
	ok(t, err)
	same(t, "provisional record", first, *got)
	_, err = s.Provisional(quota.Later{Key: 2, Name: "ab"})
	ok(t, err)
	for _, gone := range []quota.Later{{Key: 4, Name: "a"}, {Key: 2}, {Key: 2, Name: "abc"}} {
		_, err := s.Provisional(gone)
		is(t, err, quota.ErrNotFound)
	}
	var before [len(quota.Steps)]int64
	before[quota.StepQuarter] = 2
	ok(t, s.Prune(before))
	_, err = s.Provisional(quota.Later{Key: 2, Name: "ab"})
	is(t, err, quota.ErrNotFound)
	_, err = s.Provisional(quota.Later{Key: 2, Name: "a"})
	ok(t, err)
}

func openReservationsAreKept(t *testing.T, s *store) {
	opened := extremes()[:2]
	for i := range opened {
		s.Append(&opened[i])
	}
	third := record(3)
	third.Kind, third.Outcome, third.ID = quota.RecordOpen, quota.Outcome{}, 0
	s.Append(&third)
	_, through := s.cut()
	ok(t, s.Checkpoint(&quota.Checkpoint{Through: through, Opened: append(opened, third), Trim: true}))
	s = s.again()
	same(t, "open reservations", append(opened, third), s.opened)
	same(t, "records", 0, len(s.replay))
	ok(t, s.Checkpoint(&quota.Checkpoint{Through: through, Resolved: []uint64{opened[0].ID, 99}}))
	ok(t, s.Checkpoint(&quota.Checkpoint{Through: through, Opened: opened[1:]})) // once more
	s = s.again()
	same(t, "open reservations", []quota.Record{opened[1], third}, s.opened)
	ok(t, s.Checkpoint(&quota.Checkpoint{Through: through, Resolved: []uint64{opened[1].ID, third.ID}}))
	same(t, "open reservations", 0, len(s.again().opened))
}

// total returns the sum of the requests in both families of rows.
func (s *store) total() (byKey, summed int64) {
	s.t.Helper()
	for _, q := range []struct {
		byKey bool
		sum   *int64
	}{{true, &byKey}, {false, &summed}} {
		ok(s.t, s.Usage(quota.RowQuery{Step: quota.StepMinute, From: 0, To: math.MaxInt64, ByKey: q.byKey},
			func(r *quota.Row) error { *q.sum += r.Requests; return nil }))
	}
	return byKey, summed
}

// roll makes the rows of the settlements in records.
func roll(records []quota.Record) (rows []quota.Row) {
	for _, r := range records {
		row := quota.Row{Slot: quota.Slot{Step: quota.StepMinute, Key: r.Key, Group: 7, Model: r.Model}}
		row.Requests = 1
		rows = append(rows, row)
	}
	return rows
}

// usageIsCountedOnce kills the process at each step between an append and the
// end of its checkpoint.
func usageIsCountedOnce(t *testing.T, s *store) {
	const rounds, each = 4, 25
	check := func(n int64) {
		t.Helper()
		c := s.crashed()
		var missing []quota.Record
		for _, r := range c.replay {
			if r.Seq > c.through {
				missing = append(missing, r)
			}
		}
		if len(missing) > 0 {
			ok(t, c.Checkpoint(&quota.Checkpoint{Through: missing[len(missing)-1].Seq, Rows: roll(missing), Trim: true}))
		}
		byKey, summed := c.total()
		same(t, "requests by key", n, byKey)
		same(t, "requests summed", n, summed)
	}
	for round := range int64(rounds) {
		n := (round + 1) * each
		var last uint64
		for i := range int64(each) {
			r := record(uint64(i%3) + 1)
			last = s.Append(&r)
		}
		ok(t, s.Flush(last))
		check(n)
		got, through := s.cut()
		check(n)
		half := got[:len(got)/2]
		ok(t, s.Checkpoint(&quota.Checkpoint{Through: half[len(half)-1].Seq, Rows: roll(half)}))
		check(n)
		ok(t, s.Checkpoint(&quota.Checkpoint{Through: through, Rows: roll(got[len(half):]), Trim: round%2 == 0}))
		check(n)
	}
}

func repeatedCheckpointsCountOnce(t *testing.T, s *store) {
	for n := range uint64(3) {
		r := record(n)
		s.Append(&r)
	}
	got, through := s.cut()
	cp := &quota.Checkpoint{Through: through, Rows: roll(got)}
	reached := func(want uint64) {
		t.Helper()
		n, err := s.Through()
		ok(t, err)
		same(t, "the last record in the tables", want, n)
	}
	reached(0)
	for range 3 { // as after an error that came too late
		ok(t, s.Checkpoint(cp))
		reached(through)
	}
	byKey, summed := s.total()
	same(t, "requests by key", int64(3), byKey)
	same(t, "requests summed", int64(3), summed)
}

func checkpointsAreBounded(t *testing.T, s *store) {
	is(t, s.Checkpoint(&quota.Checkpoint{Rows: make([]quota.Row, quota.MaxCheckpointRows+1)}), quota.ErrInvalid)
	ok(t, s.Checkpoint(&quota.Checkpoint{}))
}

func theMostRowsFit(t *testing.T, s *store) {
	r := record(1)
	s.Append(&r)
	_, through := s.cut()
	cp := &quota.Checkpoint{Through: through}
	for i := range quota.MaxCheckpointRows {
		row := quota.Row{Slot: quota.Slot{Step: quota.StepMinute, Start: int64(i) * 60, Key: quota.ID(i) << 30, Group: quota.ID(i)<<30 | 1,
			Model: "a-model-with-a-rather-long-name"}}
		row.Requests, row.Input, row.Output, row.Total = 1, 1e6, 1e6, 2e6
		cp.Rows = append(cp.Rows, row)
	}
	for i := range 1000 {
		a := quota.AccountCounters{ID: quota.ID(i) << 1, Counters: quota.Counters{Seq: 1, QuotaUsed: 1e9, LastUsed: math.MaxInt64}}
		cp.Accounts = append(cp.Accounts, a)
	}
	ok(t, s.Checkpoint(cp))
	byKey, summed := s.again().total()
	same(t, "requests by key", int64(quota.MaxCheckpointRows), byKey)
	same(t, "requests summed", int64(quota.MaxCheckpointRows), summed)
}
