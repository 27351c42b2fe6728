package ledger

import (
	"errors"
	"fmt"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// provisionally charges a call that the provider goes on with in the
// background what was reserved for it.
func (r *Reservation) provisionally(o quota.Outcome) quota.Outcome {
	o.Tokens, o.Estimated = quota.Tokens{Input: r.input, Output: r.Held - r.input}, true
	return o
}

// remember keeps a provisional settlement to be found by its name. laterMu is
// held, or nobody else has the ledger yet.
func (l *Ledger) remember(r *quota.Record) {
	c := *r
	c.Shares = append([]quota.Share(nil), r.Shares...)
	l.provisional[quota.Later{Key: r.Key, Name: r.Outcome.Later}] = &c
}

// Correct replaces the provisional charge of key a's call that o.Later names
// by what o says it used, in the periods in which the call was admitted. It
// returns false if there is no such call, or its outcome is known already.
func (l *Ledger) Correct(now time.Time, a *Account, o quota.Outcome) (bool, error) {
	name := quota.Later{Key: a.id, Name: o.Later}
	for {
		l.laterMu.Lock()
		r, err := l.findLater(name)
		l.laterMu.Unlock()
		if errors.Is(err, quota.ErrNotFound) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		// Loading may make a checkpoint, which takes laterMu.
		for i := range r.Shares {
			if _, err := l.Account(now, r.Shares[i].Account); err != nil {
				return false, fmt.Errorf("reading %s: %w", r.Shares[i].Account, err)
			}
		}
		if seq, done := l.tryCorrect(now, name, o); done {
			return true, l.flush(seq)
		}
	}
}

// tryCorrect returns false if the charge was corrected meanwhile, or one of
// its accounts is gone from memory again.
func (l *Ledger) tryCorrect(now time.Time, name quota.Later, o quota.Outcome) (seq uint64, done bool) {
	l.laterMu.Lock()
	defer l.laterMu.Unlock()
	r, err := l.findLater(name)
	if err != nil {
		return 0, false
	}
	accounts := l.lockShares(r.Shares)
	if accounts == nil {
		return 0, false
	}
	r.Kind, r.Before, r.Outcome = quota.RecordCorrect, r.Outcome, o
	r.Time, r.Tick = now.UnixNano(), l.tick(now)
	l.touching(accounts...)
	seq = l.store.Append(r)
	for i, a := range accounts {
		a.correct(&r.Shares[i], r)
		a.touched(seq)
	}
	if n := l.noting.Load(); n != nil {
		n.corrected(accounts, r)
	}
	l.forgetLater(name)
	for i := len(accounts) - 1; i >= 0; i-- {
		accounts[i].mu.Unlock()
	}
	return seq, true
}

// findLater returns a copy of the provisional record of that name. laterMu is
// held.
func (l *Ledger) findLater(name quota.Later) (*quota.Record, error) {
	if l.corrected[name] {
		return nil, quota.ErrNotFound
	}
	if r := l.provisional[name]; r != nil {
		c := *r
		return &c, nil
	}
	return l.store.Provisional(name)
}

// forgetLater notes that the outcome is known. laterMu is held.
func (l *Ledger) forgetLater(name quota.Later) {
	delete(l.provisional, name)
	l.corrected[name] = true
}

// lockShares returns the accounts of a reservation's shares, locked in the
// order in which they stand there, which is that of chain; nil if one is not
// in memory.
func (l *Ledger) lockShares(shares []quota.Share) []*Account {
	accounts := make([]*Account, 0, len(shares))
	for i := range shares {
		a, ok := l.accounts.get(shares[i].Account)
		if ok {
			a.mu.Lock()
			accounts = append(accounts, a)
		}
		if !ok || a.gone {
			for _, a := range accounts {
				a.mu.Unlock()
			}
			return nil
		}
	}
	return accounts
}

// correct replaces one charge by another. The account is locked.
func (a *Account) correct(s *quota.Share, r *quota.Record) {
	more, opened := r.Outcome.Tokens.Charge()-r.Before.Tokens.Charge(), seconds(r.Opened)
	add(&a.quota.used, &a.quota.offset, more, s.Quota == a.quota.number, a.quota.period.Holds(opened))
	add(&a.day.tokens, &a.day.tokensOffset, more, s.Day == a.day.number, a.day.period.Holds(opened))
	switch {
	case s.Minute != a.minute:
	case more < 0:
		a.tokens.Return(r.Tick, r.OpenTick, -more)
	default:
		a.tokens.Add(r.Tick, more)
	}
}

// collectLater adds to a checkpoint what it has to tell of provisional
// charges, and returns what is to be called when it has been written.
func (l *Ledger) collectLater(cp *quota.Checkpoint) (written func()) {
	l.laterMu.Lock()
	defer l.laterMu.Unlock()
	if len(l.provisional)+len(l.corrected) == 0 {
		return func() {}
	}
	for _, r := range l.provisional {
		cp.Provisional = append(cp.Provisional, *r)
	}
	for name := range l.corrected {
		cp.Corrected = append(cp.Corrected, name)
	}
	return func() {
		l.laterMu.Lock()
		defer l.laterMu.Unlock()
		for i := range cp.Provisional {
			r := &cp.Provisional[i]
			name := quota.Later{Key: r.Key, Name: r.Outcome.Later}
			if now := l.provisional[name]; now != nil && now.Seq == r.Seq {
				delete(l.provisional, name)
			}
		}
		for _, name := range cp.Corrected {
			delete(l.corrected, name)
		}
	}
}
