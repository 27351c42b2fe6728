package badger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
)

// A change that is too great for one of Badger's transactions, such as ten
// thousand new keys, goes through a file: the whole change is written there
// and named redoName, which decides it. Then it is applied in steps. If they
// are cut short, they are done again before anything else is written. Entries
// hold values, not differences, so doing them twice does no harm.
//
//	CRC-32C of all that follows (4), number of the change (8),
//	entries: length of key (uvarint), key, length of value + 1 or 0 for none (uvarint), value
const (
	redoName   = "change.redo"
	redoHeader = 12
)

// writeLarge writes c, the change of that number, through the file.
func (t *tables) writeLarge(c change, number uint64) error {
	path := filepath.Join(t.dir, redoName)
	if err := t.fault.step(StepRedo, path, func() error { return writeFile(path, encodeRedo(c, number)) }); err != nil {
		return err
	}
	if err := t.writeSteps(c); err != nil {
		return err
	}
	t.endRedo()
	return nil
}

// finish does what a change that was cut short has left to do.
func (t *tables) finish() error {
	path := filepath.Join(t.dir, redoName)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading a change that was cut short: %w", err)
	}
	number, c, err := decodeRedo(b)
	switch {
	case err != nil:
		t.tellRedo(path, err)
	case number > t.meta.commit:
		if err := t.writeSteps(c); err != nil {
			return fmt.Errorf("finishing a change that was cut short: %w", err)
		}
		if _, err := t.load(); err != nil {
			return err
		}
	}
	t.endRedo()
	return nil
}

// tellRedo tells of a change that cannot be read, and puts its file away.
func (t *tables) tellRedo(path string, err error) {
	t.losses.tell(&note{
		found: fmt.Sprintf("a change that was cut short cannot be read: %s: %v: what it held is lost", path, err),
		did:   "The rest of it was not made. The file was put beside a note like this one.",
		lost:  "A great change of keys and groups, such as the import of many, or a part of it: its caller was not told that it had succeeded.",
		to:    "Look for keys that were made or changed when the process died, and make the change again.",
	})
	place, err := newPlace(t.dir, t.losses.now())
	if err == nil {
		err = os.Rename(path, filepath.Join(place, redoName))
	}
	if err != nil {
		t.log("putting away %s: %v", path, err)
	}
}

// endRedo removes the file. If that fails, or a power loss undoes it, the
// number of the change says that it is done.
func (t *tables) endRedo() {
	path := filepath.Join(t.dir, redoName)
	if err := t.fault.step(StepRedoDone, path, func() error { return os.Remove(path) }); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.log("removing a finished change: %v", err)
	}
}

func encodeRedo(c change, number uint64) []byte {
	b := make([]byte, redoHeader)
	binary.BigEndian.PutUint64(b[4:], number)
	for i := range c {
		b = binary.AppendUvarint(b, uint64(len(c[i].key)))
		b = append(b, c[i].key...)
		if c[i].value == nil {
			b = append(b, 0)
			continue
		}
		b = binary.AppendUvarint(b, uint64(len(c[i].value))+1)
		b = append(b, c[i].value...)
	}
	return withChecksum(b)
}

// withChecksum puts the checksum of the rest into the first four bytes.
func withChecksum(b []byte) []byte {
	binary.BigEndian.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
	return b
}

func decodeRedo(b []byte) (number uint64, c change, err error) {
	if len(b) < redoHeader || crc32.Checksum(b[4:], castagnoli) != binary.BigEndian.Uint32(b) {
		return 0, nil, errors.New("damaged file")
	}
	number = binary.BigEndian.Uint64(b[4:])
	for cur := (cursor{b: b[redoHeader:]}); len(cur.b) > 0; {
		e := entry{key: cur.bytes(cur.uvarint())}
		if n := cur.uvarint(); n > 0 {
			e.value = cur.bytes(n - 1)
		}
		if cur.bad {
			return 0, nil, errors.New("damaged file")
		}
		c = append(c, e)
	}
	return number, c, nil
}

// writeFile makes a file with that content, all of it or none, that survives a
// power loss.
func writeFile(path string, b []byte) error {
	return writeFileFrom(path, func(f *os.File) error {
		_, err := f.Write(b)
		return err
	})
}

// writeFileFrom is writeFile with the content that write writes.
func writeFileFrom(path string, write func(*os.File) error) (err error) {
	temp := path + tempExt
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		_ = os.Remove(temp)
		return err
	}
	return syncDir(filepath.Dir(path))
}
