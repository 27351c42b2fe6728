package badger

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// -update makes the fixture of this version anew.
var update = flag.Bool("update", false, "make testdata/v<version of the tables>.tar.gz anew")

// fixtureGroup is in every fixture, and a key in it.
const fixtureGroup = quota.ID(1<<40 | 1)

// laterCall is a call in every fixture whose outcome is not known yet.
var laterCall = quota.Later{Key: 2, Name: "resp_1"}

// TestFixtures opens stores that earlier versions, and this one, have left.
func TestFixtures(t *testing.T) {
	current := filepath.Join("testdata", fmt.Sprintf("v%d.tar.gz", schemaVersion()))
	if *update {
		makeFixture(t, current)
	}
	paths, err := filepath.Glob(filepath.Join("testdata", "v*.tar.gz"))
	ok(t, err)
	if len(paths) != int(schemaVersion()) {
		t.Errorf("there are the fixtures %q: make %s by -update, and commit it when no more changes come to that version", paths, current)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			dir := t.TempDir()
			unpack(t, path, dir)
			checkFixture(t, dir, true)
			restored := filepath.Join(t.TempDir(), "restored")
			b, err := os.ReadFile(first(t, dir, "snapshots/*"))
			ok(t, err)
			ok(t, Restore(restored, bytes.NewReader(b)))
			checkFixture(t, restored, false)
		})
	}
}

// checkFixture checks what is in a store of a fixture, or of its snapshot.
func checkFixture(t *testing.T, dir string, whole bool) {
	t.Helper()
	var l logs
	s, err := Open(keptOptions(dir, l.log))
	ok(t, err)
	defer s.Close()
	want := truth{Keys: []string{"key 2", "key 1", "key 0"}, Secrets: 3, Used: 38, Charged: 38, Open: 4}
	if whole {
		want = truth{Keys: []string{"key 4", "key 3", "key 2", "key 1", "key 0"}, Secrets: 5, Used: 57, Charged: 57, Open: 8}
	}
	if d := cmp.Diff(want, recoverTruth(t, s)); d != "" {
		t.Error(d)
	}
	ok(t, s.Guard(epoch))
	if _, err := s.Group(fixtureGroup); err != nil {
		t.Error(err)
	}
	var members []quota.ID
	ok(t, s.KeysIn(fixtureGroup, 0, func(id quota.ID) bool { members = append(members, id); return true }))
	if d := cmp.Diff([]quota.ID{4}, members); d != "" {
		t.Error(d)
	}
	r, err := s.Provisional(laterCall)
	if err != nil || r.Outcome.Tokens.Output != 7 {
		t.Errorf("provisional: %+v, %v", r, err)
	}
	var c quota.Counters
	if err := s.Counters(2, &c); err != nil || c.QuotaUsed == 0 {
		t.Errorf("counters: %+v, %v", c, err)
	}
	ok(t, s.Put(keys(6), nil))
	use(t, s, 2)
	move(t, s, &c.QuotaUsed)
	for _, line := range l.lines {
		if !strings.Contains(line, "were brought from version") {
			t.Errorf("logged: %s", line)
		}
	}
}

// makeFixture makes a store with keys, groups, counters, usage, open
// reservations, a snapshot, and a journal that the tables do not hold yet.
func makeFixture(t testing.TB, path string) {
	dir := t.TempDir()
	s, err := Open(keptOptions(dir, t.Logf))
	ok(t, err)
	recoverTruth(t, s)
	list := keys(5)
	list[1].Group = fixtureGroup
	ok(t, s.Put(list[:3], []*quota.Group{{ID: fixtureGroup, Name: "group", Source: quota.SourceAPI}}))
	later := quota.Record{Kind: quota.RecordSettle, Key: laterCall.Key, ID: 99}
	later.Outcome.Later, later.Outcome.Tokens.Output = laterCall.Name, 7
	s.Append(&later)
	ok(t, s.Checkpoint(&quota.Checkpoint{Provisional: []quota.Record{later}}))
	var charged int64
	for range 3 {
		use(t, s, 10)
		move(t, s, &charged)
	}
	use(t, s, 7)
	saveSnapshot(t, s, epoch)
	for range 3 {
		move(t, s, &charged)
		use(t, s, 5)
	}
	ok(t, s.Put(list[3:], nil))
	move(t, s, &charged)
	use(t, s, 4)
	ok(t, s.Close())
	ok(t, os.MkdirAll(filepath.Dir(path), 0o755))
	pack(t, dir, path)
}

func pack(t testing.TB, dir, path string) {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	ok(t, err)
	w := tar.NewWriter(z)
	ok(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		ok(t, err)
		rel, err := filepath.Rel(dir, path)
		ok(t, err)
		ok(t, w.WriteHeader(&tar.Header{Name: filepath.ToSlash(rel), Mode: 0o600, Size: int64(len(content))}))
		_, err = w.Write(content)
		return err
	}))
	ok(t, w.Close())
	ok(t, z.Close())
	ok(t, os.WriteFile(path, b.Bytes(), 0o644))
}

func unpack(t testing.TB, path, dir string) {
	t.Helper()
	f, err := os.Open(path)
	ok(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	ok(t, err)
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		ok(t, err)
		target := filepath.Join(dir, filepath.FromSlash(h.Name))
		ok(t, os.MkdirAll(filepath.Dir(target), 0o700))
		content, err := io.ReadAll(r)
		ok(t, err)
		ok(t, os.WriteFile(target, content, 0o600))
	}
}
