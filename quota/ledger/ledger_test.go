package ledger

import (
	"bytes"
	"fmt"
	"io"
	"maps"
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
// leave them, to the directory of that name below to, and returns it. The copy
// is made again if the store, which tidies up by itself, changed a file
// meanwhile.
func crashCopy(t fataler, from, to string) string {
	t.Helper()
	for n := range 20 {
		dir := filepath.Join(to, fmt.Sprint("copy", n))
		before := listing(from)
		err := os.MkdirAll(dir, 0o700)
		for path := range before {
			if err == nil {
				err = copyFile(filepath.Join(dir, path), filepath.Join(from, path))
			}
		}
		if maps.Equal(before, listing(from)) {
			if err != nil {
				t.Fatal(err)
			}
			return dir
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the store does not come to rest")
	return ""
}

// listing returns the sizes and times of the files below dir, but for locks.
func listing(dir string) map[string]string {
	files := map[string]string{}
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "LOCK" {
			return nil
		}
		if info, err := d.Info(); err == nil {
			rel, _ := filepath.Rel(dir, path)
			files[rel] = fmt.Sprint(info.Size(), info.ModTime())
		}
		return nil
	})
	return files
}

func copyFile(to, from string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	return copySparse(to, from)
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
