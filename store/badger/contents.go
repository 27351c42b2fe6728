package badger

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// Info describes a backup.
type Info struct {
	Created time.Time
	Schema  int
	Keys    int // also deleted ones
	Groups  int
	Rows    int // of the tables, in all
	Records int // of the journal, which are played back at the first start
}

// imageSink takes what is in an image. What it is given holds until it returns.
type imageSink interface {
	hashKey(key []byte) error
	row(key, value []byte) error
	record(seq uint64, record []byte) error
}

// VerifyBackup reads a backup to its end and returns what it is. The error says
// what is wrong with it.
func VerifyBackup(r io.Reader) (Info, error) {
	info, err := readImage(r, nil)
	if err != nil {
		return Info{}, fmt.Errorf("reading the backup: %w", err)
	}
	return info, nil
}

// contents checks an image while it is read.
type contents struct {
	sink    imageSink // nil: nothing takes it
	info    Info
	key     []byte // of the hashes
	last    []byte // key of the last row
	seq     uint64 // of the last record
	records recordReader
	meta    meta
	known   bool // meta was there
}

// readImage reads an image to its end. Nothing may be made of what the sink
// took if it returns an error.
func readImage(r io.Reader, sink imageSink) (Info, error) {
	ir, err := openImage(r)
	if err != nil {
		return Info{}, err
	}
	defer ir.close()
	c := contents{sink: sink}
	c.info.Created, c.info.Schema = ir.header.Created, ir.header.Schema
	for {
		kind, content, err := ir.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = c.frame(kind, content)
		}
		if err != nil {
			return Info{}, err
		}
	}
	return c.info, c.whole(&ir.header)
}

// whole checks that the parts belong together.
func (c *contents) whole(h *imageHeader) error {
	switch {
	case c.key == nil || !c.known:
		return fmt.Errorf("it is not whole: %w", errImage)
	case c.meta.hashKey != hashKeyCheck(c.key):
		return fmt.Errorf("the key of the hashes is not that of the tables: %w", errImage)
	case c.meta.commit != h.Commit || c.meta.through != h.Through || c.meta.base() != h.Base:
		return fmt.Errorf("its head is that of another: %w", errImage)
	}
	return nil
}

// hashKeyCheck returns what meta keeps of the key of the hashes.
func hashKeyCheck(key []byte) uint32 {
	sum := sha256.Sum256(key)
	return binary.BigEndian.Uint32(sum[:])
}

func (c *contents) frame(kind byte, b []byte) error {
	if (c.key == nil) != (kind == frameHashKey) {
		return fmt.Errorf("frame %q in the wrong place: %w", kind, errImage)
	}
	cur := cursor{b: b}
	switch kind {
	case frameHashKey:
		c.key = bytes.Clone(cur.bytes(cur.uvarint()))
		if cur.bad || len(cur.b) > 0 || len(c.key) != hashKeySize {
			return fmt.Errorf("the key of the hashes has another form: %w", errImage)
		}
		if c.sink != nil {
			return c.sink.hashKey(c.key)
		}
	case frameRows:
		for len(cur.b) > 0 {
			key, value := cur.bytes(cur.uvarint()), cur.bytes(cur.uvarint())
			if cur.bad {
				return fmt.Errorf("a row has another form: %w", errImage)
			}
			if err := c.row(key, value); err != nil {
				return err
			}
		}
	case frameRecords:
		for len(cur.b) > 0 {
			if err := c.record(cur.bytes(cur.uvarint())); err != nil {
				return err
			}
		}
	default:
		return fmt.Errorf("frame of unknown kind %q: %w", kind, errImage)
	}
	return nil
}

// maxRowKey is the longest key that Badger takes.
const maxRowKey = 65000

func (c *contents) row(key, value []byte) error {
	if c.seq > 0 || len(key) == 0 || len(key) > maxRowKey || bytes.Compare(key, c.last) <= 0 {
		return fmt.Errorf("a row in the wrong place: %w", errImage)
	}
	c.last = append(c.last[:0], key...)
	c.info.Rows++
	switch key[0] {
	case tableKey:
		c.info.Keys++
	case tableGroup:
		c.info.Groups++
	case tableMeta:
		if len(key) != 1 {
			return fmt.Errorf("a row in the wrong place: %w", errImage)
		}
		if err := c.meta.decode(value); err != nil {
			return fmt.Errorf("%w: %w", errImage, err)
		}
		c.known = true
	}
	if c.sink == nil {
		return nil
	}
	return c.sink.row(key, value)
}

func (c *contents) record(b []byte) error {
	r, err := c.records.read(b)
	if err != nil {
		return fmt.Errorf("%w: %w", errImage, err)
	}
	if r.Seq <= c.seq {
		return fmt.Errorf("record %d after record %d: %w", r.Seq, c.seq, errImage)
	}
	c.seq = r.Seq
	c.info.Records++
	if c.sink == nil {
		return nil
	}
	return c.sink.record(r.Seq, b)
}
