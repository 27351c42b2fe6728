package quota

import (
	"fmt"
	"strings"
	"time"
)

// NoteKind is the list that a note stands in.
type NoteKind byte

// The lists of notes.
const (
	NoteAlert NoteKind = iota + 1 // alerts that were fired
	NoteAudit                     // changes that were made
)

// NoteID names a note within its list. IDs grow with time.
type NoteID uint64

// NextNoteID returns the ID of a note made at now. It is greater than last.
func NextNoteID(last NoteID, now time.Time) NoteID {
	return max(NoteID(max(now.UnixMilli()-idEpoch, 1))<<idCounter, last+1)
}

// String returns 13 characters that sort as IDs do.
func (n NoteID) String() string {
	b := make([]byte, 0, idLen)
	for i := idLen - 1; i >= 0; i-- {
		b = append(b, idAlphabet[(uint64(n)>>(5*i))&31])
	}
	return string(b)
}

// ParseNoteID reads what String writes.
func ParseNoteID(s string) (NoteID, error) {
	if len(s) != idLen {
		return 0, fmt.Errorf("id %s: %w", clip([]byte(s)), ErrInvalid)
	}
	var n uint64
	for i := range len(s) {
		d := strings.IndexByte(idAlphabet, s[i])
		if d < 0 || (i == 0 && d > 15) {
			return 0, fmt.Errorf("id %s: %w", clip([]byte(s)), ErrInvalid)
		}
		n = n<<5 | uint64(d)
	}
	return NoteID(n), nil
}

// Note is an alert or an entry of the audit log, as it is stored.
type Note struct {
	ID NoteID
	// Once, if it is not empty, names what the note is about: a list has at
	// most one note of each such name.
	Once string
	// Body is the note itself, in JSON.
	Body []byte
}

// Notes is the part of a store that keeps what operators are told.
type Notes interface {
	// PutNotes stores notes of one list, all or none; one with the ID of a note
	// that is there replaces it. When it returns nil they survive a power loss.
	PutNotes(kind NoteKind, notes ...Note) error
	// Notes calls fn for each note of the list with an ID below the given one
	// (all, if it is zero), the newest first, until fn returns false. The note
	// is fn's only until it returns.
	Notes(kind NoteKind, below NoteID, fn func(*Note) bool) error
	// NoteOnce returns the ID of the list's note of that name, or ErrNotFound.
	NoteOnce(kind NoteKind, once string) (NoteID, error)
	// PruneNotes drops all but the newest of the list.
	PruneNotes(kind NoteKind, keep int) error
}
