package llmquota

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// The new configuration starts before the old one has stopped, and Badger's
// lock holds off a second opener in one process too.
func TestReloadSharesStore(t *testing.T) {
	up := upstream(t, completes)
	g := startGate(t, keyK("quota 1000 monthly"), proxy(up))
	g.chat().ok(200)
	g.wants(used{requests: 1, input: 11, output: 7})
	before, key := g.ledger(), g.key("k")

	for range 3 {
		g.load(keyK("quota 1000 monthly"), proxy(up))
	}
	if g.ledger() != before {
		t.Error("the reload opened the store again")
	}
	if refs, _ := books.References(g.dir); refs != 1 {
		t.Errorf("%d references to the store, want 1", refs)
	}
	after := g.key("k")
	if after.ID != key.ID || !after.CreatedAt.Equal(key.CreatedAt) || after.State.Quota.Used != 18 {
		t.Errorf("after the reload: %+v, state %+v; before it: %+v", after, after.State.Quota, key)
	}
	g.chat().ok(200)
	g.wants(used{requests: 2, input: 22, output: 14})
	if n := g.key("k").State.Quota.Used; n != 36 {
		t.Errorf("used %d, want 36", n)
	}
}

func TestReloadChangesLimitsLive(t *testing.T) {
	up := upstream(t, completes)
	g := startGate(t, keyK("quota 1000 monthly"), proxy(up))
	g.chat().ok(200)
	g.wants(used{requests: 1, input: 11, output: 7})

	g.load(keyK("quota 18 monthly"), proxy(up))
	g.chat().refused(429, "insufficient_quota")
	g.load("group g {\n requests_per_day 1\n}\n"+keyK("quota unlimited", "group g"), proxy(up))
	g.chat().ok(200) // what the key used before it was in the group was not the group's
	g.chat().refused(429, "rate_limit_exceeded")
	g.load(keyK(), proxy(up))
	g.chat().ok(200)
	g.load(keyK("models claude-*"), proxy(up))
	g.chat().refused(403, "model_not_allowed")
	g.wants(used{requests: 3, refused: 3, input: 33, output: 21})
}

func TestReloadRemovesAndRestoresKey(t *testing.T) {
	up := upstream(t, completes)
	g := startGate(t, keyK("quota 1000 monthly"), proxy(up))
	g.chat().ok(200)
	before := g.key("k")

	g.load("", proxy(up))
	g.chat().refused(401, "api_key_disabled")
	if k := g.key("k"); k.ID != before.ID || !k.Disabled {
		t.Errorf("the removed key is %+v", k)
	}
	g.wants(used{requests: 1, refused: 1, input: 11, output: 7})

	g.load(keyK("quota 1000 monthly"), proxy(up))
	g.chat().ok(200)
	g.wants(used{requests: 2, refused: 1, input: 22, output: 14})
	if k := g.key("k"); k.ID != before.ID || k.Disabled || k.State.Quota.Used != 36 {
		t.Errorf("the restored key is %+v, state %+v; it was %+v", k, k.State.Quota, before)
	}
}

// The directory alone says which store it is: with other options it is shared
// too, and goes on with those it was opened with.
func TestReloadChangesStoreOptions(t *testing.T) {
	up := upstream(t, completes)
	g := startGate(t, keyK(), proxy(up))
	g.chat().ok(200)
	before := g.ledger()
	takeLogs()
	text := strings.Replace(g.caddyfile(keyK(), proxy(up)), g.dir+"\n", g.dir+"/../store/ {\nsync_interval 5s\n}\ntime_zone Europe/Berlin\n", 1)
	if err := g.loadText(text); err != nil {
		t.Fatal(err)
	}
	if g.ledger() != before || before.Zone() != "Europe/Berlin" {
		t.Errorf("the store was opened again, or the zone is still %s", before.Zone())
	}
	if !strings.Contains(seenLogs(), "changed options of an open store take effect at the next restart") {
		t.Errorf("no warning in %s", seenLogs())
	}
	g.chat().ok(200)
	g.wants(used{requests: 2, input: 22, output: 14})
}

// A key made through the API keeps its ID and history when the configuration
// takes its name.
func TestReloadTakesOverKeyOfAPI(t *testing.T) {
	up := upstream(t, completes)
	g := startGate(t, "", proxy(up))
	made := g.api("POST", "/llm_quota/keys", `{"name":"k","secret":"`+secret+`"}`).ok(201)
	g.chat().ok(200)
	g.load(keyK("requests_per_day 1"), proxy(up))
	k := g.key("k")
	if !strings.Contains(made.body, k.ID.String()) || k.Source != "config" {
		t.Errorf("taken over as %+v from %s", k, made.body)
	}
	g.chat().refused(429, "rate_limit_exceeded")
}

// The data directory does not exist yet when the first configuration is
// provisioned, so that symbolic links in its path are all the later ones know
// of it.
func TestReloadThroughSymlink(t *testing.T) {
	up := upstream(t, completes)
	g := newGate(t)
	real := filepath.Join(t.TempDir(), "real")
	if err := os.Mkdir(real, 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	g.dir = filepath.Join(link, "data", "store")
	g.load(keyK(), proxy(up))
	g.chat().ok(200)
	g.load(keyK(), proxy(up))
	g.chat().ok(200)
	g.wants(used{requests: 2, input: 22, output: 14})
	if err := caddy.Stop(); err != nil {
		t.Error(err)
	}
	g.released(filepath.Join(real, "data", "store"))
}

// No request is lost or counted twice over reloads under load. Connections that
// the system resets between two configurations are bare Caddy's too.
func TestReloadUnderLoad(t *testing.T) {
	up := upstream(t, completes)
	site := proxy(up)
	g := startGate(t, keyK("quota 1G monthly"), site)
	var answered, broken atomic.Int64
	var callers sync.WaitGroup
	done := make(chan struct{})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	for range 4 {
		callers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				resp, err := client.Do(g.request("POST", "/v1/chat/completions", chatBody))
				if err != nil {
					broken.Add(1)
					continue
				}
				if resp.StatusCode != 200 {
					t.Errorf("status %d during a reload", resp.StatusCode)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					t.Errorf("an answer broke off: %v", err)
				}
				resp.Body.Close()
				answered.Add(1)
			}
		})
	}
	for range 8 {
		before := answered.Load()
		g.load(keyK("quota 1G monthly"), site)
		g.until("calls are answered after the reload", func() bool { return answered.Load() > before+20 })
	}
	close(done)
	callers.Wait()
	got := g.totals()
	whole := got.requests - got.failed
	if got.requests < answered.Load() || got.requests > answered.Load()+broken.Load() || got.input != 11*whole || got.output != 7*whole || got.refused != 0 {
		t.Errorf("%d answered, %d broken; used %+v", answered.Load(), broken.Load(), got)
	}
	if n := g.key("k").State.Quota.Used; n != got.input+got.output {
		t.Errorf("the quota says %d used, the history %d", n, got.input+got.output)
	}
	t.Logf("%d answered, %d connections reset", answered.Load(), broken.Load())
}

// A stream outlives its configuration: what it used is settled after Cleanup,
// and only then is the store let go.
func TestReloadWithStreamInFlight(t *testing.T) {
	for name, move := range map[string]bool{"same directory": false, "changed directory": true} {
		t.Run(name, func(t *testing.T) {
			goOn := make(chan struct{})
			up := upstream(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				say(w, chunk("one"))
				select {
				case <-goOn:
				case <-r.Context().Done():
					return
				}
				say(w, chunk("two")+lastChunks(usageChunk(11, 7)))
			})
			g := startGate(t, keyK("quota 1000 monthly"), proxy(up))
			old := g.app()
			first := g.dir
			resp := g.open(g.request("POST", "/v1/chat/completions", streamBody))
			defer resp.Body.Close()
			if _, err := io.ReadFull(resp.Body, make([]byte, 20)); err != nil {
				t.Fatal(err)
			}

			if move {
				g.dir = filepath.Join(t.TempDir(), "other")
			}
			g.load(keyK("quota 1000 monthly"), proxy(up))
			old.mu.Lock()
			retired := old.retired
			old.mu.Unlock()
			if refs, _ := books.References(first); !retired || g.app() == old || refs == 0 {
				t.Fatalf("the old app is retired: %t, with %d references to its store", retired, refs)
			}
			close(goOn)
			rest, err := io.ReadAll(resp.Body)
			if err != nil || !strings.HasSuffix(string(rest), "data: [DONE]\n\n") {
				t.Fatalf("the stream ended with %v: %s", err, rest)
			}
			if move {
				g.released(first)
				g.wants(used{})
				g.dir = first // which can be opened again
				g.load(keyK("quota 1000 monthly"), proxy(up))
			}
			g.wants(used{requests: 1, input: 11, output: 7})
			if n := g.key("k").State.Quota.Used; n != 18 {
				t.Errorf("used %d, want 18", n)
			}
		})
	}
}

// A store that a late stream lets go is being closed while a reload wants it
// back: the one waits for the other.
func TestReloadBackWhileReleased(t *testing.T) {
	var goOn chan struct{}
	up := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		events(w, chunk("one"))
		select {
		case <-goOn:
		case <-r.Context().Done():
		}
		say(w, lastChunks(usageChunk(11, 7)))
	})
	g := newGate(t)
	first, second := g.dir, filepath.Join(t.TempDir(), "second")
	const times = 8
	for range times {
		g.dir, goOn = first, make(chan struct{})
		g.load(keyK(), proxy(up))
		resp := g.open(g.request("POST", "/v1/chat/completions", streamBody))
		if _, err := io.ReadFull(resp.Body, make([]byte, 20)); err != nil {
			t.Fatal(err)
		}
		g.dir = second
		g.load(keyK(), proxy(up))
		g.dir = first
		close(goOn)
		g.load(keyK(), proxy(up))
		if _, err := io.ReadAll(resp.Body); err != nil {
			t.Error(err)
		}
		resp.Body.Close()
	}
	g.released(second)
	g.wants(used{requests: times, input: 11 * times, output: 7 * times})
}

// Caddy makes a registry of metrics for each configuration; counts go on.
func TestReloadKeepsMetrics(t *testing.T) {
	up := upstream(t, completes)
	count := func(g *gate) (n int) {
		for line := range strings.Lines(g.api("GET", "/metrics", "").ok(200).body) {
			if rest, ok := strings.CutPrefix(line, `caddy_llm_quota_requests_total{decision="admitted",dialect="openai",group="counted",reason=""} `); ok {
				n, _ = strconv.Atoi(strings.TrimSpace(rest))
			}
		}
		return n
	}
	options := "group counted {\n}\n" + keyK("group counted")
	g := startGate(t, options, proxy(up))
	before := count(g) // the process may have counted before
	g.chat().ok(200)
	g.load(options, proxy(up))
	g.chat().ok(200)
	if err := g.tryLoad(options+"time_zone Nowhere/City\n", proxy(up)); err == nil {
		t.Error("a bad zone was taken")
	}
	g.chat().ok(200)
	if n := count(g); n != before+3 {
		t.Errorf("%d requests are counted, want %d", n, before+3)
	}
}
