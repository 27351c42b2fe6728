package llmquota

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// spans is where Caddy's tracing handler sends spans to in tests.
var spans = tracetest.NewInMemoryExporter()

func init() {
	autoexport.RegisterSpanExporter("test_memory", func(context.Context) (trace.SpanExporter, error) { return spans, nil })
}

// attributesOf returns what the gate has told a span.
func attributesOf(s tracetest.SpanStub) map[string]any {
	all := map[string]any{}
	for _, a := range s.Attributes {
		if name := string(a.Key); strings.HasPrefix(name, "gen_ai.") || strings.HasPrefix(name, "llm_quota.") {
			all[name] = a.Value.AsInterface()
		}
	}
	return all
}

// wantAttributes fails the test unless a span has exactly these attributes.
func wantAttributes(t *testing.T, what string, s tracetest.SpanStub, want map[string]any) {
	t.Helper()
	got := attributesOf(s)
	for name, v := range want {
		if got[name] != v {
			t.Errorf("%s: %s is %v, want %v", what, name, got[name], v)
		}
	}
	for name, v := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: %s is %v, and should not be there", what, name, v)
		}
	}
}

// startTraced starts a gate behind Caddy's tracing handler.
func startTraced(t *testing.T, options, site string) *gate {
	t.Setenv("OTEL_TRACES_EXPORTER", "test_memory")
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
	t.Setenv("OTEL_PROPAGATORS", "tracecontext")
	spans.Reset()
	return startGate(t, options, "tracing {\n\tspan gate\n}\n"+site)
}

// spans waits until that many have been exported, and returns them.
func (g *gate) spans(n int) tracetest.SpanStubs {
	g.Helper()
	g.until("the spans are exported", func() bool { return len(spans.GetSpans()) >= n })
	return spans.GetSpans()
}

// Spans are told what calls were and used, as OpenTelemetry's conventions for
// generative AI have it: admitted and refused ones, streams, calls that break.
func TestSpanAttributes(t *testing.T) {
	up := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body) //nolint:errcheck // what could not be read is missed
		switch {
		case strings.HasSuffix(r.URL.Path, "/messages"):
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"type":"message","model":"claude-x-1","content":[{"type":"text","text":"hi"}],"usage":{"input_tokens":5,"cache_read_input_tokens":4,`+
				`"cache_creation_input_tokens":3,"output_tokens":9,"output_tokens_details":{"thinking_tokens":2}}}`)
		case strings.Contains(string(b), `"stream":true`):
			w.Header().Set("Content-Type", "text/event-stream")
			say(w, chunk("one")+lastChunks(usageChunk(11, 7)))
		case strings.HasSuffix(r.URL.Path, "/v1/broken/chat/completions"):
			w.Header().Set("Content-Type", "text/event-stream")
			say(w, chunk("one"))
			panic(http.ErrAbortHandler)
		default:
			completes(w, r)
		}
	})
	g := startTraced(t, "group team {\n}\n"+keyK("group team", "requests_per_day 5"), proxy(up, "otel_genai"))
	k := g.key("k")
	ids := func(more map[string]any) map[string]any {
		all := map[string]any{"llm_quota.key.id": k.ID.String(), "llm_quota.group.id": k.Group.String(), "llm_quota.decision": "admitted"}
		for name, v := range more {
			all[name] = v
		}
		return all
	}
	chat := func(more map[string]any) map[string]any {
		all := ids(map[string]any{
			"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o", "gen_ai.response.model": "gpt-4o",
			"gen_ai.usage.input_tokens": int64(11), "gen_ai.usage.output_tokens": int64(7),
		})
		for name, v := range more {
			if all[name] = v; v == nil {
				delete(all, name)
			}
		}
		return all
	}
	// Settled after its answer was read: the next call waits for the span.
	steps := []struct {
		what string
		call func()
		want map[string]any
	}{
		{"a chat", func() { g.chat().ok(200) }, chat(nil)},
		{"a stream", func() { g.do("POST", "/v1/chat/completions", streamBody).ok(200) }, chat(map[string]any{"gen_ai.request.stream": true})},
		{"a message", func() {
			g.do("POST", "/v1/messages", `{"model":"claude-x","max_tokens":20,"messages":[]}`).ok(200)
		}, ids(map[string]any{
			"gen_ai.operation.name": "chat", "gen_ai.provider.name": "anthropic", "gen_ai.request.model": "claude-x", "gen_ai.response.model": "claude-x-1",
			"gen_ai.usage.input_tokens": int64(12), "gen_ai.usage.cache_read.input_tokens": int64(4), "gen_ai.usage.cache_creation.input_tokens": int64(3),
			"gen_ai.usage.output_tokens": int64(9), "gen_ai.usage.reasoning.output_tokens": int64(2),
		})},
		{"a list of models", func() { g.do("GET", "/v1/models", "").ok(200) }, ids(nil)},
		{"a stream that breaks", func() {
			resp := g.open(g.request("POST", "/v1/broken/chat/completions", chatBody))
			io.Copy(io.Discard, resp.Body) //nolint:errcheck // it must break
			resp.Body.Close()
		}, nil},
		{"a refusal", func() { g.chat().refused(429, "rate_limit_exceeded") }, map[string]any{
			"llm_quota.key.id": k.ID.String(), "llm_quota.group.id": k.Group.String(), "llm_quota.decision": "refused", "llm_quota.reason": "rate_limit_exceeded",
			"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o",
		}},
		{"an unknown key", func() { g.chat("Authorization", "Bearer wrong-secret-of-nobody").refused(401, "invalid_api_key") },
			map[string]any{"llm_quota.decision": "refused", "llm_quota.reason": "invalid_api_key"}},
	}
	for i, step := range steps {
		step.call()
		s := g.spans(i + 1)[i]
		if step.want != nil {
			wantAttributes(t, step.what, s, step.want)
			continue
		}
		got := attributesOf(s)
		if got["llm_quota.estimated"] != true || got["gen_ai.usage.output_tokens"] == nil || got["gen_ai.response.model"] != "gpt-4o" {
			t.Errorf("%s has %v", step.what, got)
		}
	}
	for _, s := range spans.GetSpans() {
		for _, a := range s.Attributes {
			if v := a.Value; v.Type() == attribute.STRING && strings.Contains(v.AsString(), secret) {
				t.Errorf("the span shows the secret in %s", a.Key)
			}
		}
	}
}

// Without the option a span is left as it is; without tracing the option does
// nothing.
func TestSpanAttributesAreAsked(t *testing.T) {
	up := upstream(t, completes)
	g := startTraced(t, keyK(), proxy(up))
	g.chat().ok(200)
	if got := attributesOf(g.spans(1)[0]); len(got) != 0 {
		t.Errorf("the span has %v", got)
	}
	g.load(keyK(), proxy(up, "otel_genai"))
	g.chat().ok(200)
	g.wants(used{requests: 2, input: 22, output: 14})
}
