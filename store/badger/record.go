package badger

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// maxModel is how many bytes of a model's name are kept. Names come from
// callers, and a key of Badger's holds 65,000 bytes.
const maxModel = 1024

// errRecord says that bytes with a good checksum are no record that this
// version knows.
var errRecord = errors.New("not a known record")

// limitCodes gives each limit its number on disk, so that the order of
// quota.LimitNames may change. Numbers are never reused; 0 is no limit.
var limitCodes = map[quota.LimitName]byte{
	"":                       0,
	quota.TokenQuota:         1,
	quota.RequestsPerMinute:  2,
	quota.TokensPerMinute:    3,
	quota.RequestsPerDay:     4,
	quota.TokensPerDay:       5,
	quota.ConcurrentRequests: 6,
}

var limitNames = func() (names [7]quota.LimitName) {
	for name, code := range limitCodes {
		names[code] = name
	}
	return names
}()

// clipModel returns what is kept of a model's name.
func clipModel(s string) string {
	if len(s) > maxModel {
		return s[:maxModel]
	}
	return s
}

// appendRecord appends the binary form of r: its number, kind and times, and
// the fields that its kind uses.
func appendRecord(b []byte, r *quota.Record) []byte {
	b = binary.AppendUvarint(b, r.Seq)
	b = append(b, byte(r.Kind))
	b = binary.AppendVarint(b, r.Time)
	b = binary.AppendVarint(b, r.Tick)
	switch r.Kind {
	case quota.RecordOpen:
		return appendCall(b, r)
	case quota.RecordSettle:
		return appendSettled(b, r)
	case quota.RecordCorrect:
		return appendOutcome(appendSettled(b, r), &r.Before)
	case quota.RecordRefuse:
		return appendCaller(b, r)
	}
	b = binary.AppendUvarint(b, uint64(r.Account))
	b = append(b, limitCodes[r.Limit])
	b = binary.AppendUvarint(b, uint64(r.Number))
	b = binary.AppendVarint(b, r.Amount)
	b = binary.AppendVarint(b, r.Period.Start)
	b = binary.AppendVarint(b, r.Period.End)
	return binary.AppendVarint(b, r.Offset)
}

func appendSettled(b []byte, r *quota.Record) []byte {
	b = appendCall(b, r)
	b = binary.AppendUvarint(b, r.ID)
	// Times of admission lie close before the record's own. The difference may
	// wrap around, and wraps back when it is added again.
	b = binary.AppendVarint(b, r.Time-r.Opened)
	b = binary.AppendVarint(b, r.Tick-r.OpenTick)
	return appendOutcome(b, &r.Outcome)
}

func appendCaller(b []byte, r *quota.Record) []byte {
	b = binary.AppendUvarint(b, uint64(r.Key))
	b = binary.AppendUvarint(b, uint64(r.Group))
	model := clipModel(r.Model)
	b = binary.AppendUvarint(b, uint64(len(model)))
	return append(b, model...)
}

func appendCall(b []byte, r *quota.Record) []byte {
	b = appendCaller(b, r)
	b = binary.AppendUvarint(b, uint64(len(r.Shares)))
	for i := range r.Shares {
		s := &r.Shares[i]
		b = binary.AppendUvarint(b, uint64(s.Account))
		b = binary.AppendUvarint(b, uint64(s.Quota))
		b = binary.AppendUvarint(b, uint64(s.Day))
		b = binary.AppendUvarint(b, uint64(s.Minute))
	}
	return binary.AppendVarint(b, r.Reserved)
}

func appendOutcome(b []byte, o *quota.Outcome) []byte {
	var flags byte
	if o.Estimated {
		flags |= 1
	}
	if o.Failed {
		flags |= 2
	}
	if o.Later != "" {
		flags |= 4
	}
	b = append(b, flags)
	for _, n := range [...]int64{o.Tokens.Input, o.Tokens.Cached, o.Tokens.CacheWrite, o.Tokens.Output, o.Tokens.Reasoning} {
		b = binary.AppendVarint(b, n)
	}
	if o.Later != "" {
		later := o.Later[:min(len(o.Later), quota.MaxLater)]
		b = binary.AppendUvarint(b, uint64(len(later)))
		b = append(b, later...)
	}
	return b
}

// recordReader decodes records, one after the other, into the same Record.
type recordReader struct {
	record quota.Record
	models modelNames
}

// modelNames keeps the strings of the few models that return in record after
// record, and row after row.
type modelNames map[string]string

// maxModels bounds modelNames.
const maxModels = 1024

func (m *modelNames) name(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	if s, ok := (*m)[string(b)]; ok {
		return s
	}
	if *m == nil || len(*m) >= maxModels {
		*m = make(modelNames)
	}
	s := string(b)
	(*m)[s] = s
	return s
}

// read decodes b. The record belongs to the reader and holds until the next
// call.
func (d *recordReader) read(b []byte) (*quota.Record, error) {
	c := cursor{b: b}
	r := &d.record
	*r = quota.Record{Shares: r.Shares[:0]}
	r.Seq = c.uvarint()
	r.Kind = quota.RecordKind(c.byte())
	r.Time = c.varint()
	r.Tick = c.varint()
	switch r.Kind {
	case quota.RecordOpen:
		r.ID = r.Seq
		d.readCall(&c, r)
	case quota.RecordSettle:
		d.readSettled(&c, r)
	case quota.RecordCorrect:
		d.readSettled(&c, r)
		readOutcome(&c, &r.Before)
	case quota.RecordRefuse:
		d.readCaller(&c, r)
	case quota.RecordTurn, quota.RecordReset, quota.RecordGrant, quota.RecordSet:
		r.Account = quota.ID(c.uvarint())
		r.Limit = c.limit()
		r.Number = c.uint32()
		r.Amount = c.varint()
		r.Period.Start = c.varint()
		r.Period.End = c.varint()
		if len(c.b) > 0 { // earlier versions wrote none
			r.Offset = c.varint()
		}
	default:
		return nil, fmt.Errorf("reading a record of kind %d: %w", r.Kind, errRecord)
	}
	if c.bad || len(c.b) > 0 || r.Seq == 0 {
		return nil, fmt.Errorf("reading a record of %d bytes: %w", len(b), errRecord)
	}
	return r, nil
}

func (d *recordReader) readCaller(c *cursor, r *quota.Record) {
	r.Key = quota.ID(c.uvarint())
	r.Group = quota.ID(c.uvarint())
	r.Model = d.models.name(c.bytes(c.uvarint()))
}

func (d *recordReader) readCall(c *cursor, r *quota.Record) {
	d.readCaller(c, r)
	n := c.uvarint()
	if n > uint64(len(c.b)) { // a share takes more bytes than one
		c.bad = true
		return
	}
	for range n {
		r.Shares = append(r.Shares, quota.Share{
			Account: quota.ID(c.uvarint()), Quota: c.uint32(), Day: c.uint32(), Minute: c.uint32(),
		})
	}
	r.Reserved = c.varint()
}

func (d *recordReader) readSettled(c *cursor, r *quota.Record) {
	d.readCall(c, r)
	r.ID = c.uvarint()
	r.Opened = r.Time - c.varint()
	r.OpenTick = r.Tick - c.varint()
	readOutcome(c, &r.Outcome)
}

func readOutcome(c *cursor, o *quota.Outcome) {
	flags := c.byte()
	o.Estimated, o.Failed = flags&1 != 0, flags&2 != 0
	c.bad = c.bad || flags > 7
	for _, n := range [...]*int64{&o.Tokens.Input, &o.Tokens.Cached, &o.Tokens.CacheWrite, &o.Tokens.Output, &o.Tokens.Reasoning} {
		*n = c.varint()
	}
	if flags&4 != 0 {
		later := c.bytes(c.uvarint())
		o.Later = string(later)
		c.bad = c.bad || len(later) == 0 || len(later) > quota.MaxLater
	}
}

// cursor reads numbers from the front of b. After a failure it is bad and
// reads zeros.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) uvarint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.b, c.bad = nil, true
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) varint() int64 {
	v, n := binary.Varint(c.b)
	if n <= 0 {
		c.b, c.bad = nil, true
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) uint32() uint32 {
	v := c.uvarint()
	if v > 1<<32-1 {
		c.bad = true
	}
	return uint32(v)
}

func (c *cursor) byte() byte {
	if len(c.b) == 0 {
		c.bad = true
		return 0
	}
	v := c.b[0]
	c.b = c.b[1:]
	return v
}

func (c *cursor) bytes(n uint64) []byte {
	if n > uint64(len(c.b)) {
		c.b, c.bad = nil, true
		return nil
	}
	v := c.b[:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) limit() quota.LimitName {
	code := c.byte()
	if int(code) >= len(limitNames) {
		c.bad = true
		return ""
	}
	return limitNames[code]
}
