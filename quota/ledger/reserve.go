package ledger

import (
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// maxChain is the most accounts that one call is charged to.
const maxChain = quota.MaxDepth + 1

// Call is what a call asks of its limits.
type Call struct {
	Model string
	// Input is the estimate of its input tokens. 0 is a call that is charged
	// no tokens: limits on tokens do not refuse it, unless they are 0, and
	// none are held.
	Input int64
	// Output is how many tokens to hold for the answer. Fewer are held when
	// fewer are left, but never less than Least.
	Output int64
	// Least is how much of Output must fit for the call to be admitted.
	Least int64
	// Observe admits the call whatever the limits say.
	Observe bool
}

// Reservation is what was taken for one call, until Settle. The zero value is
// ready for Reserve; it must not be copied, nor used again before it is
// settled.
type Reservation struct {
	// Rates is the state of the limits just after the reservation, or at the
	// refusal.
	Rates quota.Rates
	// Held is how many tokens were reserved.
	Held int64
	// Charged is what the call was charged, once it is settled.
	Charged quota.Outcome
	// Observed is what would have refused the call, had it not been asked to
	// be observed only.
	Observed *quota.Refusal

	accounts [maxChain]*Account // in locking order, the key first
	policies [maxChain]*Policy
	n        int
	shares   [maxChain]quota.Share
	record   quota.Record
	input    int64 // the part of Held that is for input
	settled  bool

	next, prev *Reservation // in the key's list of open ones
	kept       bool         // in the store's tables
}

// chain collects a and every group above it, in the order in which they are
// locked: the key, then the groups by ID. That order holds for all calls,
// however groups are moved under one another, so that no two calls ever wait
// for each other.
func (r *Reservation) chain(a *Account, p *Policy) {
	r.n = 0
	first := 1
	if a != nil && a.id.Kind() == quota.KindGroup {
		first = 0
	}
	for a != nil && r.n < maxChain {
		i := r.n
		for ; i > first && r.accounts[i-1].id > a.id; i-- {
			r.accounts[i], r.policies[i] = r.accounts[i-1], r.policies[i-1]
		}
		r.accounts[i], r.policies[i] = a, p
		r.n++
		a, p = p.above, p.from
	}
}

func (r *Reservation) lock() (gone bool) {
	for _, a := range r.accounts[:r.n] {
		a.mu.Lock()
		gone = gone || a.gone
	}
	return gone
}

func (r *Reservation) unlock() {
	for i := r.n - 1; i >= 0; i-- {
		r.accounts[i].mu.Unlock()
	}
}

// Reserve admits a call of key a: it takes one request and up to
// c.Input+c.Output tokens on every limit of the key and all its groups, at
// once, or nothing. The refusal is nil when the call is admitted; then r must
// be settled, exactly once, whatever happens. Of several limits that refuse,
// the one that frees last is told. The error is quota.ErrClosed, or a store
// that cannot be read; it is never for a limit.
func (l *Ledger) Reserve(now time.Time, a *Account, c Call, r *Reservation) (*quota.Refusal, error) {
	tick := l.tick(now)
	now, err := l.lockChain(now, a, r)
	if err != nil {
		return nil, err
	}
	a = r.accounts[0]
	for i, a := range r.accounts[:r.n] {
		l.turn(now, a, r.policies[i])
	}
	c = c.normal()
	hold := c.Input + c.Output
	ease := l.easing()
	ref, left := r.check(now, tick, c, ease)
	if !c.Observe {
		if ref != nil {
			r.rates(now, tick)
			r.unlock()
			l.refused(now, a, r.policies[0], c.Model)
			r.n = 0
			return ref, nil
		}
		hold = min(hold, left)
	}
	r.Held, r.Observed, r.settled, r.kept = hold, ref, false, false
	r.input = min(c.Input, hold)
	seq := l.take(now, tick, c, r)
	r.rates(now, tick)
	r.unlock()
	l.open.Add(1)
	l.held.Add(hold)
	if err := l.flush(seq); err != nil || ease == l.easing() {
		return nil, err
	}
	return l.reconsider(now, tick, c, r)
}

// lockChain locks the account and every group above it, with no period that
// begins in the future, and returns the ledger's time.
func (l *Ledger) lockChain(now time.Time, a *Account, r *Reservation) (time.Time, error) {
	for {
		p, err := l.Policy(now, a)
		if err != nil {
			return now, err
		}
		wall := l.wall(now) // which what was loaded may have told
		r.chain(a, p)
		gone := r.lock()
		early := r.early(wall)
		if !gone && !early {
			return wall, nil
		}
		r.unlock()
		if early {
			for i, a := range r.accounts[:r.n] {
				l.align(wall, a, r.policies[i])
			}
		}
		if a, err = l.Account(now, a.id); err != nil {
			return now, err
		}
	}
}

// normal returns the call as limits see it: one that is charged no tokens holds
// none.
func (c Call) normal() Call {
	if c.Input == 0 {
		c.Output, c.Least = 0, 0
	}
	return c
}

// need returns how much of a limit must be left for the call to be admitted.
// Of a limit on tokens it may be nothing.
func (c *Call) need(kind limitKind) int64 {
	if kind.tokens() {
		return c.Input + c.Least
	}
	return 1
}

// fits tells whether need fits the limit. A limit of 0 admits nothing at all.
func (s limitState) fits(need int64) bool {
	return s.max > 0 && (need == 0 || s.used+s.reserved+need <= s.max)
}

// reconsider refuses a call during whose admission the store began to fail, if
// that is what its limits demand.
func (l *Ledger) reconsider(now time.Time, tick int64, c Call, r *Reservation) (*quota.Refusal, error) {
	r.lock()
	deny := !c.Observe && l.easing().denies(r, tick)
	r.unlock()
	if !deny {
		return nil, nil
	}
	return &quota.Refusal{Reason: quota.StoreUnavailable}, l.Void(now, r)
}

// early tells whether an account has a period that begins in the future.
func (r *Reservation) early(now time.Time) bool {
	for i, a := range r.accounts[:r.n] {
		if a.early(r.policies[i], now) {
			return true
		}
	}
	return false
}

// check finds what refuses the call, and how many tokens are left for it on
// the tightest limit. It changes nothing but the windows' idea of the time.
func (r *Reservation) check(now time.Time, tick int64, c Call, ease ease) (worst *quota.Refusal, left int64) {
	left = quota.MaxAmount
	if ease.denies(r, tick) {
		return &quota.Refusal{Reason: quota.StoreUnavailable}, 0
	}
	for i, a := range r.accounts[:r.n] {
		p := r.policies[i]
		for kind := range limitKinds {
			s := a.state(kind, p, tick)
			if s.max == none || ease.of(kind) == AllowOnError {
				continue
			}
			need := c.need(kind)
			if need > 0 && kind.tokens() {
				left = min(left, max(s.max-s.used-s.reserved, 0))
			}
			if s.fits(need) {
				continue
			}
			ref := a.refusal(kind, p, s, max(need, 1), now, tick)
			if worst == nil || later(ref, worst) {
				worst = ref
			}
		}
	}
	return worst, left
}

// later tells whether a frees after b. What never frees comes last of all, and
// among those what no reset cures.
func later(a, b *quota.Refusal) bool {
	rank := func(r *quota.Refusal) int64 {
		switch {
		case r.Wait != quota.Never:
			return int64(r.Wait)
		case r.Reason == quota.TooManyTokens:
			return 1<<63 - 1
		}
		return 1<<63 - 2
	}
	return rank(a) > rank(b)
}

// take does what Reserve has decided. The accounts are locked.
func (l *Ledger) take(now time.Time, tick int64, c Call, r *Reservation) uint64 {
	for i, a := range r.accounts[:r.n] {
		if a.lastUsed == 0 {
			l.begin(now, a)
		}
		a.quota.reserved += r.Held
		a.day.reserved += r.Held
		add(&a.day.requests, &a.day.requestsOffset, 1, true, a.day.period.Holds(now.Unix()))
		a.inFlight++
		a.requests.Add(tick, 1)
		a.tokens.Add(tick, r.Held)
		a.lastUsed = max(a.lastUsed, now.UnixNano())
		r.shares[i] = quota.Share{Account: a.id, Quota: a.quota.number, Day: a.day.number, Minute: a.minute}
	}
	key := r.accounts[0]
	r.record = quota.Record{
		Kind: quota.RecordOpen, Time: now.UnixNano(), Tick: tick,
		Key: key.id, Group: r.policies[0].GroupID(), Model: c.Model,
		Shares: r.shares[:r.n], Reserved: r.Held,
	}
	l.touching(r.accounts[:r.n]...)
	seq := l.store.Append(&r.record)
	r.record.ID = seq
	for _, a := range r.accounts[:r.n] {
		a.touched(seq)
	}
	if n := l.noting.Load(); n != nil {
		n.admitted(r.accounts[:r.n], &r.record)
	}
	r.prev, r.next = nil, key.opened
	if r.next != nil {
		r.next.prev = r
	}
	key.opened = r
	return seq
}

// begin journals the periods of an account, which is locked, that was never
// used and is about to be, or to be changed: after a crash they could not be
// told from the history, and a grant or a reset would count for a later period.
func (l *Ledger) begin(now time.Time, a *Account) {
	if a.quota.period != (quota.Period{}) || a.seq != 0 { // the store may know another one
		l.setQuota(now, a)
	}
	l.setDayTokens(now, a)
}

// touching notes that the accounts, which are locked, are about to change. It
// comes before the change is journaled: a checkpoint that has cut the journal
// after it waits for the accounts, and finds the change in them.
func (l *Ledger) touching(accounts ...*Account) {
	for _, a := range accounts {
		if a.dirty {
			continue
		}
		a.dirty = true
		l.dirtyMu.Lock()
		l.dirty = append(l.dirty, a)
		l.dirtyMu.Unlock()
	}
}

// touched notes that record seq changed the account, which is locked.
func (a *Account) touched(seq uint64) { a.seq = max(a.seq, seq) }

// refused counts a refusal, in the history alone.
func (l *Ledger) refused(now time.Time, a *Account, p *Policy, model string) {
	l.store.Append(&quota.Record{
		Kind: quota.RecordRefuse, Time: now.UnixNano(),
		Key: a.id, Group: p.GroupID(), Model: model,
	})
}

// Refused counts in the history a call of key a that was refused before its
// limits were asked: a disabled key, a model that is not allowed.
func (l *Ledger) Refused(now time.Time, a *Account, model string) {
	if p := a.policy.Load(); p != nil {
		l.refused(now, a, p, model)
	}
}

// Settle ends a reservation: what was held is given back, and what o says was
// used is charged to the periods in which the call was admitted. Of a
// per-minute limit, the part that was held stays in the bucket of admission,
// and what goes beyond counts now. A call with o.Later is charged what was held
// until Correct tells better. Settling again does nothing.
func (l *Ledger) Settle(now time.Time, r *Reservation, o quota.Outcome) error {
	if r.n == 0 {
		return nil
	}
	if o.Later != "" {
		o = r.provisionally(o)
	}
	tick, charge := l.tick(now), o.Tokens.Charge()
	now = l.wall(now)
	if o.Later != "" { // before any account, as in Correct
		l.laterMu.Lock()
		defer l.laterMu.Unlock()
	}
	r.lock()
	if r.settled {
		r.unlock()
		return nil
	}
	r.settled, r.Charged = true, o
	opened := seconds(r.record.Time)
	for i, a := range r.accounts[:r.n] {
		a.inFlight--
		a.give(&r.shares[i], opened, tick, r.record.Tick, r.Held, charge)
	}
	if r.prev != nil {
		r.prev.next = r.next
	} else {
		r.accounts[0].opened = r.next
	}
	if r.next != nil {
		r.next.prev = r.prev
	}
	rec := &r.record
	rec.Kind, rec.Opened, rec.OpenTick = quota.RecordSettle, rec.Time, rec.Tick
	rec.Time, rec.Tick, rec.Outcome = now.UnixNano(), tick, o
	l.touching(r.accounts[:r.n]...)
	seq := l.store.Append(rec)
	for _, a := range r.accounts[:r.n] {
		a.touched(seq)
	}
	if n := l.noting.Load(); n != nil {
		n.settled(r.accounts[:r.n], rec)
	}
	if r.kept {
		l.dirtyMu.Lock()
		l.resolved, l.resolvedBy = append(l.resolved, rec.ID), max(l.resolvedBy, seq)
		l.dirtyMu.Unlock()
	}
	if o.Later != "" {
		l.remember(rec)
	}
	r.unlock()
	l.open.Add(-1)
	l.held.Add(-r.Held)
	l.overage.Add(max(charge-r.Held, 0))
	return l.flush(seq)
}

// Void ends a reservation of a call that used nothing.
func (l *Ledger) Void(now time.Time, r *Reservation) error {
	return l.Settle(now, r, quota.Outcome{Failed: true})
}

// give settles one account's share of a call admitted at the Unix second opened.
func (a *Account) give(s *quota.Share, opened, tick, openTick, held, charge int64) {
	counts := s.Quota == a.quota.number
	if counts {
		a.quota.reserved -= held
	}
	add(&a.quota.used, &a.quota.offset, charge, counts, a.quota.period.Holds(opened))
	if counts = s.Day == a.day.number; counts {
		a.day.reserved -= held
	}
	add(&a.day.tokens, &a.day.tokensOffset, charge, counts, a.day.period.Holds(opened))
	if s.Minute == a.minute {
		if charge <= held {
			a.tokens.Return(tick, openTick, held-charge)
		} else {
			a.tokens.Add(tick, charge-held)
		}
	}
}
