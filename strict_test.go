package llmquota

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/admin"
)

// honest is a provider that takes a token for every two bytes of a request and
// gives all the output that the request allows, or stops before.
func honest(t *testing.T, early bool, seen func(most int)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Most *int `json:"max_completion_tokens"`
		}
		b, err := io.ReadAll(r.Body)
		if err != nil || json.Unmarshal(b, &body) != nil || body.Most == nil || *body.Most < 1 {
			t.Errorf("the provider got %s (%v)", b, err)
			http.Error(w, "{}", http.StatusBadRequest)
			return
		}
		if seen != nil {
			seen(*body.Most)
		}
		out := *body.Most
		if early {
			out = rand.IntN(out + 1)
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, answer(len(b)/2, out)) //nolint:errcheck // whoever listens
	}
}

// TestStrictNeverPassesAQuota sends a thousand calls at once, some with a
// maximum and some without, of which each uses all it may: the quota is not
// passed by one token.
func TestStrictNeverPassesAQuota(t *testing.T) {
	const limit = 200_000
	up := upstream(t, honest(t, true, nil))
	g := startGate(t, keyK(fmt.Sprintf("quota %d monthly", limit)), proxy(up, "admission strict", "default_output_cap 3000"))
	var admitted, refused atomic.Int64
	var wg sync.WaitGroup
	slots := make(chan struct{}, 100)
	for i := range 1000 {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			body := `{"model":"gpt-4o","messages":[{"role":"user","content":"` + strings.Repeat("words ", rand.IntN(200)) + `"}]`
			if i%2 == 0 {
				body += fmt.Sprintf(`,"max_completion_tokens":%d`, 1+rand.IntN(5000))
			}
			switch r := g.do("POST", "/v1/chat/completions", body+"}"); r.status {
			case 200:
				admitted.Add(1)
			case 429:
				refused.Add(1)
			default:
				t.Errorf("status %d: %s", r.status, r.body)
			}
		})
	}
	wg.Wait()
	q := g.key("k").State.Quota
	if q.Used > limit || q.Reserved != 0 {
		t.Errorf("used %d and reserved %d, of %d", q.Used, q.Reserved, limit)
	}
	if got := g.totals(); got.input+got.output != q.Used || got.requests != admitted.Load() || got.refused != refused.Load() {
		t.Errorf("usage %+v, state %+v, %d admitted, %d refused", got, q, admitted.Load(), refused.Load())
	}
	if admitted.Load() == 0 || refused.Load() == 0 {
		t.Errorf("%d admitted, %d refused: the test shows nothing", admitted.Load(), refused.Load())
	}
	t.Logf("%d admitted, %d refused, %d of %d used", admitted.Load(), refused.Load(), q.Used, limit)
}

// TestStrictCapsOutput looks at what the provider is asked for: the request's
// own maximum, the default where it has none, and no more than is left.
func TestStrictCapsOutput(t *testing.T) {
	var most int
	up := upstream(t, honest(t, false, func(n int) { most = n }))
	g := startGate(t, keyK("quota 6k monthly"), proxy(up, "admission strict", "default_output_cap 900"))
	chat := func(extra string) *reply {
		return g.do("POST", "/v1/chat/completions", `{"model":"gpt-4o","messages":[{"role":"user","content":"hi"}]`+extra+`}`)
	}
	for _, c := range []struct {
		extra string
		want  int
	}{{`,"max_completion_tokens":70`, 70}, {``, 900}, {`,"max_tokens":50,"max_completion_tokens":70`, 70}} {
		if chat(c.extra).ok(200); most != c.want {
			t.Errorf("%q: the provider was asked for %d, not %d", c.extra, most, c.want)
		}
	}
	chat(`,"max_completion_tokens":1000000`).ok(200)
	left := g.key("k").State.Quota
	if most > 6000 || left.Used > 6000 || left.Used < 4000 {
		t.Errorf("the provider was asked for %d; %d used of 6000", most, left.Used)
	}
	chat(``).refused(429, "insufficient_quota")
}

// TestStrictRefusesWhatHasNoBound: an image, stored context and tools of the
// provider's may take any amount of input.
func TestStrictRefusesWhatHasNoBound(t *testing.T) {
	up := upstream(t, completes)
	g := startGate(t, keyK("quota 100k monthly"), proxy(up, "admission strict"))
	image := `{"model":"gpt-4o","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://example.com/x.png"}}]}]}`
	stored := `{"model":"gpt-4o","input":"go on","previous_response_id":"resp_1"}`
	g.do("POST", "/v1/chat/completions", image).refused(403, "unmetered_call")
	g.do("POST", "/v1/responses", stored).refused(403, "unmetered_call")
	g.load(keyK("quota 100k monthly"), proxy(up, "admission strict", "unmetered allow"))
	g.do("POST", "/v1/chat/completions", image).ok(200)
	g.load(keyK("requests_per_minute 100"), proxy(up, "admission strict")) // no limit on tokens
	g.do("POST", "/v1/responses", stored).ok(200)
}

// TestBackgroundIsChargedOnce: a call that the provider queues is charged what
// was reserved, until a later GET shows what it used; other keys' GETs and
// repeated ones change nothing, and a restart in between does not matter.
func TestBackgroundIsChargedOnce(t *testing.T) {
	status := "queued"
	usage := "null"
	up := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"id":"resp_bg1","object":"response","background":true,"status":%q,"model":"gpt-4o","output":[],"usage":%s}`, status, usage)
	})
	const otherSecret = "test-secret-of-another-key"
	options := keyK("quota 100k monthly") + "key other {\n secret " + otherSecret + "\n}\n"
	g := startGate(t, options, proxy(up, "default_output_reserve 500"))
	g.do("POST", "/v1/responses", `{"model":"gpt-4o","background":true,"input":"think long"}`).ok(200)
	charged := g.key("k").State.Quota.Used
	if charged < 500 || charged > 520 {
		t.Fatalf("charged %d, not what was reserved", charged)
	}
	get := func(headers ...string) { g.do("GET", "/v1/responses/resp_bg1", "", headers...).ok(200) }
	get()
	status, usage = "completed", `{"input_tokens":12,"output_tokens":3000,"total_tokens":3012}`
	get("Authorization", "Bearer "+otherSecret)
	if used := g.key("k").State.Quota.Used; used != charged {
		t.Errorf("charged %d before the answer was told to the key", used)
	}
	for range 2 {
		get()
		if used := g.key("k").State.Quota.Used; used != 3012 {
			t.Errorf("charged %d, not 3012", used)
		}
	}
	got := decode[admin.Usage](g.api("GET", "/llm_quota/usage?by=key&key=name:k", "")).Totals
	if got.Total != 3012 || got.Estimated != 0 || got.Requests != 4 || got.Failed != 0 {
		t.Errorf("usage %+v", got)
	}
}

// TestRetriesAreChargedOnce: reverse_proxy tries another upstream on its own.
func TestRetriesAreChargedOnce(t *testing.T) {
	up := upstream(t, completes)
	dead := freeAddr(t)
	site := "llm_quota\nreverse_proxy " + dead + " " + strings.TrimPrefix(up.URL, "http://") + " {\n lb_policy round_robin\n lb_try_duration 5s\n lb_try_interval 10ms\n}\n"
	g := startGate(t, keyK("quota 1k monthly"), site)
	for range 4 { // at least one of them meets the dead one first
		g.chat().ok(200)
	}
	g.wants(used{requests: 4, input: 44, output: 28})
}

// TestHandledResponseIsCharged: what the provider used is charged also where
// the site writes another answer, if its usage is in it, and nothing if it was
// an error.
func TestHandledResponseIsCharged(t *testing.T) {
	up := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "embeddings") {
			http.Error(w, "{}", http.StatusServiceUnavailable)
			return
		}
		completes(w, r)
	})
	site := "llm_quota\nreverse_proxy " + strings.TrimPrefix(up.URL, "http://") + " {\n" +
		" @bad status 5xx\n handle_response @bad {\n  respond \"sorry\" 502\n }\n" +
		" handle_response {\n  copy_response\n }\n}\n"
	g := startGate(t, keyK("quota 1k monthly"), site)
	g.chat().ok(200)
	g.do("POST", "/v1/embeddings", `{"model":"e","input":"hi"}`).ok(502)
	g.wants(used{requests: 2, failed: 1, input: 11, output: 7})
}

// TestIETFHeaders: on when asked for.
func TestIETFHeaders(t *testing.T) {
	up := upstream(t, completes)
	g := startGate(t, keyK("requests_per_minute 10"), proxy(up, "ietf_headers"))
	h := g.chat().ok(200).header
	if got := h.Get("RateLimit-Policy"); got != `"requests";q=10;w=60` {
		t.Errorf("RateLimit-Policy: %s", got)
	}
	if got := h.Get("RateLimit"); !strings.HasPrefix(got, `"requests";r=9;t=6`) {
		t.Errorf("RateLimit: %s", got)
	}
	g.load(keyK("requests_per_minute 10"), proxy(up))
	if h := g.chat().ok(200).header; h.Get("RateLimit-Policy") != "" {
		t.Errorf("not asked for: %v", h)
	}
}
