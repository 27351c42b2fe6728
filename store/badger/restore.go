package badger

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// restoredTime is the name of a stage in a directory that was empty, from which
// nothing is put away.
const restoredTime = "backup"

// lostFound is in the root of file systems that are empty otherwise.
const lostFound = "lost+found"

// Restore makes a store of a backup, as a Snapshot writes it, in dir, which must
// be empty or absent. After an error the directory is as it was. The first
// process that opens the store charges the reservations that were open.
func Restore(dir string, r io.Reader) error {
	if err := restore(dir, r, newRoom(dir, func(string, ...any) {}, nil)); err != nil {
		return fmt.Errorf("restoring a store in %s: %w", dir, err)
	}
	return nil
}

func restore(dir string, r io.Reader, room *room) (err error) {
	made, err := emptyDir(dir)
	if err != nil {
		return err
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer unlock()
	stage := filepath.Join(dir, stageTemp)
	err = os.RemoveAll(stage)
	if err == nil {
		_, _, err = build(stage, r, 0, 0, room, func(string, ...any) {})
	}
	if err == nil {
		err = decide(dir, restoredTime, nil)
	}
	if err != nil {
		err = errors.Join(err, os.RemoveAll(stage))
		if made {
			err = errors.Join(err, os.Remove(dir))
		}
		return err
	}
	if err := finishStages(dir, nil); err != nil {
		return fmt.Errorf("%w: the first start will go on with it", err)
	}
	return syncDir(filepath.Dir(filepath.Clean(dir)))
}

// emptyDir makes a directory if it is absent, and returns an error if it is not
// empty.
func emptyDir(dir string) (made bool, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return true, os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return false, err
	}
	var names []string
	for _, e := range entries {
		if name := e.Name(); name != stageTemp && name != lostFound { // the first is of an attempt that died
			names = append(names, name)
		}
	}
	switch n := len(names); {
	case n > 5:
		return false, fmt.Errorf("the directory is not empty: it holds %s and %d more", strings.Join(names[:5], ", "), n-5)
	case n > 0:
		return false, fmt.Errorf("the directory is not empty: it holds %s", strings.Join(names, ", "))
	}
	return false, nil
}
