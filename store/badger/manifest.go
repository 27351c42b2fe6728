package badger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/pb"
	"github.com/dgraph-io/badger/v4/table"
	"google.golang.org/protobuf/proto"
)

// Badger removes the tables that its list, the MANIFEST, does not name: those
// that a kill has left half made. It also passes over a list that ends too
// early, and so removes tables of which nothing else is left, while later
// changes are there. Adding to the list what it never named gives them back: a
// table of a compaction that was killed holds nothing but what others hold, and
// a table twice does no harm. One that the list has named and no longer does was
// done away with, and stays so.

// manifestHead is the length of what comes before the list's changes.
const manifestHead = 8

// adoptTables adds to the list the sound tables that it never named. end is how
// far the list can be read.
func adoptTables(o badger.Options, end int64) error {
	path := filepath.Join(o.Dir, badger.ManifestFilename)
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	named, err := namedTables(b[:end])
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(o.Dir, "*.sst"))
	if err != nil {
		return err
	}
	var changes pb.ManifestChangeSet
	for _, f := range files {
		id, ok := table.ParseFileID(f)
		if ok && !named[id] && checkTable(f, o.Compression) == nil {
			changes.Changes = append(changes.Changes, &pb.ManifestChange{Id: id, Op: pb.ManifestChange_CREATE, Compression: uint32(o.Compression)})
		}
	}
	if len(changes.Changes) == 0 {
		return nil
	}
	o.Logger.Warningf("%d tables are not in the list of them, which ends at %d of %d bytes: they are added", len(changes.Changes), end, len(b))
	content, err := proto.Marshal(&changes)
	if err != nil {
		return err
	}
	b = binary.BigEndian.AppendUint32(b[:end:end], uint32(len(content)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(content, castagnoli))
	return writeFile(path, append(b, content...))
}

// namedTables returns the tables that a list has ever named.
func namedTables(b []byte) (map[uint64]bool, error) {
	named := map[uint64]bool{}
	for b = b[min(manifestHead, len(b)):]; len(b) >= 8; {
		n := uint64(binary.BigEndian.Uint32(b))
		if n > uint64(len(b)-8) {
			break
		}
		var changes pb.ManifestChangeSet
		if err := proto.Unmarshal(b[8:8+n], &changes); err != nil {
			return nil, err
		}
		for _, c := range changes.Changes {
			named[c.Id] = true
		}
		b = b[8+n:]
	}
	return named, nil
}

const (
	logExt = ".mem"
	// logHead is the length of what comes before a log's entries.
	logHead = 20
)

// checkLogs checks the logs of Badger's that are whole: all but the newest, of
// which a kill may have torn the end. Badger takes a log up to the first entry
// that is damaged, and would go on with the next one.
func checkLogs(dir string) error {
	paths, err := filepath.Glob(filepath.Join(dir, "*"+logExt))
	if err != nil {
		return err
	}
	number := func(path string) uint64 {
		n, _ := strconv.ParseUint(strings.TrimSuffix(filepath.Base(path), logExt), 10, 64)
		return n
	}
	slices.SortFunc(paths, func(a, b string) int { return int(number(a)) - int(number(b)) })
	for _, path := range paths[:max(0, len(paths)-1)] {
		if err := checkLog(path); err != nil {
			return fmt.Errorf("the tables are damaged: %w", err)
		}
	}
	return nil
}

func checkLog(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer closeFile(f)
	b, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	if end := logEnd(b); len(bytes.Trim(b[end:], "\x00")) > 0 {
		return fmt.Errorf("%s is damaged at %d of %d bytes", path, end, len(b))
	}
	return nil
}

// logEnd returns where the entries of a log end that are whole.
//
//	entry: flags (2), lengths of key and value, time of expiry (uvarints), key, value, CRC-32C of all that (4)
func logEnd(b []byte) int {
	end := min(logHead, len(b))
	for {
		c := cursor{b: b[end:]}
		c.bytes(2)
		key, value := c.uvarint(), c.uvarint()
		c.uvarint()
		if key == 0 || key > 1<<20 || value > 1<<30 {
			return end
		}
		c.bytes(key + value)
		n := len(b) - end - len(c.b)
		sum := c.bytes(4)
		if c.bad || crc32.Checksum(b[end:end+n], castagnoli) != binary.BigEndian.Uint32(sum) {
			return end
		}
		end += n + 4
	}
}

// Badger's registry of encryption keys has nothing in it but this text, after 16
// random bytes, since nothing is encrypted.
const (
	registryText = "Hello Badger"
	registryHead = 16
)

// checkRegistry removes a registry that Badger would not take. It makes a new
// one.
func checkRegistry(o badger.Options) error {
	path := filepath.Join(o.Dir, badger.KeyRegistryFileName)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || (err == nil && len(b) >= registryHead && string(b[registryHead:]) == registryText) {
		return nil
	}
	o.Logger.Warningf("%s is damaged, of %d bytes (%v): it is made anew, for nothing is in it", path, len(b), err)
	return os.RemoveAll(path)
}
