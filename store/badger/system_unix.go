//go:build linux || darwin || freebsd

package badger

import (
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
	d, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer closeFile(d) // which unlocks it
	return syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == syscall.EWOULDBLOCK
}
