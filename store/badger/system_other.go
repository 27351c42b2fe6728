//go:build !linux && !darwin && !freebsd

package badger

import "syscall"

// freeBytes does not know.
func freeBytes(string) (uint64, bool) { return 0, false }

// inUse does not know; Badger will.
func inUse(string) bool { return false }

// lockDir does nothing.
func lockDir(string) (unlock func(), err error) { return func() {}, nil }

// otherCauses are errors of the system that are no sign of damage: too many open
// files, and, on Windows, a file that another process uses and a full disk.
var otherCauses = []error{syscall.EMFILE, syscall.Errno(32), syscall.Errno(39), syscall.Errno(112)}
