package badger

import (
	"io"
	"math/rand/v2"
	"os"
)

// fill writes that many bytes, such as no file system can make small.
func fill(f *os.File, size int64) error {
	if _, err := io.CopyN(f, rand.NewChaCha8([32]byte{}), size); err != nil {
		return err
	}
	return f.Sync()
}
