package dialect

import (
	"net/http"
	"strconv"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// maxInteger is the greatest integer of a structured field (RFC 9651 §3.3.1).
const maxInteger = 999_999_999_999_999

// tokenUnit is what limits on tokens are counted in. The draft has a registry
// of units, which knows none for tokens, and reads requests where no unit is
// given: so it is one of our own, under our name.
const tokenUnit = "llm-quota-tokens"

// SetRateLimit sets RateLimit-Policy and RateLimit as of
// draft-ietf-httpapi-ratelimit-headers-10, whatever the dialect: the limits
// that [SetRates] tells, after this call's own reservation. They are lists of
// structured fields, one item a limit: in the first q is the limit, qu its unit
// if that is not requests, and w its window in seconds if it has one; in the
// second r is what is left and t the seconds until all of it is free again.
// Where there is no limit, the provider's own headers stay; where there is one,
// they go, for both have to speak of the same limits.
func SetRateLimit(h http.Header, r *quota.Rates, now time.Time) {
	if r == nil || !r.HasRequests && !r.HasTokens {
		return
	}
	var policy, state []byte
	if r.HasRequests {
		policy, state = appendRate(policy, state, "requests", "", &r.Requests, now)
	}
	if r.HasTokens {
		policy, state = appendRate(policy, state, "tokens", tokenUnit, &r.Tokens, now)
	}
	h["Ratelimit-Policy"] = []string{string(policy)}
	h["Ratelimit"] = []string{string(state)}
}

// appendRate appends one limit to both lists. Its name and unit need no quoting.
func appendRate(policy, state []byte, name, unit string, rate *quota.Rate, now time.Time) (_, _ []byte) {
	item := func(list []byte, first string, n int64) []byte {
		if len(list) > 0 {
			list = append(list, ", "...)
		}
		list = append(append(append(list, '"'), name...), '"')
		return parameter(list, first, n)
	}
	policy = item(policy, "q", rate.Limit)
	if unit != "" {
		policy = append(append(append(policy, `;qu="`...), unit...), '"')
	}
	if rate.Window > 0 {
		policy = parameter(policy, "w", int64(rate.Window/time.Second))
	}
	state = item(state, "r", rate.Remaining)
	if !rate.Reset.IsZero() {
		state = parameter(state, "t", int64((max(rate.Reset.Sub(now), 0)+time.Second-1)/time.Second))
	}
	return policy, state
}

// parameter appends an integer parameter to an item.
func parameter(b []byte, name string, n int64) []byte {
	b = append(append(append(b, ';'), name...), '=')
	return strconv.AppendInt(b, min(max(n, 0), maxInteger), 10)
}
