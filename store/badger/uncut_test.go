package badger

import (
	"errors"
	"slices"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Records that could not be written, or in part, are there for who asks.
func TestUncutWhileNothingCanBeWritten(t *testing.T) {
	for room := range 100 { // torn after each byte
		j, _ := recovered(t, t.TempDir(), t.Logf)
		var want []uint64
		add := func(n int) {
			for range n {
				r := sample(j.seq + 1)
				want = append(want, j.append(&r))
			}
		}
		check := func(when string) {
			t.Helper()
			var got []uint64
			ok(t, j.uncut(func(r *quota.Record) error { got = append(got, r.Seq); return nil }))
			if !slices.Equal(got, want) {
				t.Fatalf("with room for %d bytes, %s: records %v, want %v", room, when, got, want)
			}
		}
		add(3)
		ok(t, j.flush(j.seq))
		check("all are written")
		f := &flaky{file: j.segment.f, room: room}
		j.segment.f = f
		add(9)
		if err := j.flush(j.seq); !errors.Is(err, errFull) {
			t.Fatal(err)
		}
		add(2)
		check("one is written in part")
		if _, _, err := j.cut(); !errors.Is(err, errFull) {
			t.Fatal(err)
		}
		check("after a cut that failed")
		f.room = -1
		_, _, err := j.cut()
		ok(t, err)
		want = nil
		check("after a cut")
		ok(t, j.close())
		if err := j.uncut(func(*quota.Record) error { return nil }); !errors.Is(err, quota.ErrClosed) {
			t.Fatalf("of a closed journal: %v", err)
		}
	}
}
