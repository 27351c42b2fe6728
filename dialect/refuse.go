package dialect

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// retryable is the longest wait for which a client is told to come again by
// itself: the official SDKs give up, or ignore what they are told, above it.
const retryable = 60 * time.Second

// refused is a refusal as a dialect writes it.
type refused struct {
	status    int
	typ, code string // of OpenAI's error
	name      string // of Anthropic's error
	grpc      string // of Google's status
	message   string
	requestID string
	ref       *quota.Refusal
	wait      time.Duration // for Retry-After; 0: unknown or never
}

// refusals is the table of spec §6. The type of a rate limit depends on what
// it limits.
var refusals = map[quota.Reason]refused{
	quota.InvalidKey:          {status: 401, typ: "invalid_request_error", code: "invalid_api_key", name: "authentication_error", grpc: "INVALID_ARGUMENT"},
	quota.ExpiredKey:          {status: 401, typ: "invalid_request_error", code: "api_key_expired", name: "authentication_error", grpc: "INVALID_ARGUMENT"},
	quota.DisabledKey:         {status: 401, typ: "invalid_request_error", code: "api_key_disabled", name: "authentication_error", grpc: "INVALID_ARGUMENT"},
	quota.AmbiguousCredential: {status: 400, typ: "invalid_request_error", code: "ambiguous_credential", name: "invalid_request_error", grpc: "INVALID_ARGUMENT"},
	quota.ModelNotAllowed:     {status: 403, typ: "invalid_request_error", code: "model_not_allowed", name: "permission_error", grpc: "PERMISSION_DENIED"},
	quota.AddressNotAllowed:   {status: 403, typ: "invalid_request_error", code: "ip_not_allowed", name: "permission_error", grpc: "PERMISSION_DENIED"},
	quota.RateLimited:         {status: 429, typ: "tokens", code: "rate_limit_exceeded", name: "rate_limit_error", grpc: "RESOURCE_EXHAUSTED"},
	quota.QuotaSpent:          {status: 429, typ: "insufficient_quota", code: "insufficient_quota", name: "rate_limit_error", grpc: "RESOURCE_EXHAUSTED"},
	quota.TooManyTokens:       {status: 429, typ: "tokens", code: "request_too_large", name: "rate_limit_error", grpc: "RESOURCE_EXHAUSTED"},
	quota.InvalidBody:         {status: 400, typ: "invalid_request_error", code: "invalid_body", name: "invalid_request_error", grpc: "INVALID_ARGUMENT"},
	quota.Unmetered:           {status: 403, typ: "invalid_request_error", code: "unmetered_call", name: "permission_error", grpc: "PERMISSION_DENIED"},
	quota.UnknownCoding:       {status: 415, typ: "invalid_request_error", code: "unsupported_encoding", name: "invalid_request_error", grpc: "INVALID_ARGUMENT"},
	quota.BodyTooLarge:        {status: 413, typ: "invalid_request_error", code: "request_too_large", name: "request_too_large", grpc: "INVALID_ARGUMENT"},
	quota.TooManyFailures:     {status: 429, typ: "requests", code: "rate_limit_exceeded", name: "rate_limit_error", grpc: "RESOURCE_EXHAUSTED"},
	quota.StoreUnavailable:    {status: 503, typ: "server_error", code: "quota_store_unavailable", name: "api_error", grpc: "UNAVAILABLE"},
}

// Refuse answers the call with the refusal as dialect d writes it, and returns
// the status. The headers tell the official SDKs when to come again, or not
// to. rates may be nil.
func Refuse(w http.ResponseWriter, d Dialect, ref *quota.Refusal, rates *quota.Rates, now time.Time) (status int) {
	r, ok := refusals[ref.Reason]
	if !ok {
		r = refusals[quota.StoreUnavailable]
		r.code = string(ref.Reason)
	}
	if requestLimit(ref.Limit) && r.typ == "tokens" {
		r.typ = "requests"
	}
	r.ref = ref
	r.requestID = "req_" + rand.Text()
	r.wait = waitOf(ref, now)
	r.message = message(&r, now)

	h := w.Header()
	if rates != nil {
		SetRates(h, d, rates, now)
	}
	body := d.refusal(h, &r)
	r.retryHeaders(h)
	if r.status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="llm"`)
	}
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(r.status)
	w.Write(body) //nolint:errcheck // a client that is gone needs no refusal
	return r.status
}

func requestLimit(l quota.LimitName) bool {
	return l == quota.RequestsPerMinute || l == quota.RequestsPerDay || l == quota.ConcurrentRequests
}

// waitOf returns how long the caller has to wait, as far as it can be told: 0
// if it cannot.
func waitOf(ref *quota.Refusal, now time.Time) time.Duration {
	switch {
	case ref.Limit == "":
		return max(ref.Wait, 0)
	case ref.Limit == quota.ConcurrentRequests && ref.Wait != quota.Never:
		return max(ref.Wait, time.Second)
	case ref.Wait > 0:
		return ref.Wait
	case ref.Reason == quota.RateLimited && ref.Wait == 0: // only calls under way stand in the way
		return time.Second
	case !ref.ResetsAt.IsZero():
		return max(ref.ResetsAt.Sub(now), 0)
	}
	return 0
}

// passing tells whether waiting a little helps.
func (r *refused) passing() bool {
	frees := r.ref.Reason == quota.RateLimited || r.ref.Reason == quota.TooManyFailures
	return frees && r.ref.Wait != quota.Never && r.wait > 0 && r.wait <= retryable
}

// retryHeaders tells when to come again. Seconds are whole and at least 1, as
// some clients read nothing else.
func (r *refused) retryHeaders(h http.Header) {
	if r.wait > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64((r.wait+time.Second-1)/time.Second), 10))
	}
	switch {
	case r.passing():
		h.Set("Retry-After-Ms", strconv.FormatInt(int64((r.wait+time.Millisecond-1)/time.Millisecond), 10))
	case r.status != http.StatusServiceUnavailable:
		h.Set("X-Should-Retry", "false")
	}
}

// message says what refused: for a limit its name, the account, the numbers,
// and when it frees. Tools read the wait from the text.
func message(r *refused, now time.Time) string {
	ref := r.ref
	if ref.Limit == "" {
		return plainMessage(r)
	}
	var b strings.Builder
	on := fmt.Sprintf("on %s for %s %s", limitWords(ref.Limit), ref.Account.Kind(), quoteName(ref.AccountName))
	switch ref.Reason {
	case quota.QuotaSpent:
		fmt.Fprintf(&b, "You exceeded your current quota %s: Limit %d, Used %d", on, ref.Max, ref.Used)
	case quota.TooManyTokens:
		fmt.Fprintf(&b, "Request too large %s: Limit %d, Used %d", on, ref.Max, ref.Used)
	default:
		fmt.Fprintf(&b, "Rate limit reached %s: Limit %d, Used %d", on, ref.Max, ref.Used)
	}
	if ref.Reserved > 0 {
		fmt.Fprintf(&b, ", Reserved %d", ref.Reserved)
	}
	if ref.Requested > 0 {
		fmt.Fprintf(&b, ", Requested %d", ref.Requested)
	}
	b.WriteByte('.')
	switch {
	case ref.Reason == quota.TooManyTokens:
		b.WriteString(" The input must be reduced for the request to fit.")
	case r.wait > 0:
		fmt.Fprintf(&b, " Please try again in %s.", duration(r.wait))
		if r.wait > retryable {
			fmt.Fprintf(&b, " The limit frees at %s.", now.Add(r.wait).UTC().Format(time.RFC3339))
		}
	case ref.Reason == quota.QuotaSpent:
		b.WriteString(" It is reset by hand only: please check with your administrator.")
	}
	if ref.Detail != "" {
		b.WriteByte(' ')
		b.WriteString(ref.Detail)
	}
	return b.String()
}

// plainMessages are what the refusals say that no limit caused.
var plainMessages = map[quota.Reason]string{
	quota.InvalidKey:          "Incorrect API key provided, or none.",
	quota.ExpiredKey:          "This API key has expired.",
	quota.DisabledKey:         "This API key has been disabled.",
	quota.AmbiguousCredential: "The request carries more than one credential.",
	quota.ModelNotAllowed:     "This API key may not use this model.",
	quota.AddressNotAllowed:   "This API key may not be used from this address.",
	quota.InvalidBody:         "The request body is not valid.",
	quota.Unmetered:           "What this call uses cannot be metered, so keys under a token limit may not make it.",
	quota.UnknownCoding:       "The request body's Content-Encoding is not supported.",
	quota.BodyTooLarge:        "The request body is too large.",
	quota.TooManyFailures:     "Too many unknown API keys came from this address.",
	quota.StoreUnavailable:    "Limits cannot be checked at the moment.",
	quota.RateLimited:         "Rate limit reached.",
	quota.QuotaSpent:          "You exceeded your current quota.",
	quota.TooManyTokens:       "Request too large.",
}

// plainMessage says what refused when it was no limit.
func plainMessage(r *refused) string {
	s := plainMessages[r.ref.Reason]
	if r.ref.Detail != "" {
		s = strings.TrimSpace(s + " " + r.ref.Detail)
	}
	if r.wait > 0 {
		s += " Please try again in " + duration(r.wait) + "."
	}
	return s
}

func limitWords(l quota.LimitName) string {
	switch l {
	case quota.RequestsPerMinute:
		return "requests per min (RPM)"
	case quota.TokensPerMinute:
		return "tokens per min (TPM)"
	case quota.RequestsPerDay:
		return "requests per day (RPD)"
	case quota.TokensPerDay:
		return "tokens per day (TPD)"
	case quota.ConcurrentRequests:
		return "concurrent requests"
	case quota.TokenQuota:
		return "the token quota (quota)"
	}
	return string(l)
}

// quoteName quotes an account's name, which may hold quotes of its own.
func quoteName(s string) string { return strconv.QuoteToGraphic(s) }

// duration writes d as OpenAI does: a Go duration, no finer than milliseconds.
func duration(d time.Duration) string {
	return (d + time.Millisecond - 1).Truncate(time.Millisecond).String()
}

// marshal writes v as JSON without escapes that only HTML needs.
func marshal(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if enc.Encode(v) != nil {
		return []byte("{}")
	}
	return b.Bytes()
}
