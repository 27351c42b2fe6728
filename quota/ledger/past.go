package ledger

import (
	"math"
	"slices"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// spent is what counters count.
type spent struct{ tokens, requests int64 }

// past is what was used of the calls admitted in the spans of an alignment:
// what the history says up to the record through, and later what happened
// after that.
type past struct {
	through uint64
	quota   spent // in the quota period
	since   spent // since the quota counts, also in the future
	day     spent // in the day
	today   spent // since the day began, also in the future
	// open are the calls under way and their Unix seconds of admission.
	open map[uint64]int64
}

// past reads the history of an account. idle says that no call of it was under
// way when its notes were begun.
func (l *Ledger) past(id quota.ID, want alignment, idle bool) (*past, error) {
	l.checkpointMu.Lock() // so that the rows stay as the checkpoint leaves them
	defer l.checkpointMu.Unlock()
	p := &past{open: map[uint64]int64{}}
	var err error
	if p.through, err = l.checkpoint(); err != nil {
		return nil, err
	}
	if want.newDay && !idle {
		l.openCalls(id, p.open)
	}
	return p, p.each(want, func(sum *spent, span quota.Period) error {
		t, err := charged(l.store.Usage, id, span)
		sum.tokens, sum.requests = t.Total, t.Requests
		return err
	})
}

// each calls fn with each sum that want asks for and its span.
func (p *past) each(want alignment, fn func(*spent, quota.Period) error) error {
	spans := []struct {
		sum    *spent
		span   quota.Period
		wanted bool
	}{
		{&p.quota, want.quota, want.newQuota},
		{&p.since, quota.Period{Start: want.since}, want.newQuota && (!want.keep || want.least)},
		{&p.day, want.day, want.newDay},
		{&p.today, quota.Period{Start: want.day.Start}, want.newDay},
	}
	for _, s := range spans {
		if !s.wanted {
			continue
		}
		if err := fn(s.sum, s.span); err != nil {
			return err
		}
	}
	return nil
}

// openCalls adds the calls under way that an account has a share in.
func (l *Ledger) openCalls(id quota.ID, open map[uint64]int64) {
	collect := func(a *Account) {
		a.mu.Lock()
		defer a.mu.Unlock()
		for r := a.opened; r != nil; r = r.next {
			for i := range r.record.Shares {
				if r.record.Shares[i].Account == id {
					open[r.record.ID] = seconds(r.record.Time)
				}
			}
		}
	}
	if id.Kind() == quota.KindKey {
		if a, ok := l.accounts.get(id); ok {
			collect(a)
		}
		return
	}
	for a := range l.accounts.all {
		collect(a)
	}
}

// add adds what was noted while the history was read, in so far as it was not
// in it yet, and the calls that are under way now.
func (p *past) add(want alignment, n *notes) {
	var happened []note
	for _, e := range n.events {
		switch e.kind {
		case quota.RecordOpen:
			p.open[e.id] = e.opened
			continue
		case quota.RecordSettle:
			delete(p.open, e.id)
		}
		if e.seq > p.through {
			happened = append(happened, e)
		}
	}
	_ = p.each(want, func(sum *spent, span quota.Period) error {
		for _, e := range happened {
			if span.Holds(e.opened) {
				sum.tokens += e.tokens
				sum.requests += e.requests
			}
		}
		for _, opened := range p.open {
			if span.Holds(opened) {
				sum.requests++
			}
		}
		return nil
	})
}

// notes are what happens to an account while align reads its history. They are
// its, and guarded like it.
type notes struct {
	account *Account
	events  []note
}

type note struct {
	kind             quota.RecordKind
	seq, id          uint64
	opened           int64 // Unix seconds
	tokens, requests int64 // that came to the history
}

// The following note what a record did to accounts, which are locked.

func (n *notes) admitted(accounts []*Account, r *quota.Record) {
	n.add(accounts, note{kind: quota.RecordOpen, seq: r.Seq, id: r.ID, opened: seconds(r.Time)})
}

func (n *notes) settled(accounts []*Account, r *quota.Record) { n.add(accounts, settlement(r)) }

func (n *notes) corrected(accounts []*Account, r *quota.Record) { n.add(accounts, correction(r)) }

func (n *notes) add(accounts []*Account, e note) {
	if slices.Contains(accounts, n.account) {
		n.events = append(n.events, e)
	}
}

// settlement returns what a RecordSettle adds to the history.
func settlement(r *quota.Record) note {
	return note{
		kind: quota.RecordSettle, seq: r.Seq, id: r.ID, opened: seconds(r.Opened),
		tokens: r.Outcome.Tokens.Charge(), requests: 1,
	}
}

// correction returns what a RecordCorrect adds to the history.
func correction(r *quota.Record) note {
	return note{
		kind: quota.RecordCorrect, seq: r.Seq, id: r.ID, opened: seconds(r.Opened),
		tokens: r.Outcome.Tokens.Charge() - r.Before.Tokens.Charge(),
	}
}

// charged sums the history of an account: what was settled of its calls that
// were admitted in the span.
func charged(usage func(quota.RowQuery, func(*quota.Row) error) error, id quota.ID, span quota.Period) (sum quota.Totals, err error) {
	for _, q := range cover(span) {
		q.of(id)
		if err := usage(q.RowQuery, func(r *quota.Row) error {
			sum.Add(&r.Totals)
			return nil
		}); err != nil {
			return sum, err
		}
	}
	return sum, nil
}

// stretch is a part of a span that rows of one step fill.
type stretch struct{ quota.RowQuery }

// of makes the stretch that of one account.
func (s *stretch) of(id quota.ID) {
	if id.Kind() == quota.KindGroup {
		s.Account = id
	} else {
		s.Key = id
	}
}

// whole tells whether the stretch begins and ends where rows do.
func (s *stretch) whole() bool {
	return s.From == s.Step.Start(s.From) && (s.To == math.MaxInt64 || s.To == s.Step.Start(s.To))
}

// cover returns the stretches of which a span is made, with the widest step for
// each. Of a span that does not begin and end with a minute, the minutes are
// taken that begin in it.
func cover(span quota.Period) []stretch {
	end := span.End
	if end == 0 {
		end = math.MaxInt64
	}
	return coverWith(nil, quota.StepDay, span.Start, end)
}

func coverWith(list []stretch, step quota.Step, from, to int64) []stretch {
	if from >= to {
		return list
	}
	add := func(from, to int64) { list = append(list, stretch{quota.RowQuery{Step: step, From: from, To: to}}) }
	if step == quota.StepMinute {
		add(from, to)
		return list
	}
	first, last := ceil(step, from), to
	if to != math.MaxInt64 {
		last = step.Start(to)
	}
	if first >= last {
		return coverWith(list, step-1, from, to)
	}
	list = coverWith(list, step-1, from, first)
	add(first, last)
	return coverWith(list, step-1, last, to)
}

// ceil returns the first start of a slot that is not before the Unix second t.
func ceil(step quota.Step, t int64) int64 {
	start := step.Start(t)
	if start < t {
		start += int64(step.Duration().Seconds())
	}
	return start
}
