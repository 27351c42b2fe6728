package ledger

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/store/badger"
)

type fataler interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// openLedger opens the ledger in dir, on the real store.
func openLedger(t fataler, dir string, now time.Time) *Ledger {
	t.Helper()
	st, err := badger.Open(badger.Options{Dir: dir, SyncInterval: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	l, err := Open(st, now, func(op string, err error) { t.Fatalf("%s: %v", op, err) })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// crashCopy copies the files of a store as the death of the process would
// leave them, and returns the copy's directory.
func crashCopy(t fataler, from, to string) string {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		if d.Name() == "LOCK" {
			return nil
		}
		return copySparse(filepath.Join(to, rel), path)
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// copySparse copies a file without its holes: Badger's are mostly such.
func copySparse(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	block, zero := make([]byte, 64<<10), make([]byte, 64<<10)
	var at int64
	for {
		n, err := io.ReadFull(in, block)
		if n > 0 && !bytes.Equal(block[:n], zero[:n]) {
			if _, err := out.WriteAt(block[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		if err != nil {
			return out.Truncate(at)
		}
	}
}

func newLedger(t *testing.T, now time.Time) *Ledger {
	t.Helper()
	l := openLedger(t, t.TempDir(), now)
	t.Cleanup(func() {
		if err := l.Close(now); err != nil {
			t.Error(err)
		}
	})
	return l
}
