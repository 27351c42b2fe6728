package ledger

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// LimitState is where one limit of an account stands.
type LimitState struct {
	Limit    quota.LimitName
	Max      int64 // the limit, with grants
	Used     int64 // of a per-minute limit with what calls under way hold
	Reserved int64
	Granted  int64
	// Remaining is never negative.
	Remaining int64
	// ResetsAt is when the period ends or the window is empty; zero: never, or
	// it is empty.
	ResetsAt time.Time
}

// State is where an account stands.
type State struct {
	Policy   *Policy
	Limits   []LimitState // of the limits that it has, in the order of quota.LimitNames
	LastUsed time.Time    // zero: never
}

// State returns where a key or group stands now. It takes nothing.
func (l *Ledger) State(now time.Time, id quota.ID) (*State, error) {
	tick := l.tick(now)
	a, p, now, err := l.lockAccount(now, id)
	if err != nil {
		return nil, err
	}
	defer a.mu.Unlock()
	s := &State{Policy: p}
	if a.lastUsed != 0 {
		s.LastUsed = stamp(time.Unix(0, a.lastUsed))
	}
	defer a.asOf(now, p)()
	for kind := range limitKinds {
		if c := a.state(kind, p, tick); c.max != none {
			s.Limits = append(s.Limits, a.limit(kind, c, now, tick))
		}
	}
	return s, nil
}

func over(p quota.Period, now time.Time) bool { return p.End != 0 && now.Unix() >= p.End }

// ErrNotResettable says that a limit cannot be reset by hand.
var ErrNotResettable = errors.New("concurrent_requests cannot be reset")

// Reset makes the named limits of this account alone count from nothing. Calls
// under way settle into the history, not into the fresh period. A reset quota
// loses what it was granted.
func (l *Ledger) Reset(now time.Time, id quota.ID, limits []quota.LimitName) error {
	for _, name := range limits {
		if name == quota.ConcurrentRequests {
			return fmt.Errorf("%w: %w", ErrNotResettable, quota.ErrInvalid)
		}
	}
	l.inspectNow(now, id)
	before, after, periods := map[quota.LimitName]int64{}, map[quota.LimitName]int64{}, map[quota.LimitName]quota.Period{}
	var granted int64
	tick := l.tick(now)
	p, err := l.change(now, id, func(a *Account, now time.Time) (seq uint64) {
		for _, name := range limits {
			before[name] = a.used(name, tick)
			if name == quota.TokenQuota {
				granted = a.quota.granted
			}
			seq = l.store.Append(&quota.Record{
				Kind: quota.RecordReset, Time: now.UnixNano(), Account: id,
				Limit: name, Number: a.reset(now.Unix(), name, 0),
			})
			after[name] = 0
			periods[name] = a.day.period
			if name == quota.TokenQuota {
				periods[name] = a.quota.period
			}
		}
		return seq
	})
	if err != nil {
		return err
	}
	if l.onReset != nil {
		for _, name := range limits {
			l.onReset(ResetEvent{Account: id, Name: p.Name, Limit: name, Period: periods[name], ByHand: true})
		}
	}
	entry := l.audit(now)
	entry.add(quota.ActionReset, id, p.Name, resetOf(before, granted), resetOf(after, 0))
	return l.noted(entry)
}

// resetOf is what the audit log shows of a reset.
func resetOf(used map[quota.LimitName]int64, granted int64) any {
	return struct {
		Used    map[quota.LimitName]int64 `json:"used"`
		Granted int64                     `json:"granted,omitempty"`
	}{used, granted}
}

// used returns what counts against a limit. The account is locked.
func (a *Account) used(name quota.LimitName, tick int64) int64 {
	switch name {
	case quota.TokenQuota:
		return a.quota.used
	case quota.TokensPerDay:
		return a.day.tokens
	case quota.RequestsPerDay:
		return a.day.requests
	case quota.TokensPerMinute:
		return a.tokens.Sum(tick)
	}
	return a.requests.Sum(tick)
}

// reset resets one limit at the Unix second at, and returns the number of its
// new period: the given one or, if that is 0, the next.
func (a *Account) reset(at int64, limit quota.LimitName, number uint32) uint32 {
	next := func(n uint32) uint32 {
		if number != 0 {
			return number
		}
		return n + 1
	}
	switch limit {
	case quota.TokenQuota:
		q := &a.quota
		shift(&q.offset, -q.used)
		*q = quotaCounter{number: next(q.number), period: q.period, offset: q.offset}
		a.resetAt = at
		return q.number
	case quota.TokensPerDay:
		d := &a.day
		shift(&d.tokensOffset, -d.tokens)
		d.number, d.tokens, d.reserved = next(d.number), 0, 0
		return d.number
	case quota.RequestsPerDay:
		shift(&a.day.requestsOffset, -a.day.requests)
		a.day.requests = 0
		return a.day.number
	case quota.TokensPerMinute:
		a.minute = next(a.minute)
		a.tokens.Clear()
	case quota.RequestsPerMinute:
		a.requests.Clear()
	}
	return a.minute
}

// Grant adds tokens to the current quota period of an account; a negative
// number takes back. An account without a quota is a conflict.
func (l *Ledger) Grant(now time.Time, id quota.ID, tokens int64) error {
	if tokens < -quota.MaxAmount || tokens > quota.MaxAmount {
		return fmt.Errorf("tokens %d is not between -2^53 and 2^53: %w", tokens, quota.ErrInvalid)
	}
	l.inspectNow(now, id)
	var failed error
	var before int64
	p, err := l.change(now, id, func(a *Account, now time.Time) uint64 {
		before = a.quota.granted
		switch sum := before + tokens; {
		case a.policy.Load().quotaMax == none:
			failed = fmt.Errorf("%s has no quota to grant to: %w", id, quota.ErrConflict)
			return 0
		case math.Abs(float64(sum)) > quota.MaxAmount:
			failed = fmt.Errorf("granted tokens would pass 2^53: %w", quota.ErrInvalid)
			return 0
		}
		a.quota.granted += tokens
		return l.store.Append(&quota.Record{
			Kind: quota.RecordGrant, Time: now.UnixNano(), Account: id,
			Number: a.quota.number, Amount: tokens,
		})
	})
	if err = errors.Join(failed, err); err != nil {
		return err
	}
	entry := l.audit(now)
	entry.add(quota.ActionGrant, id, p.Name, grantedOf(before), grantedOf(before+tokens))
	return l.noted(entry)
}

// grantedOf is what the audit log shows of a grant.
func grantedOf(tokens int64) any {
	return struct {
		Granted int64 `json:"granted"`
	}{tokens}
}

// change applies fn, which appends to the journal, to an account whose periods
// are those of the ledger's time, which fn is given. It returns the account's
// policy.
func (l *Ledger) change(now time.Time, id quota.ID, fn func(a *Account, now time.Time) uint64) (*Policy, error) {
	a, p, now, err := l.lockAccount(now, id)
	if err != nil {
		return nil, err
	}
	l.turn(now, a, p)
	if a.lastUsed == 0 {
		l.begin(now, a)
	}
	l.touching(a)
	seq := fn(a, now)
	a.touched(seq)
	a.mu.Unlock()
	if seq == 0 {
		return p, nil
	}
	return p, l.flush(seq)
}

// lockAccount returns the account of that ID, locked, with no period that begins
// in the future, what holds for it, and the ledger's time.
func (l *Ledger) lockAccount(now time.Time, id quota.ID) (*Account, *Policy, time.Time, error) {
	for {
		a, err := l.Account(now, id)
		if err != nil {
			return nil, nil, now, err
		}
		p, err := l.Policy(now, a)
		if err != nil {
			return nil, nil, now, err
		}
		wall := l.wall(now) // which what was loaded may have told
		l.timely(wall, a, p)
		if !a.gone {
			return a, p, wall, nil
		}
		a.mu.Unlock()
	}
}
