package ledger

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// none as a maximum says that there is no limit.
const none = -1

// Policy is what holds for an account. It never changes; a change makes a new
// one. It is small, since there is one for each key in memory: what many keys
// have in common they share, and the full record stays in the store.
type Policy struct {
	ID   quota.ID
	Name string
	// Group is a key's group, nil if it has none; a group's own record.
	Group *quota.Group
	*Terms

	access   *access
	alertAt  *[]float64 // in ascending order; nil: the app's
	above    *Account   // a key's group, a group's parent
	from     *Policy    // the policy of above from which this one inherits
	settings *settings
}

// Terms are the limits that hold for an account, inherited ones among them.
type Terms struct {
	Quota  *quota.Quota // with every default written out; nil: none
	Limits quota.Limits

	quotaMax, requestsPerMinute, tokensPerMinute, requestsPerDay, tokensPerDay, concurrent int64

	schedule *quota.Schedule // nil: no quota
	day      *quota.Schedule
}

// access is who may use a key and for what; nil: anybody, for anything.
type access struct {
	disabled bool
	expires  time.Time
	ips      []netip.Prefix
	models   []string
	metadata map[string]string
}

// settings are what accounts take from the app. New ones make every policy be
// built again when it is next used.
type settings struct {
	zone    string
	onError OnStoreError

	mu    sync.Mutex
	terms map[termsKey]*Terms // those in use, so that equal ones are shared
}

// maxTerms is how many different terms are remembered for sharing.
const maxTerms = 10_000

type termsKey struct {
	quota  quota.Quota
	limits quota.Limits
}

// share returns the terms of a quota (nil: none) and limits.
func (s *settings) share(q *quota.Quota, limits quota.Limits) (*Terms, error) {
	k := termsKey{limits: limits}
	if q != nil {
		k.quota = *q
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.terms[k]; t != nil {
		return t, nil
	}
	t, err := newTerms(s.zone, q, limits)
	if err != nil {
		return nil, err
	}
	if s.terms == nil || len(s.terms) >= maxTerms {
		s.terms = make(map[termsKey]*Terms)
	}
	s.terms[k] = t
	return t, nil
}

func newTerms(zone string, q *quota.Quota, limits quota.Limits) (*Terms, error) {
	t := &Terms{Limits: limits, quotaMax: none}
	daily := quota.Quota{Tokens: quota.At(0), Reset: quota.ResetDaily}
	if q != nil {
		filled := q.Filled(zone)
		t.Quota, daily.TimeZone = &filled, filled.TimeZone
	}
	var err error
	if t.day, err = daily.Schedule(zone); err != nil {
		return nil, err
	}
	if q != nil {
		if n, ok := q.Tokens.Max(); ok {
			t.quotaMax = n
			if t.schedule, err = t.Quota.Schedule(zone); err != nil {
				return nil, err
			}
		}
	}
	t.requestsPerMinute = bound(limits.RequestsPerMinute)
	t.tokensPerMinute = bound(limits.TokensPerMinute)
	t.requestsPerDay = bound(limits.RequestsPerDay)
	t.tokensPerDay = bound(limits.TokensPerDay)
	t.concurrent = bound(limits.ConcurrentRequests)
	return t, nil
}

func bound(b quota.Bound) int64 {
	if n, ok := b.Max(); ok {
		return n
	}
	return none
}

// build makes the policy of a key or a group from its record and from what
// stands above it.
func build(s *settings, key *quota.Key, group *quota.Group, above *Account, from *Policy) (*Policy, error) {
	p := &Policy{Group: group, above: above, from: from, settings: s}
	var q *quota.Quota
	var limits quota.Limits
	if key != nil {
		p.ID, p.Name, p.access, p.alertAt = key.ID, key.Name, newAccess(key), ascending(key.AlertAt)
		q, limits = key.Quota, key.Limits
		if from != nil {
			p.Group = from.Group
			limits = limits.Or(p.Group.Member.Limits)
			if q == nil {
				q = p.Group.Member.Quota
			}
		}
	} else {
		p.ID, p.Name, q, limits = group.ID, group.Name, group.Quota, group.Limits
		p.alertAt = ascending(group.AlertAt)
	}
	var err error
	p.Terms, err = s.share(q, limits)
	return p, err
}

// ascending returns what is set, sorted; nil for nothing.
func ascending(percent []float64) *[]float64 {
	if percent == nil {
		return nil
	}
	return new(slices.Sorted(slices.Values(percent)))
}

func newAccess(k *quota.Key) *access {
	a := &access{disabled: k.Disabled || k.Removed, ips: k.AllowedIPs, models: k.Models, metadata: k.Metadata}
	if k.ExpiresAt != nil {
		a.expires = *k.ExpiresAt
	}
	if !a.disabled && a.expires.IsZero() && len(a.ips)+len(a.models)+len(a.metadata) == 0 {
		return nil
	}
	return a
}

// Metadata returns the key's free text of that name.
func (p *Policy) Metadata(name string) string {
	if p.access == nil {
		return ""
	}
	return p.access.metadata[name]
}

// Check returns the refusal that the key itself demands, before any limit:
// disabled, expired, or called from an address that it does not allow.
func (p *Policy) Check(now time.Time, from netip.Addr) *quota.Refusal {
	if p.access == nil {
		return nil
	}
	if ref := p.CheckUsable(now); ref != nil {
		return ref
	}
	if ips := p.access.ips; len(ips) > 0 && !contains(ips, from) {
		return &quota.Refusal{Reason: quota.AddressNotAllowed, Account: p.ID, AccountName: p.Name}
	}
	return nil
}

// CheckUsable returns the refusal of a key that is disabled or expired.
func (p *Policy) CheckUsable(now time.Time) *quota.Refusal {
	switch a := p.access; {
	case a == nil:
		return nil
	case a.disabled:
		return &quota.Refusal{Reason: quota.DisabledKey, Account: p.ID, AccountName: p.Name}
	case !a.expires.IsZero() && !now.Before(a.expires):
		return &quota.Refusal{Reason: quota.ExpiredKey, Account: p.ID, AccountName: p.Name}
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
	if p.access == nil || len(p.access.models) == 0 || (model == "" && !generates) {
		return nil
	}
	if model != "" {
		for _, pattern := range p.access.models {
			if quota.MatchModel(pattern, model) {
				return nil
			}
		}
	}
	return &quota.Refusal{Reason: quota.ModelNotAllowed, Detail: model, Account: p.ID, AccountName: p.Name}
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

// GroupID returns the ID of a key's group, or of a group's parent; zero: none.
func (p *Policy) GroupID() quota.ID {
	if p.above == nil {
		return 0
	}
	return p.above.id
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
	if old := a.policy.Load(); old != nil && l.fresh(old) {
		return old, nil
	}
	if a.id.Kind() == quota.KindGroup {
		g, err := l.store.Group(a.id)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", a.id, err)
		}
		return l.adopt(now, a, nil, g)
	}
	k, err := l.store.Key(a.id)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", a.id, err)
	}
	return l.adopt(now, a, k, nil)
}

// adopt gives a the policy that follows from its record, one of key and group.
// The directory is held.
func (l *Ledger) adopt(now time.Time, a *Account, key *quota.Key, group *quota.Group) (*Policy, error) {
	var above quota.ID
	if key != nil {
		above = key.Group
	} else {
		above = group.Parent
	}
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
	l.align(l.glance(now), a, p) // which does not lead back to a period before the present one
	if a.policy.Swap(p) != nil { // a limit that was lowered may be used up to a threshold
		l.dirtyMu.Lock()
		l.uninspected = append(l.uninspected, a)
		l.dirtyMu.Unlock()
	}
	return p, nil
}
