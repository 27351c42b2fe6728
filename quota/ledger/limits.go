package ledger

import (
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// limitKind numbers the limits of an account.
type limitKind int

const (
	tokenQuota limitKind = iota
	requestsPerMinute
	tokensPerMinute
	requestsPerDay
	tokensPerDay
	concurrent
	limitKinds
)

func (k limitKind) name() quota.LimitName { return quota.LimitNames[k] }

func (k limitKind) tokens() bool {
	return k == tokenQuota || k == tokensPerMinute || k == tokensPerDay
}

// limitState is where one limit stands. max is none where there is no limit.
type limitState struct{ max, used, reserved int64 }

// state returns where a limit of a stands under p. The account is locked and
// its periods are those of the time.
func (a *Account) state(kind limitKind, p *Policy, tick int64) limitState {
	switch kind {
	case tokenQuota:
		if p.quotaMax == none {
			return limitState{max: none}
		}
		return limitState{max(p.quotaMax+a.quota.granted, 0), a.quota.used, a.quota.reserved}
	case requestsPerMinute:
		if p.requestsPerMinute == none {
			return limitState{max: none}
		}
		return limitState{max: p.requestsPerMinute, used: a.requests.Sum(tick)}
	case tokensPerMinute:
		if p.tokensPerMinute == none {
			return limitState{max: none}
		}
		return limitState{max: p.tokensPerMinute, used: a.tokens.Sum(tick)}
	case requestsPerDay:
		return limitState{max: p.requestsPerDay, used: a.day.requests}
	case tokensPerDay:
		return limitState{p.tokensPerDay, a.day.tokens, a.day.reserved}
	default:
		return limitState{max: p.concurrent, used: a.inFlight}
	}
}

// resetsAt returns when a limit is full again by itself; zero: never.
func (a *Account) resetsAt(kind limitKind, now time.Time, tick int64) time.Time {
	switch kind {
	case tokenQuota:
		return periodEnd(a.quota.period)
	case requestsPerMinute:
		wait, _ := a.requests.Until(tick, 0)
		return now.Add(time.Duration(wait)).Round(time.Millisecond)
	case tokensPerMinute:
		wait, _ := a.tokens.Until(tick, 0)
		return now.Add(time.Duration(wait)).Round(time.Millisecond)
	case requestsPerDay, tokensPerDay:
		return periodEnd(a.day.period)
	}
	return time.Time{}
}

func periodEnd(p quota.Period) time.Time {
	if p.End == 0 {
		return time.Time{}
	}
	return time.Unix(p.End, 0).UTC()
}

// refusal says why need does not fit the limit, and when it will.
func (a *Account) refusal(kind limitKind, p *Policy, s limitState, need int64, now time.Time, tick int64) *quota.Refusal {
	ref := &quota.Refusal{
		Reason: quota.RateLimited, Limit: kind.name(), Account: a.id, AccountName: p.Name,
		Max: s.max, Used: s.used, Reserved: s.reserved, Requested: need, Wait: quota.Never,
	}
	if kind != concurrent {
		ref.ResetsAt = a.resetsAt(kind, now, tick)
	}
	switch kind {
	case concurrent:
		if s.max > 0 {
			ref.Wait = time.Second
		}
		return ref
	case requestsPerMinute:
		if wait, ok := a.requests.Until(tick, s.max-need); ok {
			ref.Wait = time.Duration(wait)
		} else {
			ref.ResetsAt = time.Time{}
		}
		return ref
	}
	switch {
	case kind == tokenQuota && s.used >= s.max:
		ref.Reason = quota.QuotaSpent
	case kind.tokens() && need > s.max:
		ref.Reason = quota.TooManyTokens
		if kind == tokensPerMinute {
			ref.ResetsAt = time.Time{}
		}
		return ref
	case kind == tokenQuota && s.used+need > s.max:
		ref.Reason = quota.QuotaSpent
	case kind == tokensPerMinute:
		wait, _ := a.tokens.Until(tick, s.max-need)
		ref.Wait = time.Duration(wait)
		return ref
	case s.used+need <= s.max: // calls under way hold the rest
		ref.Wait = time.Second
		return ref
	}
	if kind == tokenQuota && p.quotaMax == 0 || kind != tokenQuota && s.max == 0 {
		return ref // a new period has no more room
	}
	if !ref.ResetsAt.IsZero() {
		ref.Wait = max(ref.ResetsAt.Sub(now), time.Second)
	}
	return ref
}

// rates fills r.Rates: of requests and tokens the limit with the smallest
// share left over all accounts.
func (r *Reservation) rates(now time.Time, tick int64) {
	var requests, tokens tightest
	r.Rates = quota.Rates{}
	for i, a := range r.accounts[:r.n] {
		p := r.policies[i]
		switch {
		case p.requestsPerMinute != none:
			requests.offer(a, requestsPerMinute, a.state(requestsPerMinute, p, tick))
		case p.requestsPerDay != none:
			requests.offer(a, requestsPerDay, a.state(requestsPerDay, p, tick))
		}
		switch {
		case p.tokensPerMinute != none:
			tokens.offer(a, tokensPerMinute, a.state(tokensPerMinute, p, tick))
		case p.tokensPerDay != none:
			tokens.offer(a, tokensPerDay, a.state(tokensPerDay, p, tick))
		case p.quotaMax != none:
			tokens.offer(a, tokenQuota, a.state(tokenQuota, p, tick))
		}
		if p.quotaMax != none {
			s := a.state(tokenQuota, p, tick)
			left := max(s.max-s.used-s.reserved, 0)
			if !r.Rates.HasQuota || left < r.Rates.QuotaRemaining {
				r.Rates.HasQuota, r.Rates.QuotaRemaining = true, left
			}
		}
	}
	r.Rates.Requests, r.Rates.HasRequests = requests.rate(now, tick)
	r.Rates.Tokens, r.Rates.HasTokens = tokens.rate(now, tick)
}

// tightest keeps the limit with the smallest remaining share.
type tightest struct {
	account   *Account
	kind      limitKind
	max, left int64
}

func (t *tightest) offer(a *Account, kind limitKind, s limitState) {
	left := max(s.max-s.used-s.reserved, 0)
	if t.account == nil || float64(left)*float64(t.max) < float64(t.left)*float64(s.max) {
		*t = tightest{a, kind, s.max, left}
	}
}

func (t *tightest) rate(now time.Time, tick int64) (quota.Rate, bool) {
	if t.account == nil {
		return quota.Rate{}, false
	}
	r := quota.Rate{Limit: t.max, Remaining: t.left, Reset: t.account.resetsAt(t.kind, now, tick)}
	if t.kind == requestsPerMinute || t.kind == tokensPerMinute {
		r.Window = time.Minute
	}
	return r, true
}

// turn begins the periods of a that hold now, if the ones it has are over. A
// period that was begun is never gone back on. The account is locked.
func (l *Ledger) turn(now time.Time, a *Account, p *Policy) {
	t := now.Unix()
	if p.schedule != nil && a.quota.period.End != 0 && t >= a.quota.period.End {
		a.turnQuota(a.quota.number+1, p.schedule.At(now))
		if l.onReset != nil {
			l.onReset(ResetEvent{Account: a.id, Name: p.Name, Limit: quota.TokenQuota, Period: a.quota.period})
		}
		l.turned(now, a, quota.TokenQuota, a.quota.number, a.quota.period)
	}
	if a.day.period.End != 0 && t >= a.day.period.End {
		a.turnDay(a.day.number+1, p.day.At(now))
		l.turned(now, a, quota.TokensPerDay, a.day.number, a.day.period)
	}
}

func (l *Ledger) turned(now time.Time, a *Account, limit quota.LimitName, number uint32, period quota.Period) {
	l.touching(a)
	seq := l.store.Append(&quota.Record{
		Kind: quota.RecordTurn, Time: now.UnixNano(), Account: a.id,
		Limit: limit, Number: number, Period: period,
	})
	a.touched(seq)
}
