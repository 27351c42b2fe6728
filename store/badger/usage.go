package badger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/dgraph-io/badger/v4"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Usage is kept twice, so that every query reads a stretch of neighbours: by
// key, and summed over the keys of each group.
//
//	tableUsage: step (1), key (8), start (8), group (8), model
//	tableSums:  step (1), start (8), group (8), model
const (
	usageStart  = 2 + 8 // offset of start in a row of tableUsage
	usagePrefix = 2 + 8 + 8 + 8
	sumsStart   = 2
	sumsPrefix  = 2 + 8 + 8
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

// decodeSlot reads a row's key into slot.
func decodeSlot(b []byte, slot *quota.Slot) {
	rest := b[sumsStart:]
	slot.Key = 0
	if b[0] == tableUsage {
		slot.Key = quota.ID(binary.BigEndian.Uint64(rest))
		rest = rest[8:]
	}
	slot.Step = quota.Step(b[1])
	slot.Start = int64(binary.BigEndian.Uint64(rest) ^ 1<<63)
	slot.Group = quota.ID(binary.BigEndian.Uint64(rest[8:]))
	if model := rest[16:]; string(model) != slot.Model { // neighbours often share it
		slot.Model = string(model)
	}
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
		for _, key := range [...][]byte{usageRow(&r.Slot), sumsRow(&r.Slot)} {
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
	if q.From >= q.To {
		return nil
	}
	txn := s.tables.db.NewTransaction(false)
	defer txn.Discard()
	opts := badger.DefaultIteratorOptions
	switch {
	case q.Key != 0:
		return scanUsage(txn, opts, usageKey(q.Step, q.Key), q.From, q.To, fn)
	case !q.ByKey:
		return scanUsage(txn, opts, []byte{tableSums, byte(q.Step)}, q.From, q.To, fn)
	}
	return scanKeys(txn, q, fn)
}

func usageKey(step quota.Step, key quota.ID) []byte {
	return binary.BigEndian.AppendUint64([]byte{tableUsage, byte(step)}, uint64(key))
}

// scanUsage calls fn for the rows under prefix that start in [from, to).
func scanUsage(txn *badger.Txn, opts badger.IteratorOptions, prefix []byte, from, to int64, fn func(*quota.Row) error) error {
	opts.Prefix = prefix
	it := txn.NewIterator(opts)
	defer it.Close()
	var row quota.Row
	for it.Seek(binary.BigEndian.AppendUint64(prefix, startBits(from))); it.Valid(); it.Next() {
		decodeSlot(it.Item().Key(), &row.Slot)
		if row.Start >= to {
			return nil
		}
		if err := yieldRow(it.Item(), &row, fn); err != nil {
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
	var row quota.Row
	it.Seek(opts.Prefix)
	for it.Valid() {
		decodeSlot(it.Item().Key(), &row.Slot)
		switch {
		case row.Start < q.From:
			it.Seek(binary.BigEndian.AppendUint64(usageKey(q.Step, row.Key), startBits(q.From)))
		case row.Start >= q.To:
			if row.Key+1 == 0 {
				return nil
			}
			it.Seek(usageKey(q.Step, row.Key+1))
		default:
			if err := yieldRow(it.Item(), &row, fn); err != nil {
				return err
			}
			it.Next()
		}
	}
	return nil
}

func yieldRow(item *badger.Item, row *quota.Row, fn func(*quota.Row) error) error {
	err := item.Value(func(b []byte) error { return decodeTotals(b, &row.Totals) })
	if err != nil {
		return fmt.Errorf("reading row %x: %w", item.Key(), err)
	}
	given := *row // so that fn cannot disturb the scan
	return fn(&given)
}

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
	for _, step := range quota.Steps {
		for _, prefix := range [...][]byte{{tableUsage, byte(step)}, {tableSums, byte(step)}} {
			if err := s.tables.prune(prefix, before[step]); err != nil {
				return fmt.Errorf("pruning usage: %w", err)
			}
		}
	}
	return nil
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
	it.Seek(from)
	for it.Valid() {
		key := it.Item().Key()
		decodeSlot(key, &slot)
		switch {
		case slot.Start < before:
			if len(c) == pruneBatch {
				return c, it.Item().KeyCopy(nil)
			}
			c.delete(it.Item().KeyCopy(nil))
			it.Next()
		case prefix[0] == tableSums || slot.Key+1 == 0:
			return c, nil
		default: // the rest of this key is newer
			it.Seek(usageKey(slot.Step, slot.Key+1))
		}
	}
	return c, nil
}
