package badger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/ristretto/v2/z"
)

// checkTables reads every table of a database that is not open, and returns an
// error if one is damaged. Badger itself would panic over some damage, in a
// goroutine of its own, where nothing can stop that from ending the process;
// of other damage it would make a row that is not found.
func checkTables(o badger.Options) error {
	if inUse(o.Dir) {
		return errInUse
	}
	if err := errors.Join(checkRegistry(o), checkLogs(o.Dir)); err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(o.Dir, badger.ManifestFilename))
	if errors.Is(err, os.ErrNotExist) {
		if lost, _ := filepath.Glob(filepath.Join(o.Dir, "*.sst")); len(lost) > 0 {
			// Badger would begin anew, and delete them.
			return fmt.Errorf("the tables are damaged: %s is missing", badger.ManifestFilename)
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer closeFile(f)
	manifest, end, err := badger.ReplayManifestFile(f, o.ExternalMagicVersion, o)
	if err != nil {
		return fmt.Errorf("reading the list of tables: %w", err)
	}
	if err := checkEach(o.Dir, manifest); err != nil {
		return err
	}
	if err := adoptTables(o, end); err != nil {
		return fmt.Errorf("adding to the list of tables: %w", err)
	}
	return nil
}

// checkEach checks the tables in the manifest. Others may be there.
func checkEach(dir string, manifest badger.Manifest) error {
	ids := make(chan uint64)
	var failed atomic.Pointer[error]
	var workers sync.WaitGroup
	for range min(4, runtime.GOMAXPROCS(0)) {
		workers.Go(func() {
			for id := range ids {
				if err := checkTable(table.NewFilename(id, dir), manifest.Tables[id].Compression); err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	for id := range manifest.Tables {
		ids <- id
	}
	close(ids)
	workers.Wait()
	if err := failed.Load(); err != nil {
		return fmt.Errorf("the tables are damaged: %w", *err)
	}
	return nil
}

func checkTable(path string, compression options.CompressionType) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%s cannot be read", path)
		}
	}()
	f, err := z.OpenMmapFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close(-1) }()
	t, err := table.OpenTable(f, table.Options{BlockSize: 4096, Compression: compression, ChkMode: options.NoVerification})
	if err != nil {
		return err
	}
	if err := t.VerifyChecksum(); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
