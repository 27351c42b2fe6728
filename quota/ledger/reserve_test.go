package ledger

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// makeKey makes a key under as many groups, one above the other, all with
// every limit set to the same bound.
func makeKey(tb testing.TB, l *Ledger, now time.Time, groups int, limits quota.Limits, tokens int64) (*Account, []quota.ID) {
	tb.Helper()
	q := &quota.Quota{Tokens: quota.At(tokens), Reset: quota.ResetMonthly}
	var up quota.ID
	var ids []quota.ID
	for i := range groups {
		g, err := l.CreateGroup(now, NewGroup{Name: fmt.Sprint("group ", i), Parent: up, GroupRules: quota.GroupRules{Quota: q, Limits: limits}})
		if err != nil {
			tb.Fatal(err)
		}
		up = g.ID
		ids = append(ids, up)
	}
	made, err := l.CreateKeys(now, []NewKey{{Name: "key", Group: up, KeyRules: quota.KeyRules{Quota: q, Limits: limits}}})
	if err != nil {
		tb.Fatal(err)
	}
	a, err := l.Account(now, made[0].Key.ID)
	if err != nil {
		tb.Fatal(err)
	}
	return a, append(ids, a.ID())
}

// TestParallel has many calls race for a quota that holds a part of them: at
// no time is more settled and reserved than the limit, on key and group, and
// refusals leave nothing behind (G1, G3).
func TestParallel(t *testing.T) {
	now := time.Now()
	l := newLedger(t, now)
	const limit, held = 10_000, 90
	a, ids := makeKey(t, l, now, 2, quota.Limits{}, limit)
	var refused, spent atomic.Int64
	var wg sync.WaitGroup
	over := func() {
		for _, id := range ids {
			s, err := l.State(now, id)
			if err != nil {
				t.Error(err)
			}
			if q := s.Limits[0]; q.Used+q.Reserved > q.Max {
				t.Errorf("%v: %d used and %d reserved of %d", id, q.Used, q.Reserved, q.Max)
			}
		}
	}
	for i := range 1000 {
		wg.Go(func() {
			r := new(Reservation)
			ref, err := l.Reserve(now, a, Call{Model: "m", Input: 10, Output: held - 10}, r)
			if err != nil {
				t.Error(err)
			}
			if ref != nil {
				refused.Add(1)
				if ref.Limit != quota.TokenQuota {
					t.Errorf("refused by %v", ref)
				}
				return
			}
			if i%50 == 0 {
				over()
			}
			used := rand.Int64N(r.Held + 1)
			spent.Add(used)
			if err := l.Settle(now, r, quota.Outcome{Tokens: quota.Tokens{Input: used}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	over()
	for _, id := range ids {
		s, err := l.State(now, id)
		if err != nil {
			t.Fatal(err)
		}
		if q := s.Limits[0]; q.Used != spent.Load() || q.Reserved != 0 {
			t.Errorf("%v: used %d, reserved %d; %d was spent", id, q.Used, q.Reserved, spent.Load())
		}
	}
	t.Logf("%d admitted, %d refused, %d of %d spent", 1000-refused.Load(), refused.Load(), spent.Load(), limit)
}

// TestTreeTurnedRound moves groups above and below one another while calls go
// through them: nobody waits for ever.
func TestTreeTurnedRound(t *testing.T) {
	now := time.Now()
	l := newLedger(t, now)
	var groups []quota.ID
	var keys []*Account
	for i := range 2 {
		g, err := l.CreateGroup(now, NewGroup{Name: fmt.Sprint("group ", i)})
		if err != nil {
			t.Fatal(err)
		}
		groups = append(groups, g.ID)
		made, err := l.CreateKeys(now, []NewKey{{Name: fmt.Sprint("key ", i), Group: g.ID}})
		if err != nil {
			t.Fatal(err)
		}
		a, err := l.Account(now, made[0].Key.ID)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, a)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, a := range keys {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				r := new(Reservation)
				if ref, err := l.Reserve(now, a, Call{Input: 1}, r); ref != nil || err != nil {
					t.Error(ref, err)
				}
				if err := l.Settle(now, r, quota.Outcome{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 20 {
		below, above := groups[i%2], groups[(i+1)%2]
		for id, parent := range map[quota.ID]quota.ID{above: 0} {
			if _, err := l.UpdateGroup(now, id, func(g *quota.Group) error { g.Parent = parent; return nil }); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := l.UpdateGroup(now, below, func(g *quota.Group) error { g.Parent = above; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
}

// TestDurableBeforeReturn ends the process, as kill -9 would, at once after
// Reserve and Settle have returned: what they did is there (G5, G6).
func TestDurableBeforeReturn(t *testing.T) {
	now := time.Now()
	dir := t.TempDir()
	l := openLedger(t, dir, now)
	defer l.store.Close()
	a, ids := makeKey(t, l, now, 1, quota.Limits{}, 1_000_000)
	settled, open := new(Reservation), new(Reservation)
	for _, r := range []*Reservation{settled, open} {
		if ref, err := l.Reserve(now, a, Call{Model: "m", Input: 100, Output: 400}, r); ref != nil || err != nil {
			t.Fatal(ref, err)
		}
	}
	if err := l.Settle(now, settled, quota.Outcome{Tokens: quota.Tokens{Input: 7, Output: 5}}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second start charges nothing again
		dir = crashCopy(t, dir, t.TempDir())
		l := openLedger(t, dir, now)
		for _, id := range ids {
			s, err := l.State(now, id)
			if err != nil {
				t.Fatal(err)
			}
			if q := s.Limits[0]; q.Used != 512 || q.Reserved != 0 {
				t.Errorf("%v: used %d, reserved %d; want 512 and 0", id, q.Used, q.Reserved)
			}
		}
		var sum quota.Totals
		if err := l.Usage(now, quota.RowQuery{Step: quota.StepDay, To: now.Unix() + 1}, func(r *quota.Row) error {
			sum.Add(&r.Totals)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if sum.Total != 512 || sum.Estimated != 500 || sum.Requests != 2 || sum.Failed != 1 {
			t.Errorf("usage %+v", sum)
		}
		defer l.store.Close()
	}
}

// TestChangedScheduleReachesBack sets a quota on a key that has none: what it
// used since the period began counts, and calls under way do too.
func TestChangedScheduleReachesBack(t *testing.T) {
	start := time.Date(2026, 6, 17, 10, 0, 0, 0, time.UTC)
	l := newLedger(t, start)
	made, err := l.CreateKeys(start, []NewKey{{Name: "key"}})
	if err != nil {
		t.Fatal(err)
	}
	id := made[0].Key.ID
	a, err := l.Account(start, id)
	if err != nil {
		t.Fatal(err)
	}
	spend := func(now time.Time, n int64) {
		t.Helper()
		r := new(Reservation)
		if ref, err := l.Reserve(now, a, Call{Input: n}, r); ref != nil || err != nil {
			t.Fatal(ref, err)
		}
		if err := l.Settle(now, r, quota.Outcome{Tokens: quota.Tokens{Input: n}}); err != nil {
			t.Fatal(err)
		}
	}
	now := start.Add(23 * time.Hour)
	spend(start, 1000)
	spend(now, 10)
	open := new(Reservation)
	if ref, err := l.Reserve(now, a, Call{Input: 100}, open); ref != nil || err != nil {
		t.Fatal(ref, err)
	}
	for _, c := range []struct {
		q        *quota.Quota
		used     int64
		reserved int64
	}{
		{&quota.Quota{Tokens: quota.At(5000), Reset: quota.ResetMonthly}, 1010, 100},
		{&quota.Quota{Tokens: quota.At(5000), Reset: quota.ResetDaily}, 10, 100},
		{&quota.Quota{Tokens: quota.At(5000), Reset: quota.ResetDaily, At: "09:30"}, 1010, 100},
		{&quota.Quota{Tokens: quota.At(9000), Reset: quota.ResetMonthly, TimeZone: "Asia/Kathmandu"}, 1010, 100},
		{&quota.Quota{Tokens: quota.At(9000), Reset: quota.ResetManual}, 1010, 100},
	} {
		if _, err := l.UpdateKey(now, id, func(k *quota.Key) error { k.Quota = c.q; return nil }); err != nil {
			t.Fatal(err)
		}
		s, err := l.State(now, id)
		if err != nil {
			t.Fatal(err)
		}
		if q := s.Limits[0]; q.Used != c.used || q.Reserved != c.reserved {
			t.Errorf("%+v: used %d, reserved %d; want %d, %d", c.q, q.Used, q.Reserved, c.used, c.reserved)
		}
	}
	if err := l.Settle(now, open, quota.Outcome{Tokens: quota.Tokens{Input: 90}}); err != nil {
		t.Fatal(err)
	}
	if s, _ := l.State(now, id); s.Limits[0].Used != 1100 || s.Limits[0].Reserved != 0 {
		t.Errorf("after the call under way has ended: %+v", s.Limits[0])
	}
}

// noJournal is a store whose journal costs nothing, to measure the rest.
type noJournal struct {
	quota.Store
	seq uint64
}

func (n *noJournal) Append(r *quota.Record) uint64 { n.seq++; r.Seq = n.seq; return n.seq }
func (n *noJournal) Flush(uint64) error            { return nil }

// BenchmarkReserveSettle measures the admission and the settlement of one
// call: in memory alone, and with the journal of the real store.
func BenchmarkReserveSettle(b *testing.B) {
	wide := quota.Limits{
		RequestsPerMinute: quota.At(1 << 40), TokensPerMinute: quota.At(1 << 50),
		RequestsPerDay: quota.At(1 << 40), TokensPerDay: quota.At(1 << 50), ConcurrentRequests: quota.At(1 << 20),
	}
	for _, groups := range []int{0, 3} {
		for _, journal := range []bool{false, true} {
			b.Run(fmt.Sprintf("groups=%d/journal=%v", groups, journal), func(b *testing.B) {
				now := time.Now()
				l := openLedger(b, b.TempDir(), now)
				defer l.store.Close()
				a, _ := makeKey(b, l, now, groups, wide, quota.MaxAmount)
				if !journal {
					l.store = &noJournal{Store: l.store, seq: 1 << 32}
				}
				r := new(Reservation)
				b.ReportAllocs()
				for b.Loop() {
					if ref, err := l.Reserve(now, a, Call{Model: "gpt-4o", Input: 100, Output: 400}, r); ref != nil || err != nil {
						b.Fatal(ref, err)
					}
					if err := l.Settle(now, r, quota.Outcome{Tokens: quota.Tokens{Input: 100, Output: 50}}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
