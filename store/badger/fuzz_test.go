package badger

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// FuzzRecord reads any bytes as a record: never a panic, and what is read is
// what is written.
func FuzzRecord(f *testing.F) {
	full := call()
	full.Seq = math.MaxUint64
	for _, r := range []quota.Record{
		full, {Kind: quota.RecordOpen, Seq: 1}, {Kind: quota.RecordRefuse, Seq: 2, Model: "m"},
		{Kind: quota.RecordSet, Seq: 3, Limit: quota.TokensPerDay, Amount: math.MinInt64},
	} {
		f.Add(appendRecord(nil, &r))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var first, second recordReader
		r, err := first.read(b)
		if err != nil {
			return
		}
		again, err := second.read(appendRecord(nil, r))
		if len(r.Model) > maxModel {
			return // clipped when it is written
		}
		if err != nil {
			t.Fatalf("%+v cannot be read again: %v", r, err)
		}
		if d := cmp.Diff(r, again); d != "" {
			t.Fatal(d)
		}
	})
}

// FuzzSegment takes any bytes as the journal's only segment: it must open, or
// say why not; the records must come in order; and what is appended must be
// there afterwards.
func FuzzSegment(f *testing.F) {
	b := newHeader(1)
	for n := range uint64(3) {
		r := call()
		r.Seq = n + 1
		b = appendFrame(b, &r)
	}
	f.Add(b)
	f.Add(b[:len(b)-5])
	f.Add(append(bytes.Clone(b), b[headerSize:]...))
	f.Add(append(bytes.Clone(b), make([]byte, 100)...))
	f.Add([]byte{})
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		ok(t, os.RemoveAll(dir))
		ok(t, os.MkdirAll(dir, 0o700))
		ok(t, os.WriteFile(filepath.Join(dir, "0000000001.log"), b, 0o600))
		seqs := func() (*journal, []uint64, error) {
			var seqs []uint64
			j := newJournal(dir, func(string, ...any) {})
			err := j.recover(0, 0, func(r *quota.Record) error {
				if n := len(seqs); n > 0 && r.Seq <= seqs[n-1] {
					t.Fatalf("record %d after record %d", r.Seq, seqs[n-1])
				}
				seqs = append(seqs, r.Seq)
				return nil
			})
			return j, seqs, err
		}
		j, before, err := seqs()
		if err != nil {
			return
		}
		if j.seq == math.MaxUint64 {
			t.Skip("no number is left")
		}
		r := sample(1)
		ok(t, j.flush(j.append(&r)))
		ok(t, j.close())
		j, after, err := seqs()
		ok(t, err)
		ok(t, j.close())
		equal(t, "records", append(before, r.Seq), after)
	})
}

// FuzzRedo reads any bytes as a change that was cut short.
func FuzzRedo(f *testing.F) {
	f.Add([]byte("noise"))
	f.Fuzz(func(t *testing.T, b []byte) {
		frame := withChecksum(append(make([]byte, 4), b...))
		if number, c, err := decodeRedo(frame); err == nil {
			if again := encodeRedo(c, number); len(c) > 0 && len(again) > len(frame) {
				t.Fatalf("%d bytes became %d", len(frame), len(again))
			}
		}
	})
}

// FuzzImage reads any bytes as a backup: what is taken for sound is so when it
// is read again, and a store can be made of it.
func FuzzImage(f *testing.F) {
	s, _ := lived(f)
	b := backup(f, s)
	f.Add(b)
	f.Add(b[:len(b)/2])
	f.Add(b[:len(imageMagic)+5])
	f.Add([]byte{})
	var empty bytes.Buffer
	iw, err := newImageWriter(&empty, &imageHeader{Engine: imageEngine, Schema: 1})
	ok(f, err)
	ok(f, iw.close())
	f.Add(empty.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := VerifyBackup(bytes.NewReader(b))
		if err != nil {
			return
		}
		dir := filepath.Join(t.TempDir(), "new")
		ok(t, Restore(dir, bytes.NewReader(b)))
		s := ready(t, dir, func(string, ...any) {})
		n := 0
		ok(t, s.Keys(0, func(*quota.Key) bool { n++; return true }))
		if n != info.Keys {
			t.Fatalf("%d keys, %d were told of", n, info.Keys)
		}
		ok(t, s.Close())
	})
}

// FuzzFrame reads any bytes as what is in a frame of a backup whose checksums
// are right.
func FuzzFrame(f *testing.F) {
	m := meta{schema: 1, commit: 3}
	f.Add(byte(frameHashKey), append([]byte{hashKeySize}, make([]byte, hashKeySize)...))
	f.Add(byte(frameRows), append([]byte{1, tableMeta, byte(len(m.encode()))}, m.encode()...))
	r := call()
	r.Seq = 5
	record := appendRecord(nil, &r)
	f.Add(byte(frameRecords), append([]byte{byte(len(record))}, record...))
	f.Add(byte('x'), []byte{1})
	f.Fuzz(func(t *testing.T, kind byte, b []byte) {
		c := contents{}
		if kind != frameHashKey {
			c.key = make([]byte, hashKeySize)
		}
		if err := c.frame(kind, b); err != nil {
			return
		}
		if c.info.Rows > len(b) || c.info.Records > len(b) {
			t.Fatalf("%+v of %d bytes", c.info, len(b))
		}
		if err := c.frame(kind, b); err == nil && len(b) > 0 && kind != frameHashKey {
			t.Fatal("it is taken twice, though it is out of order")
		}
	})
}

// FuzzTables reads any bytes as the list and as a log of Badger's tables.
func FuzzTables(f *testing.F) {
	dir, _ := life(f, false, true)
	for _, name := range []string{"badger/MANIFEST", "badger/*.mem"} {
		b, err := os.ReadFile(first(f, dir, name))
		ok(f, err)
		f.Add(bytes.TrimRight(b, "\x00"))
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if end := logEnd(b); end > len(b) {
			t.Fatalf("ends at %d of %d", end, len(b))
		}
		_, _ = namedTables(b)
	})
}
