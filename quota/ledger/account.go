package ledger

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/llm-quota/caddy-llm-quota/limiter"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

// none as a maximum says that there is no limit.
const none = -1

// Account is a key or a group in memory. Its policy is what is set on it, its
// counters are what it used.
type Account struct {
	id     quota.ID
	policy atomic.Pointer[Policy]

	mu       sync.Mutex // guards all below; see chain for the order of locking
	gone     bool       // evicted: load it again
	dirty    bool       // in Ledger.dirty
	seq      uint64     // the last record that concerns it
	quota    quotaCounter
	day      dayCounter
	minute   uint32 // number of the windows' generation
	inFlight int64
	requests limiter.Window[uint32]
	tokens   limiter.Window[int64]
	lastUsed int64        // Unix nanoseconds
	opened   *Reservation // the open reservations of a key
}

type quotaCounter struct {
	number                  uint32
	period                  quota.Period
	used, reserved, granted int64
}

type dayCounter struct {
	number                     uint32
	period                     quota.Period
	requests, tokens, reserved int64
}

// ID returns the account's ID.
func (a *Account) ID() quota.ID { return a.id }

// Policy is what holds for an account. It never changes; a change makes a new
// one.
type Policy struct {
	Name  string
	Key   *quota.Key   // nil for groups
	Group *quota.Group // a group's own record; a key's group, nil if it has none
	// Quota and Limits are what holds, inherited values among them.
	Quota  *quota.Quota
	Limits quota.Limits

	above    *Account // a key's group, a group's parent
	from     *Policy  // the policy of above from which this one inherits
	settings *settings

	quotaMax, requestsPerMinute, tokensPerMinute, requestsPerDay, tokensPerDay, concurrent int64

	schedule *quota.Schedule // nil: no quota
	day      *quota.Schedule
	expires  time.Time
}

// Check returns the refusal that the key itself demands, before any limit:
// disabled, expired, or called from an address that it does not allow.
func (p *Policy) Check(now time.Time, from netip.Addr) *quota.Refusal {
	switch {
	case p.Key.Disabled || p.Key.Removed:
		return &quota.Refusal{Reason: quota.DisabledKey, Account: p.Key.ID, AccountName: p.Name}
	case !p.expires.IsZero() && !now.Before(p.expires):
		return &quota.Refusal{Reason: quota.ExpiredKey, Account: p.Key.ID, AccountName: p.Name}
	case len(p.Key.AllowedIPs) > 0 && !contains(p.Key.AllowedIPs, from):
		return &quota.Refusal{Reason: quota.AddressNotAllowed, Account: p.Key.ID, AccountName: p.Name}
	}
	return nil
}

func contains(ranges []netip.Prefix, addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	for _, r := range ranges {
		if r.Contains(addr) {
			return true
		}
	}
	return false
}

// CheckModel returns the refusal of a model that the key does not allow.
// generates says that the call needs a model to be named.
func (p *Policy) CheckModel(model string, generates bool) *quota.Refusal {
	if len(p.Key.Models) == 0 || (model == "" && !generates) {
		return nil
	}
	if model != "" {
		for _, pattern := range p.Key.Models {
			if quota.MatchModel(pattern, model) {
				return nil
			}
		}
	}
	return &quota.Refusal{Reason: quota.ModelNotAllowed, Detail: model, Account: p.Key.ID, AccountName: p.Name}
}

// HasTokenLimit tells whether the account, or a group above it, limits tokens.
func (p *Policy) HasTokenLimit() bool {
	for ; p != nil; p = p.from {
		if p.quotaMax != none || p.tokensPerMinute != none || p.tokensPerDay != none {
			return true
		}
	}
	return false
}

// build makes the policy of a key or a group from its record and from what
// stands above it.
func build(s *settings, key *quota.Key, group *quota.Group, above *Account, from *Policy) (*Policy, error) {
	p := &Policy{Key: key, Group: group, above: above, from: from, settings: s}
	if key != nil {
		p.Name, p.Quota, p.Limits = key.Name, key.Quota, key.Limits
		if key.ExpiresAt != nil {
			p.expires = *key.ExpiresAt
		}
		if from != nil {
			p.Group = from.Group
			p.Limits = p.Limits.Or(p.Group.Member.Limits)
			if p.Quota == nil {
				p.Quota = p.Group.Member.Quota
			}
		}
	} else {
		p.Name, p.Quota, p.Limits = group.Name, group.Quota, group.Limits
	}
	p.quotaMax = none
	var zone quota.Quota
	if p.Quota != nil {
		filled := p.Quota.Filled(s.zone)
		p.Quota = &filled
		zone = filled
	}
	schedule, err := quota.Quota{Tokens: quota.At(0), Reset: quota.ResetDaily, TimeZone: zone.TimeZone}.Schedule(s.zone)
	if err != nil {
		return nil, err
	}
	p.day = schedule
	if p.Quota != nil {
		if n, ok := p.Quota.Tokens.Max(); ok {
			p.quotaMax = n
			if p.schedule, err = p.Quota.Schedule(s.zone); err != nil {
				return nil, err
			}
		}
	}
	p.requestsPerMinute = bound(p.Limits.RequestsPerMinute)
	p.tokensPerMinute = bound(p.Limits.TokensPerMinute)
	p.requestsPerDay = bound(p.Limits.RequestsPerDay)
	p.tokensPerDay = bound(p.Limits.TokensPerDay)
	p.concurrent = bound(p.Limits.ConcurrentRequests)
	return p, nil
}

func bound(b quota.Bound) int64 {
	if n, ok := b.Max(); ok {
		return n
	}
	return none
}

// Policy returns what holds for a now, after any change above it.
func (l *Ledger) Policy(now time.Time, a *Account) (*Policy, error) {
	p := a.policy.Load()
	if l.fresh(p) {
		return p, nil
	}
	l.directory.RLock()
	defer l.directory.RUnlock()
	return l.refresh(now, a)
}

// fresh tells whether nothing from which p was made has changed.
func (l *Ledger) fresh(p *Policy) bool {
	s := l.settings.Load()
	for ; p != nil; p = p.from {
		if p.settings != s || (p.above != nil && p.above.policy.Load() != p.from) {
			return false
		}
		if p.above == nil {
			return true
		}
	}
	return false
}

// refresh builds the policy of a anew, and those above it where they need it.
// The directory is held for reading.
func (l *Ledger) refresh(now time.Time, a *Account) (*Policy, error) {
	old := a.policy.Load()
	if old != nil && l.fresh(old) {
		return old, nil
	}
	key, group, above := (*quota.Key)(nil), (*quota.Group)(nil), quota.ID(0)
	var err error
	switch {
	case old != nil && old.Key != nil:
		key, above = old.Key, old.Key.Group
	case old != nil:
		group, above = old.Group, old.Group.Parent
	case a.id.Kind() == quota.KindKey:
		if key, err = l.store.Key(a.id); err != nil {
			return nil, fmt.Errorf("reading %s: %w", a.id, err)
		}
		above = key.Group
	default:
		if group, err = l.store.Group(a.id); err != nil {
			return nil, fmt.Errorf("reading %s: %w", a.id, err)
		}
		above = group.Parent
	}
	return l.adopt(now, a, key, group, above)
}

// adopt gives a the policy that follows from its record.
func (l *Ledger) adopt(now time.Time, a *Account, key *quota.Key, group *quota.Group, above quota.ID) (*Policy, error) {
	var up *Account
	var from *Policy
	var err error
	if above != 0 {
		if up, err = l.load(now, above); err != nil {
			return nil, err
		}
		if from, err = l.refresh(now, up); err != nil {
			return nil, err
		}
	}
	p, err := build(l.settings.Load(), key, group, up, from)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a.id, err)
	}
	if err := l.align(now, a, p); err != nil {
		return nil, err
	}
	a.policy.Store(p)
	return p, nil
}

// load returns the account of that ID with a policy. The directory is held.
func (l *Ledger) load(now time.Time, id quota.ID) (*Account, error) {
	a, ok := l.accounts.get(id)
	if !ok {
		a = &Account{id: id}
		var c quota.Counters
		if err := l.store.Counters(id, &c); err == nil {
			a.restore(&c, l.tick(now))
		} else if !errors.Is(err, quota.ErrNotFound) {
			return nil, fmt.Errorf("reading the counters of %s: %w", id, err)
		}
		if _, err := l.refresh(now, a); err != nil {
			return nil, err
		}
		a = l.accounts.add(id, a)
	}
	if a.policy.Load() == nil {
		if _, err := l.refresh(now, a); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// Account returns the key or group of that ID, or quota.ErrNotFound.
func (l *Ledger) Account(now time.Time, id quota.ID) (*Account, error) {
	if a, ok := l.accounts.get(id); ok && a.policy.Load() != nil {
		return a, nil
	}
	l.directory.RLock()
	defer l.directory.RUnlock()
	return l.load(now, id)
}

// ByName returns the living key of that name, or quota.ErrNotFound.
func (l *Ledger) ByName(now time.Time, name string) (*Account, error) {
	id, err := l.store.ByName(quota.KindKey, name)
	if err != nil {
		return nil, err
	}
	return l.Account(now, id)
}

// Authenticate returns the key that secret opens, or quota.ErrNotFound. An
// unknown secret leaves nothing behind in memory.
func (l *Ledger) Authenticate(now time.Time, secret string) (*Account, error) {
	if quota.Mistyped(secret) {
		return nil, quota.ErrNotFound
	}
	h := quota.HashSecret(l.store.HashKey(), secret)
	if in, ok := l.secrets.get(h); ok {
		if in.until != 0 && now.UnixNano() >= in.until {
			return nil, quota.ErrNotFound
		}
		return in.account, nil
	}
	l.directory.RLock()
	defer l.directory.RUnlock()
	id, err := l.store.KeyBySecret(h)
	if err != nil {
		return nil, err
	}
	a, err := l.load(now, id)
	if err != nil {
		return nil, err
	}
	for _, s := range a.policy.Load().Key.Secrets {
		if s.Hash != h {
			continue
		}
		in := login{account: a}
		if !s.Until.IsZero() {
			in.until = s.Until.UnixNano()
		}
		l.secrets.put(h, in)
		if in.until != 0 && now.UnixNano() >= in.until {
			break
		}
		return a, nil
	}
	return nil, quota.ErrNotFound
}
