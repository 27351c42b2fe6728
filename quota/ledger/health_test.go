package ledger

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/store/badger"
)

// ailing is the real store, of which the writes fail while it is told to.
type ailing struct {
	quota.Store
	failing atomic.Bool
	tables  atomic.Bool // only they fail
	damage  atomic.Bool
}

var errDisk = errors.New("no space left on device")

func (s *ailing) Flush(seq uint64) error {
	if s.failing.Load() {
		return errDisk
	}
	return s.Store.Flush(seq)
}

func (s *ailing) Cut() (iter.Seq[*quota.Record], uint64, error) {
	if s.failing.Load() {
		return nil, 0, errDisk
	}
	return s.Store.Cut()
}

func (s *ailing) Checkpoint(cp *quota.Checkpoint) error {
	if s.failing.Load() || s.tables.Load() {
		return errDisk
	}
	return s.Store.Checkpoint(cp)
}

func (s *ailing) Guard(now time.Time) error {
	switch {
	case s.failing.Load():
		return errDisk
	case s.damage.Load():
		return fmt.Errorf("tables were put aside: %w", quota.ErrDamaged)
	}
	return s.Store.Guard(now)
}

type ailingLedger struct {
	*Ledger
	store *ailing
	told  []string
	dir   string
}

func newAiling(t *testing.T, now time.Time, on OnStoreError) *ailingLedger {
	t.Helper()
	a := &ailingLedger{dir: t.TempDir()}
	st, err := badger.Open(badger.Options{Dir: a.dir, SyncInterval: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	a.store = &ailing{Store: st}
	if a.Ledger, err = Open(a.store, now, func(string, error) {}); err != nil {
		t.Fatal(err)
	}
	a.OnHealth(func(h Health, well bool) { a.told = append(a.told, fmt.Sprint(h.Op, " ", well, " ", h.Damaged)) })
	if err := a.Configure(now, &Config{OnStoreError: on}); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *ailingLedger) key(t *testing.T, now time.Time, q *quota.Quota, limits quota.Limits) *Account {
	t.Helper()
	made, err := a.CreateKeys(now, []NewKey{{Name: fmt.Sprint("k", now.UnixNano(), len(a.told), q, limits), KeyRules: quota.KeyRules{Quota: q, Limits: limits}}})
	if err != nil {
		t.Fatal(err)
	}
	k, err := a.Account(now, made[0].Key.ID)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// What limits do while the store fails, and after it works again, for each
// policy of each kind of limit.
func TestOnStoreError(t *testing.T) {
	now := time.Date(2026, 5, 10, 12, 0, 0, 0, time.UTC)
	ten := &quota.Quota{Tokens: quota.At(10), Reset: quota.ResetDaily}
	kinds := []struct {
		name   string
		quota  *quota.Quota
		limits quota.Limits
		rate   bool
	}{
		{"quota", ten, quota.Limits{}, false},
		{"tokens_per_day", nil, quota.Limits{TokensPerDay: quota.At(10)}, false},
		{"requests_per_day", nil, quota.Limits{RequestsPerDay: quota.At(1)}, false},
		{"tokens_per_minute", nil, quota.Limits{TokensPerMinute: quota.At(10)}, true},
		{"requests_per_minute", nil, quota.Limits{RequestsPerMinute: quota.At(1)}, true},
		{"concurrent_requests", nil, quota.Limits{ConcurrentRequests: quota.At(1)}, true},
	}
	policies := []OnStoreError{
		{}, {RateLimits: AllowOnError, Quotas: AllowOnError}, {RateLimits: DenyOnError, Quotas: DenyOnError},
		{RateLimits: LocalOnError, Quotas: LocalOnError}, {RateLimits: DenyOnError, Quotas: AllowOnError},
	}
	for _, on := range policies {
		for _, kind := range kinds {
			t.Run(fmt.Sprintf("rates=%s,quotas=%s/%s", on.RateLimits, on.Quotas, kind.name), func(t *testing.T) {
				l := newAiling(t, now, on)
				defer func() { l.store.failing.Store(false); l.Close(now) }()
				k := l.key(t, now, kind.quota, kind.limits)
				first := reserve(t, l.Ledger, now, k, 10)
				spent := func() quota.Reason {
					var r Reservation
					ref, err := l.Reserve(now, k, Call{Model: "m", Input: 10}, &r)
					if err != nil {
						t.Fatal(err)
					}
					if ref != nil {
						return ref.Reason
					}
					if err := l.Void(now, &r); err != nil {
						t.Fatal(err)
					}
					return ""
				}
				if got := spent(); got == "" || got == quota.StoreUnavailable {
					t.Fatalf("while the store is well a spent limit gives %q", got)
				}
				l.store.failing.Store(true)
				if err := l.examine(now); err == nil {
					t.Fatal("a failing store passes its examination")
				}
				l.sicken(&Health{Op: "guard", Err: errDisk})
				policy := on.Quotas
				if kind.rate {
					policy = on.RateLimits
				}
				if policy == "" {
					policy = LocalOnError
					if kind.rate {
						policy = AllowOnError
					}
				}
				got := spent()
				switch {
				case policy == AllowOnError && got != "",
					policy == DenyOnError && got != quota.StoreUnavailable,
					policy == LocalOnError && (got == "" || got == quota.StoreUnavailable):
					t.Errorf("while the store fails and the policy is %s a spent limit gives %q", policy, got)
				}
				l.store.failing.Store(false)
				if err := l.examine(now); err != nil || l.Health() != nil {
					t.Fatalf("after the store works again: %v, %+v", err, l.Health())
				}
				if err := l.Settle(now, first, quota.Outcome{Tokens: quota.Tokens{Input: 10}}); err != nil {
					t.Fatal(err)
				}
				if kind.name != "concurrent_requests" {
					if got := spent(); got == "" || got == quota.StoreUnavailable {
						t.Errorf("after the store works again a spent limit gives %q", got)
					}
				}
				if len(l.told) != 2 || l.told[0] != "guard false false" || l.told[1] != "guard true false" {
					t.Errorf("told %q", l.told)
				}
			})
		}
	}
}

// A call during whose admission the journal fails is refused where limits deny,
// and leaves nothing behind.
func TestFailureDuringAdmission(t *testing.T) {
	now := time.Date(2026, 5, 10, 12, 0, 0, 0, time.UTC)
	l := newAiling(t, now, OnStoreError{Quotas: DenyOnError})
	defer l.Close(now)
	k := l.key(t, now, &quota.Quota{Tokens: quota.At(100), Reset: quota.ResetDaily}, quota.Limits{})
	l.store.failing.Store(true)
	var r Reservation
	ref, err := l.Reserve(now, k, Call{Input: 10}, &r)
	if err != nil || ref == nil || ref.Reason != quota.StoreUnavailable {
		t.Fatalf("got %+v, %v", ref, err)
	}
	l.store.failing.Store(false)
	if err := l.examine(now); err != nil {
		t.Fatal(err)
	}
	if s := used(t, l.Ledger, now, k.ID()); s.Used != 0 || s.Reserved != 0 {
		t.Errorf("the refused call left %+v", s)
	}
	if g := l.Gauges(); g.OpenReservations != 0 || g.ReservedTokens != 0 {
		t.Errorf("the refused call left %+v", g)
	}
}

// What was used while the store failed is in the books once, also after a
// crash that follows the recovery.
func TestFailureCountsOnce(t *testing.T) {
	now := time.Date(2026, 5, 10, 12, 0, 0, 0, time.UTC)
	l := newAiling(t, now, OnStoreError{})
	k := l.key(t, now, &quota.Quota{Tokens: quota.At(1e6), Reset: quota.ResetDaily}, quota.Limits{})
	for i := range 300 {
		l.store.failing.Store(i >= 100 && i < 200)
		r := reserve(t, l.Ledger, now, k, 10)
		if err := l.Settle(now, r, quota.Outcome{Tokens: quota.Tokens{Input: 7}}); err != nil {
			t.Fatal(err)
		}
		if i%50 == 25 {
			l.examine(now)    //nolint:errcheck // it fails half of the time, as it should
			l.Checkpoint(now) //nolint:errcheck // likewise
		}
	}
	if err := l.examine(now); err != nil {
		t.Fatal(err)
	}
	again := openLedger(t, crashCopy(t, l.dir, t.TempDir()), now)
	for _, l := range []*Ledger{l.Ledger, again} {
		if s := used(t, l, now, k.ID()); s.Used != 2100 || s.Reserved != 0 {
			t.Errorf("%+v, want 2100 used", s)
		}
		sum, err := l.UsedSince(now, k.ID(), now.Unix()-60)
		if err != nil || sum.Total != 2100 || sum.Requests != 300 {
			t.Errorf("history has %+v, %v", sum, err)
		}
		if err := l.Close(now); err != nil {
			t.Error(err)
		}
	}
}

// Damage that nobody has seen to is told, and refuses where quotas deny; it
// does not switch rate limits off.
func TestDamageIsTold(t *testing.T) {
	now := time.Date(2026, 5, 10, 12, 0, 0, 0, time.UTC)
	for _, on := range []OnStoreError{{}, {Quotas: DenyOnError}, {Quotas: AllowOnError}} {
		l := newAiling(t, now, on)
		k := l.key(t, now, &quota.Quota{Tokens: quota.At(100), Reset: quota.ResetDaily}, quota.Limits{RequestsPerMinute: quota.At(1)})
		l.store.damage.Store(true)
		if err := l.examine(now); err != nil {
			t.Fatal(err)
		}
		l.examine(now) //nolint:errcheck // a second look tells nothing new
		if h := l.Health(); h == nil || !h.Damaged || !errors.Is(h.Err, quota.ErrDamaged) {
			t.Fatalf("health is %+v", h)
		}
		var r Reservation
		ref, err := l.Reserve(now, k, Call{Input: 10}, &r)
		if err != nil {
			t.Fatal(err)
		}
		if deny := on.Quotas == DenyOnError; deny != (ref != nil) || deny && ref.Reason != quota.StoreUnavailable {
			t.Errorf("quotas %s: refusal %+v", on.Quotas, ref)
		}
		if ref == nil {
			if ref, err := l.Reserve(now, k, Call{Input: 10}, new(Reservation)); err != nil || ref == nil || ref.Limit != quota.RequestsPerMinute {
				t.Errorf("quotas %s: the rate limit gives %+v, %v", on.Quotas, ref, err)
			}
		}
		l.store.damage.Store(false)
		if err := l.examine(now); err != nil || l.Health() != nil {
			t.Errorf("after it was seen to: %v, %+v", err, l.Health())
		}
		if want := []string{"guard false true", "guard true true"}; !slices.Equal(l.told, want) {
			t.Errorf("told %q, want %q", l.told, want)
		}
		l.Close(now)
	}
}
