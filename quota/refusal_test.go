package quota

import (
	"strings"
	"testing"
)

func TestARefusalSaysWhatRefused(t *testing.T) {
	key, err := ParseID("key_0000000000002")
	if err != nil {
		t.Fatal(err)
	}
	group, err := ParseID("grp_0000000000003")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		refusal Refusal
		want    string
	}{
		{Refusal{Reason: InvalidKey}, "invalid_api_key"},
		{Refusal{Reason: ModelNotAllowed, AccountName: "ci"}, "model_not_allowed"},
		{
			Refusal{Reason: RateLimited, Limit: TokensPerMinute, Account: key, AccountName: "ci", Max: 100, Used: 90, Reserved: 5, Requested: 10},
			`rate_limit_exceeded: tokens_per_minute of key "ci": limit 100, used 90, reserved 5, requested 10`,
		},
		{
			Refusal{Reason: QuotaSpent, Limit: TokenQuota, Account: group, AccountName: "R&D \"x\"\n", Max: 1, Used: 2, Requested: 3},
			`insufficient_quota: quota of group "R&D \"x\"\n": limit 1, used 2, reserved 0, requested 3`,
		},
	} {
		if got := tt.refusal.String(); got != tt.want || strings.ContainsAny(got, "\n\r") {
			t.Errorf("the error is %q, want %q", got, tt.want)
		}
	}
}
