package badger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/dgraph-io/badger/v4"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Usage is kept twice, so that every query reads a stretch of neighbours: by
// key, and summed over the keys of each group. What was charged to groups as
// accounts, from below and far below, has rows of its own.
//
//	tableUsage:   step (1), key (8), start (8), group (8), model
//	tableSums:    step (1), start (8), group (8), model
//	tableCharged: step (1), account (8), start (8)
const (
	usagePrefix = 2 + 8 + 8 + 8
	sumsStart   = 2
	sumsPrefix  = 2 + 8 + 8
	chargedRow  = 2 + 8 + 8
)

// startBits makes starts before 1970 sort before those after it.
func startBits(start int64) uint64 { return uint64(start) ^ 1<<63 }

func usageRow(s *quota.Slot) []byte {
	b := make([]byte, 0, usagePrefix+len(s.Model))
	b = append(b, tableUsage, byte(s.Step))
	b = binary.BigEndian.AppendUint64(b, uint64(s.Key))
	b = binary.BigEndian.AppendUint64(b, startBits(s.Start))
	b = binary.BigEndian.AppendUint64(b, uint64(s.Group))
	return append(b, clipModel(s.Model)...)
}

func sumsRow(s *quota.Slot) []byte {
	b := make([]byte, 0, sumsPrefix+len(s.Model))
	b = append(b, tableSums, byte(s.Step))
	b = binary.BigEndian.AppendUint64(b, startBits(s.Start))
	b = binary.BigEndian.AppendUint64(b, uint64(s.Group))
	return append(b, clipModel(s.Model)...)
}

// rowsOf returns the keys of the rows in which the usage of a slot is kept.
func rowsOf(s *quota.Slot) [][]byte {
	if s.Account != 0 {
		b := append(make([]byte, 0, chargedRow), tableCharged, byte(s.Step))
		b = binary.BigEndian.AppendUint64(b, uint64(s.Account))
		return [][]byte{binary.BigEndian.AppendUint64(b, startBits(s.Start))}
	}
	return [][]byte{usageRow(s), sumsRow(s)}
}

// decodeSlot reads a row's key into slot.
func decodeSlot(b []byte, slot *quota.Slot, models *modelNames) {
	rest := b[sumsStart:]
	slot.Key, slot.Account = 0, 0
	switch b[0] {
	case tableUsage:
		slot.Key = quota.ID(binary.BigEndian.Uint64(rest))
		rest = rest[8:]
	case tableCharged:
		slot.Account = quota.ID(binary.BigEndian.Uint64(rest))
		rest = rest[8:]
	}
	slot.Step = quota.Step(b[1])
	slot.Start = int64(binary.BigEndian.Uint64(rest) ^ 1<<63)
	if slot.Account != 0 {
		slot.Group, slot.Model = 0, ""
		return
	}
	slot.Group = quota.ID(binary.BigEndian.Uint64(rest[8:]))
	slot.Model = models.name(rest[16:])
}

// totalsInts lists the fields of t in their order on disk.
func totalsInts(t *quota.Totals) [10]*int64 {
	return [...]*int64{
		&t.Requests, &t.Refused, &t.Failed, &t.Input, &t.Cached, &t.CacheWrite,
		&t.Output, &t.Reasoning, &t.Total, &t.Estimated,
	}
}

func appendTotals(b []byte, t *quota.Totals) []byte {
	for _, n := range totalsInts(t) {
		b = binary.AppendVarint(b, *n)
	}
	return b
}

// decodeTotals ignores what follows, which a later version may add.
func decodeTotals(b []byte, t *quota.Totals) error {
	c := cursor{b: b}
	for _, n := range totalsInts(t) {
		*n = c.varint()
	}
	if c.bad {
		return errors.New("damaged usage")
	}
	return nil
}

// addRows adds to c the rows as they are after the addition of those given.
func (t *tables) addRows(c change, rows []quota.Row) (change, error) {
	type sum struct {
		key    []byte
		totals quota.Totals
	}
	sums := make([]sum, 0, 2*len(rows))
	place := make(map[string]int, 2*len(rows))
	for i := range rows {
		r := &rows[i]
		for _, key := range rowsOf(&r.Slot) {
			n, ok := place[string(key)]
			if !ok {
				n = len(sums)
				place[string(key)] = n
				sums = append(sums, sum{key: key})
			}
			sums[n].totals.Add(&r.Totals)
		}
	}
	// In the order in which they lie, neighbours are found faster.
	slices.SortFunc(sums, func(a, b sum) int { return bytes.Compare(a.key, b.key) })
	txn := t.db.NewTransaction(false)
	defer txn.Discard()
	values := make([]byte, 0, 48*len(sums)) // one piece of memory for most
	for i := range sums {
		err := get(txn, sums[i].key, func(b []byte) error {
			var old quota.Totals
			err := decodeTotals(b, &old)
			sums[i].totals.Add(&old)
			return err
		})
		if err != nil && !errors.Is(err, quota.ErrNotFound) {
			return c, fmt.Errorf("reading a row of usage: %w", err)
		}
		start := len(values)
		values = appendTotals(values, &sums[i].totals)
		c.set(sums[i].key, values[start:len(values):len(values)])
	}
	return c, nil
}

// Usage implements quota.History.
func (s *Store) Usage(q quota.RowQuery, fn func(*quota.Row) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	txn := s.tables.db.NewTransaction(false)
	defer txn.Discard()
	return queryRows(txn, q, fn)
}

// queryRows calls fn for each row that q selects.
func queryRows(txn *badger.Txn, q quota.RowQuery, fn func(*quota.Row) error) error {
	if q.From >= q.To {
		return nil
	}
	opts := badger.DefaultIteratorOptions
	switch {
	case q.Account != 0:
		return scanUsage(txn, opts, ownerKey(tableCharged, q.Step, q.Account), q.From, q.To, fn)
	case q.Key != 0:
		return scanUsage(txn, opts, ownerKey(tableUsage, q.Step, q.Key), q.From, q.To, fn)
	case !q.ByKey:
		return scanUsage(txn, opts, []byte{tableSums, byte(q.Step)}, q.From, q.To, fn)
	}
	return scanKeys(txn, q, fn)
}

// ownerKey begins the rows of one key in tableUsage, or of one group in
// tableCharged.
func ownerKey(table byte, step quota.Step, id quota.ID) []byte {
	return binary.BigEndian.AppendUint64([]byte{table, byte(step)}, uint64(id))
}

// scanUsage calls fn for the rows under prefix that start in [from, to).
func scanUsage(txn *badger.Txn, opts badger.IteratorOptions, prefix []byte, from, to int64, fn func(*quota.Row) error) error {
	opts.Prefix = prefix
	it := txn.NewIterator(opts)
	defer it.Close()
	var r rowReader
	for it.Seek(binary.BigEndian.AppendUint64(prefix, startBits(from))); it.Valid(); it.Next() {
		if r.slot(it.Item()).Start >= to {
			return nil
		}
		if err := r.yield(it.Item(), fn); err != nil {
			return err
		}
	}
	return nil
}

// scanKeys calls fn for the rows of every key, jumping from key to key.
func scanKeys(txn *badger.Txn, q quota.RowQuery, fn func(*quota.Row) error) error {
	opts := badger.DefaultIteratorOptions
	opts.Prefix = []byte{tableUsage, byte(q.Step)}
	opts.PrefetchValues = false // most rows seen are jumped over
	it := txn.NewIterator(opts)
	defer it.Close()
	var r rowReader
	it.Seek(opts.Prefix)
	for it.Valid() {
		slot := r.slot(it.Item())
		switch {
		case slot.Start < q.From:
			it.Seek(binary.BigEndian.AppendUint64(ownerKey(tableUsage, q.Step, slot.Key), startBits(q.From)))
		case slot.Start >= q.To:
			if slot.Key+1 == 0 {
				return nil
			}
			it.Seek(ownerKey(tableUsage, q.Step, slot.Key+1))
		default:
			if err := r.yield(it.Item(), fn); err != nil {
				return err
			}
			it.Next()
		}
	}
	return nil
}

// rowReader reads rows, one after the other.
type rowReader struct {
	row    quota.Row
	given  quota.Row // so that fn cannot disturb the scan
	models modelNames
}

// slot reads a row's key. What it returns holds until the next call.
func (r *rowReader) slot(item *badger.Item) *quota.Slot {
	decodeSlot(item.Key(), &r.row.Slot, &r.models)
	return &r.row.Slot
}

// yield calls fn with the row whose key was read last.
func (r *rowReader) yield(item *badger.Item, fn func(*quota.Row) error) error {
	r.given.Slot = r.row.Slot
	if err := item.Value(r.totals); err != nil {
		return fmt.Errorf("reading row %x: %w", item.Key(), err)
	}
	return fn(&r.given)
}

func (r *rowReader) totals(b []byte) error { return decodeTotals(b, &r.given.Totals) }

// pruneBatch is how many rows are dropped in one transaction.
const pruneBatch = 4000

// Prune implements quota.History.
func (s *Store) Prune(before [len(quota.Steps)]int64) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if err := s.tables.pruneLater(before[quota.StepQuarter]); err != nil {
		return fmt.Errorf("pruning provisional charges: %w", err)
	}
	if err := s.tables.notePruned(before); err != nil { // before any row is gone
		return fmt.Errorf("noting what is pruned: %w", err)
	}
	for _, step := range quota.Steps {
		for _, prefix := range [...][]byte{{tableUsage, byte(step)}, {tableSums, byte(step)}, {tableCharged, byte(step)}} {
			if err := s.tables.prune(prefix, before[step]); err != nil {
				return fmt.Errorf("pruning usage: %w", err)
			}
		}
	}
	return nil
}

// Pruned implements quota.History.
func (s *Store) Pruned() (before [len(quota.Steps)]int64, err error) {
	if err := s.enter(); err != nil {
		return before, err
	}
	defer s.leave()
	return s.tables.pruned()
}

func (t *tables) pruned() (before [len(quota.Steps)]int64, err error) {
	for i, step := range quota.Steps {
		before[i] = math.MinInt64
		err := t.get([]byte{tablePruned, byte(step)}, func(b []byte) error {
			if len(b) != 8 {
				return errors.New("damaged row")
			}
			before[i] = int64(binary.BigEndian.Uint64(b) ^ 1<<63)
			return nil
		})
		if err != nil && !errors.Is(err, quota.ErrNotFound) {
			return before, fmt.Errorf("reading what is pruned: %w", err)
		}
	}
	return before, nil
}

// notePruned notes that rows before the given seconds may be gone from now on.
func (t *tables) notePruned(before [len(quota.Steps)]int64) error {
	return t.update(func(*meta) (c change, err error) {
		was, err := t.pruned()
		for i, step := range quota.Steps {
			if before[i] > was[i] {
				c.set([]byte{tablePruned, byte(step)}, binary.BigEndian.AppendUint64(nil, startBits(before[i])))
			}
		}
		return c, err
	})
}

// prune deletes the rows under prefix that start before the given second.
func (t *tables) prune(prefix []byte, before int64) error {
	from := prefix
	for from != nil {
		var c change
		c, from = t.prunable(prefix, from, before)
		if len(c) == 0 {
			continue
		}
		// No lock is held while looking for rows: only one goroutine calls
		// Checkpoint and Prune.
		if err := t.update(func(*meta) (change, error) { return c, nil }); err != nil {
			return err
		}
	}
	return nil
}

// prunable returns the next rows to delete, and where to go on.
func (t *tables) prunable(prefix, from []byte, before int64) (c change, next []byte) {
	txn := t.db.NewTransaction(false)
	defer txn.Discard()
	opts := badger.DefaultIteratorOptions
	opts.Prefix = prefix
	opts.PrefetchValues = false
	it := txn.NewIterator(opts)
	defer it.Close()
	var slot quota.Slot
	var models modelNames
	it.Seek(from)
	for it.Valid() {
		decodeSlot(it.Item().Key(), &slot, &models)
		switch {
		case slot.Start < before:
			if len(c) == pruneBatch {
				return c, it.Item().KeyCopy(nil)
			}
			c.delete(it.Item().KeyCopy(nil))
			it.Next()
		case prefix[0] == tableSums || slot.Key+slot.Account+1 == 0:
			return c, nil
		default: // the rest of this key or group is newer
			it.Seek(ownerKey(prefix[0], slot.Step, slot.Key+slot.Account+1))
		}
	}
	return c, nil
}
