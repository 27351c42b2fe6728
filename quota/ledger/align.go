package ledger

import (
	"math"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// align puts the periods of a in accord with p, the policy that it is about to
// have: a schedule that was set or changed begins a period that may reach back
// before the change, and what was used since then is in the history. The
// number of the period stays, so that calls under way settle into it. If the
// history cannot be read, the counters go on from where they stand.
//
// No account may be locked, nor laterMu: reading the history makes a checkpoint.
func (l *Ledger) align(now time.Time, a *Account, p *Policy) {
	for !l.alignOnce(now, a, p) {
	}
}

// alignOnce returns false if another call changed the periods meanwhile.
func (l *Ledger) alignOnce(now time.Time, a *Account, p *Policy) bool {
	a.mu.Lock()
	day, period := p.day.At(now), quota.Period{}
	newDay := a.day.period != day && unended(a.day.period, now)
	newPeriod, keep := false, false
	if p.schedule != nil {
		period = p.schedule.At(now)
		old := a.policy.Load()
		resumed := old != nil && old.schedule == nil // it was without a quota, and its period stood still
		newPeriod = a.quota.period != period && (resumed || unended(a.quota.period, now))
		keep = p.schedule.Reset == quota.ResetManual // counts on from where it stands
	}
	if a.lastUsed == 0 { // nothing to look up, and nothing worth a line in the journal
		if newDay {
			a.day.period = day
		}
		if newPeriod {
			a.quota.period = period
		}
		newDay, newPeriod = false, false
	}
	was, dayWas, underWay := a.quota, a.day, a.inFlight
	since := period.Start
	if a.resetAt >= since {
		since = a.resetAt + 1 // what a reset by hand has forgiven stays so
	}
	a.mu.Unlock()
	if !newDay && !newPeriod {
		return true
	}
	spent, today := quota.Totals{Total: was.used}, quota.Totals{Total: dayWas.tokens, Requests: dayWas.requests - underWay}
	var err error
	if newPeriod && !keep {
		spent, err = l.usedSince(now, a.id, since)
	}
	if newDay && err == nil {
		today, err = l.usedSince(now, a.id, day.Start)
	}
	if err != nil {
		l.failed("align", err)
		spent, today = quota.Totals{Total: was.used}, quota.Totals{Total: dayWas.tokens, Requests: dayWas.requests - underWay}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.quota.number != was.number || a.quota.period != was.period || a.day.number != dayWas.number || a.day.period != dayWas.period {
		return false
	}
	// What was settled and admitted meanwhile counts too; a part of it may be in
	// the history already and count twice, never not at all.
	if newPeriod {
		a.quota.used = spent.Total + a.quota.used - was.used
		a.quota.period = period
		l.set(now, a, quota.TokenQuota, a.quota.number, a.quota.used, period)
	}
	if newDay {
		a.day.tokens = today.Total + a.day.tokens - dayWas.tokens
		a.day.requests = today.Requests + underWay + a.day.requests - dayWas.requests
		a.day.period = day
		l.set(now, a, quota.TokensPerDay, a.day.number, a.day.tokens, day)
		l.set(now, a, quota.RequestsPerDay, a.day.number, a.day.requests, day)
	}
	return true
}

// set journals a counter that was set rather than counted.
func (l *Ledger) set(now time.Time, a *Account, limit quota.LimitName, number uint32, amount int64, p quota.Period) {
	l.touching(a)
	seq := l.store.Append(&quota.Record{
		Kind: quota.RecordSet, Time: now.UnixNano(), Account: a.id,
		Limit: limit, Number: number, Amount: amount, Period: p,
	})
	a.touched(seq)
}

// usedSince sums the history of a key, or of a group and all below it, from
// the Unix second start on. No account may be locked.
func (l *Ledger) usedSince(now time.Time, id quota.ID, start int64) (sum quota.Totals, err error) {
	if err := l.Checkpoint(now); err != nil {
		return sum, err
	}
	var in func(quota.ID) bool
	if id.Kind() == quota.KindGroup {
		below, err := l.Descendants(id)
		if err != nil {
			return sum, err
		}
		in = func(g quota.ID) bool { return below[g] }
	}
	add := func(q quota.RowQuery) error {
		if q.From >= q.To {
			return nil
		}
		if in == nil {
			q.Key = id
		}
		return l.store.Usage(q, func(r *quota.Row) error {
			if in == nil || in(r.Group) {
				sum.Add(&r.Totals)
			}
			return nil
		})
	}
	end := int64(math.MaxInt64) // what is charged to the future, by a clock that was ahead, counts too
	quarter := quota.StepQuarter.Start(start + 15*60 - 1)
	if err := add(quota.RowQuery{Step: quota.StepMinute, From: start, To: min(quarter, end)}); err != nil {
		return sum, err
	}
	err = add(quota.RowQuery{Step: quota.StepQuarter, From: quarter, To: end})
	return sum, err
}

// Descendants returns the group and every group below it, deleted ones too.
func (l *Ledger) Descendants(id quota.ID) (map[quota.ID]bool, error) {
	parent := map[quota.ID]quota.ID{}
	if err := l.store.Groups(0, func(g *quota.Group) bool {
		parent[g.ID] = g.Parent
		return true
	}); err != nil {
		return nil, err
	}
	in := map[quota.ID]bool{id: true}
	for g := range parent {
		for up, n := g, 0; up != 0 && n <= quota.MaxDepth; up, n = parent[up], n+1 {
			if in[up] {
				in[g] = true
				break
			}
		}
	}
	return in, nil
}
