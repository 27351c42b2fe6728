package badger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Checkpoint implements quota.History. All of cp is written together. What the
// tables hold is never ahead of the journal on the disk, so that after a power
// loss no account stands at a record that is gone.
func (s *Store) Checkpoint(cp *quota.Checkpoint) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if len(cp.Rows) > quota.MaxCheckpointRows {
		return fmt.Errorf("writing a checkpoint of %d rows, more than %d: %w", len(cp.Rows), quota.MaxCheckpointRows, quota.ErrInvalid)
	}
	if err := s.journal.usable(); err != nil {
		return err
	}
	durable, err := s.journal.sync()
	if err != nil {
		return err
	}
	s.tables.mark.synced(durable)
	var trim uint64
	err = s.tables.update(func(m *meta) (c change, err error) {
		c, err = s.checkpoint(cp, m)
		trim = m.trim
		return c, err
	})
	if err != nil {
		return err
	}
	s.journal.trim(trim)
	return nil
}

// checkpoint returns the change that cp is, and changes m to what it will be.
func (s *Store) checkpoint(cp *quota.Checkpoint, m *meta) (c change, err error) {
	if cp.Through > m.through {
		if c, err = s.tables.addRows(c, cp.Rows); err != nil {
			return nil, err
		}
		m.through = cp.Through
	} else if len(cp.Rows) > 0 {
		// An error can be told of a checkpoint that was written nevertheless.
		s.tables.log("checkpoint through record %d is in the tables already, which hold all through %d: its rows are passed over", cp.Through, m.through)
	}
	c = addReservations(c, cp)
	m.last = max(m.last, m.through)
	for i := range cp.Accounts {
		a := &cp.Accounts[i]
		c.set(idKey(tableCounters, uint64(a.ID)), appendCounters(make([]byte, 0, 160), &a.Counters))
		m.last = max(m.last, a.Seq)
	}
	if cp.Trim {
		m.trim = max(m.trim, min(s.journal.cutThrough(), m.through))
	}
	return c, nil
}

// Through implements quota.History. It asks the tables, since after an error
// nobody else knows.
func (s *Store) Through() (uint64, error) {
	if err := s.enter(); err != nil {
		return 0, err
	}
	defer s.leave()
	var m meta
	if err := s.tables.get([]byte{tableMeta}, m.decode); err != nil && !errors.Is(err, quota.ErrNotFound) {
		return 0, fmt.Errorf("reading how far the tables are: %w", err)
	}
	return m.through, nil
}

// addReservations adds the rows of the reservations that opened and ended.
func addReservations(c change, cp *quota.Checkpoint) change {
	for i := range cp.Opened {
		r := &cp.Opened[i]
		c.set(idKey(tableOpen, r.Seq), appendRecord(nil, r))
	}
	for _, id := range cp.Resolved {
		c.delete(idKey(tableOpen, id))
	}
	for i := range cp.Provisional {
		r := &cp.Provisional[i]
		c.set(laterKey(quota.Later{Key: r.Key, Name: r.Outcome.Later}), appendRecord(nil, r))
	}
	for _, l := range cp.Corrected {
		c.delete(laterKey(l))
	}
	return c
}

func laterKey(l quota.Later) []byte {
	return append(idKey(tableLater, uint64(l.Key)), l.Name[:min(len(l.Name), quota.MaxLater)]...)
}

// Provisional implements quota.History.
func (s *Store) Provisional(l quota.Later) (*quota.Record, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	var r quota.Record
	err := s.tables.get(laterKey(l), func(b []byte) error {
		var rd recordReader
		found, err := rd.read(b)
		if err == nil {
			r = *found
		}
		return err
	})
	if err != nil && !errors.Is(err, quota.ErrNotFound) {
		return nil, fmt.Errorf("reading a provisional charge: %w", err)
	}
	return &r, err
}

// pruneLater drops the provisional records of calls admitted before the given
// second.
func (t *tables) pruneLater(before int64) error {
	var c change
	var rd recordReader
	err := t.scan(tableLater, []byte{tableLater}, false, func(item *badger.Item) error {
		return item.Value(func(b []byte) error {
			if r, err := rd.read(b); err != nil || r.Opened/int64(time.Second) < before {
				c.delete(item.KeyCopy(nil))
			}
			return nil
		})
	})
	if err != nil || len(c) == 0 {
		return err
	}
	return t.update(func(*meta) (change, error) { return c, nil })
}

// open calls fn for each reservation in the tables.
func (t *tables) open(fn func(*quota.Record) error) error {
	txn := t.db.NewTransaction(false)
	defer txn.Discard()
	return t.openIn(txn, fn)
}

func (t *tables) openIn(txn *badger.Txn, fn func(*quota.Record) error) error {
	var rd recordReader
	return scan(txn, tableOpen, []byte{tableOpen}, false, func(item *badger.Item) error {
		var r *quota.Record
		err := item.Value(func(b []byte) (err error) {
			r, err = rd.read(b)
			return err
		})
		if err != nil {
			t.log("reading open reservation %x: %v: passed over", item.Key(), err)
			return nil
		}
		return fn(r)
	})
}

// Counters implements quota.History.
func (s *Store) Counters(id quota.ID, c *quota.Counters) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	err := s.tables.get(idKey(tableCounters, uint64(id)), func(b []byte) error { return decodeCounters(b, c) })
	if err != nil && !errors.Is(err, quota.ErrNotFound) {
		return fmt.Errorf("reading the counters of %s: %w", id, err)
	}
	return err
}

// Version 1 of counters knew no offsets.
const countersVersion = 2

// appendCounters appends the binary form of c.
func appendCounters(b []byte, c *quota.Counters) []byte {
	b = append(b, countersVersion)
	b = binary.AppendUvarint(b, c.Seq)
	b = binary.AppendUvarint(b, uint64(c.QuotaNumber))
	b = binary.AppendUvarint(b, uint64(c.DayNumber))
	b = binary.AppendUvarint(b, uint64(c.MinuteNumber))
	for _, n := range countersInts(c) {
		b = binary.AppendVarint(b, *n)
	}
	for i := range c.Requests {
		b = binary.AppendUvarint(b, uint64(c.Requests[i]))
	}
	for i := range c.Tokens {
		b = binary.AppendVarint(b, c.Tokens[i])
	}
	for _, n := range countersOffsets(c) {
		b = binary.AppendVarint(b, *n)
	}
	return b
}

func decodeCounters(b []byte, c *quota.Counters) error {
	cur := cursor{b: b}
	version := cur.byte()
	if version < 1 || version > countersVersion {
		return fmt.Errorf("version %d of counters is not known", version)
	}
	c.Seq = cur.uvarint()
	c.QuotaNumber = cur.uint32()
	c.DayNumber = cur.uint32()
	c.MinuteNumber = cur.uint32()
	for _, n := range countersInts(c) {
		*n = cur.varint()
	}
	for i := range c.Requests {
		c.Requests[i] = cur.uint32()
	}
	for i := range c.Tokens {
		c.Tokens[i] = cur.varint()
	}
	for _, n := range countersOffsets(c) {
		if *n = quota.OffsetUnknown; version > 1 {
			*n = cur.varint()
		}
	}
	if cur.bad {
		return errors.New("damaged counters")
	}
	return nil
}

// countersInts lists the fields of c that are plain numbers, in their order on
// disk.
func countersInts(c *quota.Counters) [12]*int64 {
	return [...]*int64{
		&c.QuotaPeriod.Start, &c.QuotaPeriod.End, &c.QuotaUsed, &c.QuotaGranted,
		&c.DayPeriod.Start, &c.DayPeriod.End, &c.DayRequests, &c.DayTokens,
		&c.RequestsBucket, &c.TokensBucket, &c.LastUsed, &c.QuotaReset,
	}
}

func countersOffsets(c *quota.Counters) [3]*int64 {
	return [...]*int64{&c.QuotaOffset, &c.DayRequestsOffset, &c.DayTokensOffset}
}
