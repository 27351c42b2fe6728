package ledger

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Verification is what Verify found.
type Verification struct {
	// Checked is how many counters and rows were compared.
	Checked int
	// Differences are what does not agree, at most maxDifferences of them.
	Differences []Difference
}

// Difference is a number that is not what the rest of the books says.
type Difference struct {
	// Account is the key or group; of a sum over keys that are in no group, zero.
	Account quota.ID
	// Counter is the name of a limit, or a description of a row of usage.
	Counter string
	// Stored is what is there, Computed what should be.
	Stored, Computed int64
}

// maxDifferences is how many differences are told.
const maxDifferences = 1000

// Snapshot returns the store at one moment, with all that was settled before
// now in its tables. It must be closed.
func (l *Ledger) Snapshot(now time.Time) (quota.Snapshot, error) {
	snap, _, err := l.snapshot()
	return snap, err
}

// snapshot also returns, by step, the start before which rows may be gone.
func (l *Ledger) snapshot() (snap quota.Snapshot, pruned [len(quota.Steps)]int64, err error) {
	l.checkpointMu.Lock()
	defer l.checkpointMu.Unlock()
	if _, err = l.checkpoint(); err != nil {
		return nil, pruned, err
	}
	if pruned, err = l.store.Pruned(); err != nil {
		return nil, pruned, err
	}
	if snap, err = l.store.Snapshot(); err != nil {
		return nil, pruned, fmt.Errorf("taking a snapshot: %w", err)
	}
	return snap, pruned, nil
}

// Verify computes the books again, from a snapshot, while calls go on. Compared
// are, of every account, what its quota and its day count with the history of
// those periods; rows by quarter and by day with the finer ones of which they
// are made; and the rows of groups with those of their keys. What the history
// does not reach back to any more is passed over.
func (l *Ledger) Verify(now time.Time) (*Verification, error) {
	snap, pruned, err := l.snapshot()
	if err != nil {
		return nil, err
	}
	v := newVerifier(snap, pruned)
	err = v.run()
	if cerr := snap.Close(); cerr != nil {
		err = errors.Join(err, fmt.Errorf("closing the snapshot: %w", cerr))
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(v.found.Differences, func(a, b Difference) int {
		return cmp.Or(cmp.Compare(a.Account, b.Account), cmp.Compare(a.Counter, b.Counter))
	})
	return &v.found, nil
}

// verifier compares what a snapshot holds. It holds itself no more than the
// records after the last checkpoint, the calls under way, and one account's
// rows or maxSums sums.
type verifier struct {
	snap  quota.Snapshot
	kept  [len(quota.Steps)]int64      // all rows that start from here on are there, by step
	tail  map[quota.ID][]*quota.Record // the records that the rows lack, by account
	open  map[quota.ID][]int64         // Unix seconds of admission of calls under way, by account
	found Verification
}

func newVerifier(snap quota.Snapshot, pruned [len(quota.Steps)]int64) *verifier {
	return &verifier{snap: snap, kept: pruned, tail: map[quota.ID][]*quota.Record{}, open: map[quota.ID][]int64{}}
}

func (v *verifier) run() error {
	if err := v.readTail(); err != nil {
		return fmt.Errorf("reading the journal: %w", err)
	}
	if err := v.snap.Accounts(v.account); err != nil {
		return fmt.Errorf("verifying counters: %w", err)
	}
	for id := range v.tail { // those that are not in the tables yet
		if err := v.account(&quota.AccountCounters{ID: id}); err != nil {
			return fmt.Errorf("verifying counters: %w", err)
		}
	}
	for _, step := range quota.Steps {
		if err := v.sums(step); err != nil {
			return fmt.Errorf("verifying sums: %w", err)
		}
	}
	return nil
}

// readTail reads the calls under way, and the records that no row includes.
func (v *verifier) readTail() error {
	open := map[uint64]*quota.Record{}
	err := v.snap.Open(func(r *quota.Record) error {
		open[r.ID] = keep(r)
		return nil
	})
	if err != nil {
		return err
	}
	through := v.snap.Through()
	err = v.snap.Tail(func(r *quota.Record) error {
		if r.Seq <= through {
			return nil
		}
		c := keep(r)
		switch r.Kind {
		case quota.RecordOpen:
			open[r.ID] = c
		case quota.RecordSettle:
			delete(open, r.ID)
		}
		for i := range c.Shares {
			id := c.Shares[i].Account
			v.tail[id] = append(v.tail[id], c)
		}
		if c.Account != 0 {
			v.tail[c.Account] = append(v.tail[c.Account], c)
		}
		return nil
	})
	for _, r := range open {
		for i := range r.Shares {
			id := r.Shares[i].Account
			v.open[id] = append(v.open[id], seconds(r.Time))
		}
	}
	return err
}

// keep returns a copy of a record that is its owner's only for a moment.
func keep(r *quota.Record) *quota.Record {
	c := *r
	c.Shares = slices.Clone(r.Shares)
	return &c
}

// account compares the counters of one account with its history, and its rows
// with one another.
func (v *verifier) account(c *quota.AccountCounters) error {
	acc := &Account{id: c.ID}
	acc.restore(&c.Counters, math.MaxInt64)
	for _, r := range v.tail[c.ID] {
		if r.Seq > acc.seq {
			acc.apply(r, math.MaxInt64)
		}
	}
	if n := len(v.tail[c.ID]); n > 0 && acc.half(v.tail[c.ID][n-1]) {
		acc.day.requestsOffset = quota.OffsetUnknown
	}
	if err := v.counters(acc); err != nil {
		return err
	}
	delete(v.tail, c.ID)
	for _, step := range [...]quota.Step{quota.StepQuarter, quota.StepDay} {
		if err := v.rows(c.ID, step); err != nil {
			return err
		}
	}
	return nil
}

// half tells whether r, the last record of the account, is the first of the two
// by which alignOnce sets another day: the snapshot fell between them.
func (a *Account) half(r *quota.Record) bool {
	return r.Kind == quota.RecordSet && r.Limit == quota.RequestsPerDay && r.Period != a.day.period
}

// counters compares what an account's quota and day have counted.
func (v *verifier) counters(acc *Account) error {
	compare := func(name quota.LimitName, stored, computed, offset int64) {
		if offset != quota.OffsetUnknown {
			v.compare(acc.id, string(name), stored, computed+offset)
		}
	}
	q, d := &acc.quota, &acc.day
	sum, ok, err := v.history(acc.id, q.period)
	if err != nil {
		return err
	}
	if ok {
		compare(quota.TokenQuota, q.used, sum.tokens, q.offset)
	}
	if d.period != q.period {
		if sum, ok, err = v.history(acc.id, d.period); err != nil {
			return err
		}
	}
	if ok {
		compare(quota.TokensPerDay, d.tokens, sum.tokens, d.tokensOffset)
		compare(quota.RequestsPerDay, d.requests, sum.requests, d.requestsOffset)
	}
	return nil
}

// history returns what was used of an account's calls admitted in a period,
// those under way among its requests, and false if that is not known any more.
func (v *verifier) history(id quota.ID, p quota.Period) (sum spent, ok bool, err error) {
	for _, q := range cover(p) {
		if !q.whole() || !v.reaches(id, q.Step, q.From) {
			return sum, false, nil
		}
	}
	t, err := charged(v.snap.Usage, id, p)
	sum.tokens, sum.requests = t.Total, t.Requests
	for _, r := range v.tail[id] {
		var e note
		switch r.Kind {
		case quota.RecordSettle:
			e = settlement(r)
		case quota.RecordCorrect:
			e = correction(r)
		default:
			continue
		}
		if p.Holds(e.opened) {
			sum.tokens += e.tokens
			sum.requests += e.requests
		}
	}
	for _, opened := range v.open[id] {
		if p.Holds(opened) {
			sum.requests++
		}
	}
	return sum, true, err
}

// reaches tells whether all rows of an account that start from the given Unix
// second on are there: none were dropped, or it is younger than those that were.
func (v *verifier) reaches(id quota.ID, step quota.Step, from int64) bool {
	const margin = 24 * 3600 // a clock may have been set back since
	return from >= v.kept[step] || id.Created().Unix()-margin >= v.kept[step]
}

// compare notes a difference, if there is one.
func (v *verifier) compare(id quota.ID, counter string, stored, computed int64) {
	v.found.Checked++
	v.differ(id, counter, stored, computed)
}

func (v *verifier) differ(id quota.ID, counter string, stored, computed int64) {
	if stored != computed && len(v.found.Differences) < maxDifferences {
		v.found.Differences = append(v.found.Differences, Difference{id, counter, stored, computed})
	}
}
