package ledger

import (
	"errors"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/store/badger"
)

// errDead is what every step on the disk returns once the process has died.
var errDead = errors.New("the process has died")

// TestRecoveryCutShort kills the process after each step of a start that follows
// a crash, and starts again: what was settled after the last checkpoint is
// charged, and what was under way is charged once (G5, G6).
func TestRecoveryCutShort(t *testing.T) {
	now := time.Date(2026, 5, 20, 12, 0, 0, 0, time.UTC)
	died := 0
	for fuse := 0; ; fuse++ {
		dir := t.TempDir()
		l := openLedger(t, dir, now)
		a, ids := makeKey(t, l, now, 1, quota.Limits{}, 10_000)
		settled := reserve(t, l, now, a, 100)
		reserve(t, l, now, a, 30) // is under way
		if err := l.Checkpoint(now); err != nil {
			t.Fatal(err)
		}
		if err := l.Settle(now, settled, quota.Outcome{Tokens: quota.Tokens{Input: 70}}); err != nil {
			t.Fatal(err)
		}
		dir = crashCopy(t, dir, t.TempDir())
		l.store.Close()

		steps := fuse
		st, err := badger.Open(badger.Options{Dir: dir, SyncInterval: time.Second, Fault: func(badger.Step, string, bool) error {
			if steps--; steps < 0 {
				return errDead
			}
			return nil
		}})
		if err == nil {
			_, err = Open(st, now, func(string, error) {})
			st.Close()
		}
		if err != nil && !errors.Is(err, errDead) {
			t.Fatal(err)
		}
		alive := err == nil

		l = openLedger(t, dir, now)
		for _, id := range ids {
			if u := used(t, l, now, id); u.Used != 100 || u.Reserved != 0 {
				t.Errorf("%d steps of a start were done: then %v has used %d and reserved %d, want 100 and 0", fuse, id, u.Used, u.Reserved)
			}
		}
		sum, err := l.UsedSince(now, a.ID(), now.Unix()-3600)
		if err != nil {
			t.Fatal(err)
		}
		if sum.Total != 100 || sum.Requests != 2 || sum.Failed != 1 || sum.Estimated != 30 {
			t.Errorf("%d steps of a start were done: then the history is %+v, want 100 of 2 requests, one of them failed and estimated at 30", fuse, sum)
		}
		if err := l.Close(now); err != nil {
			t.Fatal(err)
		}
		if alive {
			break
		}
		died++
	}
	if died < 10 {
		t.Errorf("the process died at %d points of a start; there are more", died)
	}
}

// TestGrantBeforeFirstUse grants to a key that was never used, and ends the
// process: the grant is for that period alone.
func TestGrantBeforeFirstUse(t *testing.T) {
	now := time.Date(2026, 5, 20, 12, 0, 0, 0, time.UTC)
	dir := t.TempDir()
	l := openLedger(t, dir, now)
	defer l.store.Close()
	a, _ := makeKey(t, l, now, 0, quota.Limits{}, 100)
	if err := l.Grant(now, a.ID(), 50); err != nil {
		t.Fatal(err)
	}
	dir = crashCopy(t, dir, t.TempDir())
	for _, c := range []struct {
		at  time.Time
		max int64
	}{{now, 150}, {now.AddDate(0, 1, 0), 100}} {
		l := openLedger(t, crashCopy(t, dir, t.TempDir()), c.at)
		defer l.store.Close()
		if u := used(t, l, c.at, a.ID()); u.Max != c.max {
			t.Errorf("at %v the limit is %d, want %d", c.at, u.Max, c.max)
		}
	}
}

// TestEndedPeriodEnds changes the schedule of a quota whose period has ended
// since it was used: nothing of that period goes on in the new one.
func TestEndedPeriodEnds(t *testing.T) {
	monday := time.Date(2026, 5, 18, 12, 0, 0, 0, time.UTC)
	tuesday := monday.AddDate(0, 0, 1)
	dir := t.TempDir()
	l := openLedger(t, dir, monday)
	defer l.store.Close()
	made, err := l.CreateKeys(monday, []NewKey{{Name: "key", KeyRules: quota.KeyRules{Quota: &quota.Quota{Tokens: quota.At(100), Reset: quota.ResetDaily}}}})
	if err != nil {
		t.Fatal(err)
	}
	id := made[0].Key.ID
	a, err := l.Account(monday, id)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Settle(monday, reserve(t, l, monday, a, 60), quota.Outcome{Tokens: quota.Tokens{Input: 60}}); err != nil {
		t.Fatal(err)
	}
	if err := l.Grant(monday, id, 50); err != nil {
		t.Fatal(err)
	}
	if u := used(t, l, tuesday, id); u.Used != 0 || u.Max != 100 {
		t.Fatalf("on the next day %+v", u)
	}
	if _, err := l.UpdateKey(tuesday, id, func(k *quota.Key) error {
		k.Quota = &quota.Quota{Tokens: quota.At(100), Reset: quota.ResetManual}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // also after a crash
		if u := used(t, l, tuesday, id); u.Used != 0 || u.Max != 100 {
			t.Errorf("after the change: %+v; want nothing used of 100", u)
		}
		dir = crashCopy(t, dir, t.TempDir())
		l = openLedger(t, dir, tuesday)
		defer l.store.Close()
	}
}

// TestGrantOutlivesNoPeriod changes the schedule of a key that has a grant but
// was never used, and lets it be read again in the next period.
func TestGrantOutlivesNoPeriod(t *testing.T) {
	now := time.Date(2026, 12, 30, 12, 0, 0, 0, time.UTC)
	l := newLedger(t, now)
	weekly := quota.KeyRules{Quota: &quota.Quota{Tokens: quota.At(100), Reset: quota.ResetWeekly}}
	made, err := l.CreateKeys(now, []NewKey{{Name: "key", KeyRules: weekly}})
	if err != nil {
		t.Fatal(err)
	}
	id := made[0].Key.ID
	if err := l.Grant(now, id, 50); err != nil {
		t.Fatal(err)
	}
	if err := l.Checkpoint(now); err != nil {
		t.Fatal(err)
	}
	if _, err := l.UpdateKey(now, id, func(k *quota.Key) error {
		k.Quota = &quota.Quota{Tokens: quota.At(100), Reset: quota.ResetMonthly}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if u := used(t, l, now, id); u.Max != 150 {
		t.Errorf("the limit is %d in the period of the grant, want 150", u.Max)
	}
	now = time.Date(2027, 1, 2, 12, 0, 0, 0, time.UTC) // a new month in the old week
	if err := l.Checkpoint(now); err != nil {
		t.Fatal(err)
	}
	l.evict(now)
	if u := used(t, l, now, id); u.Max != 100 {
		t.Errorf("the limit is %d in the next period, want 100", u.Max)
	}
}

// TestSetBackOverAStart sets the clock back by a few seconds while the process
// is down, from one day to the one before: what was used in the new day counts.
func TestSetBackOverAStart(t *testing.T) {
	midnight := time.Date(2026, 5, 20, 0, 0, 0, 0, time.UTC)
	for name, checkpoint := range map[string]bool{"from the journal": false, "from the tables": true} {
		t.Run(name, func(t *testing.T) {
			dir, now := t.TempDir(), midnight.Add(5*time.Second)
			l := openLedger(t, dir, now)
			a, _ := makeKey(t, l, midnight.Add(-time.Hour), 0, quota.Limits{TokensPerDay: quota.At(100)}, 1000)
			for _, at := range []time.Time{midnight.Add(-time.Hour), now} {
				if err := l.Settle(at, reserve(t, l, at, a, 40), quota.Outcome{Tokens: quota.Tokens{Input: 40}}); err != nil {
					t.Fatal(err)
				}
			}
			if checkpoint {
				if err := l.Checkpoint(now); err != nil {
					t.Fatal(err)
				}
			}
			dir = crashCopy(t, dir, t.TempDir())
			l.store.Close()
			now = midnight.Add(-5 * time.Second)
			l = openLedger(t, dir, now)
			defer l.store.Close()
			for _, at := range []time.Time{now, midnight.Add(time.Minute)} {
				s, err := l.State(at, a.ID())
				if err != nil {
					t.Fatal(err)
				}
				if u := s.Limits[1]; u.Used < 40 || !u.ResetsAt.Equal(midnight.AddDate(0, 0, 1)) {
					t.Errorf("at %v: %+v; want 40 used of the new day", at, u)
				}
			}
		})
	}
}

// TestTornDay cuts the journal between the two records that say what was used in
// a day that was looked up.
func TestTornDay(t *testing.T) {
	now := time.Date(2026, 5, 20, 12, 0, 0, 0, time.UTC)
	dir, cut := t.TempDir(), ""
	l, h := openHook(t, dir, now)
	defer l.store.Close()
	limits := quota.Limits{TokensPerDay: quota.At(1000), RequestsPerDay: quota.At(10)}
	made, err := l.CreateKeys(now, []NewKey{{Name: "key", KeyRules: quota.KeyRules{Limits: limits}}})
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Account(now, made[0].Key.ID)
	if err != nil {
		t.Fatal(err)
	}
	// In Tokyo the day began at 15:00: it has the first call, and that of UTC both.
	for _, at := range []time.Time{now.Add(-11 * time.Hour), now.Add(4 * time.Hour)} {
		if err := l.Settle(at, reserve(t, l, at, a, 70), quota.Outcome{Tokens: quota.Tokens{Input: 70}}); err != nil {
			t.Fatal(err)
		}
		now = at
	}
	h.after = func(r *quota.Record) {
		if r.Kind == quota.RecordSet && cut == "" {
			if err := h.Store.Flush(r.Seq); err != nil {
				t.Error(err)
			}
			cut = crashCopy(t, dir, t.TempDir())
		}
	}
	if err := l.Configure(now, &Config{Zone: "Asia/Tokyo"}); err != nil {
		t.Fatal(err)
	}
	whole, err := l.State(now, a.ID())
	if err != nil {
		t.Fatal(err)
	}
	if cut == "" {
		t.Fatal("nothing was looked up")
	}
	torn, _ := openHook(t, cut, now)
	defer torn.store.Close()
	if err := torn.Configure(now, &Config{Zone: "Asia/Tokyo"}); err != nil {
		t.Fatal(err)
	}
	s, err := torn.State(now, a.ID())
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range whole.Limits {
		if s.Limits[i] != l {
			t.Errorf("after the crash %+v, want %+v", s.Limits[i], l)
		}
	}
	if u := whole.Limits[0]; u.Limit != quota.RequestsPerDay || u.Used != 1 {
		t.Errorf("%+v; want one request of the day in Tokyo", u)
	}
}

// TestResetCountsInALongerPeriod resets a daily quota by hand, uses it, and makes
// it a monthly one on a later day: what was used since the reset counts.
func TestResetCountsInALongerPeriod(t *testing.T) {
	monday := time.Date(2026, 5, 18, 12, 0, 0, 0, time.UTC)
	l := newLedger(t, monday)
	made, err := l.CreateKeys(monday, []NewKey{{Name: "key", KeyRules: quota.KeyRules{Quota: &quota.Quota{Tokens: quota.At(100), Reset: quota.ResetDaily}}}})
	if err != nil {
		t.Fatal(err)
	}
	id := made[0].Key.ID
	a, err := l.Account(monday, id)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int64{30, 60} {
		if err := l.Reset(monday, id, []quota.LimitName{quota.TokenQuota}); err != nil {
			t.Fatal(err)
		}
		if err := l.Settle(monday, reserve(t, l, monday, a, n), quota.Outcome{Tokens: quota.Tokens{Input: n}}); err != nil {
			t.Fatal(err)
		}
	}
	thursday := monday.AddDate(0, 0, 3)
	if _, err := l.UpdateKey(thursday, id, func(k *quota.Key) error {
		k.Quota = &quota.Quota{Tokens: quota.At(100), Reset: quota.ResetMonthly}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if u := used(t, l, thursday, id); u.Used != 60 {
		t.Errorf("%d used this month, want the 60 since the last reset", u.Used)
	}
}

// TestResetCountsOverAManualPeriod makes a daily quota that was reset by hand a
// manual one on the next day, and then a monthly one: what was used since the
// reset counts in the month, though the day of the reset was not in the manual
// period.
func TestResetCountsOverAManualPeriod(t *testing.T) {
	monday := time.Date(2026, 5, 18, 12, 0, 0, 0, time.UTC)
	l := newLedger(t, monday)
	made, err := l.CreateKeys(monday, []NewKey{{Name: "key", KeyRules: quota.KeyRules{Quota: &quota.Quota{Tokens: quota.At(1000), Reset: quota.ResetDaily}}}})
	if err != nil {
		t.Fatal(err)
	}
	id := made[0].Key.ID
	a, err := l.Account(monday, id)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Reset(monday, id, []quota.LimitName{quota.TokenQuota}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		at    time.Time
		n     int64
		reset quota.Reset
		want  int64
	}{
		{monday.Add(time.Hour), 50, quota.ResetDaily, 50},
		{monday.AddDate(0, 0, 1), 7, quota.ResetManual, 7},
		{monday.AddDate(0, 0, 2), 3, quota.ResetMonthly, 60},
	} {
		if err := l.Settle(c.at, reserve(t, l, c.at, a, c.n), quota.Outcome{Tokens: quota.Tokens{Input: c.n}}); err != nil {
			t.Fatal(err)
		}
		if _, err := l.UpdateKey(c.at, id, func(k *quota.Key) error { k.Quota.Reset = c.reset; return nil }); err != nil {
			t.Fatal(err)
		}
		if u := used(t, l, c.at, id); u.Used != c.want {
			t.Errorf("%d used once it is %s, want %d", u.Used, c.reset, c.want)
		}
	}
}

// TestManualBeforeFirstUse resets a monthly quota that was never used, makes it
// a manual one, uses it, and ends the process: the next month still counts it.
func TestManualBeforeFirstUse(t *testing.T) {
	now := time.Date(2026, 5, 20, 12, 0, 0, 0, time.UTC)
	dir := t.TempDir()
	l := openLedger(t, dir, now)
	defer l.store.Close()
	a, _ := makeKey(t, l, now, 0, quota.Limits{}, 100)
	if err := l.Reset(now, a.id, []quota.LimitName{quota.TokenQuota}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.UpdateKey(now, a.id, func(k *quota.Key) error { k.Quota.Reset = quota.ResetManual; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := l.Settle(now, reserve(t, l, now, a, 40), quota.Outcome{Tokens: quota.Tokens{Input: 40}}); err != nil {
		t.Fatal(err)
	}
	june := now.AddDate(0, 1, 0)
	l = openLedger(t, crashCopy(t, dir, t.TempDir()), june)
	defer l.store.Close()
	if u := used(t, l, june, a.id); u.Used != 40 {
		t.Errorf("%d used after the crash, want 40", u.Used)
	}
}

// TestManualAfterAnIdleDay takes the quota off a key, uses it, gives it a daily
// quota days later and then a manual one: on the day of the change nothing was
// used.
func TestManualAfterAnIdleDay(t *testing.T) {
	monday := time.Date(2026, 5, 18, 12, 0, 0, 0, time.UTC)
	l := newLedger(t, monday)
	made, err := l.CreateKeys(monday, []NewKey{{Name: "key", KeyRules: quota.KeyRules{Quota: &quota.Quota{Tokens: quota.At(1000), Reset: quota.ResetDaily}}}})
	if err != nil {
		t.Fatal(err)
	}
	id := made[0].Key.ID
	a, err := l.Account(monday, id)
	if err != nil {
		t.Fatal(err)
	}
	give := func(at time.Time, q *quota.Quota) {
		t.Helper()
		if _, err := l.UpdateKey(at, id, func(k *quota.Key) error { k.Quota = q; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	spend(t, l, monday, a)
	give(monday, nil)
	spend(t, l, monday.AddDate(0, 0, 2), a)
	friday := monday.AddDate(0, 0, 4)
	for _, reset := range []quota.Reset{quota.ResetDaily, quota.ResetManual} {
		give(friday, &quota.Quota{Tokens: quota.At(1000), Reset: reset})
		if u := used(t, l, friday, id); u.Used != 0 {
			t.Errorf("%d used on the day when it became %s, want nothing", u.Used, reset)
		}
	}
	balanced(t, l, friday)
}
