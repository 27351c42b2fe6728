package ledger

import (
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Usage calls fn for each row of usage that q selects, of which one slot may
// have several. Everything settled before the call is in, also while the store
// cannot be written.
func (l *Ledger) Usage(_ time.Time, q quota.RowQuery, fn func(*quota.Row) error) error {
	usage, done, err := l.usage()
	if err != nil {
		return err
	}
	defer done()
	return usage(q, fn)
}

// usage returns what reads usage until done is called: of the store's tables
// alone if they can be brought up to date, else of them and of what they lack.
func (l *Ledger) usage() (read func(quota.RowQuery, func(*quota.Row) error) error, done func(), err error) {
	l.checkpointMu.Lock()
	_, failed := l.checkpoint()
	if failed == nil {
		l.checkpointMu.Unlock()
		return l.store.Usage, func() {}, nil
	}
	late := rollup{ledger: l}
	through, err := l.store.Through()
	if err == nil {
		err = l.store.Uncut(func(r *quota.Record) error { late.add(r); return nil })
	}
	if err != nil {
		l.checkpointMu.Unlock()
		return nil, nil, failed // which says what is wrong
	}
	// As long as the lock is held, nothing that waits gets into the tables too.
	waiting := late.checkpoints(0)
	for _, cp := range l.waiting {
		if cp.Through > through { // else it was written, and an error told nevertheless
			waiting = append(waiting, cp)
		}
	}
	return func(q quota.RowQuery, fn func(*quota.Row) error) error {
		if err := l.store.Usage(q, fn); err != nil {
			return err
		}
		for i := range waiting {
			for _, r := range waiting[i].Rows { // a copy, which is fn's
				if !selects(&q, &r.Slot) {
					continue
				}
				if q.Key == 0 && !q.ByKey {
					r.Key = 0
				}
				if err := fn(&r); err != nil {
					return err
				}
			}
		}
		return nil
	}, l.checkpointMu.Unlock, nil
}

// selects tells whether q selects a row, as the store would.
func selects(q *quota.RowQuery, s *quota.Slot) bool {
	if s.Step != q.Step || s.Start < q.From || s.Start >= q.To || s.Account != q.Account {
		return false
	}
	return q.Account != 0 || q.Key == 0 || q.Key == s.Key
}
