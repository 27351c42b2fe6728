package dialect

import (
	"net/http"
	"time"
)

// The dialects in which calls are refused. Who speaks no known one is answered
// as OpenAI would.
var (
	openai         Dialect = openaiDialect{"openai"}
	azure          Dialect = openaiDialect{"azure"}
	unknownDialect Dialect = openaiDialect{"unknown"}
	anthropic      Dialect = anthropicDialect{}
)

type openaiDialect struct{ name string }

func (d openaiDialect) Name() string { return d.name }

func (openaiDialect) refusal(h http.Header, r *refused) []byte {
	type body struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    string  `json:"code"`
	}
	h.Set("X-Request-Id", r.requestID)
	return marshal(struct {
		Error body `json:"error"`
	}{body{r.message, r.typ, nil, r.code}})
}

func (openaiDialect) rates() *rateNames { return &openaiRates }

var openaiRates = rateNames{
	requests: [3]string{"X-Ratelimit-Limit-Requests", "X-Ratelimit-Remaining-Requests", "X-Ratelimit-Reset-Requests"},
	tokens:   [3]string{"X-Ratelimit-Limit-Tokens", "X-Ratelimit-Remaining-Tokens", "X-Ratelimit-Reset-Tokens"},
	reset: func(at, now time.Time) string {
		return duration(max(at.Sub(now), 0))
	},
}

type anthropicDialect struct{}

func (anthropicDialect) Name() string { return "anthropic" }

func (anthropicDialect) refusal(h http.Header, r *refused) []byte {
	type body struct {
		Type    string `json:"type"`
		Message string `json:"message"`
	}
	h.Set("Request-Id", r.requestID)
	return marshal(struct {
		Type      string `json:"type"`
		Error     body   `json:"error"`
		RequestID string `json:"request_id"`
	}{"error", body{r.name, r.message}, r.requestID})
}

func (anthropicDialect) rates() *rateNames { return &anthropicRates }

var anthropicRates = rateNames{
	requests: [3]string{"Anthropic-Ratelimit-Requests-Limit", "Anthropic-Ratelimit-Requests-Remaining", "Anthropic-Ratelimit-Requests-Reset"},
	tokens:   [3]string{"Anthropic-Ratelimit-Tokens-Limit", "Anthropic-Ratelimit-Tokens-Remaining", "Anthropic-Ratelimit-Tokens-Reset"},
	reset: func(at, _ time.Time) string {
		if at.Nanosecond() != 0 {
			at = at.Add(time.Second) // never earlier than the limit frees
		}
		return at.UTC().Truncate(time.Second).Format(time.RFC3339)
	},
}
