package quota

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"
)

// Kind tells the two sorts of account apart.
type Kind uint8

// The kinds of account.
const (
	KindKey Kind = iota
	KindGroup
)

// String returns "key" or "group".
func (k Kind) String() string {
	if k == KindGroup {
		return "group"
	}
	return "key"
}

// ID names an account, a key or a group. IDs are never used twice and grow
// with the time of creation, so that sorting by ID sorts by age. The lowest
// bit holds the kind. The zero ID names nothing.
type ID uint64

const (
	idEpoch    = 1577836800000 // 2020-01-01 in Unix milliseconds
	idCounter  = 21            // bits below the milliseconds: a counter and the kind
	idAlphabet = "0123456789abcdefghjkmnpqrstvwxyz"
	idLen      = 13 // base-32 digits of 64 bits
)

// NextID returns the ID for an account of the given kind made at now. It is
// greater than last, the greatest ID so far, also when the clock stands still
// or goes back.
func NextID(kind Kind, last ID, now time.Time) ID {
	next := uint64(max(now.UnixMilli()-idEpoch, 1)) << idCounter
	if floor := (uint64(last) | 1) + 1; next < floor {
		next = floor
	}
	return ID(next | uint64(kind))
}

// Kind tells whether id names a key or a group.
func (id ID) Kind() Kind { return Kind(id & 1) }

// Created returns about when the account was made: NextID may run ahead of a
// clock that was set back.
func (id ID) Created() time.Time { return time.UnixMilli(int64(id>>idCounter) + idEpoch) }

// String returns the public form: "key_" or "grp_" and 13 characters, or ""
// for the zero ID.
func (id ID) String() string {
	if id == 0 {
		return ""
	}
	b := make([]byte, 0, 4+idLen)
	if id.Kind() == KindGroup {
		b = append(b, "grp_"...)
	} else {
		b = append(b, "key_"...)
	}
	for i := idLen - 1; i >= 0; i-- {
		b = append(b, idAlphabet[(uint64(id)>>(5*i))&31])
	}
	return string(b)
}

// ParseID reads what String writes. The empty string is the zero ID.
func ParseID(s string) (ID, error) {
	if s == "" {
		return 0, nil
	}
	kind, digits := KindKey, ""
	switch {
	case strings.HasPrefix(s, "key_"):
		digits = s[4:]
	case strings.HasPrefix(s, "grp_"):
		kind, digits = KindGroup, s[4:]
	}
	if len(digits) != idLen {
		return 0, fmt.Errorf("id %s: %w", clip([]byte(s)), ErrInvalid)
	}
	var n uint64
	for i := range len(digits) {
		d := strings.IndexByte(idAlphabet, digits[i])
		if d < 0 || (i == 0 && d > 15) {
			return 0, fmt.Errorf("id %s: %w", clip([]byte(s)), ErrInvalid)
		}
		n = n<<5 | uint64(d)
	}
	if id := ID(n); n != 0 && id.Kind() == kind {
		return id, nil
	}
	return 0, fmt.Errorf("id %s: %w", clip([]byte(s)), ErrInvalid)
}

// MarshalText writes the public form.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads the public form.
func (id *ID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseID(string(b))
	return err
}

// Bytes returns id as eight bytes that sort as IDs do.
func (id ID) Bytes() [8]byte {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(id))
	return b
}
