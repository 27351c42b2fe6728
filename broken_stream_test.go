package llmquota

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// How a call may end, and what it is then charged: the table of the README,
// through a real proxy, which returns, panics or says 499 as it sees fit.
func TestEnds(t *testing.T) {
	// What streamBody is estimated at: a message and half a token of text.
	const input = 5
	words := chunk("one") + chunk("two") + chunk("three")
	for _, c := range []struct {
		name     string
		upstream http.HandlerFunc
		broken   bool // the client sees the answer break off
		status   int
		want     used
	}{
		{"whole", func(w http.ResponseWriter, _ *http.Request) {
			events(w, words+lastChunks(usageChunk(11, 7)))
		}, false, 200, used{requests: 1, input: 11, output: 7}},
		{"without usage", func(w http.ResponseWriter, _ *http.Request) {
			events(w, words+lastChunks(""))
		}, false, 200, used{requests: 1, input: input, output: 4, estimated: input + 4}},
		{"upstream dies in mid-stream", func(w http.ResponseWriter, _ *http.Request) {
			events(w, words)
			panic(http.ErrAbortHandler)
		}, true, 200, used{requests: 1, failed: 1, input: input, output: 4, estimated: input + 4}},
		{"upstream dies after the usage", func(w http.ResponseWriter, _ *http.Request) {
			events(w, words+usageChunk(11, 7))
			panic(http.ErrAbortHandler)
		}, true, 200, used{requests: 1, failed: 1, input: 11, output: 7}},
		{"upstream dies after the end", func(w http.ResponseWriter, _ *http.Request) {
			events(w, words+lastChunks(usageChunk(11, 7)))
			panic(http.ErrAbortHandler)
		}, true, 200, used{requests: 1, failed: 1, input: 11, output: 7}},
		{"error in the stream", func(w http.ResponseWriter, _ *http.Request) {
			events(w, "data: {\"error\":{\"message\":\"overloaded\",\"type\":\"server_error\"}}\n\n")
		}, false, 200, used{requests: 1, failed: 1}},
		{"upstream dies before the header", func(http.ResponseWriter, *http.Request) {
			panic(http.ErrAbortHandler)
		}, false, 502, used{requests: 1, failed: 1}},
		{"upstream refuses", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"error":{"message":"slow down"}}`, 429)
		}, false, 429, used{requests: 1, failed: 1}},
		{"upstream fails", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `<html>oops</html>`, 500)
		}, false, 500, used{requests: 1, failed: 1}},
		{"upstream fails and reports usage", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(500)
			io.WriteString(w, answer(11, 7)) //nolint:errcheck // seen by the client
		}, false, 500, used{requests: 1, failed: 1, input: 11, output: 7}},
	} {
		t.Run(c.name, func(t *testing.T) {
			up := upstream(t, c.upstream)
			panics := make(chan any, 1)
			setInner(t, "outer", func(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
				defer func() {
					p := recover()
					panics <- p
					if p != nil {
						panic(p)
					}
				}()
				return next.ServeHTTP(w, r)
			})
			g := startGate(t, keyK("quota 1000 monthly", "requests_per_day 100"), "route {\ntest_inner outer\n"+proxy(up)+"}\n")
			resp := g.open(g.request("POST", "/v1/chat/completions", streamBody))
			defer resp.Body.Close()
			_, err := io.ReadAll(resp.Body)
			if resp.StatusCode != c.status || (err != nil) != c.broken {
				t.Errorf("status %d, want %d; the body ended with %v", resp.StatusCode, c.status, err)
			}
			if p := <-panics; (p != nil) != c.broken || (p != nil && p != http.ErrAbortHandler) {
				t.Errorf("the handlers outside saw the panic %v", p)
			}
			g.wants(c.want)
			k := g.key("k")
			if k.State.Quota.Used != c.want.input+c.want.output || k.State.Quota.Reserved != 0 || k.State.Limits["requests_per_day"].Used != 1 {
				t.Errorf("state %+v, %+v", k.State.Quota, k.State.Limits)
			}
		})
	}
}

// events sends server-sent events.
func events(w http.ResponseWriter, s string) {
	w.Header().Set("Content-Type", "text/event-stream")
	say(w, s)
}

func TestUpstreamUnreachable(t *testing.T) {
	g := startGate(t, keyK(), "llm_quota\nreverse_proxy "+freeAddr(t))
	g.chat().ok(502)
	g.wants(used{requests: 1, failed: 1})
}

func TestClientGoneInMidStream(t *testing.T) {
	gone := make(chan struct{})
	up := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		events(w, chunk("one")+chunk("two")+chunk("three"))
		<-r.Context().Done()
		close(gone)
	})
	g := startGate(t, keyK("quota 1000 monthly"), proxy(up))
	ctx, leave := context.WithCancel(t.Context())
	resp := g.open(g.request("POST", "/v1/chat/completions", streamBody).WithContext(ctx))
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, len(chunk("one")+chunk("two")+chunk("three")))); err != nil {
		t.Fatal(err)
	}
	leave()
	<-gone // the upstream is told
	g.wants(used{requests: 1, failed: 1, input: 5, output: 4, estimated: 9})
	if q := g.key("k").State.Quota; q.Used != 9 || q.Reserved != 0 {
		t.Errorf("state %+v", q)
	}
}

// A proxy whose client leaves before the header returns no error, and writes
// status 499.
func TestClientGoneBeforeHeader(t *testing.T) {
	come, gone := make(chan struct{}), make(chan struct{})
	up := upstream(t, func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) //nolint:errcheck // so that the server watches for the client's leaving
		close(come)
		<-r.Context().Done()
		close(gone)
	})
	g := startGate(t, keyK("quota 1000 monthly", "requests_per_day 100"), proxy(up))
	ctx, leave := context.WithCancel(t.Context())
	go func() { <-come; leave() }()
	resp, err := g.client.Do(g.request("POST", "/v1/chat/completions", chatBody).WithContext(ctx))
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, %v", resp, err)
	}
	<-gone
	g.wants(used{requests: 1, failed: 1})
	k := g.key("k")
	if k.State.Quota.Used != 0 || k.State.Quota.Reserved != 0 || k.State.Limits["requests_per_day"].Used != 1 {
		t.Errorf("state %+v, %+v", k.State.Quota, k.State.Limits)
	}
}

// Each event reaches the client before the upstream sends the next, also while
// the gate looks out for the one event that it has to take out.
func TestEventsAreNotHeldBack(t *testing.T) {
	for name, option := range map[string]string{"usage injected": "inject_usage on", "as it comes": "inject_usage off"} {
		t.Run(name, func(t *testing.T) {
			seen := make(chan struct{})
			up := upstream(t, func(w http.ResponseWriter, r *http.Request) {
				asked, _ := io.ReadAll(r.Body)
				for range 5 {
					events(w, chunk("word"))
					select {
					case <-seen:
					case <-r.Context().Done():
						return
					}
				}
				usage := ""
				if strings.Contains(string(asked), `"include_usage":true`) {
					usage = usageChunk(11, 7)
				}
				events(w, lastChunks(usage))
			})
			g := startGate(t, keyK("quota 1000 monthly"), "encode gzip\n"+proxy(up, option))
			resp := g.open(g.request("POST", "/v1/chat/completions", streamBody))
			defer resp.Body.Close()
			in := bufio.NewReader(resp.Body)
			var got strings.Builder
			for range 5 {
				for range 2 { // the event's line and the empty one
					line, err := in.ReadString('\n')
					if err != nil {
						t.Fatal(err)
					}
					got.WriteString(line)
				}
				seen <- struct{}{}
			}
			rest, err := io.ReadAll(in)
			if err != nil {
				t.Fatal(err)
			}
			if want := strings.Repeat(chunk("word"), 5) + lastChunks(""); got.String()+string(rest) != want {
				t.Errorf("the client got\n%s%swant\n%s", got.String(), rest, want)
			}
			want := used{requests: 1, input: 11, output: 7}
			if option == "inject_usage off" {
				want = used{requests: 1, input: 5, output: 6, estimated: 11}
			}
			g.wants(want)
		})
	}
}
