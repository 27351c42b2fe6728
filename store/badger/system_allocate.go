//go:build !linux

package badger

import "os"

// allocate gives a file that many bytes on the disk.
func allocate(f *os.File, size int64) error { return fill(f, size) }
