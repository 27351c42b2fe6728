// Package quota holds the words of the domain: keys and groups (together:
// accounts), the limits set on them, the calendar periods in which quotas and
// per-day limits are counted, what a call used, why one was refused, and what
// is needed of a store. It knows neither HTTP nor Caddy nor any provider.
//
// The engine that admits and charges calls is the package ledger below it.
package quota

import "errors"

// Errors that callers switch on.
var (
	// ErrNotFound says that there is no such key, group or secret.
	ErrNotFound = errors.New("not found")
	// ErrConflict says that the change does not fit what is there: a name
	// that is taken, a group with members, a field that the configuration sets.
	ErrConflict = errors.New("conflict")
	// ErrInvalid says that a value is out of its range or form.
	ErrInvalid = errors.New("invalid")
	// ErrClosed says that the store or the ledger has been closed.
	ErrClosed = errors.New("closed")
	// ErrUnavailable says that the store cannot be opened now, but may be later
	// without anybody changing the configuration.
	ErrUnavailable = errors.New("unavailable")
	// ErrDamaged says that the store has lost something and works without it.
	ErrDamaged = errors.New("damaged")
)
