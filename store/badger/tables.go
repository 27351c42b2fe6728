package badger

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// The tables share Badger's one space of keys. Each table has a first byte of
// its own, and numbers are big-endian, so that the order of keys means
// something.
const (
	tableMeta       = 'm' // alone                               → meta
	tableKey        = 'k' // ID                                  → JSON of quota.Key
	tableGroup      = 'g' // ID                                  → JSON of quota.Group
	tableSecret     = 's' // hash of a secret                    → ID
	tableName       = 'n' // kind, name of a living account      → ID
	tableConfigured = 'f' // ID of a living account of the configuration → ID
	tableMember     = 'i' // ID of a group, ID of a living key in it → ID of the key
	tableCounters   = 'c' // ID                                  → counters
	tableOpen       = 'o' // Seq of the reservation              → record
	tableLater      = 'l' // ID of the key, name                 → record
	tableUsage      = 'u' // step, key, start, group, model      → totals
	tableSums       = 'v' // step, start, group, model           → totals over the group's keys
	tableCharged    = 'w' // step, group, start                  → totals charged to the group as an account
	tableNote       = 'a' // list, ID                            → note
	tableOnce       = 'b' // list, what a note is about          → its ID
	tablePruned     = 'p' // step                                → the start before which rows may be gone
)

// meta is what the tables say of themselves. It is written with every change.
type meta struct {
	schema  byte   // version of the tables
	commit  uint64 // number of the change
	through uint64 // usage holds every record up to this one
	trim    uint64 // no record up to this one is needed any more
	last    uint64 // a record that was surely written to the journal
	hashKey uint32 // checksum of the key of the hashes that are kept
}

// base returns the last record that is not needed any more. Records that the
// usage holds may yet be needed for counters: those come with the last part of
// a checkpoint of many.
func (m *meta) base() uint64 { return min(m.trim, m.through) }

func (m *meta) encode() []byte {
	b := []byte{m.schema}
	for _, n := range [...]uint64{m.commit, m.through, m.trim, m.last, uint64(m.hashKey)} {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

func (m *meta) decode(b []byte) error {
	c := cursor{b: b}
	if m.schema = c.byte(); m.schema > schemaVersion() {
		return fmt.Errorf("%w: schema version %d is not known to this program, which knows versions up to %d", errNewer, m.schema, schemaVersion())
	}
	for _, n := range [...]*uint64{&m.commit, &m.through, &m.trim, &m.last} {
		*n = c.uvarint()
	}
	m.hashKey = c.uint32()
	if c.bad || m.schema == 0 {
		return errors.New("damaged record of the store's state")
	}
	return nil
}

// tables are the Badger database and the rules by which it is written: one
// writer at a time, each change whole or not at all, and durable when the
// write returns.
type tables struct {
	db     *badger.DB
	dir    string
	mark   *mark
	room   *room
	losses *losses
	log    func(format string, args ...any)
	fault  Fault

	// writing is held over a change, from the first read it rests on.
	writing *latch
	meta    meta
	// unsure says that the last change failed, and may yet be in the tables,
	// or in part, or waiting in redoName.
	unsure bool
}

// change is a set of entries that are written together. Nothing may be changed
// in the slices that are handed over.
type change []entry

type entry struct {
	key   []byte
	value []byte // nil: delete
}

func (c *change) set(key, value []byte) { *c = append(*c, entry{key, value}) }

func (c *change) delete(key []byte) { *c = append(*c, entry{key: key}) }

// update writes the change that fn returns, together with meta, which fn may
// alter. Nothing is written if it returns nothing and alters nothing.
func (t *tables) update(fn func(m *meta) (change, error)) error {
	if err := t.writing.lock(); err != nil {
		return fmt.Errorf("writing tables: %w", err)
	}
	defer t.writing.unlock()
	if err := t.room.check(); err != nil {
		return fmt.Errorf("writing tables: %w", err)
	}
	if err := t.settle(); err != nil {
		return err
	}
	m := t.meta
	c, err := fn(&m)
	if err != nil || (len(c) == 0 && m == t.meta) {
		return err
	}
	m.commit++
	c.set([]byte{tableMeta}, m.encode())
	if err = t.write(c); errors.Is(err, badger.ErrTxnTooBig) {
		err = t.writeLarge(c, m.commit)
	}
	if err != nil {
		t.unsure = true
		return fmt.Errorf("writing tables: %w", err)
	}
	t.meta = m
	t.mark.changed(m.commit)
	return nil
}

// settle finds out what became of a change that failed.
func (t *tables) settle() error {
	if !t.unsure {
		return nil
	}
	number := t.meta.commit
	if _, err := t.load(); err != nil {
		return err
	}
	if err := t.finish(); err != nil {
		return err
	}
	t.meta.commit = max(t.meta.commit, number)
	t.mark.changed(t.meta.commit)
	t.unsure = false
	return nil
}

// write writes c in one transaction.
func (t *tables) write(c change) error {
	txn := t.db.NewTransaction(true)
	defer txn.Discard()
	for i := range c {
		if err := apply(txn, &c[i]); err != nil {
			return err
		}
	}
	return t.commit(txn)
}

func (t *tables) commit(txn *badger.Txn) error {
	return t.fault.step(StepCommit, t.dir, txn.Commit)
}

func apply(txn *badger.Txn, e *entry) error {
	if e.value == nil {
		return txn.Delete(e.key)
	}
	return txn.Set(e.key, e.value)
}

// writeSteps writes c in as many transactions as it takes, in order.
func (t *tables) writeSteps(c change) error {
	txn := t.db.NewTransaction(true)
	defer func() { txn.Discard() }()
	for i := range c {
		err := apply(txn, &c[i])
		if errors.Is(err, badger.ErrTxnTooBig) {
			if err = t.commit(txn); err != nil {
				return err
			}
			txn = t.db.NewTransaction(true)
			err = apply(txn, &c[i])
		}
		if err != nil {
			return err
		}
	}
	return t.commit(txn)
}

// load reads meta; a new database has none.
func (t *tables) load() (found bool, err error) {
	err = t.get([]byte{tableMeta}, func(b []byte) error {
		found = true
		return t.meta.decode(b)
	})
	if errors.Is(err, quota.ErrNotFound) {
		err = nil
	}
	return found, err
}

// get calls fn with the value of key, or returns quota.ErrNotFound.
func (t *tables) get(key []byte, fn func([]byte) error) error {
	txn := t.db.NewTransaction(false)
	defer txn.Discard()
	return get(txn, key, fn)
}

func get(txn *badger.Txn, key []byte, fn func([]byte) error) error {
	item, err := txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return quota.ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("reading tables: %w", err)
	}
	return item.Value(fn)
}

// idKey returns the key of an account's row.
func idKey(table byte, id uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{table}, id)
}

func decodeID(b []byte) (quota.ID, error) {
	if len(b) != 8 {
		return 0, errors.New("reading tables: damaged index entry")
	}
	return quota.ID(binary.BigEndian.Uint64(b)), nil
}
