package quota

import (
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestStepStartIsNeverAfter(t *testing.T) {
	for _, tt := range []struct {
		step     Step
		at, want int64
	}{
		{StepMinute, 0, 0},
		{StepMinute, 59, 0},
		{StepMinute, 60, 60},
		{StepMinute, -1, -60},
		{StepMinute, -60, -60},
		{StepMinute, -61, -120},
		{StepQuarter, 899, 0},
		{StepQuarter, 900, 900},
		{StepQuarter, -900, -900},
		{StepQuarter, -901, -1800},
		{StepDay, date(2026, 2, 28) + 86_399, date(2026, 2, 28)},
		{StepDay, date(2026, 3, 1), date(2026, 3, 1)},
		{StepDay, date(1960, 1, 1) + 1, date(1960, 1, 1)},
		{StepDay, -1, -86_400},
	} {
		if got := tt.step.Start(tt.at); got != tt.want {
			t.Errorf("the slot of %v that holds %d starts at %d, want %d", tt.step.Duration(), tt.at, got, tt.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		step := rapid.SampledFrom(Steps[:]).Draw(t, "step")
		at := rapid.Int64Range(math.MinInt64/2, math.MaxInt64/2).Draw(t, "at")
		width := int64(step.Duration() / time.Second)
		if start := step.Start(at); start%width != 0 || start > at || at >= start+width {
			t.Fatalf("the slot of %d s that holds %d starts at %d", width, at, start)
		}
	})
}

// numbered returns totals in which every field differs.
func numbered(factor int64) (t Totals) {
	v := reflect.ValueOf(&t).Elem()
	for i := range v.NumField() {
		v.Field(i).SetInt(factor << i)
	}
	return t
}

func TestTotalsAddEveryField(t *testing.T) {
	sum, more := numbered(1), numbered(100)
	sum.Add(&more)
	if diff := cmp.Diff(numbered(101), sum); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	sum.Add(&sum)
	if diff := cmp.Diff(numbered(202), sum); diff != "" {
		t.Errorf("added to itself (-want +got):\n%s", diff)
	}
}

func TestSettledCountsWhatWasCharged(t *testing.T) {
	tokens := Tokens{Input: 100, Cached: 40, CacheWrite: 20, Output: 10, Reasoning: 5}
	if got := tokens.Charge(); got != 110 {
		t.Errorf("the charge is %d, want input and output: 110", got)
	}
	plain := Totals{Input: 100, Cached: 40, CacheWrite: 20, Output: 10, Reasoning: 5, Total: 110}
	estimated, failed := plain, plain
	estimated.Estimated, failed.Failed = 110, 1
	for _, tt := range []struct {
		name    string
		outcome Outcome
		want    Totals
	}{
		{"reported", Outcome{Tokens: tokens}, plain},
		{"estimated", Outcome{Tokens: tokens, Estimated: true}, estimated},
		{"failed", Outcome{Tokens: tokens, Failed: true}, failed},
		{"voided", Outcome{}, Totals{}},
	} {
		if diff := cmp.Diff(tt.want, tt.outcome.Settled()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}
