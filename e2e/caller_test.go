package e2e

import (
	"bytes"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	anthropicopt "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/openai/openai-go/v3"
	openaiopt "github.com/openai/openai-go/v3/option"
)

// A stage is a gate with a scripted provider behind it.
type stage struct {
	*gate
	upstream *upstream
}

func newStage(t *testing.T, handler string) *stage {
	t.Helper()
	u := newUpstream()
	t.Cleanup(u.Close)
	return &stage{newGate(t, u.URL, "", handler), u}
}

// A caller is an application with a key of its own, whose requests one script
// answers.
type caller struct {
	t      *testing.T
	stage  *stage
	key    keyObject
	secret string
	script *script
	wire   *wire
}

// ample are limits that no test reaches, so that all headers are there.
func ample() map[string]any {
	return map[string]any{
		"quota":  map[string]any{"tokens": 1_000_000, "reset": "monthly"},
		"limits": map[string]any{"requests_per_minute": 600, "tokens_per_minute": 500_000},
	}
}

// caller makes a caller whose key has these settings.
func (s *stage) caller(t *testing.T, settings map[string]any, answers ...http.HandlerFunc) *caller {
	t.Helper()
	k := s.makeKey(t.Name(), settings)
	return &caller{t: t, stage: s, key: k, secret: k.Secret, script: s.upstream.script(answers...), wire: new(wire)}
}

func (c *caller) openai(opts ...openaiopt.RequestOption) openai.Client {
	return openai.NewClient(append([]openaiopt.RequestOption{
		openaiopt.WithBaseURL(c.stage.url + "/v1/"), openaiopt.WithAPIKey(c.secret),
		openaiopt.WithHTTPClient(&http.Client{Transport: c.wire}), openaiopt.WithHeader(scriptHeader, c.script.name),
	}, opts...)...)
}

func (c *caller) anthropic(opts ...anthropicopt.RequestOption) anthropic.Client {
	return anthropic.NewClient(append([]anthropicopt.RequestOption{
		anthropicopt.WithoutEnvironmentDefaults(),
		anthropicopt.WithBaseURL(c.stage.url), anthropicopt.WithAPIKey(c.secret),
		anthropicopt.WithHTTPClient(&http.Client{Transport: c.wire}), anthropicopt.WithHeader(scriptHeader, c.script.name),
	}, opts...)...)
}

// charged checks that the ledger says so of the caller's key and, if a model
// is given, of that model; requests are as many as wanted, and nothing is held.
// It may take the second that the gate has to show what it has done.
func (c *caller) charged(model string, want totals) {
	c.t.Helper()
	want.Total = want.Input + want.Output
	var u usage
	for start := time.Now(); time.Since(start) < 2*time.Second; time.Sleep(10 * time.Millisecond) {
		if u = c.stage.usage(c.key.ID); u.Totals == want {
			break
		}
	}
	if u.Totals != want {
		c.t.Errorf("the ledger has\n%+v, want\n%+v", u.Totals, want)
	}
	if got := u.model(model); model != "" && got != want {
		c.t.Errorf("the ledger has of %s\n%+v, want\n%+v", model, got, want)
	}
	if q := c.stage.key(c.key.ID).State.Quota; q != nil && (q.Used != want.Total || q.Reserved != 0) {
		c.t.Errorf("the quota has %d used and %d reserved, want %d and 0", q.Used, q.Reserved, want.Total)
	}
}

// wire is what goes between an SDK and the gate: every single HTTP request.
type wire struct {
	mu        sync.Mutex
	exchanges []*exchange
}

type exchange struct {
	sent     []byte
	status   int
	header   http.Header
	received bytes.Buffer // what has been read of the answer
}

// RoundTrip implements http.RoundTripper.
func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	x := &exchange{}
	w.mu.Lock()
	w.exchanges = append(w.exchanges, x)
	w.mu.Unlock()
	if r.Body != nil {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		r.Body.Close()
		x.sent, r = body, r.Clone(r.Context())
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	x.status, x.header = resp.StatusCode, resp.Header
	w.mu.Unlock()
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.TeeReader(resp.Body, &x.received), resp.Body}
	return resp, nil
}

// statuses returns the status of each request so far; 0 if there is none yet.
func (w *wire) statuses() []int {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make([]int, len(w.exchanges))
	for i, x := range w.exchanges {
		all[i] = x.status
	}
	return all
}

// last returns the last exchange.
func (w *wire) last() *exchange {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.exchanges[len(w.exchanges)-1]
}
