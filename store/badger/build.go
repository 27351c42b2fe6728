package badger

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
)

// builder makes the files of a store of an image: an imageSink. Nothing may be
// made of them before finish has returned.
type builder struct {
	dir  string
	room *room
	log  func(format string, args ...any)

	db     *badger.DB
	batch  *badger.WriteBatch
	meta   meta
	key    []byte
	since  int // bytes since the room was looked at
	writer segmentWriter
}

func newBuilder(dir string, room *room, log func(string, ...any)) (*builder, error) {
	b := &builder{dir: dir, room: room, log: log}
	if err := os.MkdirAll(filepath.Join(dir, tablesDir), 0o700); err != nil {
		return nil, err
	}
	if err := room.require(minOpen); err != nil {
		return nil, err
	}
	o := badgerOptions(filepath.Join(dir, tablesDir), log)
	o.SyncWrites = false // all or nothing is made of it
	db, err := tryBadger(o)
	if err != nil {
		return nil, err
	}
	b.db, b.batch = db, db.NewWriteBatch()
	b.writer.dir = filepath.Join(dir, journalDir)
	return b, nil
}

func (b *builder) hashKey(key []byte) error {
	b.key = append([]byte(nil), key...)
	return nil
}

func (b *builder) row(key, value []byte) error {
	if b.since += len(key) + len(value); b.since >= lookEvery {
		b.since = 0
		if err := b.room.require(minOpen); err != nil {
			return err
		}
	}
	if key[0] == tableMeta { // the last of all
		return b.meta.decode(value)
	}
	return b.batch.Set(append([]byte(nil), key...), append([]byte(nil), value...))
}

func (b *builder) record(seq uint64, record []byte) error {
	if b.since += len(record); b.since >= lookEvery {
		b.since = 0
		if err := b.room.require(minOpen); err != nil {
			return err
		}
	}
	return b.writer.add(seq, record)
}

// finish writes the rest. The numbers of the last change and of the last record
// that is known to have been written become at least those given, so that they
// never go back.
func (b *builder) finish(commit, durable uint64) error {
	b.meta.commit = max(b.meta.commit, commit)
	err := b.batch.Set([]byte{tableMeta}, b.meta.encode())
	if err == nil {
		err = b.batch.Flush()
	}
	b.batch = nil
	if err = errors.Join(err, b.closeTables(), b.writer.close()); err != nil {
		return err
	}
	return errors.Join(
		writeFile(filepath.Join(b.dir, hashKeyName), b.key),
		writeFile(filepath.Join(b.dir, markName), encodeMark(b.meta.commit, max(b.writer.last, durable))),
		syncDir(filepath.Join(b.dir, tablesDir)))
}

func (b *builder) closeTables() error {
	if b.db == nil {
		return nil
	}
	db := b.db
	b.db = nil
	return db.Close()
}

// abort lets go of what was begun.
func (b *builder) abort() {
	if b.batch != nil {
		b.batch.Cancel()
	}
	_ = b.closeTables()
	_ = b.writer.close()
}

// build makes the files of a store in dir of the image that r is.
func build(dir string, r io.Reader, commit, durable uint64, room *room, log func(string, ...any)) (*builder, Info, error) {
	b, err := newBuilder(dir, room, log)
	if err != nil {
		return nil, Info{}, err
	}
	info, err := readImage(r, b)
	if err != nil {
		b.abort()
		return nil, Info{}, err
	}
	if err := b.finish(commit, durable); err != nil {
		return nil, Info{}, fmt.Errorf("making the tables: %w", err)
	}
	return b, info, nil
}

// segmentWriter writes records into new segments in a directory, which it
// makes.
type segmentWriter struct {
	dir    string
	f      *os.File
	out    *bufio.Writer
	frame  []byte
	number uint64
	size   int64
	last   uint64 // the last record
}

// add writes a record as it is encoded.
func (w *segmentWriter) add(seq uint64, record []byte) error {
	if w.f == nil || w.size >= segmentSize {
		if err := w.next(seq); err != nil {
			return err
		}
	}
	w.frame = appendFramed(w.frame[:0], record)
	w.size += int64(len(w.frame))
	w.last = seq
	_, err := w.out.Write(w.frame)
	return err
}

func (w *segmentWriter) next(first uint64) error {
	if err := w.close(); err != nil {
		return err
	}
	if err := os.MkdirAll(w.dir, 0o700); err != nil {
		return err
	}
	w.number++
	f, err := os.OpenFile(segmentPath(w.dir, w.number), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	w.f, w.out, w.size = f, bufio.NewWriterSize(f, 64<<10), headerSize
	_, err = w.out.Write(newHeader(first))
	return err
}

// close makes what was written survive a power loss.
func (w *segmentWriter) close() error {
	if w.f == nil {
		return nil
	}
	f := w.f
	w.f = nil
	return errors.Join(w.out.Flush(), f.Sync(), f.Close(), syncDir(w.dir))
}
