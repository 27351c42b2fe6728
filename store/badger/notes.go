package badger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/dgraph-io/badger/v4"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Notes are kept in the order of their IDs, and found by what they are about:
//
//	tableNote: list (1), ID (8)  → length of once (uvarint), once, body
//	tableOnce: list (1), once    → ID

func noteRow(kind quota.NoteKind, id quota.NoteID) []byte {
	return binary.BigEndian.AppendUint64([]byte{tableNote, byte(kind)}, uint64(id))
}

func onceRow(kind quota.NoteKind, once string) []byte {
	return append([]byte{tableOnce, byte(kind)}, once...)
}

func encodeNote(n *quota.Note) []byte {
	b := binary.AppendUvarint(nil, uint64(len(n.Once)))
	return append(append(b, n.Once...), n.Body...)
}

func decodeNote(b []byte, n *quota.Note) error {
	c := cursor{b: b}
	once := c.bytes(c.uvarint())
	if c.bad {
		return errors.New("damaged note")
	}
	n.Once, n.Body = string(once), c.b
	return nil
}

// PutNotes implements quota.Notes.
func (s *Store) PutNotes(kind quota.NoteKind, notes ...quota.Note) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	return s.tables.update(func(*meta) (change, error) { return addNotes(nil, kind, notes) })
}

func addNotes(c change, kind quota.NoteKind, notes []quota.Note) (change, error) {
	for i := range notes {
		n := &notes[i]
		if n.ID == 0 {
			return nil, fmt.Errorf("storing a note without an id: %w", quota.ErrInvalid)
		}
		c.set(noteRow(kind, n.ID), encodeNote(n))
		if n.Once != "" {
			c.set(onceRow(kind, n.Once), binary.BigEndian.AppendUint64(nil, uint64(n.ID)))
		}
	}
	return c, nil
}

// Notes implements quota.Notes.
func (s *Store) Notes(kind quota.NoteKind, below quota.NoteID, fn func(*quota.Note) bool) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	err := s.tables.scanNotes(kind, below, func(_ []byte, n *quota.Note) error {
		if !fn(n) {
			return errStop
		}
		return nil
	})
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// scanNotes calls fn for each note with an ID below the given one, the newest
// first, and its row.
func (t *tables) scanNotes(kind quota.NoteKind, below quota.NoteID, fn func(row []byte, n *quota.Note) error) error {
	txn := t.db.NewTransaction(false)
	defer txn.Discard()
	opts := badger.DefaultIteratorOptions
	opts.Reverse = true
	prefix := []byte{tableNote, byte(kind)}
	it := txn.NewIterator(opts)
	defer it.Close()
	from := noteRow(kind, below-1) // the greatest there is, for zero
	for it.Seek(from); it.ValidForPrefix(prefix); it.Next() {
		row := it.Item().Key()
		if len(row) != len(from) {
			return errors.New("reading notes: damaged row")
		}
		n := quota.Note{ID: quota.NoteID(binary.BigEndian.Uint64(row[len(prefix):]))}
		err := it.Item().Value(func(b []byte) error {
			if err := decodeNote(b, &n); err != nil {
				return err
			}
			return fn(row, &n)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// NoteOnce implements quota.Notes.
func (s *Store) NoteOnce(kind quota.NoteKind, once string) (id quota.NoteID, err error) {
	if err := s.enter(); err != nil {
		return 0, err
	}
	defer s.leave()
	err = s.tables.get(onceRow(kind, once), func(b []byte) error {
		if len(b) != 8 {
			return errors.New("reading notes: damaged index entry")
		}
		id = quota.NoteID(binary.BigEndian.Uint64(b))
		return nil
	})
	return id, err
}

// PruneNotes implements quota.Notes.
func (s *Store) PruneNotes(kind quota.NoteKind, keep int) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	var old change
	seen := 0
	err := s.tables.scanNotes(kind, 0, func(row []byte, n *quota.Note) error {
		if seen++; seen <= keep {
			return nil
		}
		old.delete(slices.Clone(row))
		if n.Once != "" {
			old.delete(onceRow(kind, n.Once))
		}
		return nil
	})
	for len(old) > 0 && err == nil {
		part := old[:min(len(old), pruneBatch)]
		old = old[len(part):]
		err = s.tables.update(func(*meta) (change, error) { return slices.Clone(part), nil })
	}
	if err != nil {
		return fmt.Errorf("dropping old notes: %w", err)
	}
	return nil
}
