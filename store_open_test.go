package llmquota

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/store/badger"
)

// panickingStore is a store whose Open panics, as Badger does over damage.
type panickingStore struct{}

func (panickingStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "llm_quota.stores.panics", New: func() caddy.Module { return new(panickingStore) }}
}

func (*panickingStore) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	d.RemainingArgs()
	return nil
}
func (*panickingStore) Location() (string, error)             { return "the store that panics", nil }
func (*panickingStore) SyncEvery() time.Duration              { return 0 }
func (*panickingStore) Open(*zap.Logger) (quota.Store, error) { panic("damaged beyond words") }

// A store that cannot be opened fails the configuration with an error that
// names it, and nothing is left locked: what was loaded before goes on, and
// what is loaded next works.
func TestStoreThatDoesNotOpen(t *testing.T) {
	up := upstream(t, completes)
	for _, c := range []struct {
		name, words string
		spoil       func(t *testing.T, dir string) (mend func())
	}{
		{"a file in the way", "not a directory", func(t *testing.T, dir string) func() {
			write(t, dir, "a file")
			return func() { os.Remove(dir) }
		}},
		{"a hash key that is cut short", "hash.key", func(t *testing.T, dir string) func() {
			makeStore(t, dir)
			path := filepath.Join(dir, "hash.key")
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			write(t, path, "short")
			return func() { write(t, path, string(whole)) }
		}},
		{"another opener in this process", "in use", func(t *testing.T, dir string) func() {
			st, err := badger.Open(badger.Options{Dir: dir, SyncInterval: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			return func() { st.Close() }
		}},
		{"another process", "in use", lockFromOutside},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGate(t)
			// First with nothing running, then beside a configuration that does.
			for _, beside := range []bool{false, true} {
				bad := filepath.Join(t.TempDir(), "spoiled")
				mend := c.spoil(t, bad)
				if beside {
					g.load(keyK(), proxy(up))
				}
				good := g.dir
				g.dir = bad
				for range 2 {
					err := g.tryLoad(keyK(), proxy(up))
					if err == nil || !strings.Contains(err.Error(), bad) || !strings.Contains(err.Error(), c.words) {
						t.Fatalf("the load ended with: %v", err)
					}
				}
				if beside {
					g.chat().ok(200)
				}
				mend()
				g.load(keyK(), proxy(up))
				g.chat().ok(200)
				g.dir = good
			}
		})
	}
}

// The pool that stores are shared through holds a lock while it makes one, and
// does not let it go when the making panics.
func TestStoreThatPanics(t *testing.T) {
	up := upstream(t, completes)
	g := startGate(t, keyK(), proxy(up))
	g.chat().ok(200)
	for range 2 {
		err := g.loadText(strings.Replace(g.caddyfile(keyK(), proxy(up)), "store badger", "store panics", 1))
		if err == nil || !strings.Contains(err.Error(), "the store that panics: damaged beyond words") {
			t.Fatalf("the load ended with: %v", err)
		}
		g.chat().ok(200)
		g.load(keyK(), proxy(up))
		g.chat().ok(200)
	}
}

// Apps start in no fixed order: requests may come before the app was started,
// several at once.
func TestRequestsBeforeStart(t *testing.T) {
	g := newGate(t)
	b := newBench(t, g.dir, `{"name":"k","secret":"`+secret+`"}`, `{}`)
	call := func() {
		b.serve(g.request("POST", "/v1/chat/completions", chatBody), answers(200, answer(11, 7))).ok(200)
	}
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(call)
	}
	callers.Wait()
	l, err := b.app.Ledger()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.app.Start(); err != nil {
		t.Fatal(err)
	}
	if again, err := b.app.Ledger(); again != l || err != nil {
		t.Errorf("Start opened the ledger again: %v", err)
	}
	call()
	if refs, _ := books.References(g.dir); refs != 1 {
		t.Errorf("%d references to the store, want 1", refs)
	}
}

// A request that was on its way to the gate when its configuration ended still
// finds the ledger, and lets it go again.
func TestRequestAfterCleanup(t *testing.T) {
	g := newGate(t)
	b := newBench(t, g.dir, `{"name":"k","secret":"`+secret+`"}`, `{}`)
	if err := b.app.Start(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // to end twice is to end once
		if err := b.app.Cleanup(); err != nil {
			t.Fatal(err)
		}
		g.released(g.dir)
		b.serve(g.request("POST", "/v1/chat/completions", chatBody), answers(200, answer(11, 7))).ok(200)
		g.released(g.dir)
	}
}

// makeStore leaves a store with a key in a directory.
func makeStore(t *testing.T, dir string) {
	t.Helper()
	st, err := badger.Open(badger.Options{Dir: dir, SyncInterval: time.Second})
	if err == nil {
		_, err = st.Recover(func(*quota.Record) error { return nil }, func(*quota.Record) error { return nil })
		err = errors.Join(err, st.Put([]*quota.Key{{ID: quota.NextID(quota.KindKey, 0, time.Now()), Name: "x"}}, nil), st.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// lockFromOutside lets another process, which is this test again, open a store.
func lockFromOutside(t *testing.T, dir string) (end func()) {
	t.Helper()
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestHoldStore$", "-test.count=1")
	c.Env = append(os.Environ(), "LLM_QUOTA_HOLD="+dir)
	c.WaitDelay = patience
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	if line != "open\n" {
		t.Fatalf("the other process says %q", line)
	}
	return func() {
		in.Close()
		c.Wait() //nolint:errcheck // it was killed, or came to its end
	}
}

// TestHoldStore is not a test by itself: it is the other process.
func TestHoldStore(t *testing.T) {
	dir := os.Getenv("LLM_QUOTA_HOLD")
	if dir == "" {
		return
	}
	st, err := badger.Open(badger.Options{Dir: dir, SyncInterval: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	os.Stdout.WriteString("open\n")
	io.Copy(io.Discard, os.Stdin) //nolint:errcheck // until it is closed
	st.Close()
}

// lateStore is a Badger store on a disk that has no room at first.
type lateStore struct {
	BadgerStore
}

// room says whether lateStore can be opened.
var room atomic.Bool

func (*lateStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "llm_quota.stores.late", New: func() caddy.Module { return new(lateStore) }}
}

func (s *lateStore) Open(logger *zap.Logger) (quota.Store, error) {
	if !room.Load() {
		return nil, fmt.Errorf("the disk is full: %w", quota.ErrUnavailable)
	}
	return s.BadgerStore.Open(logger)
}

// A store that cannot be opened for now does not stop Caddy: calls are refused,
// the metrics tell, and all works as soon as the store does.
func TestStoreThatOpensLate(t *testing.T) {
	up := upstream(t, completes)
	g := newGate(t)
	room.Store(false)
	if err := g.loadText(strings.Replace(g.caddyfile(keyK(), proxy(up)), "store badger", "store late", 1)); err != nil {
		t.Fatal(err)
	}
	g.chat().ok(http.StatusServiceUnavailable)
	works := func(want string) {
		t.Helper()
		if metrics := g.api("GET", "/metrics", "").ok(200).body; !strings.Contains(metrics, "\ncaddy_llm_quota_store_up "+want+"\n") {
			t.Errorf("store_up is not %s", want)
		}
	}
	works("0")
	room.Store(true)
	deadline := time.Now().Add(30 * time.Second)
	for g.chat().status != http.StatusOK {
		if time.Now().After(deadline) {
			t.Fatal("the gate does not recover")
		}
		time.Sleep(100 * time.Millisecond)
	}
	works("1")
}
