package badger

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// isDamage tells whether an error of opening the tables says that they are
// damaged, and not that something is in the way.
func isDamage(err error) bool {
	for _, other := range append([]error{errInUse, errNewer, errNoRoom, errHashKey, errMigration, fs.ErrPermission}, otherCauses...) {
		if errors.Is(err, other) {
			return false
		}
	}
	return err != nil
}

// lostChangesError says that tables can be read, but lack changes that were in
// them.
type lostChangesError struct {
	text   string
	commit uint64 // the last change that they have
}

func (e *lostChangesError) Error() string { return e.text }

// healer puts a store in order whose tables are damaged.
type healer struct {
	dir    string
	room   *room
	losses *losses
	log    func(format string, args ...any)
	fault  Fault
}

// heal puts what is damaged away, and in its place what the newest snapshot
// holds that can be read; without one, empty tables. The journal stays, unless
// the snapshot holds records that it lacks. A snapshot that knows no change
// after newerThan is none; without another nothing is done and false returned,
// unless empty tables are wanted.
func (h *healer) heal(cause error, newerThan uint64, emptyElse bool) (done bool, err error) {
	stage := filepath.Join(h.dir, stageTemp)
	if err := os.RemoveAll(stage); err != nil {
		return false, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(stage))
		}
	}()
	now := h.losses.now()
	found, passed, err := h.newest(stage, newerThan)
	if err != nil {
		return false, err
	}
	n := note{found: cause.Error() + passed}
	switch {
	case found != nil:
		if err := h.keepOwn(stage, found); err != nil {
			return false, err
		}
		restoredNote(&n, found.info.Created)
	case !emptyElse:
		return false, nil
	default:
		if err := h.empty(stage); err != nil {
			return false, err
		}
		emptyNote(&n)
	}
	h.log("the store in %s is damaged: %s. %s What may be lost: %s", h.dir, n.found, n.did, n.lost)
	if err := writeFile(filepath.Join(stage, noteName), []byte(n.text(now))); err != nil {
		return false, err
	}
	if err := decide(h.dir, now.UTC().Format(nameTime), h.fault); err != nil {
		return false, err
	}
	return true, finishStages(h.dir, h.fault)
}

func restoredNote(n *note, at time.Time) {
	when := at.Format(time.RFC3339)
	n.did = "What was damaged was moved into this directory. The tables were made again from the snapshot of " + when +
		", and the journal from then on is played back on them."
	n.lost = "Changes of keys and groups since " + when + ": those made since then are gone, and those changed are as they were; a key that was revoked since then is valid again. " +
		"Nothing of what was used, unless a note of its own says that records of the journal are missing."
	n.to = "Look at the keys and groups that were made, changed or revoked since " + when + ", and do it again."
}

func emptyNote(n *note) {
	n.did = "What was damaged was moved into this directory. There is no snapshot that can be read, so the tables begin empty. " +
		"Keys and groups of the configuration are made anew by the start."
	n.lost = "All keys and groups that were made through the API, and all usage but what the journal still holds."
	n.to = "Restore a backup, if there is one, into an empty directory with caddy llm-quota restore, and use that."
}

// restored is a snapshot of which tables were made.
type restored struct {
	*builder
	info Info
}

// newest makes tables in stage of the newest snapshot that can be read, and says
// of which that was not so.
func (h *healer) newest(stage string, newerThan uint64) (found *restored, passed string, err error) {
	list, err := listSnapshots(h.dir)
	if err != nil {
		h.log("%v", err) // then there are none
	}
	commit, durable := readMark(h.dir)
	for _, f := range list { // what is made goes on after all that ever was
		if header, err := readSnapshotHeader(f.path); err == nil {
			commit = max(commit, header.Commit)
		}
	}
	for _, f := range slices.Backward(list) {
		if header, err := readSnapshotHeader(f.path); err == nil && header.Commit <= newerThan {
			continue
		}
		found, err := h.build(stage, f.path, commit, durable)
		if err == nil {
			return found, passed, nil
		}
		if !isDamage(err) && !errors.Is(err, errNewer) {
			return nil, "", fmt.Errorf("restoring the snapshot %s: %w", f.path, err)
		}
		passed += fmt.Sprintf("; the snapshot %s cannot be used: %v", filepath.Base(f.path), err)
		if err := os.RemoveAll(stage); err != nil {
			return nil, "", err
		}
	}
	return nil, passed, nil
}

func (h *healer) build(stage, path string, commit, durable uint64) (*restored, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer closeFile(f)
	b, info, err := build(stage, f, commit, durable, h.room, h.log)
	if err != nil {
		return nil, err
	}
	return &restored{b, info}, nil
}

// empty makes a stage without rows. The numbers of records go on.
func (h *healer) empty(stage string) error {
	if err := os.MkdirAll(filepath.Join(stage, tablesDir), 0o700); err != nil {
		return err
	}
	if !isDir(filepath.Join(h.dir, journalDir)) {
		if err := os.MkdirAll(filepath.Join(stage, journalDir), 0o700); err != nil {
			return err
		}
	}
	_, durable := readMark(h.dir)
	return writeFile(filepath.Join(stage, markName), encodeMark(0, durable))
}

// keepOwn takes from the stage what the store has better itself: its journal,
// unless that lacks records of the snapshot, and the key of the hashes.
func (h *healer) keepOwn(stage string, r *restored) error {
	key := filepath.Join(stage, hashKeyName)
	if own, err := os.ReadFile(filepath.Join(h.dir, hashKeyName)); err == nil && string(own) == string(r.key) {
		if err := os.Remove(key); err != nil {
			return err
		}
	}
	journal := filepath.Join(h.dir, journalDir)
	staged := filepath.Join(stage, journalDir)
	if !isDir(journal) {
		return os.MkdirAll(staged, 0o700)
	}
	whole, err := covers(journal, staged, r.meta.base())
	if err != nil {
		return err
	}
	if whole {
		return os.RemoveAll(staged)
	}
	merged := filepath.Join(stage, "merged")
	if err := mergeJournals(merged, journal, staged, r.meta.base()); err != nil {
		return fmt.Errorf("joining the journal and that of the snapshot: %w", err)
	}
	if err := os.RemoveAll(staged); err != nil {
		return err
	}
	return os.Rename(merged, staged)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// keyFromSnapshot returns a key of the hashes that fits the tables.
func (h *healer) keyFromSnapshot(check uint32) []byte {
	list, err := listSnapshots(h.dir)
	if err != nil {
		h.log("%v", err)
	}
	for _, f := range slices.Backward(list) {
		if key := readSnapshotKey(f.path); key != nil && hashKeyCheck(key) == check {
			return key
		}
	}
	return nil
}

// readSnapshotKey returns the key of the hashes in a snapshot, or nil.
func readSnapshotKey(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer closeFile(f)
	ir, err := openImage(f)
	if err != nil {
		return nil
	}
	defer ir.close()
	kind, b, err := ir.next()
	c := contents{}
	if err != nil || kind != frameHashKey || c.frame(kind, b) != nil {
		return nil
	}
	return c.key
}

// checkJournal puts away what is in the journal's place and is no directory.
func (h *healer) checkJournal() error {
	path := filepath.Join(h.dir, journalDir)
	if !exists(path) || isDir(path) {
		return nil
	}
	place, err := newPlace(h.dir, h.losses.now())
	if err == nil {
		err = putAway(path, place, h.fault)
	}
	if err != nil {
		return err
	}
	h.loseRecords("the journal was no directory")
	return nil
}

// putSegmentAway takes a segment that cannot be read out of the journal.
func (h *healer) putSegmentAway(path string, cause error) error {
	place, err := newPlace(h.dir, h.losses.now())
	if err == nil {
		err = putAway(path, place, h.fault)
	}
	if err == nil {
		h.loseRecords(fmt.Sprintf("%s cannot be read and was put beside a note like this one: %v", path, cause))
	}
	return err
}

// loseRecords tells of records of the journal that are gone.
func (h *healer) loseRecords(what string) {
	h.losses.tell(&note{
		found: what,
		did:   "Nothing: what is there is used.",
		lost:  "What was charged by the calls in those records: the keys and groups may be charged less than they used, and the usage shows less.",
		to:    "Compare the usage with that of the provider if it matters; correct quotas with caddy llm-quota grant and a negative number.",
	})
}
