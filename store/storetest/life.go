package storetest

import (
	"errors"
	"sync"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

func testLife(t *testing.T, open Opener) {
	for name, test := range map[string]func(*testing.T, *store){
		"Closed":     closedStoresSaySo,
		"CloseInUse": closingWaitsForCalls,
		"Info":       infoDescribes,
	} {
		t.Run(name, func(t *testing.T) { test(t, start(t, open)) })
	}
	t.Run("NotRecovered", func(t *testing.T) { directoryWorksBeforeRecover(t, open) })
	t.Run("RecoverError", func(t *testing.T) { errorsOfRecoverReturn(t, open) })
}

func closedStoresSaySo(t *testing.T, s *store) {
	r := record(1)
	s.Append(&r)
	records, _, err := s.Cut()
	ok(t, err)
	ok(t, s.Close())
	for range records { // yields what it likes, and does not panic
	}
	after := record(2)
	s.Append(&after) // never fails
	for what, call := range map[string]func() error{
		"Flush":       func() error { return s.Flush(after.Seq) },
		"Flush again": func() error { return s.Flush(1) },
		"Cut":         func() error { _, _, err := s.Cut(); return err },
		"Sync":        func() error { return s.Sync(1) },
		"Key":         func() error { _, err := s.Key(2); return err },
		"Group":       func() error { _, err := s.Group(3); return err },
		"KeyBySecret": func() error { _, err := s.KeyBySecret(hash(1)); return err },
		"ByName":      func() error { _, err := s.ByName(quota.KindKey, "x"); return err },
		"Keys":        func() error { return s.Keys(0, func(*quota.Key) bool { return true }) },
		"Groups":      func() error { return s.Groups(0, func(*quota.Group) bool { return true }) },
		"Configured":  func() error { _, err := s.Configured(); return err },
		"Put":         func() error { return s.Put([]*quota.Key{{ID: 2, Name: "x"}}, nil) },
		"Checkpoint":  func() error { return s.Checkpoint(&quota.Checkpoint{Through: 1}) },
		"Counters":    func() error { return s.Counters(2, &quota.Counters{}) },
		"Provisional": func() error { _, err := s.Provisional(quota.Later{Key: 2, Name: "x"}); return err },
		"Usage":       func() error { return s.Usage(quota.RowQuery{To: 1}, func(*quota.Row) error { return nil }) },
		"Prune":       func() error { return s.Prune([len(quota.Steps)]int64{}) },
		"Recover":     func() error { _, err := s.Recover(nil, nil); return err },
		"Close":       s.Close,
	} {
		t.Run(what, func(t *testing.T) { is(t, call(), quota.ErrClosed) })
	}
	s.Info()
	if len(s.HashKey()) != 32 {
		t.Error("the key of the hashes is gone")
	}
	same(t, "records after a restart", 1, len(startIn(t, s.open, s.dir).replay))
}

func closingWaitsForCalls(t *testing.T, s *store) {
	var g ids
	ok(t, s.Put([]*quota.Key{g.key("a", 1)}, nil))
	s.fill(quota.Row{})
	fine := func(err error) {
		if err != nil && !errors.Is(err, quota.ErrClosed) && !errors.Is(err, quota.ErrNotFound) {
			t.Error(err)
		}
	}
	var users sync.WaitGroup
	begun := make(chan struct{}, 8)
	for _, use := range []func(){
		func() { fine(s.Keys(0, func(*quota.Key) bool { return true })) },
		func() { fine(s.Put([]*quota.Key{{ID: 2, Name: "x"}}, nil)) },
		func() { r := record(1); fine(s.Flush(s.Append(&r))) },
		func() { _, err := s.KeyBySecret(hash(1)); fine(err) },
		func() { fine(s.Usage(quota.RowQuery{To: 1}, func(*quota.Row) error { return nil })) },
		func() {
			_, _, err := s.Cut()
			fine(err)
			fine(s.Checkpoint(&quota.Checkpoint{Opened: []quota.Record{record(1)}}))
		},
		func() { fine(s.Sync(1)); s.Info() },
	} {
		users.Go(func() {
			for i := range 200 {
				use()
				if i == 20 {
					begun <- struct{}{}
				}
			}
		})
	}
	<-begun
	ok(t, s.Close())
	users.Wait()
}

func infoDescribes(t *testing.T, s *store) {
	if i := s.Info(); i.Engine == "" || i.LastSync != 0 {
		t.Fatalf("info of a new store: %+v", i)
	}
	r := record(1)
	ok(t, s.Flush(s.Append(&r)))
	ok(t, s.Sync(123))
	if i := s.Info(); i.LastSync != 123 || i.SizeBytes <= 0 {
		t.Fatalf("info after a sync: %+v", i)
	}
}

// directoryWorksBeforeRecover checks what may be called first, and that a store
// can be closed without more.
func directoryWorksBeforeRecover(t *testing.T, open Opener) {
	dir := t.TempDir()
	var g ids
	key := g.key("name", 1)
	key.Source = quota.SourceConfig
	s := open(t, dir)
	if len(s.HashKey()) != 32 {
		t.Error("no key of the hashes")
	}
	ok(t, s.Put([]*quota.Key{key}, nil))
	ids, err := s.Configured()
	ok(t, err)
	same(t, "configured", []quota.ID{key.ID}, ids)
	ok(t, s.Close())
	c := startIn(t, open, dir)
	c.byName(quota.KindKey, "name", key.ID)
}

func errorsOfRecoverReturn(t *testing.T, open Opener) {
	s := start(t, open)
	rec := record(1)
	rec.Kind = quota.RecordOpen
	s.Append(&rec)
	_, through := s.cut()
	ok(t, s.Checkpoint(&quota.Checkpoint{Through: through, Opened: []quota.Record{rec}, Trim: true}))
	next := record(2)
	ok(t, s.Flush(s.Append(&next)))
	ok(t, s.Close())
	mine := errors.New("mine")
	fail := func(*quota.Record) error { return mine }
	pass := func(*quota.Record) error { return nil }
	for _, f := range [][2]func(*quota.Record) error{{fail, pass}, {pass, fail}} {
		s := open(t, s.dir)
		_, err := s.Recover(f[0], f[1])
		is(t, err, mine)
		ok(t, s.Close())
	}
	same(t, "records after two failures", 1, len(startIn(t, open, s.dir).replay))
}
