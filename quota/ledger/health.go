package ledger

import (
	"errors"
	"fmt"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Health is what is wrong with the store.
type Health struct {
	// Op is the operation that failed, Err how.
	Op  string
	Err error
	// Since is when it began.
	Since time.Time
	// Damaged says that the store works, but has lost something that nobody has
	// looked into yet.
	Damaged bool
}

// OnHealth sets fn to be called when the store begins to fail, when it is found
// damaged, and when it is well again (well is true then, and h what was wrong). It must be set before the ledger is used, and must not block.
func (l *Ledger) OnHealth(fn func(h Health, well bool)) { l.onHealth = fn }

// Health returns what is wrong with the store, or nil while it is well.
func (l *Ledger) Health() *Health { return l.ill.Load() }

// failed notes that an operation of the store failed.
func (l *Ledger) failed(op string, err error) {
	l.report(op, err)
	l.sicken(&Health{Op: op, Err: err})
}

// sicken makes h what is wrong, unless something is already: the first cause
// stays. Damage is the lesser evil: it does not hide that the store fails.
func (l *Ledger) sicken(h *Health) {
	for {
		old := l.ill.Load()
		if old != nil && (!old.Damaged || h.Damaged) {
			return
		}
		h.Since = time.Unix(0, l.seen.Load()).UTC()
		if !l.ill.CompareAndSwap(old, h) {
			continue
		}
		if l.onHealth != nil {
			l.onHealth(*h, false)
		}
		return
	}
}

// heal notes that the store works again, apart from damage, which may be nil.
func (l *Ledger) heal(damage error) {
	old := l.ill.Load()
	if damage != nil {
		if old != nil && old.Damaged {
			return
		}
		h := &Health{Op: "guard", Err: damage, Damaged: true, Since: time.Unix(0, l.seen.Load()).UTC()}
		if l.ill.CompareAndSwap(old, h) && l.onHealth != nil {
			l.onHealth(*h, false)
		}
		return
	}
	if old != nil && l.ill.CompareAndSwap(old, nil) && l.onHealth != nil {
		l.onHealth(*old, true)
	}
}

// examine asks the store how it is, and tries what has failed again. All that
// was held back meanwhile is written then, once.
func (l *Ledger) examine(now time.Time) error {
	damage := l.store.Guard(now)
	if damage != nil && !errors.Is(damage, quota.ErrDamaged) {
		return damage
	}
	if ill := l.ill.Load(); ill != nil && !ill.Damaged {
		if err := l.Checkpoint(now); err != nil {
			return err
		}
		if err := l.Sync(now); err != nil {
			return err
		}
	}
	l.heal(damage)
	return nil
}

// StoreErrorPolicy says what a limit does while the store fails.
type StoreErrorPolicy string

// The policies. The empty one is the default of its kind of limit.
const (
	// AllowOnError: the limit does not refuse. What is used still counts.
	AllowOnError StoreErrorPolicy = "allow"
	// DenyOnError: calls under the limit are refused, with StoreUnavailable.
	DenyOnError StoreErrorPolicy = "deny"
	// LocalOnError: the limit holds as memory knows it.
	LocalOnError StoreErrorPolicy = "local"
)

// OnStoreError says what limits do while the store fails.
type OnStoreError struct {
	// What limits per minute and on concurrent requests do while the store
	// fails. allow: they do not refuse. deny: calls under them are refused with
	// status 503. local: they hold as this process knows them. Default: allow.
	RateLimits StoreErrorPolicy `json:"rate_limits,omitempty"`
	// The same for quotas and limits per day. deny also holds while the store
	// has lost something and nobody has looked into it. Default: local.
	Quotas StoreErrorPolicy `json:"quotas,omitempty"`
}

func (o OnStoreError) validate() error {
	for name, p := range map[string]StoreErrorPolicy{"rate_limits": o.RateLimits, "quotas": o.Quotas} {
		switch p {
		case "", AllowOnError, DenyOnError, LocalOnError:
		default:
			return fmt.Errorf("on_store_error: %s %q is not allow, deny or local: %w", name, p, quota.ErrInvalid)
		}
	}
	return nil
}

// ease is what limits do at the moment; the zero value: they hold.
type ease struct{ rates, quotas StoreErrorPolicy }

// easing returns what limits do now, by the store's health.
func (l *Ledger) easing() ease {
	ill := l.ill.Load()
	if ill == nil {
		return ease{}
	}
	o := l.settings.Load().onError
	e := ease{rates: o.RateLimits, quotas: o.Quotas}
	if e.rates == "" {
		e.rates = AllowOnError
	}
	if ill.Damaged { // it works: nothing but a careful operator's word is a reason to refuse, none to let through
		e.rates = ""
		if e.quotas != DenyOnError {
			e.quotas = ""
		}
	}
	return e
}

// of returns the policy of one limit.
func (e ease) of(kind limitKind) StoreErrorPolicy {
	switch kind {
	case requestsPerMinute, tokensPerMinute, concurrent:
		return e.rates
	}
	return e.quotas
}

// denies tells whether the call of r is to be refused because of the store.
func (e ease) denies(r *Reservation, tick int64) bool {
	if e.rates != DenyOnError && e.quotas != DenyOnError {
		return false
	}
	for i, a := range r.accounts[:r.n] {
		for kind := range limitKinds {
			if e.of(kind) == DenyOnError && a.state(kind, r.policies[i], tick).max != none {
				return true
			}
		}
	}
	return false
}
