package badger

import (
	"errors"
	"fmt"
)

// A migration brings the tables from one version to the next. It reads them as
// they are and returns what changes, which is written together with the number
// of the new version: all of it or nothing, so that a start that was cut short
// begins with it again.
type migration func(t *tables) (change, error)

// migrations holds at index i the one that brings version i+1 to version i+2.
var migrations = []migration{indexMembers}

// schemaVersion is the version of the tables that this program writes. A row
// that has a version of its own, which readers accept beside older ones, needs
// no new version of them all.
func schemaVersion() byte { return byte(1 + len(migrations)) }

// errNewer says that the store was written by a later program.
var errNewer = errors.New("it was written by a later version of this program")

// errMigration says that the tables could not be brought to the version of this
// program. They are what they were.
var errMigration = errors.New("the tables are of an earlier version and stay so")

// migrate brings the tables to the version of this program.
func (t *tables) migrate() error {
	for t.meta.schema < schemaVersion() {
		from := t.meta.schema
		err := t.update(func(m *meta) (change, error) {
			m.schema++
			return migrations[from-1](t)
		})
		if err != nil {
			return fmt.Errorf("%w: bringing them from version %d to %d: %w", errMigration, from, from+1, err)
		}
		t.log("the tables in %s were brought from version %d to %d", t.dir, from, from+1)
	}
	return nil
}
