package ledger

import (
	"fmt"
	"slices"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// CarryKey is UpdateKey which, if the key is moved to another group, moves
// along what it used: what it was charged in its old group since the present
// periods of each group began counts against the new groups, and against the
// old ones no longer. The history stays where it was spent, and so do calls
// under way.
func (l *Ledger) CarryKey(now time.Time, id quota.ID, edit func(*quota.Key) error) (*quota.Key, error) {
	return l.updateKey(now, id, "", edit, func(before, after *quota.Key) error {
		if before.Group == after.Group {
			return nil
		}
		if err := l.carry(now, before, after); err != nil {
			return fmt.Errorf("the key was moved, but not what it used: %w", err)
		}
		return nil
	})
}

// carry moves the use of a key from the groups above its old place to those
// above its new one. The directory is held.
func (l *Ledger) carry(now time.Time, before, after *quota.Key) error {
	from, err := l.groupsAbove(now, before.Group)
	if err != nil {
		return err
	}
	to, err := l.groupsAbove(now, after.Group)
	if err != nil {
		return err
	}
	var last uint64
	move := func(groups, others []*Account, sign int64) error {
		for _, g := range groups {
			if slices.Contains(others, g) {
				continue
			}
			seq, err := l.carryTo(now, g, before, sign)
			if err != nil {
				return err
			}
			last = max(last, seq)
		}
		return nil
	}
	if err := move(from, to, -1); err != nil {
		return err
	}
	if err := move(to, from, 1); err != nil {
		return err
	}
	if last == 0 {
		return nil
	}
	if err := l.flush(last); err != nil {
		return err
	}
	if err := l.store.Sync(now.UnixNano()); err != nil { // as the move itself is
		l.failed("sync", err) // it is done, and in the journal
	}
	return nil
}

// groupsAbove returns the group and those above it. The directory is held.
func (l *Ledger) groupsAbove(now time.Time, id quota.ID) (groups []*Account, err error) {
	for id != 0 {
		a, err := l.load(now, id)
		if err != nil {
			return nil, err
		}
		p, err := l.refresh(now, a)
		if err != nil {
			return nil, err
		}
		groups = append(groups, a)
		id = p.GroupID()
	}
	return groups, nil
}

// carryTo adds to a group's counters, or takes from them, what key used in its
// own group since the group's present periods began.
func (l *Ledger) carryTo(now time.Time, g *Account, key *quota.Key, sign int64) (uint64, error) {
	p, wall := g.policy.Load(), l.wall(now)
	l.timely(wall, g, p)
	l.turn(wall, g, p)
	period, day := g.quota.period, g.day.period
	since := quota.Period{Start: max(period.Start, g.resetSince(period)), End: period.End}
	g.mu.Unlock()
	if p.schedule == nil {
		since = quota.Period{Start: 1, End: 1}
	}
	if err := l.Checkpoint(now); err != nil {
		return 0, err
	}
	spent, err := l.usedIn(key, since)
	if err != nil {
		return 0, err
	}
	today, err := l.usedIn(key, day)
	if err != nil {
		return 0, err
	}
	l.timely(wall, g, p)
	defer g.mu.Unlock()
	if p.schedule != nil && g.quota.period == period {
		n := max(sign*spent.Total, -g.quota.used)
		g.quota.used += n
		shift(&g.quota.offset, n)
		l.setQuota(wall, g)
	}
	if g.day.period == day {
		n := max(sign*today.Total, -g.day.tokens)
		g.day.tokens += n
		shift(&g.day.tokensOffset, n)
		l.setDayTokens(wall, g)
		n = max(sign*today.Requests, -g.day.requests)
		g.day.requests += n
		shift(&g.day.requestsOffset, n)
		l.setDayRequests(wall, g)
	}
	return g.seq, nil
}

// resetSince returns the second from which a quota counts that was reset by
// hand within its period.
func (a *Account) resetSince(p quota.Period) int64 {
	if a.resetAt >= p.Start {
		return a.resetAt + 1
	}
	return p.Start
}

// usedIn sums what a key used in its own group of calls admitted in the span.
func (l *Ledger) usedIn(key *quota.Key, span quota.Period) (sum quota.Totals, err error) {
	for _, part := range cover(span) {
		part.of(key.ID)
		if err := l.store.Usage(part.RowQuery, func(r *quota.Row) error {
			if r.Group == key.Group {
				sum.Add(&r.Totals)
			}
			return nil
		}); err != nil {
			return sum, err
		}
	}
	return sum, nil
}
