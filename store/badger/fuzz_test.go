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
