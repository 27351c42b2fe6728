//go:build linux || darwin || freebsd

package badger

import (
	"os"
	"syscall"
	"testing"
)

// blocks returns how many bytes of the disk a file takes; below 0: unknown.
func blocks(t testing.TB, info os.FileInfo) int64 {
	t.Helper()
	return int64(info.Sys().(*syscall.Stat_t).Blocks) * 512 //nolint:unconvert // the types differ between systems
}
