package badger

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// Names in the data directory.
const (
	tablesDir  = "badger"
	journalDir = "journal"
)

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
	// Store.compact merges tables, when there is room, and no table that is
	// written waits for it.
	o.NumCompactors = 0
	o.NumLevelZeroTables = 2
	o.NumLevelZeroTablesStall = math.MaxInt32
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
	if o.now == nil {
		o.now = time.Now
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	unlock, err := lockDir(o.Dir) // of another that opens or restores
	if err != nil {
		return nil, err
	}
	defer unlock()
	h := &healer{
		dir: o.Dir, log: o.Logger, fault: o.Fault, room: newRoom(o.Dir, o.Logger, o.free),
		losses: &losses{dir: o.Dir, log: o.Logger, now: o.now},
	}
	if err := finishStages(o.Dir, o.Fault); err != nil {
		return nil, err
	}
	if err := h.room.require(minOpen); err != nil {
		return nil, err
	}
	if err := h.checkJournal(); err != nil {
		return nil, err
	}
	s, err := openTables(&o, h, strict)
	var lost *lostChangesError
	switch {
	case errors.As(err, &lost):
		if _, err := h.heal(err, lost.commit, false); err != nil {
			return nil, err
		}
		return openTables(&o, h, telling)
	case isDamage(err):
		if _, err := h.heal(err, 0, true); err != nil {
			return nil, fmt.Errorf("putting damaged tables in order: %w", err)
		}
		return openTables(&o, h, healed)
	}
	return s, err
}

// manner is what is done about tables that lack changes that were in them.
type manner int

const (
	strict  manner = iota // they are an error
	telling               // they are told of
	healed                // it was told of
)

// openTables opens what is there.
func openTables(o *Options, h *healer, m manner) (*Store, error) {
	for _, dir := range [...]string{tablesDir, journalDir} {
		if path := filepath.Join(o.Dir, dir); exists(path) && !isDir(path) {
			return nil, fmt.Errorf("%s is no directory", path)
		}
		if err := os.MkdirAll(filepath.Join(o.Dir, dir), 0o700); err != nil {
			return nil, err
		}
	}
	db, err := openBadger(badgerOptions(filepath.Join(o.Dir, tablesDir), o.Logger))
	if err != nil {
		return nil, err
	}
	j := newJournal(filepath.Join(o.Dir, journalDir), o.Logger)
	j.syncEach, j.rotateAt, j.fault, j.room = o.SyncInterval == 0, cmp.Or(o.SegmentSize, segmentSize), o.Fault, h.room
	j.lose, j.putAway = h.loseRecords, h.putSegmentAway
	s := &Store{
		options: *o,
		tables: &tables{
			db: db, dir: o.Dir, room: h.room, losses: h.losses, log: o.Logger, fault: o.Fault, writing: newLatch(),
		},
		journal: j,
		idle:    make(chan struct{}),
	}
	s.tables.writing.patience = changePatience
	if err := s.prepare(h, m); err != nil {
		return nil, errors.Join(err, s.tables.close())
	}
	s.findSnapshots()
	return s, nil
}

// prepare reads the state of the tables, finishes what was cut short, and
// reads or makes the key of the hashes.
func (s *Store) prepare(h *healer, how manner) error {
	t := s.tables
	found, err := t.load()
	if err != nil {
		return err
	}
	if err := s.compare(found, how); err != nil {
		return err
	}
	if t.mark, err = openMark(s.options.Dir, t.log, t.fault); err != nil {
		return err
	}
	t.meta.commit = max(t.meta.commit, t.mark.commit)
	if err := t.finish(); err != nil {
		return err
	}
	if t.meta.schema == 0 { // they are new
		t.meta.schema = schemaVersion()
	}
	if err := t.migrate(); err != nil {
		return err
	}
	if s.hashKey, err = h.hashKey(found, t.meta.hashKey); err != nil || found {
		return err
	}
	return t.update(func(m *meta) (change, error) {
		m.hashKey = hashKeyCheck(s.hashKey)
		return nil, nil
	})
}

// compare finds out whether the tables lack changes that were in them.
func (s *Store) compare(found bool, how manner) error {
	t := s.tables
	commit, _ := readMark(s.options.Dir)
	var lost lostChangesError
	switch {
	case how == healed:
	case commit > t.meta.commit:
		lost.text = fmt.Sprintf("the tables in %s have lost their last %d changes", t.dir, commit-t.meta.commit)
	case !found && s.known():
		lost.text = fmt.Sprintf("the tables in %s are empty, beside a journal or snapshots of such that were not", t.dir)
	}
	if lost.text == "" {
		return nil
	}
	if lost.commit = t.meta.commit; how == strict {
		return &lost
	}
	t.losses.tell(&note{
		found: lost.text,
		did:   "Nothing: no snapshot holds more than the tables do. What the journal holds is played back on them.",
		lost:  "The last changes of keys and groups, and usage that is in the journal no more.",
		to:    "Look at the keys and groups that were changed last, or restore a backup into an empty directory with caddy llm-quota restore.",
	})
	return nil
}

// known tells whether there is a journal or a snapshot.
func (s *Store) known() bool {
	segments, _ := listSegments(s.journal.dir)
	snapshots, _ := listSnapshots(s.options.Dir)
	return len(segments)+len(snapshots) > 0
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

// close closes the database. On a disk that is full it does not: Badger would
// write a table, and the system would kill the process. Nothing is lost by it;
// the next start finds the log.
func (t *tables) close() error {
	if err := t.writing.lock(); err != nil {
		return fmt.Errorf("closing the tables: %w", err)
	}
	defer t.writing.unlock()
	if t.mark != nil {
		closeFile(t.mark.f)
	}
	if err := t.room.require(minOpen); err != nil {
		return fmt.Errorf("the tables stay open: %w", err)
	}
	return t.db.Close()
}
