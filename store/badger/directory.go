package badger

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// account is a key or a group, as the indexes see it.
type account struct {
	id      quota.ID
	kind    quota.Kind
	name    string
	group   quota.ID // of a key
	source  quota.Source
	living  bool
	secrets []quota.Secret
}

func keyAccount(k *quota.Key) account {
	return account{k.ID, quota.KindKey, k.Name, k.Group, k.Source, k.Living(), k.Secrets}
}

func groupAccount(g *quota.Group) account {
	return account{g.ID, quota.KindGroup, g.Name, 0, g.Source, g.Living(), nil}
}

func (a *account) row() []byte { return accountRow(a.kind, a.id) }

func accountRow(kind quota.Kind, id quota.ID) []byte {
	if kind == quota.KindGroup {
		return idKey(tableGroup, uint64(id))
	}
	return idKey(tableKey, uint64(id))
}

func nameRow(kind quota.Kind, name string) []byte {
	return append([]byte{tableName, byte(kind)}, name...)
}

func secretRow(h quota.SecretHash) []byte { return append([]byte{tableSecret}, h[:]...) }

func memberRow(group, key quota.ID) []byte {
	return binary.BigEndian.AppendUint64(idKey(tableMember, uint64(group)), uint64(key))
}

// indexes returns the rows that point to a.
func (a *account) indexes() (rows [][]byte) {
	if a.living {
		if a.group != 0 {
			rows = append(rows, memberRow(a.group, a.id))
		}
		rows = append(rows, nameRow(a.kind, a.name))
		if a.source == quota.SourceConfig {
			rows = append(rows, idKey(tableConfigured, uint64(a.id)))
		}
	}
	for i := range a.secrets {
		rows = append(rows, secretRow(a.secrets[i].Hash))
	}
	return rows
}

// Key implements quota.Directory.
func (s *Store) Key(id quota.ID) (*quota.Key, error) { return read[quota.Key](s, quota.KindKey, id) }

// Group implements quota.Directory.
func (s *Store) Group(id quota.ID) (*quota.Group, error) {
	return read[quota.Group](s, quota.KindGroup, id)
}

func read[T any](s *Store, kind quota.Kind, id quota.ID) (*T, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	v := new(T)
	err := s.tables.get(accountRow(kind, id), func(b []byte) error { return json.Unmarshal(b, v) })
	if err != nil {
		return nil, fmt.Errorf("reading %s %s: %w", kind, id, err)
	}
	return v, nil
}

// KeyBySecret implements quota.Directory.
func (s *Store) KeyBySecret(h quota.SecretHash) (quota.ID, error) { return s.index(secretRow(h)) }

// ByName implements quota.Directory.
func (s *Store) ByName(kind quota.Kind, name string) (quota.ID, error) {
	return s.index(nameRow(kind, name))
}

func (s *Store) index(row []byte) (id quota.ID, err error) {
	if err := s.enter(); err != nil {
		return 0, err
	}
	defer s.leave()
	err = s.tables.get(row, func(b []byte) error {
		id, err = decodeID(b)
		return err
	})
	return id, err
}

// Keys implements quota.Directory.
func (s *Store) Keys(below quota.ID, fn func(*quota.Key) bool) error {
	return list(s, tableKey, below, fn)
}

// Groups implements quota.Directory.
func (s *Store) Groups(below quota.ID, fn func(*quota.Group) bool) error {
	return list(s, tableGroup, below, fn)
}

func list[T any](s *Store, table byte, below quota.ID, fn func(*T) bool) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	from := idKey(table, uint64(below)-1) // no ID below: the greatest of all
	more := true
	return s.tables.scan(table, from, true, func(item *badger.Item) error {
		v := new(T)
		if err := item.Value(func(b []byte) error { return json.Unmarshal(b, v) }); err != nil {
			return fmt.Errorf("reading row %x: %w", item.Key(), err)
		}
		if more = fn(v); !more {
			return errStop
		}
		return nil
	})
}

// KeysIn implements quota.Directory.
func (s *Store) KeysIn(group, below quota.ID, fn func(quota.ID) bool) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	from := memberRow(group, below-1) // no ID below: the greatest of all
	return s.tables.scan(tableMember, from, true, func(item *badger.Item) error {
		row := item.Key()
		if !bytes.HasPrefix(row, from[:1+8]) {
			return errStop
		}
		id, err := decodeID(row[1+8:])
		if err == nil && !fn(id) {
			return errStop
		}
		return err
	})
}

// indexMembers is the migration that adds tableMember.
func indexMembers(t *tables) (c change, err error) {
	err = t.scan(tableKey, []byte{tableKey}, false, func(item *badger.Item) error {
		var k quota.Key
		if err := item.Value(func(b []byte) error { return json.Unmarshal(b, &k) }); err != nil {
			return fmt.Errorf("reading row %x: %w", item.Key(), err)
		}
		if k.Living() && k.Group != 0 {
			c.set(memberRow(k.Group, k.ID), binary.BigEndian.AppendUint64(nil, uint64(k.ID)))
		}
		return nil
	})
	return c, err
}

// Configured implements quota.Directory.
func (s *Store) Configured() (ids []quota.ID, err error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	err = s.tables.scan(tableConfigured, []byte{tableConfigured}, false, func(item *badger.Item) error {
		id, err := decodeID(item.Key()[1:])
		ids = append(ids, id)
		return err
	})
	return ids, err
}

// errStop ends a scan without an error.
var errStop = errors.New("stop")

// scan calls fn for each row of a table from the given key on, backwards if so
// asked.
func (t *tables) scan(table byte, from []byte, backwards bool, fn func(*badger.Item) error) error {
	txn := t.db.NewTransaction(false)
	defer txn.Discard()
	return scan(txn, table, from, backwards, fn)
}

func scan(txn *badger.Txn, table byte, from []byte, backwards bool, fn func(*badger.Item) error) error {
	opts := badger.DefaultIteratorOptions
	// One row is often enough; Badger would read a hundred ahead.
	opts.PrefetchValues = false
	opts.Reverse = backwards
	opts.Prefix = []byte{table}
	it := txn.NewIterator(opts)
	defer it.Close()
	for it.Seek(from); it.Valid(); it.Next() {
		err := fn(it.Item())
		if errors.Is(err, errStop) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Put implements quota.Directory.
func (s *Store) Put(keys []*quota.Key, groups []*quota.Group, audit ...quota.Note) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	p := putter{was: make(map[quota.ID]account), now: make(map[string]quota.ID)}
	for _, k := range keys {
		if err := p.add(keyAccount(k), k); err != nil {
			return err
		}
	}
	for _, g := range groups {
		if err := p.add(groupAccount(g), g); err != nil {
			return err
		}
	}
	return s.tables.update(func(*meta) (change, error) {
		if err := p.indexes(s.tables); err != nil {
			return nil, err
		}
		s.puts.Add(1)
		return addNotes(p.change, quota.NoteAudit, audit)
	})
}

// putter makes the change that puts accounts.
type putter struct {
	change   change
	accounts []account
	was      map[quota.ID]account
	now      map[string]quota.ID // index rows of what is put
}

// add takes one account.
func (p *putter) add(a account, v any) error {
	if a.id == 0 || a.id.Kind() != a.kind {
		return fmt.Errorf("storing %s %q: no id of a %s: %w", a.kind, a.name, a.kind, quota.ErrInvalid)
	}
	if _, twice := p.was[a.id]; twice {
		return fmt.Errorf("storing %s %s twice at once: %w", a.kind, a.id, quota.ErrInvalid)
	}
	p.was[a.id] = account{}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("storing %s %s: %w", a.kind, a.id, err)
	}
	p.accounts = append(p.accounts, a)
	p.change.set(a.row(), b)
	return nil
}

// indexes adds the index rows: those that the accounts had, and have no more,
// are deleted.
func (p *putter) indexes(t *tables) error {
	txn := t.db.NewTransaction(false)
	defer txn.Discard()
	for i := range p.accounts {
		a := &p.accounts[i]
		old, err := readAccount(txn, a)
		if err != nil {
			return err
		}
		p.was[a.id] = old
		for _, row := range a.indexes() {
			if id, taken := p.now[string(row)]; taken && id != a.id {
				return fmt.Errorf("storing %s %s: its name or a secret is also that of %s: %w", a.kind, a.id, id, quota.ErrConflict)
			}
			p.now[string(row)] = a.id
		}
	}
	for row, id := range p.now {
		if err := p.free(txn, []byte(row), id); err != nil {
			return err
		}
		p.change.set([]byte(row), binary.BigEndian.AppendUint64(nil, uint64(id)))
	}
	for _, old := range p.was {
		for _, row := range old.indexes() {
			if _, kept := p.now[string(row)]; !kept {
				p.change.delete(row)
			}
		}
	}
	return nil
}

// free returns an error if an index row belongs to another account, which does
// not give it up in this same change.
func (p *putter) free(txn *badger.Txn, row []byte, id quota.ID) error {
	var owner quota.ID
	err := get(txn, row, func(b []byte) (err error) {
		owner, err = decodeID(b)
		return err
	})
	if errors.Is(err, quota.ErrNotFound) || owner == id {
		return nil
	}
	if err != nil {
		return err
	}
	if _, put := p.was[owner]; put { // then it has it no more, or p.now would say so
		return nil
	}
	return fmt.Errorf("storing %s %s: its name or a secret is that of %s: %w", id.Kind(), id, owner, quota.ErrConflict)
}

// readAccount returns the stored form of a, or the zero account.
func readAccount(txn *badger.Txn, a *account) (old account, err error) {
	err = get(txn, a.row(), func(b []byte) error {
		if a.kind == quota.KindGroup {
			var g quota.Group
			err := json.Unmarshal(b, &g)
			old = groupAccount(&g)
			return err
		}
		var k quota.Key
		err := json.Unmarshal(b, &k)
		old = keyAccount(&k)
		return err
	})
	if errors.Is(err, quota.ErrNotFound) {
		return account{}, nil
	}
	if err != nil {
		return account{}, fmt.Errorf("reading %s %s: %w", a.kind, a.id, err)
	}
	return old, nil
}
