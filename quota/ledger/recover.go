package ledger

import (
	"errors"
	"fmt"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// findLastID finds the greatest ID in use.
func (l *Ledger) findLastID() error {
	err := l.store.Keys(0, func(k *quota.Key) bool {
		l.lastID = k.ID
		return false
	})
	return errors.Join(err, l.store.Groups(0, func(g *quota.Group) bool {
		l.lastID = max(l.lastID, g.ID)
		return false
	}))
}

// recover applies what the journal holds beyond the tables: to each account
// the records that its counters do not include, to the history those after the
// last checkpoint. Reservations that nobody can settle any more are charged at
// what they held.
func (l *Ledger) recover(now time.Time) error {
	tick := l.tick(now)
	open := map[uint64]*quota.Record{}
	var history []*quota.Record
	through, err := l.store.Recover(
		func(r *quota.Record) error {
			open[r.ID] = keep(r)
			return nil
		},
		func(r *quota.Record) error {
			l.saw(r.Time, now)
			switch r.Kind {
			case quota.RecordOpen:
				open[r.ID] = keep(r)
			case quota.RecordSettle:
				if _, ok := open[r.ID]; ok {
					delete(open, r.ID)
					l.resolved = append(l.resolved, r.ID)
				}
				history = append(history, keep(r))
				if r.Outcome.Later != "" {
					l.remember(r)
				}
			case quota.RecordCorrect:
				history = append(history, keep(r))
				l.forgetLater(quota.Later{Key: r.Key, Name: r.Outcome.Later})
			case quota.RecordRefuse:
				history = append(history, keep(r))
			}
			return l.replay(r, tick)
		})
	if err != nil {
		return err
	}
	rows := rollup{ledger: l}
	last := through
	for _, r := range history {
		if r.Seq > through {
			rows.add(r)
			last = r.Seq
		}
	}
	l.waiting = rows.checkpoints(last)
	for id, r := range open {
		if err := l.charge(now, r); err != nil {
			return err
		}
		l.resolved = append(l.resolved, id)
	}
	return l.Checkpoint(now)
}

// charge settles a reservation that was open when the process ended.
func (l *Ledger) charge(now time.Time, r *quota.Record) error {
	r.Kind, r.Opened, r.OpenTick = quota.RecordSettle, r.Time, r.Tick
	r.Time, r.Tick = now.UnixNano(), l.tick(now)
	r.Outcome = quota.Outcome{Tokens: quota.Tokens{Input: r.Reserved}, Estimated: true, Failed: true}
	l.store.Append(r)
	return l.replay(r, r.Tick)
}

// replay applies one record to the accounts that do not have it yet.
func (l *Ledger) replay(r *quota.Record, tick int64) error {
	ids := make([]quota.ID, 0, maxChain)
	for i := range r.Shares {
		ids = append(ids, r.Shares[i].Account)
	}
	if r.Account != 0 {
		ids = append(ids, r.Account)
	}
	for _, id := range ids {
		a, err := l.replayed(id, r.Seq, tick)
		if err != nil {
			return err
		}
		if a != nil {
			a.apply(r, tick)
			a.touched(r.Seq)
		}
	}
	return nil
}

// replayed returns the account if it lacks the record seq, which is about to be
// applied to it.
func (l *Ledger) replayed(id quota.ID, seq uint64, tick int64) (*Account, error) {
	a, ok := l.accounts.get(id)
	if !ok {
		a = &Account{id: id}
		var c quota.Counters
		if err := l.store.Counters(id, &c); err == nil {
			a.restore(&c, tick)
			l.saw(c.LastUsed, time.Unix(0, tick)) // at a start both clocks are one
		} else if !errors.Is(err, quota.ErrNotFound) {
			return nil, fmt.Errorf("reading the counters of %s: %w", id, err)
		}
		l.accounts.put(id, a)
	}
	if a.seq >= seq {
		return nil, nil
	}
	l.touching(a)
	return a, nil
}

// apply does to an account what a record that concerns it did.
func (a *Account) apply(r *quota.Record, tick int64) {
	for i := range r.Shares {
		if r.Shares[i].Account == a.id {
			a.again(&r.Shares[i], r, tick)
		}
	}
	if r.Account == a.id {
		a.change(r)
	}
}

// again does to an account what an admission or a settlement did. Reserved
// amounts are not kept: by the end of the recovery nothing is reserved.
func (a *Account) again(s *quota.Share, r *quota.Record, tick int64) {
	at := min(r.Tick, tick) // a clock that was set back must not block
	if r.Kind == quota.RecordOpen {
		add(&a.day.requests, &a.day.requestsOffset, 1, s.Day == a.day.number, a.day.period.Holds(seconds(r.Time)))
		if s.Minute == a.minute {
			a.requests.Add(at, 1)
			a.tokens.Add(at, r.Reserved)
		}
		a.lastUsed = max(a.lastUsed, r.Time)
		return
	}
	if r.Kind == quota.RecordCorrect {
		at := *r
		at.Tick, at.OpenTick = min(r.Tick, tick), min(r.OpenTick, tick)
		a.correct(s, &at)
		return
	}
	a.give(s, seconds(r.Opened), at, min(r.OpenTick, tick), r.Reserved, r.Outcome.Tokens.Charge())
	a.quota.reserved, a.day.reserved = 0, 0
}

// change does to an account what a turn, a reset, a grant or a setting did.
func (a *Account) change(r *quota.Record) {
	switch r.Kind {
	case quota.RecordTurn:
		if r.Limit == quota.TokenQuota {
			a.turnQuota(r.Number, r.Period)
		} else {
			a.turnDay(r.Number, r.Period)
		}
	case quota.RecordReset:
		a.reset(seconds(r.Time), r.Limit, r.Number)
	case quota.RecordGrant:
		if r.Number == a.quota.number {
			a.quota.granted += r.Amount
		}
	case quota.RecordSet:
		a.assign(r)
	}
}

// assign sets a counter as a record says.
func (a *Account) assign(r *quota.Record) {
	d := &a.day
	switch r.Limit {
	case quota.TokenQuota:
		if a.quota.period != r.Period && over(a.quota.period, time.Unix(0, r.Time)) {
			a.quota.granted = 0 // as alignQuota does
		}
		a.quota.number, a.quota.used, a.quota.offset, a.quota.period = r.Number, r.Amount, r.Offset, r.Period
	case quota.TokensPerDay:
		d.number, d.tokens, d.tokensOffset, d.period = r.Number, r.Amount, r.Offset, r.Period
	case quota.RequestsPerDay:
		d.requests, d.requestsOffset = r.Amount, r.Offset
	}
}
