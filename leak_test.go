package llmquota

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/goleak"
)

// ofCaddy are goroutines that Caddy leaves when it stops, whatever it ran.
var ofCaddy = []goleak.Option{
	// The admin endpoint goes on until the process ends or another takes over.
	goleak.IgnoreAnyFunction("github.com/caddyserver/caddy/v2.replaceLocalAdminServer.func2"),
	// The lock for cleaning the storage of certificates is given back, but who
	// keeps it fresh sees that only when it wakes up, every five seconds.
	goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.keepLockfileFresh"),
}

// Nothing goes on when a configuration is gone, however often one comes and
// goes, with calls, streams that outlive it or break, and others that fail.
func TestLoadAndUnloadLeaksNothing(t *testing.T) {
	goOn := make(chan struct{})
	up := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) //nolint:errcheck // only then does a server see that a client goes
		switch r.URL.Path {
		default:
			completes(w, r)
			return
		case "/long/v1/chat/completions":
			events(w, chunk("one"))
			select {
			case <-goOn:
			case <-r.Context().Done():
				return
			}
		case "/broken/v1/chat/completions":
			events(w, chunk("one"))
			<-r.Context().Done()
		}
		say(w, lastChunks(usageChunk(11, 7)))
	})
	// Caddy never closes what is idle of its default transport to an upstream.
	site := strings.TrimSpace(proxy(up)) + " {\ntransport http {\nkeepalive off\n}\n}\n"
	g := newGate(t)
	stream := func(kind string) *http.Response {
		t.Helper()
		resp := g.open(g.request("POST", "/"+kind+"/v1/chat/completions", streamBody))
		if _, err := io.ReadFull(resp.Body, make([]byte, 20)); err != nil {
			t.Fatal(err)
		}
		return resp
	}
	before := goleak.IgnoreCurrent() // what other tests have left
	const rounds = 20
	for i := range rounds {
		g.load(keyK(), site)
		g.chat().ok(200)
		g.chat("Authorization", "Bearer wrong-secret-of-nobody").refused(401, "invalid_api_key")
		long, broken := stream("long"), stream("broken")
		broken.Body.Close()
		if i%2 == 0 {
			g.load(keyK("quota 1M monthly"), site)
			g.chat().ok(200)
		}
		if i%3 == 0 {
			if err := g.tryLoad(keyK()+"time_zone Nowhere/City\n", site); err == nil {
				t.Error("a bad zone was taken")
			}
		}
		select {
		case goOn <- struct{}{}:
		case <-time.After(patience):
			t.Fatal("the stream has broken")
		}
		if _, err := io.ReadAll(long.Body); err != nil {
			t.Error(err)
		}
		long.Body.Close()
		if err := caddy.Stop(); err != nil {
			t.Fatal(err)
		}
		g.released(g.dir)
		g.client.CloseIdleConnections()
		var leak error
		for range 10 { // each of which waits a while
			if leak = goleak.Find(append(ofCaddy, before)...); leak == nil {
				break
			}
		}
		if leak != nil {
			t.Fatalf("after %d rounds: %v", i+1, leak)
		}
	}
	g.load(keyK(), site)
	got := g.totals()
	if want := int64(3*rounds + rounds/2); got.requests != want || got.failed != rounds {
		t.Errorf("used %+v, want %d requests of which %d failed", got, want, rounds)
	}
}
