package badger

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// Names in the data directory.
const (
	tablesDir   = "badger"
	journalDir  = "journal"
	hashKeyName = "hash.key"
)

// hashKeySize is the length of the key of the secrets' hashes.
const hashKeySize = 32

// memTableSize is how much Badger gathers in memory before it writes a table.
// A transaction may take 15 % of it, in which a checkpoint with the most rows
// has room.
const memTableSize = 16 << 20

// badgerOptions returns Badger's options for a store that is small, mostly
// idle, and one guest among others in its process.
func badgerOptions(dir string, log logger) badger.Options {
	o := badger.DefaultOptions(dir)
	o.Logger = log
	// Each change is on the disk when its commit returns: changes come about
	// once a second, and Badger's own Sync passes over what waits in a full
	// table, so that a later change could outlive an earlier one.
	o.SyncWrites = true
	o.MemTableSize = memTableSize
	// One table in memory is being filled while one is being written.
	o.NumMemtables = 2
	// Compact early: rows are overwritten again and again.
	o.NumLevelZeroTables = 2
	o.NumLevelZeroTablesStall = 6
	// The least that Badger takes. Each compactor wakes 20 times a second.
	o.NumCompactors = 2
	// Values, the greatest being keys of tens of kilobytes, stay in the tables;
	// then the value log stays empty and needs no collection of its garbage.
	o.ValueThreshold = 1 << 20
	o.ValueLogFileSize = 4 << 20
	// Rows of one account and JSON repeat themselves.
	o.Compression = options.Snappy
	// What is hot is held by the ledger; the system caches the rest.
	o.BlockCacheSize = 4 << 20
	// Indexes stay in memory: a few bytes for each row.
	o.IndexCacheSize = 0
	// All writers hold one lock, so none conflict.
	o.DetectConflicts = false
	o.NumVersionsToKeep = 1
	// Badger's metrics are expvars of the whole process.
	o.MetricsEnabled = false
	// checkTables verifies the tables before they are opened. Where Badger does
	// it while opening, a damaged one ends the process (table.VerifyChecksum
	// takes the offset of a block that could not be read).
	o.ChecksumVerificationMode = options.OnBlockRead
	o.VerifyValueChecksum = true
	return o
}

// Open opens the store in a directory, or makes one. Its error names the
// directory.
func Open(o Options) (*Store, error) {
	if o.Logger == nil {
		o.Logger = func(string, ...any) {}
	}
	s, err := open(o)
	if err != nil {
		return nil, fmt.Errorf("opening the store in %s: %w", o.Dir, err)
	}
	return s, nil
}

func open(o Options) (*Store, error) {
	if o.Dir == "" {
		return nil, errors.New("no directory is given")
	}
	for _, dir := range [...]string{o.Dir, filepath.Join(o.Dir, tablesDir), filepath.Join(o.Dir, journalDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if free, ok := freeBytes(o.Dir); ok && free < minOpen {
		return nil, fmt.Errorf("the disk has %d bytes free, %d are needed", free, minOpen)
	}
	db, err := openBadger(badgerOptions(filepath.Join(o.Dir, tablesDir), o.Logger))
	if err != nil {
		return nil, err
	}
	s := &Store{
		options: o,
		tables:  &tables{db: db, dir: o.Dir, log: o.Logger, free: freeBytes, fault: o.Fault},
		journal: &journal{
			dir: filepath.Join(o.Dir, journalDir), syncEach: o.SyncInterval == 0,
			log: o.Logger, limit: maxHeld, rotateAt: cmp.Or(o.SegmentSize, segmentSize), fault: o.Fault,
		},
		idle: make(chan struct{}),
	}
	if err := s.prepare(); err != nil {
		return nil, errors.Join(err, s.tables.close())
	}
	return s, nil
}

// prepare reads the state of the tables, finishes what was cut short, and
// reads or makes the key of the hashes.
func (s *Store) prepare() error {
	t := s.tables
	found, err := t.load()
	if err != nil {
		return err
	}
	if err := t.openMark(s.options.Dir); err != nil {
		return err
	}
	if err := t.finish(); err != nil {
		return err
	}
	if s.hashKey, err = readHashKey(s.options.Dir, !found); err != nil {
		return err
	}
	sum := sha256.Sum256(s.hashKey)
	check := binary.BigEndian.Uint32(sum[:])
	if found && t.meta.hashKey != check {
		return fmt.Errorf("%s is not the one that this store was made with: restore it, or no key's secret can be recognised", hashKeyName)
	}
	if !found {
		return t.update(func(m *meta) (change, error) {
			m.hashKey = check
			return nil, nil
		})
	}
	return nil
}

// errNewFile is how Badger refuses to open a log of 0 bytes, which a process
// leaves that is killed at the wrong moment (badger#2207). Refusing, Badger
// gives the file its full size, so that the next attempt goes on to the next.
const errNewFile = "Create a new file"

// errInUse tells of a directory that is open already.
var errInUse = errors.New("it is in use, by another process or another server in this one")

// openBadger opens the database, also if a kill left empty logs. Damage, over
// which Badger would panic, is an error.
func openBadger(o badger.Options) (db *badger.DB, err error) {
	if err := checkTables(o); err != nil {
		return nil, err
	}
	logs, err := os.ReadDir(o.Dir)
	if err != nil {
		return nil, err
	}
	for range len(logs) + 1 { // each attempt mends one file
		db, err = tryBadger(o)
		if err == nil || !strings.Contains(err.Error(), errNewFile) {
			break
		}
	}
	if err != nil && strings.Contains(err.Error(), "Cannot acquire directory lock") {
		return nil, fmt.Errorf("%w: %w", errInUse, err)
	}
	return db, err
}

func tryBadger(o badger.Options) (db *badger.DB, err error) {
	defer func() {
		if r := recover(); r != nil {
			db, err = nil, fmt.Errorf("the tables are damaged: %v", r)
		}
	}()
	return badger.Open(o)
}

// readHashKey reads the key of the hashes, or makes it if the store is new.
func readHashKey(dir string, isNew bool) ([]byte, error) {
	path := filepath.Join(dir, hashKeyName)
	b, err := os.ReadFile(path)
	switch {
	case err == nil && len(b) != hashKeySize:
		return nil, fmt.Errorf("%s has %d bytes, not %d: restore it, or no key's secret can be recognised", hashKeyName, len(b), hashKeySize)
	case err == nil:
		return b, nil
	case !errors.Is(err, os.ErrNotExist):
		return nil, err
	case !isNew:
		return nil, fmt.Errorf("%s is missing: restore it, or no key's secret can be recognised", hashKeyName)
	}
	b = make([]byte, hashKeySize)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("making %s: %w", hashKeyName, err)
	}
	if err := writeFile(path, b); err != nil {
		return nil, fmt.Errorf("making %s: %w", hashKeyName, err)
	}
	return b, nil
}

// close closes the database. On a disk that is full it does not: Badger would
// write a table, and the system would kill the process. Nothing is lost by it;
// the next start finds the log.
func (t *tables) close() error {
	t.writing.Lock()
	defer t.writing.Unlock()
	if t.mark != nil {
		closeFile(t.mark)
	}
	if free, ok := t.free(t.dir); ok && free < minOpen {
		return fmt.Errorf("the tables stay open, for the disk has only %d bytes free", free)
	}
	return t.db.Close()
}
