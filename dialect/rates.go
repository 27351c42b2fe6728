package dialect

import (
	"net/http"
	"strconv"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// rateNames are a dialect's headers for limit, remaining and reset, and how it
// writes the moment of a reset.
type rateNames struct {
	requests, tokens [3]string
	reset            func(at, now time.Time) string
}

// SetRates sets the rate-limit headers of an answer in the names and forms of
// dialect d, and X-LLM-Quota-Remaining. Where there is no such limit, those of
// the provider stay.
func SetRates(h http.Header, d Dialect, r *quota.Rates, now time.Time) {
	if r == nil {
		return
	}
	vals := make([]string, 0, 7) // one array for all the values
	set := func(name, value string) {
		vals = append(vals, value)
		h[name] = vals[len(vals)-1 : len(vals) : len(vals)]
	}
	names := d.rates()
	one := func(names *[3]string, reset func(at, now time.Time) string, rate *quota.Rate) {
		set(names[0], strconv.FormatInt(rate.Limit, 10))
		set(names[1], strconv.FormatInt(max(rate.Remaining, 0), 10))
		if rate.Reset.IsZero() {
			delete(h, names[2])
		} else {
			set(names[2], reset(rate.Reset, now))
		}
	}
	if names != nil && r.HasRequests {
		one(&names.requests, names.reset, &r.Requests)
	}
	if names != nil && r.HasTokens {
		one(&names.tokens, names.reset, &r.Tokens)
	}
	if r.HasQuota {
		set("X-Llm-Quota-Remaining", strconv.FormatInt(max(r.QuotaRemaining, 0), 10))
	}
}
