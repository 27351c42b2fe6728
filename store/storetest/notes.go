package storetest

import (
	"errors"
	"fmt"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// testNotes puts alerts and entries of the audit log, reads them in pages,
// replaces and prunes them.
func testNotes(t *testing.T, open Opener) {
	s := start(t, open)
	list := func(kind quota.NoteKind, below quota.NoteID, most int) (got []string) {
		t.Helper()
		ok(t, s.Notes(kind, below, func(n *quota.Note) bool {
			got = append(got, fmt.Sprintf("%d %q %s", n.ID, n.Once, n.Body))
			return len(got) < most
		}))
		return got
	}
	want := func(got []string, want ...string) {
		t.Helper()
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	want(list(quota.NoteAlert, 0, 10))
	for i := range 5 {
		ok(t, s.PutNotes(quota.NoteAlert, quota.Note{ID: quota.NoteID(300 + i), Once: fmt.Sprint("once", i), Body: fmt.Appendf(nil, `{"n":%d}`, i)}))
	}
	ok(t, s.PutNotes(quota.NoteAudit, quota.Note{ID: 1, Body: []byte("{}")}, quota.Note{ID: 1 << 63, Body: []byte("[]")}))
	if err := s.PutNotes(quota.NoteAudit, quota.Note{ID: 7}, quota.Note{}); !errors.Is(err, quota.ErrInvalid) {
		t.Errorf("a note without an id: %v", err)
	}
	want(list(quota.NoteAlert, 0, 2), `304 "once4" {"n":4}`, `303 "once3" {"n":3}`)
	want(list(quota.NoteAlert, 303, 2), `302 "once2" {"n":2}`, `301 "once1" {"n":1}`)
	want(list(quota.NoteAlert, 300, 2))
	want(list(quota.NoteAudit, 0, 9), `9223372036854775808 "" []`, `1 "" {}`)
	ok(t, s.PutNotes(quota.NoteAlert, quota.Note{ID: 303, Once: "once3", Body: []byte(`"again"`)}))

	s = s.again()
	want(list(quota.NoteAlert, 304, 1), `303 "once3" "again"`)
	if id, err := s.NoteOnce(quota.NoteAlert, "once3"); err != nil || id != 303 {
		t.Errorf("once3 is %d, %v", id, err)
	}
	for _, kind := range []quota.NoteKind{quota.NoteAlert, quota.NoteAudit} {
		if _, err := s.NoteOnce(kind, "once"); !errors.Is(err, quota.ErrNotFound) {
			t.Errorf("a name that is not there: %v", err)
		}
	}
	ok(t, s.PruneNotes(quota.NoteAlert, 2))
	want(list(quota.NoteAlert, 0, 9), `304 "once4" {"n":4}`, `303 "once3" "again"`)
	want(list(quota.NoteAudit, 0, 9), `9223372036854775808 "" []`, `1 "" {}`)
	if _, err := s.NoteOnce(quota.NoteAlert, "once2"); !errors.Is(err, quota.ErrNotFound) {
		t.Errorf("a name that was pruned: %v", err)
	}
}
