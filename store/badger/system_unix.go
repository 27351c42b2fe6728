//go:build linux || darwin || freebsd

package badger

import (
	"errors"
	"os"
	"syscall"
)

// freeBytes returns what an ordinary user may still write on the disk of dir.
func freeBytes(dir string) (uint64, bool) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, false
	}
	return uint64(st.Bavail) * uint64(st.Bsize), true //nolint:unconvert // the types differ between systems
}

// inUse tells whether Badger has locked dir.
func inUse(dir string) bool {
	unlock, err := lockDir(dir)
	if err == nil {
		unlock()
	}
	return errors.Is(err, errInUse)
}

// lockDir locks a directory, as Badger does, against other processes and this
// one. Where the file system knows no locks it does nothing.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == syscall.EWOULDBLOCK {
		closeFile(d)
		return nil, errInUse
	}
	return func() { closeFile(d) }, nil // which unlocks it
}

// otherCauses are errors of the system that are no sign of damage.
var otherCauses = []error{
	syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM,
	syscall.EAGAIN, syscall.EINTR, syscall.ETXTBSY, syscall.ESTALE,
}
