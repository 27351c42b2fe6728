package badger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// A segment is one file of the journal: a header, then frames.
//
//	header: magic (7 bytes), version (1), number of the first record (8, big-endian),
//	        CRC-32C of all that (4, little-endian)
//	frame:  CRC-32C of all that follows (4, little-endian), length (4), record
//
// The length is never 0, so that a stretch of zeros, which a power loss may
// leave, is no frame.
const (
	segmentMagic   = "LQJRNL\x00"
	segmentVersion = 1
	headerSize     = 20
	frameHeader    = 8
	// maxRecord bounds a record: many times what the longest model's name and
	// the deepest tree of groups need.
	maxRecord  = 16 << 10
	segmentExt = ".log"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendFrame appends r as a frame.
func appendFrame(b []byte, r *quota.Record) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	b = appendRecord(b, r)
	endFrame(b[start:])
	return b
}

// appendFramed appends a record that is encoded as a frame.
func appendFramed(b, record []byte) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	b = append(b, record...)
	endFrame(b[start:])
	return b
}

func endFrame(frame []byte) {
	binary.LittleEndian.PutUint32(frame[4:], uint32(len(frame)-frameHeader))
	binary.LittleEndian.PutUint32(frame, crc32.Checksum(frame[4:], castagnoli))
}

// file is what is needed of an *os.File.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error
}

// segment is a segment that this process writes or has written or found.
type segment struct {
	f      file // nil once it is neither written nor in need of a sync
	fault  Fault
	path   string
	number uint64
	last   uint64 // the last record in it, or before it
	size   int64  // up to the end of the last whole write
	synced int64  // known to be on disk up to here
	// suspect says that a sync has failed: the system may have dropped what it
	// could not write and yet call the file clean, so it is written again.
	suspect bool
}

// createSegment makes the segment of that number, whose first record will be
// first.
func createSegment(dir string, number, first uint64, fault Fault) (s *segment, err error) {
	path := segmentPath(dir, number)
	err = fault.step(StepCreate, path, func() error {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		if _, err = f.WriteAt(newHeader(first), 0); err != nil {
			closeFile(f)
			_ = os.Remove(path)
			return err
		}
		s = &segment{f: fault.on(f), fault: fault, path: path, number: number, last: first - 1, size: headerSize}
		return nil
	})
	if err != nil {
		if s != nil {
			s.close()
		}
		return nil, fmt.Errorf("creating a segment of the journal: %w", err)
	}
	return s, nil
}

func segmentPath(dir string, number uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%010d%s", number, segmentExt))
}

func newHeader(first uint64) []byte {
	h := append([]byte(segmentMagic), segmentVersion)
	h = binary.BigEndian.AppendUint64(h, first)
	return binary.LittleEndian.AppendUint32(h, crc32.Checksum(h, castagnoli))
}

// sync makes the first size bytes survive a power loss.
func (s *segment) sync(size int64) error {
	if s.synced >= size {
		return nil
	}
	if s.suspect {
		if err := s.rewrite(size); err != nil {
			return fmt.Errorf("writing %s again: %w", s.path, err)
		}
	}
	if err := s.f.Sync(); err != nil {
		s.suspect = true
		return fmt.Errorf("syncing the journal: %w", err)
	}
	if s.synced == 0 { // the file's name, too, must survive
		dir := filepath.Dir(s.path)
		if err := s.fault.step(StepSyncDir, dir, func() error { return syncDir(dir) }); err != nil {
			return fmt.Errorf("syncing the journal: %w", err)
		}
	}
	s.synced, s.suspect = size, false
	return nil
}

// rewrite writes what is not known to be on disk once more.
func (s *segment) rewrite(size int64) error {
	buf := make([]byte, 64<<10)
	for off := s.synced; off < size; {
		n, err := s.f.ReadAt(buf[:min(int64(len(buf)), size-off)], off)
		if n == 0 {
			return err
		}
		if _, err := s.f.WriteAt(buf[:n], off); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

func (s *segment) close() {
	if s.f != nil {
		closeFile(s.f)
		s.f = nil
	}
}

// listSegments returns the segments in dir, the oldest first.
func listSegments(dir string) ([]*segment, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("listing the journal: %w", err)
	}
	var list []*segment
	for _, e := range entries {
		digits, ok := strings.CutSuffix(e.Name(), segmentExt)
		number, err := strconv.ParseUint(digits, 10, 63)
		if !ok || err != nil || len(digits) != 10 {
			continue
		}
		list = append(list, &segment{path: filepath.Join(dir, e.Name()), number: number})
	}
	slices.SortFunc(list, func(a, b *segment) int {
		if a.number < b.number {
			return -1
		}
		return 1
	})
	return list, nil
}

// readHeader returns the number of the segment's first record. ok is false
// when there is no sound header; the error tells of a version that is not
// known, in which nothing may be guessed.
func readHeader(r io.ReaderAt) (first uint64, ok bool, err error) {
	var h [headerSize]byte
	if n, err := r.ReadAt(h[:], 0); n < headerSize {
		if err == io.EOF {
			err = nil
		}
		return 0, false, err
	}
	sum := crc32.Checksum(h[:headerSize-4], castagnoli)
	if string(h[:len(segmentMagic)]) != segmentMagic || sum != binary.LittleEndian.Uint32(h[headerSize-4:]) {
		return 0, false, nil
	}
	if v := h[len(segmentMagic)]; v != segmentVersion {
		return 0, false, fmt.Errorf("journal version %d is not known to this program, which knows version %d", v, segmentVersion)
	}
	first = binary.BigEndian.Uint64(h[len(segmentMagic)+1:])
	return first, first > 0, nil
}

// scanner finds the frames in a part of a segment. It passes over what is no
// frame, and counts it.
type scanner struct {
	r        io.ReaderAt
	off, end int64 // the part of the file that is not in the window yet
	window   []byte
	lo, hi   int // the part of the window that was not looked at
	// skipped counts the bytes, before the frame that next returned or before
	// the end, that are no frame.
	skipped int64
}

const windowSize = 256 << 10

// reset makes s read the bytes of r from off to end.
func (s *scanner) reset(r io.ReaderAt, off, end int64) {
	if s.window == nil {
		s.window = make([]byte, windowSize)
	}
	*s = scanner{r: r, off: off, end: end, window: s.window}
}

// at returns the offset in the file of the next byte to look at.
func (s *scanner) at() int64 { return s.off - int64(s.hi-s.lo) }

// next returns the record of the next frame; it holds until the next call. At
// the end it returns io.EOF.
func (s *scanner) next() ([]byte, error) {
	s.skipped = 0
	for {
		if err := s.fill(frameHeader); err != nil {
			return nil, err
		}
		if s.hi-s.lo < frameHeader {
			s.skipped += int64(s.hi - s.lo)
			s.lo = s.hi
			return nil, io.EOF
		}
		size := binary.LittleEndian.Uint32(s.window[s.lo+4:])
		if size > 0 && size <= maxRecord {
			n := frameHeader + int(size)
			if err := s.fill(n); err != nil {
				return nil, err
			}
			if s.hi-s.lo >= n {
				frame := s.window[s.lo : s.lo+n]
				if crc32.Checksum(frame[4:], castagnoli) == binary.LittleEndian.Uint32(frame) {
					s.lo += n
					return frame[frameHeader:], nil
				}
			}
		}
		s.lo++
		s.skipped++
	}
}

// fill brings n bytes into the window, or all that are left.
func (s *scanner) fill(n int) error {
	if s.hi-s.lo >= n || s.off >= s.end {
		return nil
	}
	s.hi = copy(s.window, s.window[s.lo:s.hi])
	s.lo = 0
	want := min(int64(len(s.window)-s.hi), s.end-s.off)
	m, err := s.r.ReadAt(s.window[s.hi:s.hi+int(want)], s.off)
	s.hi += m
	s.off += int64(m)
	switch {
	case int64(m) == want:
		return nil
	case errors.Is(err, io.EOF): // shorter than it was said to be
		s.end = s.off
		return nil
	}
	return fmt.Errorf("reading the journal: %w", err)
}

// closeFile closes what was only read, or is synced, or given up: about an
// error there is nothing to do.
func closeFile(c io.Closer) { c.Close() }

// syncDir makes the names in a directory survive a power loss.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // which cannot sync a directory, and need not
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer closeFile(d)
	return d.Sync()
}
