package badger

import "os"

// Fault is asked before each step that changes what is on the disk, with done
// false, and again after it. An error that it returns before a step is returned
// in the place of the step; one that it returns after it makes a step fail that
// was done. It is how a simulated crash or a failing disk gets between any two
// steps. path is the file that the step is about.
type Fault func(step Step, path string, done bool) error

// Step is a kind of change to what is on the disk.
type Step string

// The steps.
const (
	StepCreate   Step = "journal create"   // of a segment, with its header
	StepWrite    Step = "journal write"    // at the end of a segment
	StepTruncate Step = "journal truncate" // of a torn record
	StepSync     Step = "journal sync"
	StepSyncDir  Step = "journal sync names"
	StepRemove   Step = "journal remove"
	StepCommit   Step = "tables commit" // durable when it is done
	StepMark     Step = "tables mark"
	StepRedo     Step = "redo write" // durable when it is done
	StepRedoDone Step = "redo remove"
	StepSwap     Step = "files swap" // of damaged ones and restored ones
)

// step does one step on path. A nil Fault only does it.
func (f Fault) step(s Step, path string, do func() error) error {
	if f == nil {
		return do()
	}
	if err := f(s, path, false); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return f(s, path, true)
}

// on returns the file with its writes and syncs under f.
func (f Fault) on(o *os.File) file {
	if f == nil {
		return o
	}
	return faultyFile{o, f}
}

type faultyFile struct {
	*os.File
	fault Fault
}

func (f faultyFile) WriteAt(b []byte, off int64) (n int, err error) {
	err = f.fault.step(StepWrite, f.Name(), func() (err error) {
		n, err = f.File.WriteAt(b, off)
		return err
	})
	return n, err
}

func (f faultyFile) Sync() error { return f.fault.step(StepSync, f.Name(), f.File.Sync) }
