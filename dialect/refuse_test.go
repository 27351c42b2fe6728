package dialect

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

var refusedAt = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func testKey() quota.ID { return quota.NextID(quota.KindKey, 0, refusedAt) }

func TestRefuse(t *testing.T) {
	limit := func(why quota.Reason, l quota.LimitName, wait time.Duration, resets time.Time) *quota.Refusal {
		return &quota.Refusal{Reason: why, Limit: l, Account: testKey(), AccountName: `say "hi" <&>`, Max: 200, Used: 150, Reserved: 40, Requested: 20, Wait: wait, ResetsAt: resets}
	}
	day := refusedAt.Add(12 * time.Hour)
	for _, tc := range []struct {
		ref              *quota.Refusal
		status           int
		typ, code, name  string
		after, ms, again string // headers; "" = absent
		says             string
	}{
		{&quota.Refusal{Reason: quota.InvalidKey}, 401, "invalid_request_error", "invalid_api_key", "authentication_error", "", "", "false", "Incorrect API key"},
		{&quota.Refusal{Reason: quota.ExpiredKey}, 401, "invalid_request_error", "api_key_expired", "authentication_error", "", "", "false", "expired"},
		{&quota.Refusal{Reason: quota.DisabledKey}, 401, "invalid_request_error", "api_key_disabled", "authentication_error", "", "", "false", "disabled"},
		{&quota.Refusal{Reason: quota.AmbiguousCredential}, 400, "invalid_request_error", "ambiguous_credential", "invalid_request_error", "", "", "false", "more than one"},
		{&quota.Refusal{Reason: quota.ModelNotAllowed, Detail: "Model: \"x\"."}, 403, "invalid_request_error", "model_not_allowed", "permission_error", "", "", "false", `Model: "x".`},
		{&quota.Refusal{Reason: quota.AddressNotAllowed}, 403, "invalid_request_error", "ip_not_allowed", "permission_error", "", "", "false", "address"},
		{&quota.Refusal{Reason: quota.InvalidBody}, 400, "invalid_request_error", "invalid_body", "invalid_request_error", "", "", "false", "body"},
		{&quota.Refusal{Reason: quota.Unmetered}, 403, "invalid_request_error", "unmetered_call", "permission_error", "", "", "false", "metered"},
		{&quota.Refusal{Reason: quota.UnknownCoding}, 415, "invalid_request_error", "unsupported_encoding", "invalid_request_error", "", "", "false", "Content-Encoding"},
		{&quota.Refusal{Reason: quota.BodyTooLarge}, 413, "invalid_request_error", "request_too_large", "request_too_large", "", "", "false", "too large"},
		{&quota.Refusal{Reason: quota.TooManyFailures, Wait: time.Second}, 429, "requests", "rate_limit_exceeded", "rate_limit_error", "1", "1000", "", "Too many unknown API keys came from this address. Please try again in 1s."},
		{&quota.Refusal{Reason: quota.TooManyFailures, Wait: time.Minute + 1}, 429, "requests", "rate_limit_exceeded", "rate_limit_error", "61", "", "false", "Too many unknown API keys"},
		{&quota.Refusal{Reason: quota.StoreUnavailable}, 503, "server_error", "quota_store_unavailable", "api_error", "", "", "", "at the moment"},
		{limit(quota.RateLimited, quota.TokensPerMinute, 1574*time.Millisecond, time.Time{}), 429, "tokens", "rate_limit_exceeded", "rate_limit_error", "2", "1574", "", "on tokens per min (TPM) for key \"say \\\"hi\\\" <&>\": Limit 200, Used 150, Reserved 40, Requested 20. Please try again in 1.574s."},
		{limit(quota.RateLimited, quota.RequestsPerMinute, time.Nanosecond, time.Time{}), 429, "requests", "rate_limit_exceeded", "rate_limit_error", "1", "1", "", "Please try again in 1ms."},
		{limit(quota.RateLimited, quota.RequestsPerMinute, time.Minute, time.Time{}), 429, "requests", "rate_limit_exceeded", "rate_limit_error", "60", "60000", "", "Please try again in 1m0s."},
		{limit(quota.RateLimited, quota.RequestsPerMinute, time.Minute+1, time.Time{}), 429, "requests", "rate_limit_exceeded", "rate_limit_error", "61", "", "false", "Please try again in"},
		{limit(quota.RateLimited, quota.ConcurrentRequests, 0, time.Time{}), 429, "requests", "rate_limit_exceeded", "rate_limit_error", "1", "1000", "", "concurrent requests"},
		{limit(quota.RateLimited, quota.RequestsPerDay, 12*time.Hour, day), 429, "requests", "rate_limit_exceeded", "rate_limit_error", "43200", "", "false", "Please try again in 12h0m0s. The limit frees at 2026-11-23T00:00:00Z."},
		{limit(quota.RateLimited, quota.TokensPerDay, 12*time.Hour, day), 429, "tokens", "rate_limit_exceeded", "rate_limit_error", "43200", "", "false", "tokens per day (TPD)"},
		{limit(quota.RateLimited, quota.TokenQuota, time.Second, day), 429, "tokens", "rate_limit_exceeded", "rate_limit_error", "1", "1000", "", "quota"},
		{limit(quota.RateLimited, quota.TokensPerMinute, quota.Never, time.Time{}), 429, "tokens", "rate_limit_exceeded", "rate_limit_error", "", "", "false", "Limit 200"},
		{limit(quota.QuotaSpent, quota.TokenQuota, 12*time.Hour, day), 429, "insufficient_quota", "insufficient_quota", "rate_limit_error", "43200", "", "false", "You exceeded your current quota"},
		{limit(quota.QuotaSpent, quota.TokenQuota, time.Second, refusedAt.Add(time.Second)), 429, "insufficient_quota", "insufficient_quota", "rate_limit_error", "1", "", "false", "You exceeded your current quota"},
		{limit(quota.QuotaSpent, quota.TokenQuota, quota.Never, time.Time{}), 429, "insufficient_quota", "insufficient_quota", "rate_limit_error", "", "", "false", "reset by hand"},
		{limit(quota.TooManyTokens, quota.TokensPerMinute, quota.Never, time.Time{}), 429, "tokens", "request_too_large", "rate_limit_error", "", "", "false", "Request too large"},
		{limit(quota.TooManyTokens, quota.TokenQuota, quota.Never, day), 429, "tokens", "request_too_large", "rate_limit_error", "43200", "", "false", "Request too large"},
	} {
		for _, d := range []Dialect{openai, azure, unknownDialect, anthropic} {
			rec := httptest.NewRecorder()
			status := Refuse(rec, d, tc.ref, nil, refusedAt)
			var got struct {
				Type  string
				Error struct {
					Type, Message string
					Param         any
					Code          string
				}
				RequestID string `json:"request_id"`
			}
			if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			typ, code := tc.typ, tc.code
			if d == anthropic {
				typ, code = tc.name, ""
				if got.Type != "error" || !strings.HasPrefix(got.RequestID, "req_") || rec.Header().Get("Request-Id") != got.RequestID {
					t.Errorf("%v: %s", tc.ref, rec.Body)
				}
			}
			if status != tc.status || rec.Code != status || got.Error.Type != typ || got.Error.Code != code || !strings.Contains(got.Error.Message, tc.says) {
				t.Errorf("%s %v: %d %s", d.Name(), tc.ref, status, rec.Body)
			}
			h := rec.Header()
			if h.Get("Retry-After") != tc.after || h.Get("Retry-After-Ms") != tc.ms || h.Get("X-Should-Retry") != tc.again || h.Get("Content-Type") != "application/json" {
				t.Errorf("%s %v: %v", d.Name(), tc.ref, h)
			}
		}
	}
}

// TestRefusalBodies pins the exact bytes that SDKs parse.
func TestRefusalBodies(t *testing.T) {
	ref := &quota.Refusal{Reason: quota.InvalidKey}
	for d, want := range map[Dialect]string{
		openai:    `{"error":{"message":"Incorrect API key provided, or none.","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}`,
		anthropic: `{"type":"error","error":{"type":"authentication_error","message":"Incorrect API key provided, or none."},"request_id":"req_ID"}`,
	} {
		rec := httptest.NewRecorder()
		Refuse(rec, d, ref, nil, refusedAt)
		got := regexp.MustCompile(`req_\w+`).ReplaceAllString(strings.TrimSpace(rec.Body.String()), "req_ID")
		if got != want {
			t.Errorf("%s", cmp.Diff(want, got))
		}
	}
}

func TestSetRates(t *testing.T) {
	rates := &quota.Rates{
		HasRequests: true, Requests: quota.Rate{Limit: 60, Remaining: 59, Reset: refusedAt.Add(time.Second)},
		HasTokens: true, Tokens: quota.Rate{Limit: 150000, Remaining: -4, Reset: refusedAt.Add(6*time.Minute + time.Microsecond)},
		HasQuota: true, QuotaRemaining: 1000,
	}
	h := http.Header{"X-Ratelimit-Limit-Requests": {"9"}, "X-Ratelimit-Other": {"1"}}
	SetRates(h, openai, rates, refusedAt)
	if d := cmp.Diff(http.Header{
		"X-Ratelimit-Limit-Requests": {"60"}, "X-Ratelimit-Remaining-Requests": {"59"}, "X-Ratelimit-Reset-Requests": {"1s"},
		"X-Ratelimit-Limit-Tokens": {"150000"}, "X-Ratelimit-Remaining-Tokens": {"0"}, "X-Ratelimit-Reset-Tokens": {"6m0.001s"},
		"X-Llm-Quota-Remaining": {"1000"}, "X-Ratelimit-Other": {"1"},
	}, h); d != "" {
		t.Error(d)
	}
	h = http.Header{"Anthropic-Ratelimit-Input-Tokens-Limit": {"1"}, "Anthropic-Ratelimit-Requests-Reset": {"theirs"}}
	rates.HasTokens, rates.HasQuota, rates.Requests.Reset = false, false, time.Time{}
	SetRates(h, anthropic, rates, refusedAt)
	if d := cmp.Diff(http.Header{
		"Anthropic-Ratelimit-Requests-Limit": {"60"}, "Anthropic-Ratelimit-Requests-Remaining": {"59"}, "Anthropic-Ratelimit-Input-Tokens-Limit": {"1"},
	}, h); d != "" {
		t.Error(d)
	}
	rates.Requests.Reset = refusedAt.Add(time.Millisecond)
	SetRates(h, anthropic, rates, refusedAt)
	if got := h.Get("anthropic-ratelimit-requests-reset"); got != "2026-11-22T12:00:01Z" {
		t.Error(got)
	}
	h = http.Header{"X-Ratelimit-Limit-Tokens": {"9"}}
	SetRates(h, openai, &quota.Rates{}, refusedAt)
	SetRates(h, openai, nil, refusedAt)
	if len(h) != 1 {
		t.Errorf("without limits the provider's headers stay: %v", h)
	}
}
