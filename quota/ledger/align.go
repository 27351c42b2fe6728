package ledger

import (
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// alignment is what a policy asks of an account's periods.
type alignment struct {
	quota, day quota.Period // what they are to be
	// newQuota and newDay say that they are not so, and that the counters are to
	// be looked up.
	newQuota, newDay bool
	// keep says that the quota's counter goes on from where it stands; least,
	// that it may have begun to count too late, and is no less than the history.
	keep, least bool
	// since is the Unix second from which on the quota counts.
	since int64
	// scheduled says that a quota held until now.
	scheduled bool
}

// align puts the periods of a in accord with p, the policy that it is about to
// have: a schedule that was set or changed begins a period that may reach back
// before the change, and what was used since then is in the history. The
// number of the period stays, so that calls under way settle into it. If the
// history cannot be read, the counters go on from where they stand.
//
// Nothing is done to an account that is gone from memory: the one that is loaded
// in its place is aligned then. No account may be locked, nor laterMu: reading
// the history makes a checkpoint.
func (l *Ledger) align(now time.Time, a *Account, p *Policy) {
	if a.aligned(now, p) {
		return
	}
	l.alignMu.Lock()
	defer l.alignMu.Unlock()
	for !l.alignOnce(now, a, p) {
	}
}

// aligned tells whether nothing is to be looked up for the periods of a.
func (a *Account) aligned(now time.Time, p *Policy) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.gone || !a.compare(now, p).looksUp()
}

// looksUp tells whether counters are to be looked up in the history.
func (want alignment) looksUp() bool { return want.newDay || want.newQuota }

// compare returns what p asks of the periods of a, which is locked, and does
// what can be done without the history.
func (a *Account) compare(now time.Time, p *Policy) alignment {
	want := alignment{day: p.day.At(now)}
	want.newDay = a.outdated(a.day.period, want.day, p.day, now)
	if p.schedule != nil {
		want.quota = p.schedule.At(now)
		old := a.policy.Load()
		want.scheduled = old != nil && old.schedule != nil
		resumed := old != nil && old.schedule == nil // it was without a quota, and its period stood still
		want.newQuota = a.outdated(a.quota.period, want.quota, p.schedule, now) || resumed && a.quota.period != want.quota
	}
	if a.lastUsed == 0 && a.quota.granted == 0 { // nothing to look up, and nothing worth a line in the journal
		if want.newDay {
			a.day.period = want.day
		}
		if want.newQuota {
			a.quota.period = want.quota
		}
		want.newDay, want.newQuota = false, false
	}
	want.since = want.quota.Start
	if a.resetAt >= want.since { // what a reset by hand has forgiven stays so
		want.since = a.resetAt + 1
		want.keep = a.resetAt >= a.quota.period.Start // all since then is in the counter
		// A period without an end does not tell since when its counter counts.
		want.least = a.quota.period == (quota.Period{})
	}
	if p.schedule != nil && p.schedule.Reset == quota.ResetManual {
		want.keep, want.least = true, false
	}
	return want
}

// outdated tells whether a is to be given period is of schedule s, and not by a
// turn from the period was, which begins it with nothing used.
func (a *Account) outdated(was, is quota.Period, s *quota.Schedule, now time.Time) bool {
	switch {
	case was == is:
		return false
	case unended(was, now):
		return true
	}
	// One that has ended may be of another schedule, and reach into is.
	return seconds(a.lastUsed) >= is.Start && s.At(time.Unix(was.Start, 0)) != was
}

// alignOnce returns false if another call changed the periods meanwhile.
// alignMu is held.
func (l *Ledger) alignOnce(now time.Time, a *Account, p *Policy) bool {
	a.mu.Lock()
	want := a.compare(now, p)
	if a.gone || !want.looksUp() {
		a.mu.Unlock()
		return true
	}
	number, period, day, dayPeriod := a.quota.number, a.quota.period, a.day.number, a.day.period
	seen := &notes{account: a}
	l.noting.Store(seen)
	defer l.noting.Store(nil) // also when the store panics
	idle := a.inFlight == 0
	a.mu.Unlock()
	past, err := l.past(a.id, want, idle)
	if err != nil {
		l.failed("align", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gone {
		return true
	}
	if a.quota.number != number || a.quota.period != period || a.day.number != day || a.day.period != dayPeriod {
		return false
	}
	if err == nil {
		past.add(want, seen)
	}
	if want.newQuota {
		a.alignQuota(now, want, past)
		l.setQuota(now, a)
	}
	if want.newDay {
		a.alignDay(want, past)
		// In this order: if a power loss takes the second, which says the day, all
		// is looked up again.
		l.setDayRequests(now, a)
		l.setDayTokens(now, a)
	}
	return true
}

// alignQuota gives a the quota period that is wanted. What happened is nil if
// it is not known.
func (a *Account) alignQuota(now time.Time, want alignment, happened *past) {
	q := &a.quota
	if over(q.period, now) { // nothing of it goes on
		q.granted = 0
		manual := want.quota == quota.Period{}
		// Without a quota it has counted on meanwhile.
		if manual && (want.scheduled || seconds(a.lastUsed) < q.period.End) {
			q.used = 0
		}
	}
	q.period, q.offset = want.quota, quota.OffsetUnknown
	if happened == nil {
		return
	}
	switch used := max(happened.since.tokens, 0); {
	case !want.keep:
		q.used = used
	case want.least:
		q.used = max(q.used, used)
	}
	q.offset = q.used - happened.quota.tokens
}

// alignDay gives a the day that is wanted.
func (a *Account) alignDay(want alignment, happened *past) {
	d := &a.day
	d.period, d.tokensOffset, d.requestsOffset = want.day, quota.OffsetUnknown, quota.OffsetUnknown
	if happened == nil {
		return
	}
	d.tokens, d.requests = max(happened.today.tokens, 0), happened.today.requests
	d.tokensOffset, d.requestsOffset = d.tokens-happened.day.tokens, d.requests-happened.day.requests
}

// The following journal a counter that was set rather than counted. The account
// is locked.

func (l *Ledger) setQuota(now time.Time, a *Account) {
	l.set(now, a, &quota.Record{
		Limit: quota.TokenQuota, Number: a.quota.number, Amount: a.quota.used, Offset: a.quota.offset, Period: a.quota.period,
	})
}

func (l *Ledger) setDayTokens(now time.Time, a *Account) {
	l.set(now, a, &quota.Record{
		Limit: quota.TokensPerDay, Number: a.day.number, Amount: a.day.tokens, Offset: a.day.tokensOffset, Period: a.day.period,
	})
}

func (l *Ledger) setDayRequests(now time.Time, a *Account) {
	l.set(now, a, &quota.Record{
		Limit: quota.RequestsPerDay, Number: a.day.number, Amount: a.day.requests, Offset: a.day.requestsOffset, Period: a.day.period,
	})
}

func (l *Ledger) set(now time.Time, a *Account, r *quota.Record) {
	r.Kind, r.Time, r.Account = quota.RecordSet, now.UnixNano(), a.id
	l.touching(a)
	a.touched(l.store.Append(r))
}
