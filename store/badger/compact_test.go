package badger

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Each start and stop leaves a table. They are merged when there is room, and
// never when there is not.
func TestCompact(t *testing.T) {
	dir := t.TempDir()
	free := uint64(1 << 40)
	open := func() *Store {
		s, err := Open(Options{Dir: dir, SyncInterval: time.Second, Logger: t.Logf})
		if err != nil {
			t.Fatal(err)
		}
		nothing := func(*quota.Record) error { return nil }
		if _, err := s.Recover(nothing, nothing); err != nil {
			t.Fatal(err)
		}
		s.tables.room.free = func(string) (uint64, bool) { return free, true }
		return s
	}
	tables := func() int {
		found, err := filepath.Glob(filepath.Join(dir, tablesDir, "*.sst"))
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	var last quota.ID
	for i := range compactFew {
		s := open()
		k := &quota.Key{ID: quota.NextID(quota.KindKey, last, time.Now()), Name: string(rune('a' + i))}
		last = k.ID
		if err := s.Put([]*quota.Key{k}, nil); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if n := tables(); n != compactFew {
		t.Fatalf("there are %d tables, want %d", n, compactFew)
	}
	s := open()
	free = minFree
	s.compact()
	if s.compacting.Load() || tables() != compactFew {
		t.Error("tables are merged although there is no room")
	}
	free = 1 << 40
	s.compact()
	if err := s.Close(); err != nil { // waits for it
		t.Fatal(err)
	}
	if n := tables(); n >= compactFew {
		t.Errorf("there are %d tables", n)
	}
	s = open()
	defer s.Close()
	n := 0
	if err := s.Keys(0, func(*quota.Key) bool { n++; return true }); err != nil || n != compactFew {
		t.Errorf("%d keys are left: %v", n, err)
	}
}
