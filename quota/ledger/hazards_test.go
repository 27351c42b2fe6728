package ledger

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/store/badger"
)

// hookStore is the real store with failures, and a hook after each Append.
type hookStore struct {
	quota.Store
	failCP atomic.Bool
	after  func(r *quota.Record)
}

func (h *hookStore) Checkpoint(cp *quota.Checkpoint) error {
	if h.failCP.Load() {
		return errors.New("disk full")
	}
	return h.Store.Checkpoint(cp)
}

func (h *hookStore) Append(r *quota.Record) uint64 {
	seq := h.Store.Append(r)
	if h.after != nil {
		h.after(r)
	}
	return seq
}

func openHook(t *testing.T, dir string, now time.Time) (*Ledger, *hookStore) {
	st, err := badger.Open(badger.Options{Dir: dir, SyncInterval: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	h := &hookStore{Store: st}
	l, err := Open(h, now, func(op string, err error) { t.Logf("report %s: %v", op, err) })
	if err != nil {
		t.Fatal(err)
	}
	return l, h
}

// within fails the test if fn does not return in time.
func within(t *testing.T, d time.Duration, what string, fn func()) {
	done := make(chan struct{})
	go func() { fn(); close(done) }()
	select {
	case <-done:
	case <-time.After(d):
		t.Fatalf("DEADLOCK: %s", what)
	}
}

func reserve(t *testing.T, l *Ledger, now time.Time, a *Account, in int64) *Reservation {
	r := new(Reservation)
	ref, err := l.Reserve(now, a, Call{Model: "m", Input: in}, r)
	if err != nil || ref != nil {
		t.Fatal(ref, err)
	}
	return r
}

func used(t *testing.T, l *Ledger, now time.Time, id quota.ID) LimitState {
	s, err := l.State(now, id)
	if err != nil {
		t.Fatal(err)
	}
	return s.Limits[0]
}

// TestLaterDeadlock settles background calls while others are corrected: nobody waits
// for ever.
func TestLaterDeadlock(t *testing.T) {
	now := time.Now()
	l, _ := openHook(t, t.TempDir(), now)
	a, _ := makeKey(t, l, now, 1, quota.Limits{}, 1<<40)
	within(t, 20*time.Second, "Settle(Later) against Correct", func() {
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := range 2000 {
					name := fmt.Sprint(g, "-", i)
					r := reserve(t, l, now, a, 5)
					l.Settle(now, r, quota.Outcome{Later: name})
					l.Correct(now, a, quota.Outcome{Later: name, Tokens: quota.Tokens{Input: 3}})
				}
			})
		}
		wg.Wait()
	})
}

// TestCorrectSelfDeadlock corrects a call of a group that is not in memory and whose
// periods must be aligned, which makes a checkpoint.
func TestCorrectSelfDeadlock(t *testing.T) {
	now := time.Date(2026, 5, 20, 12, 0, 0, 0, time.UTC)
	dir := t.TempDir()
	l, _ := openHook(t, dir, now)
	if err := l.Configure(now, &Config{Zone: "UTC"}); err != nil {
		t.Fatal(err)
	}
	g, _ := l.CreateGroup(now, NewGroup{Name: "g", GroupRules: quota.GroupRules{Quota: &quota.Quota{Tokens: quota.At(1000), Reset: quota.ResetMonthly}}})
	made, err := l.CreateKeys(now, []NewKey{{Name: "k", Group: g.ID}})
	if err != nil {
		t.Fatal(err)
	}
	a, _ := l.Account(now, made[0].Key.ID)
	r := reserve(t, l, now, a, 5)
	l.Settle(now, r, quota.Outcome{Later: "resp_1"})
	l.UpdateKey(now, a.id, func(k *quota.Key) error { k.Group = 0; return nil })
	if err := l.Close(now); err != nil {
		t.Fatal(err)
	}
	l, _ = openHook(t, dir, now)
	l.Configure(now, &Config{Zone: "Asia/Tokyo"})
	a, _ = l.Account(now, a.id)
	l.Policy(now, a)
	within(t, 5*time.Second, "Correct loads a group whose periods must be aligned", func() {
		ok, err := l.Correct(now, a, quota.Outcome{Later: "resp_1", Tokens: quota.Tokens{Input: 3}})
		t.Log(ok, err)
	})
}

// TestAlignTwice has many calls meet a changed schedule at once: what was used is
// looked up and applied once.
func TestAlignTwice(t *testing.T) {
	day1 := time.Date(2026, 5, 10, 12, 0, 0, 0, time.UTC)
	l, _ := openHook(t, t.TempDir(), day1)
	g, err := l.CreateGroup(day1, NewGroup{Name: "g", GroupRules: quota.GroupRules{Member: quota.Member{Quota: &quota.Quota{Tokens: quota.At(10000), Reset: quota.ResetMonthly}}}})
	if err != nil {
		t.Fatal(err)
	}
	made, _ := l.CreateKeys(day1, []NewKey{{Name: "k", Group: g.ID}})
	a, _ := l.Account(day1, made[0].Key.ID)
	r := reserve(t, l, day1, a, 1000)
	l.Settle(day1, r, quota.Outcome{Tokens: quota.Tokens{Input: 1000}})
	day2 := day1.Add(48 * time.Hour)
	r = reserve(t, l, day2, a, 20)
	l.Settle(day2, r, quota.Outcome{Tokens: quota.Tokens{Input: 20}})
	l.UpdateGroup(day2, g.ID, func(g *quota.Group) error {
		g.Member.Quota = &quota.Quota{Tokens: quota.At(100), Reset: quota.ResetDaily}
		return nil
	})
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() { l.Policy(day2, a) })
	}
	wg.Wait()
	t.Logf("daily quota after the change: %+v (want used 20)", used(t, l, day2, a.id))
	if u := used(t, l, day2, a.id).Used; u != 20 {
		t.Errorf("used %d, want 20", u)
	}
}

// TestConcurrentLoadOrphans has many first calls of a key at once after a start under
// another time zone: nothing is lost over the next start.
func TestConcurrentLoadOrphans(t *testing.T) {
	now := time.Date(2026, 5, 20, 12, 0, 0, 0, time.UTC)
	for try := range 10 {
		dir := t.TempDir()
		l, _ := openHook(t, dir, now)
		made, _ := l.CreateKeys(now, []NewKey{{Name: "k", KeyRules: quota.KeyRules{Quota: &quota.Quota{Tokens: quota.At(100000), Reset: quota.ResetMonthly}}}})
		a, _ := l.Account(now, made[0].Key.ID)
		r := reserve(t, l, now, a, 100)
		l.Settle(now, r, quota.Outcome{Tokens: quota.Tokens{Input: 100}})
		l.Close(now)
		l, _ = openHook(t, dir, now)
		l.Configure(now, &Config{Zone: "Asia/Tokyo"})
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				a, err := l.Authenticate(now, made[0].Secret)
				if err != nil {
					t.Error(err)
					return
				}
				r := reserve(t, l, now, a, 10)
				l.Settle(now, r, quota.Outcome{Tokens: quota.Tokens{Input: 10}})
			})
		}
		wg.Wait()
		mem := used(t, l, now, a.id).Used
		l.Close(now)
		l, _ = openHook(t, dir, now)
		l.Configure(now, &Config{Zone: "Asia/Tokyo"})
		got := used(t, l, now, a.id).Used
		if mem != 260 || got != 260 {
			t.Errorf("try %d: used in memory %d, after a clean restart %d, want 260", try, mem, got)
		}
		l.Close(now)
	}
}

// TestEvictWhileStoreFails keeps in memory what the tables lack.
func TestEvictWhileStoreFails(t *testing.T) {
	now := time.Now()
	dir := t.TempDir()
	l, h := openHook(t, dir, now)
	a, _ := makeKey(t, l, now, 0, quota.Limits{}, 100)
	l.Checkpoint(now)
	h.failCP.Store(true)
	r := reserve(t, l, now, a, 90)
	l.Settle(now, r, quota.Outcome{Tokens: quota.Tokens{Input: 90}})
	t.Log("checkpoint:", l.Checkpoint(now))
	now = now.Add(11 * time.Minute)
	l.Tick(now)
	t.Logf("after 11 idle minutes of a failing store: %+v", used(t, l, now, a.id))
	if u := used(t, l, now, a.id).Used; u != 90 {
		t.Errorf("used %d, want 90", u)
	}
	a, _ = l.Account(now, a.id)
	r = reserve(t, l, now, a, 5)
	l.Settle(now, r, quota.Outcome{Tokens: quota.Tokens{Input: 5}})
	h.failCP.Store(false)
	l.Close(now)
	l, _ = openHook(t, dir, now)
	if u := used(t, l, now, a.id).Used; u != 95 {
		t.Errorf("after the store's recovery and a restart: used %d, want 95", u)
	}
}

// TestWaitingGrows fails checkpoints again and again: what waits stays small.
func TestWaitingGrows(t *testing.T) {
	now := time.Now()
	l, h := openHook(t, t.TempDir(), now)
	a, _ := makeKey(t, l, now, 0, quota.Limits{}, 1<<40)
	h.failCP.Store(true)
	for range 500 {
		r := reserve(t, l, now, a, 1)
		l.Settle(now, r, quota.Outcome{Tokens: quota.Tokens{Input: 1}})
		l.Usage(now, quota.RowQuery{}, nil)
	}
	n := 0
	for i := range l.waiting {
		n += len(l.waiting[i].Accounts)
	}
	if len(l.waiting) > 2 || n > 2 {
		t.Errorf("%d checkpoints wait, with %d dumps of 1 account", len(l.waiting), n)
	}
}

// TestAppendPreempted makes a checkpoint between the journaling of a settlement and its
// end: a crash then neither loses nor doubles it.
func TestAppendPreempted(t *testing.T) {
	now := time.Now()
	dir := t.TempDir()
	l, h := openHook(t, dir, now)
	a, _ := makeKey(t, l, now, 0, quota.Limits{}, 1000)
	r := reserve(t, l, now, a, 90)
	l.Checkpoint(now) // kept, clean
	h.after = func(rec *quota.Record) {
		if rec.Kind != quota.RecordSettle {
			return
		}
		h.after = nil
		done := make(chan struct{})
		go func() { l.Checkpoint(now); close(done) }()
		select {
		case <-done:
			t.Log("the checkpoint went through between Append and touched")
		case <-time.After(2 * time.Second):
			t.Log("the checkpoint waits for the account")
		}
	}
	l.Settle(now, r, quota.Outcome{Tokens: quota.Tokens{Input: 50}})
	copyDir := crashCopy(t, dir, t.TempDir())
	l2, _ := openHook(t, copyDir, now)
	sum, _ := l2.UsedSince(now, a.id, now.Unix()-3600)
	t.Logf("after a crash: quota used %d, history total %d of %d requests; want 50, 50, 1", used(t, l2, now, a.id).Used, sum.Total, sum.Requests)
	if used(t, l2, now, a.id).Used != 50 || sum.Total != 50 {
		t.Error("wrong")
	}
}

// TestConfigRename renames a key of the configuration that keeps its secret.
func TestConfigRename(t *testing.T) {
	now := time.Now()
	l, _ := openHook(t, t.TempDir(), now)
	secret := "sk-0123456789012345678901234567890"
	if err := l.Configure(now, &Config{Keys: []ConfigKey{{Name: "ci", Secret: secret}}}); err != nil {
		t.Fatal(err)
	}
	if err := l.Configure(now, &Config{Keys: []ConfigKey{{Name: "ci2", Secret: secret}}}); err != nil {
		t.Errorf("renaming: %v", err)
	}
}

// TestFailedReloadTakesOver withdraws a configuration that took over a key of the API: it
// is as it was.
func TestFailedReloadTakesOver(t *testing.T) {
	now := time.Now()
	l, _ := openHook(t, t.TempDir(), now)
	k := Keep(l, 0)
	k.Apply(now, 1, &Config{})
	made, _ := l.CreateKeys(now, []NewKey{{Name: "x"}})
	if err := k.Apply(now, 2, &Config{Keys: []ConfigKey{{Name: "x", Secret: "sk-0123456789012345678901234567890"}}}); err != nil {
		t.Fatal(err)
	}
	k.Withdraw(now, 2)
	_, err := l.Authenticate(now, made[0].Secret)
	rec, _ := l.Key(made[0].Key.ID)
	t.Logf("after a withdrawn takeover: secret of the API's key: %v; source %s, removed %v", err, rec.Source, rec.Removed)
	if err != nil {
		t.Error("the key's own secret is gone")
	}
}

// TestResetUndone changes the time zone after a reset by hand, which holds.
func TestResetUndone(t *testing.T) {
	now := time.Date(2026, 5, 20, 12, 0, 0, 0, time.UTC)
	l, _ := openHook(t, t.TempDir(), now)
	a, _ := makeKey(t, l, now, 0, quota.Limits{}, 100)
	r := reserve(t, l, now, a, 90)
	l.Settle(now, r, quota.Outcome{Tokens: quota.Tokens{Input: 90}})
	l.Reset(now, a.id, []quota.LimitName{quota.TokenQuota})
	t.Log(used(t, l, now, a.id).Used)
	l.Configure(now, &Config{Zone: "Asia/Tokyo"})
	if u := used(t, l, now, a.id).Used; u != 0 {
		t.Errorf("used %d after a reset and a change of the zone", u)
	}
}

// TestQuotaReadded takes a quota away and sets it again in a later month.
func TestQuotaReadded(t *testing.T) {
	jan := time.Date(2026, 1, 10, 12, 0, 0, 0, time.UTC)
	feb := time.Date(2026, 2, 10, 12, 0, 0, 0, time.UTC)
	l, _ := openHook(t, t.TempDir(), jan)
	a, _ := makeKey(t, l, jan, 0, quota.Limits{}, 100)
	r := reserve(t, l, jan, a, 1)
	l.Settle(jan, r, quota.Outcome{Tokens: quota.Tokens{Input: 1}})
	l.UpdateKey(jan, a.id, func(k *quota.Key) error { k.Quota = nil; return nil })
	r = reserve(t, l, feb, a, 90)
	l.Settle(feb, r, quota.Outcome{Tokens: quota.Tokens{Input: 90}})
	l.UpdateKey(feb, a.id, func(k *quota.Key) error {
		k.Quota = &quota.Quota{Tokens: quota.At(100), Reset: quota.ResetMonthly}
		return nil
	})
	if u := used(t, l, feb, a.id).Used; u != 90 {
		t.Errorf("used %d of February, want 90 as for a key that never had a quota", u)
	}
}

// TestGoneFromMemory holds on to a key that was evicted, as a caller in that
// moment does, while it is loaded again, used, and the time zone changes:
// nothing is journaled of the one that is gone.
func TestGoneFromMemory(t *testing.T) {
	now := time.Date(2026, 5, 20, 12, 0, 0, 0, time.UTC)
	dir := t.TempDir()
	l := openLedger(t, dir, now)
	defer func() { l.store.Close() }()
	made, err := l.CreateKeys(now, []NewKey{{Name: "key", KeyRules: quota.KeyRules{Limits: perDay}}})
	if err != nil {
		t.Fatal(err)
	}
	gone, err := l.Account(now, made[0].Key.ID)
	if err != nil {
		t.Fatal(err)
	}
	spend(t, l, now, gone)
	if err := l.Checkpoint(now); err != nil {
		t.Fatal(err)
	}
	l.evict(now.Add(2 * idleAfter))
	key, err := l.Account(now, gone.id)
	if err != nil || key == gone {
		t.Fatalf("%p is in memory instead of %p: %v", key, gone, err)
	}
	spend(t, l, now, key)
	if err := l.Configure(now, &Config{Zone: "Asia/Tokyo"}); err != nil {
		t.Fatal(err)
	}
	for _, a := range []*Account{key, gone} {
		if _, err := l.Policy(now, a); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Tick(now.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	counts(t, l, now, key.id, 20, 2)
	balanced(t, l, now)
	spend(t, l, now, gone) // the call is charged to the one that is in memory
	counts(t, l, now, key.id, 30, 3)
	balanced(t, crashed(t, dir, now), now)
}
