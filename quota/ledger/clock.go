package ledger

import (
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// maxStep is how far the wall clock may be set back for the ledger's time to
// stand still until the clock has caught up. A clock that is set back further
// was wrong before, and is believed.
const maxStep = time.Hour

// clockGrain is how far time must go on to be noted, so that calls on several
// processors do not fight for one word of memory.
const clockGrain = 100 * time.Millisecond

// wall returns the ledger's time: now or, after the clock was set back a little,
// the latest that was seen. Its monotonic reading may be missing: give the
// original to tick, and to whatever loads accounts.
func (l *Ledger) wall(now time.Time) time.Time {
	for {
		t, seen := now.UnixNano(), l.seen.Load()
		switch {
		case t >= seen && t < seen+int64(clockGrain):
			return now
		case t < seen && t >= seen-int64(maxStep):
			return time.Unix(0, seen)
		}
		if l.seen.CompareAndSwap(seen, t) {
			return now
		}
	}
}

// glance returns what wall does, and notes nothing.
func (l *Ledger) glance(now time.Time) time.Time {
	if t, seen := now.UnixNano(), l.seen.Load(); t < seen && t >= seen-int64(maxStep) {
		return time.Unix(0, seen)
	}
	return now
}

// saw notes a time that the store has seen, Unix nanoseconds. One that is far
// ahead of now is of a clock that was wrong.
func (l *Ledger) saw(t int64, now time.Time) {
	if t <= now.UnixNano()+int64(maxStep) && t > l.seen.Load() {
		l.seen.Store(t)
	}
}

// early tells whether a has a period that begins in the future, as is left when
// a clock that was ahead is put right. The account is locked.
func (a *Account) early(p *Policy, now time.Time) bool {
	t := now.Add(clockGrain).Unix()
	return p.schedule != nil && a.quota.period.Start > t || a.day.period.Start > t
}

// unended tells whether p has not ended: it holds now, or has not begun, as
// after a clock that was ahead was put right.
func unended(p quota.Period, now time.Time) bool {
	return p.Holds(now.Unix()) || p.Start > now.Unix()
}

// timely locks a, whose policy is p, with no period that begins in the future.
func (l *Ledger) timely(now time.Time, a *Account, p *Policy) {
	for {
		a.mu.Lock()
		if a.gone || !a.early(p, now) {
			return
		}
		a.mu.Unlock()
		l.align(now, a, p)
	}
}

// maxOpen is how long a call may be under way. One that is older has been lost
// sight of, and is charged what was reserved for it.
const maxOpen = 24 * time.Hour

// sweep settles reservations that are older than maxOpen.
func (l *Ledger) sweep(now time.Time) {
	if l.open.Load() == 0 {
		return
	}
	before := now.Add(-maxOpen).UnixNano()
	var old []*Reservation
	for a := range l.accounts.all {
		a.mu.Lock()
		for r := a.opened; r != nil; r = r.next {
			if r.record.Time < before {
				old = append(old, r)
			}
		}
		a.mu.Unlock()
	}
	for _, r := range old {
		o := quota.Outcome{Tokens: quota.Tokens{Input: r.Held}, Estimated: true, Failed: true}
		if err := l.Settle(now, r, o); err != nil {
			l.failed("sweep", err)
		}
	}
}
