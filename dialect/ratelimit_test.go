package dialect

import (
	"math"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

func TestSetRateLimit(t *testing.T) {
	requests := quota.Rate{Limit: 60, Remaining: 59, Reset: refusedAt.Add(1)}
	tokens := quota.Rate{Limit: 150000, Remaining: 149984, Reset: refusedAt.Add(6 * time.Minute)}
	theirs := http.Header{"Ratelimit": {`"default";r=1`}, "Ratelimit-Policy": {`"default";q=2`}}
	for _, tc := range []struct {
		name          string
		rates         *quota.Rates
		policy, state string
	}{
		{"both", &quota.Rates{HasRequests: true, Requests: requests, HasTokens: true, Tokens: tokens},
			`"requests";q=60, "tokens";q=150000;qu="llm-quota-tokens"`, `"requests";r=59;t=1, "tokens";r=149984;t=360`},
		{"requests", &quota.Rates{HasRequests: true, Requests: requests}, `"requests";q=60`, `"requests";r=59;t=1`},
		{"tokens, never reset", &quota.Rates{HasTokens: true, Tokens: quota.Rate{Limit: 5}}, `"tokens";q=5;qu="llm-quota-tokens"`, `"tokens";r=0`},
		{"with a window", &quota.Rates{HasTokens: true, Tokens: quota.Rate{Limit: 5, Remaining: 4, Window: time.Minute}}, `"tokens";q=5;qu="llm-quota-tokens";w=60`, `"tokens";r=4`},
		{"full already", &quota.Rates{HasRequests: true, Requests: quota.Rate{Limit: 5, Remaining: 5, Reset: refusedAt.Add(-time.Hour)}}, `"requests";q=5`, `"requests";r=5;t=0`},
		{"beyond the format", &quota.Rates{HasRequests: true, Requests: quota.Rate{Limit: math.MaxInt64, Remaining: -5}}, `"requests";q=999999999999999`, `"requests";r=0`},
		{"none", &quota.Rates{HasQuota: true, QuotaRemaining: 3}, `"default";q=2`, `"default";r=1`},
		{"nil", nil, `"default";q=2`, `"default";r=1`},
	} {
		h := theirs.Clone()
		SetRateLimit(h, tc.rates, refusedAt)
		if d := cmp.Diff(http.Header{"Ratelimit": {tc.state}, "Ratelimit-Policy": {tc.policy}}, h); d != "" {
			t.Errorf("%s: %s", tc.name, d)
		}
	}
}
