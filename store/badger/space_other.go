//go:build !linux && !darwin && !freebsd

package badger

// freeBytes does not know.
func freeBytes(string) (uint64, bool) { return 0, false }
