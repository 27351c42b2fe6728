package ledger

import (
	"fmt"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// align puts the periods of a in accord with p, the policy that it is about to
// have: a schedule that was set or changed begins a period that may reach back
// before the change, and what was used since then is in the history. The
// number of the period stays, so that calls under way settle into it.
func (l *Ledger) align(now time.Time, a *Account, p *Policy) error {
	a.mu.Lock()
	unused := a.lastUsed == 0
	day := p.day.At(now)
	newDay := a.day.period != day && a.day.period.Holds(now.Unix())
	period, newPeriod := quota.Period{}, false
	if p.schedule != nil {
		period = p.schedule.At(now)
		newPeriod = a.quota.period != period && a.quota.period.Holds(now.Unix())
	}
	keep := newPeriod && p.schedule.Reset == quota.ResetManual // counts on from where it stands
	before := a.quota.used
	if unused { // nothing to look up, and nothing worth a line in the journal
		if newDay {
			a.day.period = day
		}
		if newPeriod {
			a.quota.period = period
		}
		newDay, newPeriod = false, false
	}
	a.mu.Unlock()
	if !newDay && !newPeriod {
		return nil
	}
	var spent, today quota.Totals
	var err error
	if newPeriod && !keep {
		if spent, err = l.usedSince(now, a.id, period.Start); err != nil {
			return fmt.Errorf("reading what %s used: %w", a.id, err)
		}
	}
	if newDay {
		if today, err = l.usedSince(now, a.id, day.Start); err != nil {
			return fmt.Errorf("reading what %s used today: %w", a.id, err)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if newPeriod {
		if !keep {
			a.quota.used = spent.Total + a.quota.used - before // and what was settled meanwhile
		}
		a.quota.period = period
		l.set(now, a, quota.TokenQuota, a.quota.number, a.quota.used, period)
	}
	if newDay {
		a.day.period, a.day.tokens = day, today.Total
		a.day.requests = today.Requests + a.inFlight
		l.set(now, a, quota.TokensPerDay, a.day.number, a.day.tokens, day)
		l.set(now, a, quota.RequestsPerDay, a.day.number, a.day.requests, day)
	}
	return nil
}

// set journals a counter that was set rather than counted.
func (l *Ledger) set(now time.Time, a *Account, limit quota.LimitName, number uint32, amount int64, p quota.Period) {
	seq := l.store.Append(&quota.Record{
		Kind: quota.RecordSet, Time: now.UnixNano(), Account: a.id,
		Limit: limit, Number: number, Amount: amount, Period: p,
	})
	l.touched([]*Account{a}, seq)
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
	end := now.Unix() + 1
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
