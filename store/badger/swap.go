package badger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The files of a store that take the place of others are made in stageTemp and
// named stagePrefix and a time, which decides it: from then on each open
// brings them into their place. What was there goes into the directory of that
// time in damagedDir, and a note with it.
const (
	stageTemp   = "restoring.tmp"
	stagePrefix = "restoring-"
)

// swapped are the names that may be in a stage, in the order in which they are
// brought into their place.
var swapped = [...]string{redoName, markName, tablesDir, journalDir, hashKeyName}

// decide makes a finished stage one that will take its place.
func decide(dir, time string, fault Fault) error {
	if err := syncDir(filepath.Join(dir, stageTemp)); err != nil {
		return err
	}
	if err := fault.rename(filepath.Join(dir, stageTemp), filepath.Join(dir, stagePrefix+time)); err != nil {
		return err
	}
	return syncDir(dir)
}

func (f Fault) rename(from, to string) error {
	return f.step(StepSwap, to, func() error { return os.Rename(from, to) })
}

// finishStages brings into their place what was decided, and removes what was
// not.
func finishStages(dir string, fault Fault) error {
	if err := os.RemoveAll(filepath.Join(dir, stageTemp)); err != nil {
		return fmt.Errorf("removing what an earlier attempt has left: %w", err)
	}
	stages, err := filepath.Glob(filepath.Join(dir, stagePrefix+"*"))
	if err != nil {
		return err
	}
	for _, stage := range stages {
		if err := finishStage(dir, stage, fault); err != nil {
			return fmt.Errorf("bringing restored files into their place: %w", err)
		}
	}
	return nil
}

func finishStage(dir, stage string, fault Fault) error {
	place := filepath.Join(dir, damagedDir, strings.TrimPrefix(filepath.Base(stage), stagePrefix))
	noted := exists(filepath.Join(stage, noteName))
	for _, name := range swapped {
		staged := exists(filepath.Join(stage, name))
		if !staged && !(noted && name == redoName) { // which belongs to the tables
			continue
		}
		if err := putAway(filepath.Join(dir, name), place, fault); err != nil {
			return err
		}
		if !staged {
			continue
		}
		if err := fault.rename(filepath.Join(stage, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if noted {
		if err := os.MkdirAll(place, 0o700); err != nil {
			return err
		}
		if err := fault.rename(filepath.Join(stage, noteName), filepath.Join(place, noteName)); err != nil {
			return err
		}
		if err := errors.Join(syncDir(place), syncDir(filepath.Join(dir, damagedDir))); err != nil {
			return err
		}
	}
	return errors.Join(os.RemoveAll(stage), syncDir(dir))
}

// putAway moves a file or directory, if it exists, into another directory.
func putAway(path, place string, fault Fault) error {
	if !exists(path) {
		return nil
	}
	if err := os.MkdirAll(place, 0o700); err != nil {
		return err
	}
	return fault.rename(path, filepath.Join(place, filepath.Base(path)))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
