package ledger

import (
	"slices"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Explanation is what admission would decide about a call.
type Explanation struct {
	Refusal *quota.Refusal // nil: it would be admitted
	// Input and Output are what would be reserved; 0 if it would be refused.
	Input, Output int64
	Limits        []Considered // of the account first, then of the groups above it
}

// Considered is a limit that admission looks at.
type Considered struct {
	Account quota.ID
	Name    string // of the account
	LimitState
	Fits bool
}

// Explain tells what Reserve would decide about a call of a key, or of any key
// in a group as far as the group and those above it are concerned. It takes
// nothing, and no refusal is counted.
func (l *Ledger) Explain(now time.Time, id quota.ID, c Call) (*Explanation, error) {
	tick := l.tick(now)
	a, err := l.Account(now, id)
	if err != nil {
		return nil, err
	}
	var r Reservation
	now, err = l.lockChain(now, a, &r)
	if err != nil {
		return nil, err
	}
	defer r.unlock()
	for i, a := range r.accounts[:r.n] {
		defer a.asOf(now, r.policies[i])()
	}
	c = c.normal()
	ease := l.easing()
	ref, left := r.check(now, tick, c, ease)
	x := &Explanation{Refusal: ref}
	if ref == nil {
		held := min(c.Input+c.Output, left)
		x.Input = min(c.Input, held)
		x.Output = held - x.Input
	}
	for p := r.policyOf(id); p != nil; p = p.from {
		i := slices.Index(r.policies[:r.n], p)
		a := r.accounts[i]
		for kind := range limitKinds {
			s := a.state(kind, p, tick)
			if s.max == none {
				continue
			}
			x.Limits = append(x.Limits, Considered{
				Account: p.ID, Name: p.Name, LimitState: a.limit(kind, s, now, tick),
				Fits: ease.of(kind) == AllowOnError || s.fits(c.need(kind)),
			})
		}
	}
	return x, nil
}

// policyOf returns the policy of an account among those of r.
func (r *Reservation) policyOf(id quota.ID) *Policy {
	for i, a := range r.accounts[:r.n] {
		if a.id == id {
			return r.policies[i]
		}
	}
	return nil
}

// asOf lets the account, which is locked, stand as it would if its periods were
// turned at now, until what it returns is called.
func (a *Account) asOf(now time.Time, p *Policy) (undo func()) {
	quotaWas, dayWas := a.quota, a.day
	if p.schedule != nil && over(a.quota.period, now) {
		a.quota = quotaCounter{period: p.schedule.At(now)}
	}
	if over(a.day.period, now) {
		a.day = dayCounter{period: p.day.At(now)}
	}
	return func() { a.quota, a.day = quotaWas, dayWas }
}

// limit returns where a limit stands, as it is shown. The account is locked.
func (a *Account) limit(kind limitKind, s limitState, now time.Time, tick int64) LimitState {
	v := LimitState{
		Limit: kind.name(), Max: s.max, Used: s.used, Reserved: s.reserved,
		Remaining: max(s.max-s.used-s.reserved, 0),
	}
	if kind == tokenQuota {
		v.Granted = a.quota.granted
	}
	if v.Used > 0 || (kind != requestsPerMinute && kind != tokensPerMinute) {
		v.ResetsAt = a.resetsAt(kind, now, tick).UTC()
	}
	return v
}
