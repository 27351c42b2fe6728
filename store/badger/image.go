package badger

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"
)

// An image is a whole store in one stream: a snapshot or a backup.
//
//	head:   magic (7 bytes), version (1), length of the header (4, big-endian), header (JSON),
//	        CRC-32C of all that (4, big-endian)
//	rest, compressed by zstd, frames:
//	        CRC-32C of all that follows (4, big-endian), length (4), kind (1), content
//
//	frameHashKey, first: the key of the secrets' hashes
//	frameRows:           length of key (uvarint), key, length of value (uvarint), value, and so on, in the order of keys
//	frameRecords:        length (uvarint), record of the journal, and so on, in the order of numbers
//	frameEnd, last:      number of frames before it (uvarint), SHA-256 of the head and them
const (
	imageMagic   = "LQSNAP\x00"
	imageVersion = 1
	imageEngine  = "badger"

	frameHashKey = 'h'
	frameRows    = 'r'
	frameRecords = 'j'
	frameEnd     = 'e'

	imageFrameHeader = 8
	// fullFrame is the size at which a frame is written; an item that is larger
	// has a larger one.
	fullFrame = 128 << 10
	// maxFrame bounds a frame that is read.
	maxFrame = 2 * memTableSize
	// maxHeader bounds the header that is read.
	maxHeader = 64 << 10
	// maxWindow bounds the memory of the decompression.
	maxWindow = 8 << 20
)

// errImage says that bytes are no sound image.
var errImage = errors.New("it is damaged or no backup")

// imageHeader says of what the image is.
type imageHeader struct {
	Engine  string    `json:"engine"`
	Schema  int       `json:"schema"`
	Created time.Time `json:"created"`
	Commit  uint64    `json:"commit"`  // the tables' last change
	Through uint64    `json:"through"` // meta.through
	Base    uint64    `json:"base"`    // the records after this one are in
	Last    uint64    `json:"last"`    // the last record
}

// imageWriter writes an image.
type imageWriter struct {
	out    *countingWriter
	z      *zstd.Encoder
	sum    hash.Hash
	frame  []byte
	frames uint64
}

// countingWriter counts what is written.
type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

func newImageWriter(w io.Writer, h *imageHeader) (*imageWriter, error) {
	header, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	head := append([]byte(imageMagic), imageVersion)
	head = binary.BigEndian.AppendUint32(head, uint32(len(header)))
	head = append(head, header...)
	head = binary.BigEndian.AppendUint32(head, crc32.Checksum(head, castagnoli))
	iw := &imageWriter{out: &countingWriter{w: w}, sum: sha256.New()}
	if _, err := iw.out.Write(head); err != nil {
		return nil, err
	}
	iw.sum.Write(head)
	iw.z, err = zstd.NewWriter(iw.out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	return iw, err
}

// add puts fields, each with its length before it, into the frame of that kind.
func (iw *imageWriter) add(kind byte, fields ...[]byte) error {
	if len(iw.frame) > 0 && (iw.frame[imageFrameHeader] != kind || len(iw.frame) >= fullFrame) {
		if err := iw.flush(); err != nil {
			return err
		}
	}
	iw.begin(kind)
	for _, f := range fields {
		iw.frame = binary.AppendUvarint(iw.frame, uint64(len(f)))
		iw.frame = append(iw.frame, f...)
	}
	return nil
}

func (iw *imageWriter) begin(kind byte) {
	if len(iw.frame) == 0 {
		iw.frame = append(iw.frame, 0, 0, 0, 0, 0, 0, 0, 0, kind)
	}
}

// flush writes the frame.
func (iw *imageWriter) flush() error {
	if len(iw.frame) == 0 {
		return nil
	}
	binary.BigEndian.PutUint32(iw.frame[4:], uint32(len(iw.frame)-imageFrameHeader))
	binary.BigEndian.PutUint32(iw.frame, crc32.Checksum(iw.frame[4:], castagnoli))
	iw.sum.Write(iw.frame)
	iw.frames++
	_, err := iw.z.Write(iw.frame)
	iw.frame = iw.frame[:0]
	return err
}

// close writes the end, after the last frame.
func (iw *imageWriter) close() error {
	if err := iw.flush(); err != nil {
		return err
	}
	iw.begin(frameEnd)
	iw.frame = binary.AppendUvarint(iw.frame, iw.frames)
	iw.frame = iw.sum.Sum(iw.frame)
	if err := iw.flush(); err != nil {
		return err
	}
	return iw.z.Close()
}

// abort lets go of what the writer holds, after an error.
func (iw *imageWriter) abort() {
	iw.z.Reset(io.Discard)
	_ = iw.z.Close()
}

// imageReader reads an image.
type imageReader struct {
	header imageHeader
	source *source
	z      *zstd.Decoder
	in     *bufio.Reader
	sum    hash.Hash
	frames uint64
	frame  []byte
}

// source keeps the error of the stream, to tell it from those of what is in it.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		s.err = err
	}
	return n, err
}

// readImageHeader reads the head of an image.
func readImageHeader(r io.Reader) (h imageHeader, head []byte, err error) {
	head = make([]byte, len(imageMagic)+1+4)
	if _, err := io.ReadFull(r, head); err != nil {
		return h, nil, cutOff(err)
	}
	if string(head[:len(imageMagic)]) != imageMagic {
		return h, nil, fmt.Errorf("reading its head: %w", errImage)
	}
	n := binary.BigEndian.Uint32(head[len(head)-4:])
	if n > maxHeader {
		return h, nil, fmt.Errorf("reading its head: %w", errImage)
	}
	rest := make([]byte, n+4)
	if _, err := io.ReadFull(r, rest); err != nil {
		return h, nil, cutOff(err)
	}
	head = append(head, rest...)
	end := len(head) - 4
	if crc32.Checksum(head[:end], castagnoli) != binary.BigEndian.Uint32(head[end:]) {
		return h, nil, fmt.Errorf("reading its head: %w", errImage)
	}
	if v := head[len(imageMagic)]; v != imageVersion {
		return h, nil, fmt.Errorf("%w: backup version %d is not known to this program, which knows version %d", errNewer, v, imageVersion)
	}
	if err := json.Unmarshal(rest[:n], &h); err != nil {
		return h, nil, fmt.Errorf("reading its head: %w", errImage)
	}
	if h.Engine != imageEngine {
		return h, nil, fmt.Errorf("it is of a store of engine %q, not %q", h.Engine, imageEngine)
	}
	if h.Schema > int(schemaVersion()) {
		return h, nil, fmt.Errorf("%w: schema version %d is not known to this program, which knows versions up to %d", errNewer, h.Schema, schemaVersion())
	}
	return h, head, nil
}

// cutOff says of a stream that ends too early that it is damaged.
func cutOff(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("it ends too early: %w", errImage)
	}
	return err
}

// openImage begins to read an image.
func openImage(r io.Reader) (*imageReader, error) {
	h, head, err := readImageHeader(r)
	if err != nil {
		return nil, err
	}
	ir := &imageReader{header: h, source: &source{r: r}, sum: sha256.New()}
	ir.sum.Write(head)
	ir.z, err = zstd.NewReader(ir.source, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, err
	}
	ir.in = bufio.NewReaderSize(ir.z, 64<<10)
	return ir, nil
}

func (ir *imageReader) close() { ir.z.Close() }

// next returns the next frame but the last, at which it checks that all was
// there and returns io.EOF. What it returns holds until the next call.
func (ir *imageReader) next() (kind byte, content []byte, err error) {
	var head [imageFrameHeader]byte
	if _, err := io.ReadFull(ir.in, head[:]); err != nil {
		return 0, nil, ir.broken(err)
	}
	n := binary.BigEndian.Uint32(head[4:])
	if n == 0 || n > maxFrame {
		return 0, nil, ir.broken(errImage)
	}
	if ir.frame, err = readN(ir.in, append(ir.frame[:0], head[:]...), int(n)); err != nil {
		return 0, nil, ir.broken(err)
	}
	if crc32.Checksum(ir.frame[4:], castagnoli) != binary.BigEndian.Uint32(ir.frame) {
		return 0, nil, ir.broken(errImage)
	}
	kind, content = ir.frame[imageFrameHeader], ir.frame[imageFrameHeader+1:]
	if kind == frameEnd {
		return 0, nil, ir.end(content)
	}
	ir.sum.Write(ir.frame)
	ir.frames++
	return kind, content, nil
}

// readN appends n bytes of r to b, which grows only as they come.
func readN(r io.Reader, b []byte, n int) ([]byte, error) {
	for n > 0 {
		part := min(n, fullFrame)
		start := len(b)
		b = append(b, make([]byte, part)...)
		if _, err := io.ReadFull(r, b[start:]); err != nil {
			return b, err
		}
		n -= part
	}
	return b, nil
}

// end checks the last frame, and that nothing follows.
func (ir *imageReader) end(content []byte) error {
	c := cursor{b: content}
	frames := c.uvarint()
	if c.bad || frames != ir.frames || !bytes.Equal(c.b, ir.sum.Sum(nil)) {
		return ir.broken(errImage)
	}
	if _, err := ir.in.ReadByte(); !errors.Is(err, io.EOF) {
		return ir.broken(errImage)
	}
	return io.EOF
}

// broken says where an image cannot be read.
func (ir *imageReader) broken(err error) error {
	switch {
	case ir.source.err != nil:
		err = ir.source.err
	case errors.Is(err, errImage):
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = fmt.Errorf("it ends too early: %w", errImage)
	default: // of the compression
		err = fmt.Errorf("%w: %w", errImage, err)
	}
	return fmt.Errorf("after frame %d: %w", ir.frames, err)
}
