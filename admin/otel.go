package admin

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// providers are the dialects by the names that OpenTelemetry's conventions for
// generative AI have for their providers; Ollama has none there. What is
// OpenAI-shaped is "openai", whoever answers: by the conventions the name tells
// the form of a call.
var providers = map[string]string{
	"openai":    "openai",
	"azure":     "azure.ai.openai",
	"anthropic": "anthropic",
	"gemini":    "gcp.gemini",
	"vertex":    "gcp.vertex_ai",
	"bedrock":   "aws.bedrock",
	"cohere":    "cohere",
	"ollama":    "ollama",
}

// Annotate tells the span of ctx, if it has one that is recorded, what the
// trace holds: by OpenTelemetry's conventions for generative AI
// (https://github.com/open-telemetry/semantic-conventions-genai), and beyond
// them as llm_quota.*. It is called at the end of the request.
func (t *Trace) Annotate(ctx context.Context) {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	a := make([]attribute.KeyValue, 0, 16)
	text := func(key attribute.Key, value string) {
		if value != "" {
			a = append(a, key.String(value))
		}
	}
	text("llm_quota.decision", t.Decision)
	text("llm_quota.reason", string(t.Reason))
	if t.Policy != nil {
		text("llm_quota.key.id", t.Policy.ID.String())
		if id := t.Policy.GroupID(); id != 0 {
			text("llm_quota.group.id", id.String())
		}
	}
	if t.Operation != "" {
		text("gen_ai.operation.name", t.Operation)
		text("gen_ai.provider.name", providers[t.Dialect])
	}
	text("gen_ai.request.model", t.Model)
	text("gen_ai.response.model", t.Answered)
	if t.Stream {
		a = append(a, attribute.Bool("gen_ai.request.stream", true))
	}
	span.SetAttributes(t.usage(a)...)
}

// usage adds what the call used to a. The parts of input and output that have
// attributes of their own lie within them, in the conventions as here.
func (t *Trace) usage(a []attribute.KeyValue) []attribute.KeyValue {
	if t.tokens.Charge() == 0 {
		return a
	}
	a = append(a, attribute.Int64("gen_ai.usage.input_tokens", t.tokens.Input))
	for _, part := range [...]struct {
		key attribute.Key
		n   int64
	}{
		{"gen_ai.usage.output_tokens", t.tokens.Output},
		{"gen_ai.usage.cache_read.input_tokens", t.tokens.Cached},
		{"gen_ai.usage.cache_creation.input_tokens", t.tokens.CacheWrite},
		{"gen_ai.usage.reasoning.output_tokens", t.tokens.Reasoning},
	} {
		if part.n > 0 {
			a = append(a, part.key.Int64(part.n))
		}
	}
	if t.estimated {
		a = append(a, attribute.Bool("llm_quota.estimated", true))
	}
	return a
}
