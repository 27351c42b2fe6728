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

// remember keeps a provisional settlement to be found by its name.
func (l *Ledger) remember(r *quota.Record) {
	c := *r
	c.Shares = append([]quota.Share(nil), r.Shares...)
	l.laterMu.Lock()
	l.provisional[quota.Later{Key: r.Key, Name: r.Outcome.Later}] = &c
	l.laterMu.Unlock()
}

// Correct replaces the provisional charge of key a's call that o.Later names
// by what o says it used, in the periods in which the call was admitted. It
// returns false if there is no such call, or its outcome is known already.
func (l *Ledger) Correct(now time.Time, a *Account, o quota.Outcome) (bool, error) {
	name := quota.Later{Key: a.id, Name: o.Later}
	l.laterMu.Lock()
	defer l.laterMu.Unlock()
	r, err := l.findLater(name)
	if errors.Is(err, quota.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	r.Kind, r.Before, r.Outcome = quota.RecordCorrect, r.Outcome, o
	r.Time, r.Tick = now.UnixNano(), l.tick(now)
	accounts, err := l.lockShares(now, r.Shares)
	if err != nil {
		return false, err
	}
	for i, a := range accounts {
		a.correct(&r.Shares[i], r)
	}
	seq := l.store.Append(r)
	l.touched(accounts, seq)
	l.forgetLater(name)
	for i := len(accounts) - 1; i >= 0; i-- {
		accounts[i].mu.Unlock()
	}
	return true, l.flush(seq)
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
// order in which they stand there, which is that of chain.
func (l *Ledger) lockShares(now time.Time, shares []quota.Share) ([]*Account, error) {
	for {
		accounts := make([]*Account, 0, len(shares))
		for i := range shares {
			a, err := l.Account(now, shares[i].Account)
			if err != nil {
				return nil, fmt.Errorf("reading %s: %w", shares[i].Account, err)
			}
			accounts = append(accounts, a)
		}
		gone := false
		for _, a := range accounts {
			a.mu.Lock()
			gone = gone || a.gone
		}
		if !gone {
			return accounts, nil
		}
		for _, a := range accounts {
			a.mu.Unlock()
		}
	}
}

// correct replaces one charge by another. The account is locked.
func (a *Account) correct(s *quota.Share, r *quota.Record) {
	more := r.Outcome.Tokens.Charge() - r.Before.Tokens.Charge()
	if s.Quota == a.quota.number {
		a.quota.used += more
	}
	if s.Day == a.day.number {
		a.day.tokens += more
	}
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
