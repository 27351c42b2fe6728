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

// load makes calls from several goroutines, some of which are open at any time.
type load struct {
	t                *testing.T
	ledger           *Ledger
	clock            func() time.Time
	wg               sync.WaitGroup
	ending           chan struct{}
	tokens, admitted atomic.Int64

	mu   sync.Mutex
	open []*Reservation // what stop has left
}

func newLoad(t *testing.T, l *Ledger, clock func() time.Time, keys ...*Account) *load {
	d := &load{t: t, ledger: l, clock: clock, ending: make(chan struct{})}
	for g := range 8 {
		d.wg.Go(func() { d.run(rand.New(rand.NewPCG(1, uint64(g))), keys[g%len(keys)]) })
	}
	return d
}

func (d *load) run(rng *rand.Rand, key *Account) {
	var open []*Reservation
	for {
		select {
		case <-d.ending:
			d.mu.Lock()
			d.open = append(d.open, open...)
			d.mu.Unlock()
			return
		default:
		}
		r := new(Reservation)
		if ref, err := d.ledger.Reserve(d.clock(), key, Call{Model: "m", Input: 10, Output: 30}, r); ref != nil || err != nil {
			d.t.Error(ref, err)
			return
		}
		d.admitted.Add(1)
		if open = append(open, r); len(open) > 4 {
			k := rng.IntN(len(open))
			d.settle(open[k], rng.Int64N(50), rng.IntN(8) == 0)
			open[k] = open[len(open)-1]
			open = open[:len(open)-1]
		}
	}
}

// settle ends a call, in two steps if that is so asked.
func (d *load) settle(r *Reservation, n int64, later bool) {
	o := quota.Outcome{Tokens: quota.Tokens{Input: n}}
	if later {
		o.Later = fmt.Sprint("answer ", r.record.ID)
	}
	if err := d.ledger.Settle(d.clock(), r, o); err != nil {
		d.t.Error(err)
	}
	if later {
		if ok, err := d.ledger.Correct(d.clock(), r.accounts[0], o); !ok || err != nil {
			d.t.Error(ok, err)
		}
	}
	d.tokens.Add(n)
}

// stop ends the load with calls still open, which finish settles.
func (d *load) stop() {
	close(d.ending)
	d.wg.Wait()
}

func (d *load) finish() {
	for _, r := range d.open {
		d.settle(r, 20, false)
	}
}

// counts fails the test unless an account's quota and day have counted so much.
func counts(t *testing.T, l *Ledger, now time.Time, id quota.ID, tokens, requests int64) {
	t.Helper()
	s, err := l.State(now, id)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range s.Limits {
		want := tokens
		switch v.Limit {
		case quota.RequestsPerDay:
			want = requests
		case quota.TokenQuota, quota.TokensPerDay:
		default:
			continue
		}
		if v.Used != want || v.Reserved != 0 {
			t.Errorf("%v: %s is %d and %d reserved, want %d", id, v.Limit, v.Used, v.Reserved, want)
		}
	}
}

// crashed opens what a kill would leave of a ledger.
func crashed(t *testing.T, dir string, now time.Time) *Ledger {
	t.Helper()
	l := openLedger(t, crashCopy(t, dir, t.TempDir()), now)
	t.Cleanup(func() { l.store.Close() })
	return l
}

var perDay = quota.Limits{RequestsPerDay: quota.At(1 << 40), TokensPerDay: quota.At(1 << 50)}

// TestAlignUnderLoad changes schedules and zones again and again while calls go
// on: each is counted once, on the key and on the group, and the books agree
// at every moment.
func TestAlignUnderLoad(t *testing.T) {
	noon := time.Date(2026, 5, 20, 12, 0, 0, 0, time.UTC) // within one day of every zone below
	dir := t.TempDir()
	l := openLedger(t, dir, noon)
	defer func() { l.store.Close() }()
	key, ids := makeKey(t, l, noon, 2, perDay, 1<<50)
	other, err := l.CreateKeys(noon, []NewKey{{Name: "other", Group: ids[1]}})
	if err != nil {
		t.Fatal(err)
	}
	second, err := l.Account(noon, other[0].Key.ID)
	if err != nil {
		t.Fatal(err)
	}
	d := newLoad(t, l, func() time.Time { return noon }, key, second)
	zones := []string{"UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"}
	resets := []quota.Reset{quota.ResetDaily, quota.ResetMonthly, quota.ResetManual, quota.ResetWeekly}
	for i := range 24 {
		q := &quota.Quota{Tokens: quota.At(1 << 50), Reset: resets[i%4], TimeZone: zones[i%3]}
		switch i % 3 {
		case 0:
			_, err = l.UpdateKey(noon, key.id, func(k *quota.Key) error { k.Quota = q; return nil })
		case 1:
			_, err = l.UpdateGroup(noon, ids[i%2], func(g *quota.Group) error { g.Quota = q; return nil })
		default:
			err = l.Configure(noon, &Config{Zone: zones[i%4]})
		}
		if err != nil {
			t.Fatal(err)
		}
		if i%4 == 0 {
			balanced(t, l, noon)
		}
	}
	d.stop()
	balanced(t, crashed(t, dir, noon), noon)
	d.finish()
	for _, id := range ids[:2] {
		counts(t, l, noon, id, d.tokens.Load(), d.admitted.Load())
	}
	balanced(t, l, noon)
	balanced(t, crashed(t, dir, noon), noon)
}

// TestVerifyUnderLoad verifies while calls go on over the end of a day and of a
// month, of which clocks tell differently, and while limits are reset, and keys
// and groups moved.
func TestVerifyUnderLoad(t *testing.T) {
	start := time.Date(2026, 5, 31, 23, 59, 58, 0, time.UTC)
	dir := t.TempDir()
	l := openLedger(t, dir, start)
	defer func() { l.store.Close() }()
	key, ids := makeKey(t, l, start, 2, perDay, 1<<50)
	var ticks atomic.Int64
	clock := func() time.Time { // a millisecond later for each call, and never quite the same for all
		n := ticks.Add(1)
		return start.Add(time.Duration(n-n%7*50) * time.Millisecond)
	}
	d := newLoad(t, l, clock, key)
	for i := range 16 {
		var err error
		switch now := clock(); i % 4 {
		case 0:
			err = l.Reset(now, ids[i/4%3], []quota.LimitName{quota.TokenQuota, quota.TokensPerDay, quota.RequestsPerDay})
		case 1:
			_, err = l.CarryKey(now, key.id, func(k *quota.Key) error { k.Group = ids[i/4%2]; return nil })
		case 2:
			_, err = l.UpdateGroup(now, ids[1], func(g *quota.Group) error { g.Parent = ids[0] * quota.ID(i/4%2); return nil })
		}
		if err != nil {
			t.Fatal(err)
		}
		balanced(t, l, clock())
	}
	for clock().Before(start.Add(3 * time.Second)) { // the day has ended for all
	}
	d.stop()
	balanced(t, crashed(t, dir, clock()), clock())
	d.finish()
	balanced(t, l, clock())
}

// TestResetInFlight resets while calls are under way: they settle into the
// history, not into the fresh period, and the books agree, also after a crash.
func TestResetInFlight(t *testing.T) {
	now := time.Date(2026, 5, 20, 12, 0, 0, 0, time.UTC)
	dir := t.TempDir()
	l := openLedger(t, dir, now)
	defer func() { l.store.Close() }()
	key, ids := makeKey(t, l, now, 1, perDay, 1_000_000)
	spendN := func(r *Reservation, n int64) {
		t.Helper()
		if err := l.Settle(now, r, quota.Outcome{Tokens: quota.Tokens{Input: n}}); err != nil {
			t.Fatal(err)
		}
	}
	spendN(reserve(t, l, now, key, 10), 100)
	before := reserve(t, l, now, key, 10)
	lost := reserve(t, l, now, key, 40) // open at the crash
	for _, id := range ids {
		if err := l.Reset(now, id, []quota.LimitName{quota.TokenQuota, quota.TokensPerDay, quota.RequestsPerDay}); err != nil {
			t.Fatal(err)
		}
	}
	balanced(t, l, now)
	spendN(before, 30)
	balanced(t, l, now)
	spendN(reserve(t, l, now, key, 10), 7)
	for _, id := range ids {
		counts(t, l, now, id, 7, 1)
	}
	balanced(t, l, now)
	after := crashed(t, dir, now)
	for _, id := range ids {
		counts(t, after, now, id, 7, 1)
		sum, err := after.UsedSince(now, id, 0)
		if err != nil || sum.Total != 100+30+7+40 || sum.Requests != 4 {
			t.Errorf("%v: the history has %+v, %v", id, sum, err)
		}
	}
	balanced(t, after, now)
	if err := l.Void(now, lost); err != nil {
		t.Fatal(err)
	}
	// A change of the schedule forgets none of it: what was reset stays so.
	if err := l.Configure(now, &Config{Zone: "Asia/Tokyo"}); err != nil {
		t.Fatal(err)
	}
	if s := used(t, l, now, key.id); s.Used != 7 {
		t.Errorf("after a change of the zone %d are used, want 7", s.Used)
	}
	balanced(t, l, now)
}

// TestTreeChangedInPeriod puts a group under another parent in the middle of a
// period: each parent keeps what was charged to it, whoever stands below it
// when it is asked.
func TestTreeChangedInPeriod(t *testing.T) {
	now := time.Date(2026, 5, 20, 12, 0, 0, 0, time.UTC)
	dir := t.TempDir()
	l := openLedger(t, dir, now)
	defer func() { l.store.Close() }()
	q := &quota.Quota{Tokens: quota.At(1_000_000), Reset: quota.ResetMonthly}
	group := func(name string, parent quota.ID) quota.ID {
		g, err := l.CreateGroup(now, NewGroup{Name: name, Parent: parent, GroupRules: quota.GroupRules{Quota: q, Limits: perDay}})
		if err != nil {
			t.Fatal(err)
		}
		return g.ID
	}
	first, second := group("first", 0), group("second", 0)
	team := group("team", first)
	made, err := l.CreateKeys(now, []NewKey{{Name: "key", Group: team}})
	if err != nil {
		t.Fatal(err)
	}
	key, err := l.Account(now, made[0].Key.ID)
	if err != nil {
		t.Fatal(err)
	}
	call := func(n int64) {
		t.Helper()
		if err := l.Settle(now, reserve(t, l, now, key, 1), quota.Outcome{Tokens: quota.Tokens{Input: n}}); err != nil {
			t.Fatal(err)
		}
	}
	call(100)
	if _, err := l.UpdateGroup(now, team, func(g *quota.Group) error { g.Parent = second; return nil }); err != nil {
		t.Fatal(err)
	}
	call(10)
	check := func(l *Ledger) {
		t.Helper()
		counts(t, l, now, first, 100, 1)
		counts(t, l, now, second, 10, 1)
		counts(t, l, now, team, 110, 2)
		counts(t, l, now, key.id, 110, 2)
		balanced(t, l, now)
	}
	check(l)
	// Schedules that begin elsewhere are looked up in the history.
	for _, zone := range []string{"Asia/Kathmandu", "America/New_York"} {
		if err := l.Configure(now, &Config{Zone: zone}); err != nil {
			t.Fatal(err)
		}
		check(l)
	}
	check(crashed(t, dir, now))
}

// TestScheduleChangedAfterItsEnd changes a schedule when the period of the old
// one is over and nothing has begun another: what was used in the new one's
// period counts all the same.
func TestScheduleChangedAfterItsEnd(t *testing.T) {
	monday := time.Date(2026, 5, 18, 12, 0, 0, 0, time.UTC)
	dir := t.TempDir()
	l := openLedger(t, dir, monday)
	defer func() { l.store.Close() }()
	made, err := l.CreateKeys(monday, []NewKey{{Name: "key", KeyRules: quota.KeyRules{
		Quota: &quota.Quota{Tokens: quota.At(1000), Reset: quota.ResetDaily}, Limits: perDay,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	key, err := l.Account(monday, made[0].Key.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Settle(monday, reserve(t, l, monday, key, 1), quota.Outcome{Tokens: quota.Tokens{Input: 300}}); err != nil {
		t.Fatal(err)
	}
	friday := monday.AddDate(0, 0, 4)
	if _, err := l.UpdateKey(friday, key.id, func(k *quota.Key) error { k.Quota.Reset = quota.ResetMonthly; return nil }); err != nil {
		t.Fatal(err)
	}
	check := func(l *Ledger) {
		t.Helper()
		s, err := l.State(friday, key.id)
		if err != nil {
			t.Fatal(err)
		}
		if s.Limits[0].Used != 300 || s.Limits[1].Used != 0 || s.Limits[2].Used != 0 {
			t.Errorf("the limits are %+v, want 300 of the month and nothing of the day", s.Limits)
		}
		balanced(t, l, friday)
	}
	check(l)
	spend(t, l, friday, key)
	if s := used(t, l, friday, key.id); s.Used != 310 {
		t.Errorf("after another call %d are used, want 310", s.Used)
	}
	balanced(t, crashed(t, dir, friday), friday)
}

// TestVerifyAfterPruning passes over what the history does not reach back to,
// and nothing else.
func TestVerifyAfterPruning(t *testing.T) {
	now := time.Date(2026, 5, 1, 7, 0, 0, 0, time.UTC)
	l := newLedger(t, now)
	made, err := l.CreateKeys(now, []NewKey{{Name: "key", KeyRules: quota.KeyRules{
		Quota: &quota.Quota{Tokens: quota.At(1000), Reset: quota.ResetMonthly, At: "06:07"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	key, err := l.Account(now, made[0].Key.ID)
	if err != nil {
		t.Fatal(err)
	}
	spend(t, l, now, key)
	// Two counters of tokens and one of requests, two rows made of finer ones,
	// three sums.
	if n := balanced(t, l, now); n != 8 {
		t.Errorf("%d numbers were compared, want 8", n)
	}
	later := now.AddDate(0, 0, 20)
	if err := l.Tick(later); err != nil { // drops minutes
		t.Fatal(err)
	}
	// The key is older than what was dropped, and its period begins with
	// minutes. Of quarters, days and their sums all is left.
	if n := balanced(t, l, later); n != 2+1+2 {
		t.Errorf("after the minutes were dropped %d numbers were compared, want 5", n)
	}
}

// TestHalfSetting has the journal end between the two records that set another
// day: of the requests, which the first one sets, nothing can be said.
func TestHalfSetting(t *testing.T) {
	now := time.Date(2026, 5, 20, 12, 0, 0, 0, time.UTC)
	l := newLedger(t, now)
	key, _ := makeKey(t, l, now, 0, perDay, 1000)
	spend(t, l, now, key)
	if n := balanced(t, l, now); n != 8 {
		t.Errorf("%d numbers were compared, want 8", n)
	}
	tomorrow := quota.Period{Start: key.day.period.End, End: key.day.period.End + 86400}
	set := &quota.Record{Kind: quota.RecordSet, Account: key.id, Limit: quota.RequestsPerDay, Number: key.day.number, Period: tomorrow}
	if err := l.store.Flush(l.store.Append(set)); err != nil {
		t.Fatal(err)
	}
	snap, err := l.store.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Close()
	v := newVerifier(snap, [len(quota.Steps)]int64{})
	if err := v.run(); err != nil {
		t.Fatal(err)
	}
	if v.found.Checked != 7 || len(v.found.Differences) > 0 {
		t.Errorf("found %+v, want 7 numbers that agree", v.found)
	}
}
