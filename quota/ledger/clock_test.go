package ledger

import (
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// spend makes one call of 10 tokens at now, and tells whether it was admitted.
func spend(t *testing.T, l *Ledger, now time.Time, k *Account) bool {
	t.Helper()
	var r Reservation
	ref, err := l.Reserve(now, k, Call{Model: "m", Input: 10}, &r)
	if err != nil {
		t.Fatal(err)
	}
	if ref != nil {
		return false
	}
	if err := l.Settle(now, &r, quota.Outcome{Tokens: quota.Tokens{Input: 10}}); err != nil {
		t.Fatal(err)
	}
	return true
}

// dailyKey makes a key with 50 tokens a day, in a group with as much.
func dailyKey(t *testing.T, l *Ledger, now time.Time) *Account {
	t.Helper()
	q := &quota.Quota{Tokens: quota.At(50), Reset: quota.ResetDaily}
	g, err := l.CreateGroup(now, NewGroup{Name: "group", GroupRules: quota.GroupRules{Quota: q}})
	if err != nil {
		t.Fatal(err)
	}
	made, err := l.CreateKeys(now, []NewKey{{Name: "key", Group: g.ID, KeyRules: quota.KeyRules{Quota: q, Limits: quota.Limits{RequestsPerDay: quota.At(5)}}}})
	if err != nil {
		t.Fatal(err)
	}
	k, err := l.Account(now, made[0].Key.ID)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// A clock that goes forth over a reset and back again grants nothing, whatever
// the step, and blocks nobody beyond the end of the day; a restart in between
// changes nothing.
func TestClockSteps(t *testing.T) {
	noon := time.Date(2026, 5, 10, 12, 0, 0, 0, time.UTC)
	for _, step := range []time.Duration{
		time.Millisecond, time.Second, 59 * time.Minute, 2 * time.Hour, 13 * time.Hour, 36 * time.Hour, 400 * 24 * time.Hour,
	} {
		for _, restart := range []bool{false, true} {
			t.Run(step.String(), func(t *testing.T) {
				dir := t.TempDir()
				l := openLedger(t, dir, noon)
				defer func() { l.Close(noon) }()
				k := dailyKey(t, l, noon)
				id := k.ID()
				at := noon
				again := func() {
					if !restart {
						return
					}
					if err := l.Close(at); err != nil {
						t.Fatal(err)
					}
					l = openLedger(t, dir, at)
					var err error
					if k, err = l.Account(at, id); err != nil {
						t.Fatal(err)
					}
				}
				for range 3 {
					if !spend(t, l, at, k) {
						t.Fatal("refused before the quota is spent")
					}
				}
				at = noon.Add(step)
				forth := 0
				again()
				for spend(t, l, at, k) {
					forth++
				}
				at = noon.Add(time.Second)
				again()
				if turned := at.Add(step).Day() != noon.Day() || step > 24*time.Hour; turned != (forth == 5) || !turned && forth != 2 {
					t.Fatalf("%d calls were admitted after the step", forth)
				}
				if spend(t, l, at, k) {
					t.Error("after the clock was put right, a quota that is spent admits a call")
				}
				if s := used(t, l, at, id); s.Used < 50 || s.ResetsAt.After(noon.Add(24*time.Hour)) && step > time.Hour {
					t.Errorf("after the clock was put right, the quota is %+v", s)
				}
				at = time.Date(2026, 5, 11, 0, 0, 0, 0, time.UTC)
				again()
				n := 0
				for spend(t, l, at, k) {
					n++
				}
				if n != 5 {
					t.Errorf("on the next day %d calls are admitted, want 5", n)
				}
				at = at.Add(time.Hour)
				if spend(t, l, at, k) {
					t.Error("the next day's quota came twice")
				}
			})
		}
	}
}

// A small step back does not begin a period again.
func TestClockStandsStill(t *testing.T) {
	late := time.Date(2026, 5, 10, 23, 59, 59, 0, time.UTC)
	l := newLedger(t, late)
	k := dailyKey(t, l, late)
	spend(t, l, late, k)
	spend(t, l, late.Add(2*time.Second), k) // 00:00:01
	number := k.quota.number
	for i := range 10 {
		spend(t, l, late.Add(time.Duration(i)*time.Second/2), k)
	}
	if k.quota.number != number {
		t.Errorf("the period was begun %d times", k.quota.number-number)
	}
	if s := used(t, l, late, k.ID()); s.Used != 50 {
		t.Errorf("the quota is %+v, want 50 used", s)
	}
}

// A call that is lost sight of is charged what was held for it, once.
func TestSweep(t *testing.T) {
	now := time.Date(2026, 5, 10, 12, 0, 0, 0, time.UTC)
	l := newLedger(t, now)
	k, _ := makeKey(t, l, now, 1, quota.Limits{ConcurrentRequests: quota.At(2)}, 1000)
	lost := reserve(t, l, now, k, 10)
	kept := reserve(t, l, now.Add(time.Hour), k, 20)
	at := now.Add(maxOpen + time.Minute)
	if err := l.Tick(at); err != nil {
		t.Fatal(err)
	}
	if g := l.Gauges(); g.OpenReservations != 1 || g.ReservedTokens != 20 {
		t.Errorf("open are %+v, want one of 20 tokens", g)
	}
	for range 2 {
		if err := l.Settle(at, lost, quota.Outcome{Tokens: quota.Tokens{Input: 999}}); err != nil {
			t.Fatal(err)
		}
	}
	if lost.Charged.Tokens.Charge() != 10 || !lost.Charged.Estimated {
		t.Errorf("charged %+v", lost.Charged)
	}
	if err := l.Void(at, kept); err != nil {
		t.Fatal(err)
	}
	sum, err := l.UsedSince(at, k.ID(), now.Unix()-60)
	if err != nil || sum.Total != 10 || sum.Estimated != 10 || sum.Requests != 2 || sum.Failed != 2 {
		t.Errorf("history has %+v, %v", sum, err)
	}
}

// TestWindowsAfterSetBack sets the clock back a little while a key is out of
// memory, and loads it in every way: what it used counts for a minute, and no
// longer.
func TestWindowsAfterSetBack(t *testing.T) {
	start := time.Date(2026, 5, 20, 12, 0, 0, 0, time.UTC)
	limits := quota.Limits{RequestsPerMinute: quota.At(1)}
	for name, load := range map[string]func(l *Ledger, now time.Time, id quota.ID) error{
		"state": func(l *Ledger, now time.Time, id quota.ID) error { _, err := l.State(now, id); return err },
		"explain": func(l *Ledger, now time.Time, id quota.ID) error {
			_, err := l.Explain(now, id, Call{Model: "m", Input: 1})
			return err
		},
		"reset": func(l *Ledger, now time.Time, id quota.ID) error {
			return l.Reset(now, id, []quota.LimitName{quota.TokensPerMinute})
		},
		"grant": func(l *Ledger, now time.Time, id quota.ID) error { return l.Grant(now, id, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := openLedger(t, dir, start)
			made, err := l.CreateKeys(start, []NewKey{{Name: "other"}})
			if err != nil {
				t.Fatal(err)
			}
			other, err := l.Account(start, made[0].Key.ID)
			if err != nil {
				t.Fatal(err)
			}
			key, _ := makeKey(t, l, start, 1, limits, 1000)
			spend(t, l, start, key)
			spend(t, l, start, other)
			if err := l.Close(start); err != nil {
				t.Fatal(err)
			}
			now := start.Add(-20 * time.Minute)
			l = openLedger(t, dir, now)
			defer func() { l.store.Close() }()
			if _, err := l.Account(now, other.id); err != nil { // tells the ledger how late it was
				t.Fatal(err)
			}
			if err := load(l, now, key.id); err != nil {
				t.Fatal(err)
			}
			for _, c := range []struct {
				after time.Duration
				want  bool
			}{{30 * time.Second, false}, {70 * time.Second, true}} {
				at := now.Add(c.after)
				a, err := l.Account(at, key.id)
				if err != nil {
					t.Fatal(err)
				}
				if got := spend(t, l, at, a); got != c.want {
					t.Errorf("after %v a call is admitted: %v, want %v", c.after, got, c.want)
				}
			}
		})
	}
}
