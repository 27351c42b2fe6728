package ledger

import (
	"encoding/json"
	"fmt"
	"reflect"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// As returns the same ledger for the changes of an author, which the audit log
// shows.
func (l *Ledger) As(by quota.Author) *Ledger { return &Ledger{l.state, by} }

// OnChange sets fn to be called after each change that the audit log shows. It
// must be set before the ledger is used, and must not block.
func (l *Ledger) OnChange(fn func(quota.Change)) { l.onChange = fn }

// audit collects the entries of one change, to be stored with it.
type audit struct {
	ledger *Ledger
	now    time.Time
	list   []quota.Change
}

func (l *Ledger) audit(now time.Time) *audit { return &audit{ledger: l, now: now} }

// add adds an entry. before and after are what is shown in it, nil: null.
func (e *audit) add(action quota.Action, id quota.ID, name string, before, after any) {
	e.list = append(e.list, quota.Change{
		Time: stamp(e.now), Author: e.ledger.author, Action: action, Object: id, Name: name,
		Before: image(before), After: image(after),
	})
}

func (e *audit) key(action quota.Action, before, after *quota.Key) {
	switch {
	case before == nil:
		e.add(action, after.ID, after.Name, nil, after.Image())
	case after == nil:
		e.add(action, before.ID, before.Name, before.Image(), nil)
	default:
		e.add(action, after.ID, after.Name, before.Image(), after.Image())
	}
}

func (e *audit) group(action quota.Action, before, after *quota.Group) {
	switch {
	case before == nil:
		e.add(action, after.ID, after.Name, nil, after.Image())
	case after == nil:
		e.add(action, before.ID, before.Name, before.Image(), nil)
	default:
		e.add(action, after.ID, after.Name, before.Image(), after.Image())
	}
}

// notes returns the entries as they are stored.
func (e *audit) notes() []quota.Note {
	notes := make([]quota.Note, len(e.list))
	for i := range e.list {
		c := &e.list[i]
		c.ID = "" // it is that of the note
		notes[i] = quota.Note{ID: e.ledger.nextNote(e.now), Body: image(c)}
		c.ID = notes[i].ID.String()
	}
	return notes
}

// tell passes on the entries once they are stored.
func (e *audit) tell() {
	if e.ledger.onChange == nil {
		return
	}
	for _, c := range e.list {
		e.ledger.onChange(c)
	}
}

// nextNote returns an ID for a note.
func (l *Ledger) nextNote(now time.Time) quota.NoteID {
	l.noteMu.Lock()
	defer l.noteMu.Unlock()
	l.lastNote = quota.NextNoteID(l.lastNote, now)
	return l.lastNote
}

// findLastNote finds the greatest ID of a note in use.
func (l *Ledger) findLastNote() error {
	for _, kind := range [...]quota.NoteKind{quota.NoteAlert, quota.NoteAudit} {
		if err := l.store.Notes(kind, 0, func(n *quota.Note) bool {
			l.lastNote = max(l.lastNote, n.ID)
			return false
		}); err != nil {
			return err
		}
	}
	return nil
}

// put stores keys and groups with the entries of the audit log.
func (l *Ledger) put(keys []*quota.Key, groups []*quota.Group, e *audit) error {
	if err := l.store.Put(keys, groups, e.notes()...); err != nil {
		return err
	}
	e.tell()
	return nil
}

// noted stores entries of changes that are in the journal.
func (l *Ledger) noted(e *audit) error {
	if err := l.store.PutNotes(quota.NoteAudit, e.notes()...); err != nil {
		return fmt.Errorf("writing the audit log: %w", err)
	}
	e.tell()
	return nil
}

// Changes calls fn for each entry of the audit log with an ID below the given
// one (0: all), the newest first, until fn returns false.
func (l *Ledger) Changes(below quota.NoteID, fn func(*quota.Change) bool) error {
	var failed error
	err := l.store.Notes(quota.NoteAudit, below, func(n *quota.Note) bool {
		var c quota.Change
		if failed = json.Unmarshal(n.Body, &c); failed != nil {
			failed = fmt.Errorf("reading entry %s of the audit log: %w", n.ID, failed)
			return false
		}
		c.ID = n.ID.String()
		return fn(&c)
	})
	if err == nil {
		err = failed
	}
	return err
}

// configured tells what a configuration does to a key or group that was there
// before, of that source and maybe removed.
func configured(source quota.Source, removed bool) quota.Action {
	switch {
	case source != quota.SourceConfig:
		return quota.ActionTakeOver
	case removed:
		return quota.ActionPutBack
	}
	return quota.ActionUpdate
}

// actionOf tells what an update of a key does.
func actionOf(before, after *quota.Key) quota.Action {
	was := *before
	was.UpdatedAt = after.UpdatedAt
	was.Group = after.Group
	if reflect.DeepEqual(&was, after) && before.Group != after.Group {
		return quota.ActionMove
	}
	was.Group, was.Disabled = before.Group, after.Disabled
	switch {
	case before.Disabled == after.Disabled || !reflect.DeepEqual(&was, after):
		return quota.ActionUpdate
	case after.Disabled:
		return quota.ActionDisable
	}
	return quota.ActionEnable
}
