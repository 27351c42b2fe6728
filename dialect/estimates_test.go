package dialect

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// TestEstimates compares what is estimated of recorded calls with what their
// providers counted: of the input what is reserved, of the output what a
// stream would be charged that broke off after its last word. It prints the
// quantiles of estimate / count for each wire format; README quotes them. What
// no estimate can know (images, stored context, tools of the provider's) is
// left out.
func TestEstimates(t *testing.T) {
	type sample struct{ input, output []float64 }
	samples := map[string]*sample{}
	for _, x := range loadCorpus(t) {
		c, ref := Read(x.request(), Options{Strict: true})
		if ref != nil || c.Kind != Generate || c.Unbounded != "" || x.Canonical == nil || x.Canonical.Input < 10 {
			continue
		}
		s := samples[x.API]
		if s == nil {
			s = &sample{}
			samples[x.API] = s
		}
		s.input = append(s.input, float64(c.Input)/float64(x.Canonical.Input))
		if _, out, _ := x.replayWithoutUsage(t, c); out.Estimated && x.Canonical.Output >= 10 && out.Tokens.Output > 0 {
			s.output = append(s.output, float64(out.Tokens.Output)/float64(x.Canonical.Output))
		}
	}
	names := make([]string, 0, len(samples))
	for name := range samples {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		s := samples[name]
		t.Logf("%-20s input %s   output %s", name, quantiles(s.input), quantiles(s.output))
		if m := median(s.input); len(s.input) >= 30 && (m < 0.7 || m > 1.5) {
			t.Errorf("%s: half of the inputs are estimated at less than %.2f of what they are", name, m)
		}
	}
}

// replayWithoutUsage meters the answer with its usage taken away.
func (x *exchange) replayWithoutUsage(t *testing.T, c *Call) (*Call, quota.Outcome, []byte) {
	t.Helper()
	body := string(x.body())
	for _, name := range []string{"usage", "usageMetadata", "prompt_eval_count", "eval_count", "invocationMetrics"} {
		body = strings.ReplaceAll(body, `"`+name+`"`, `"x`+name[1:]+`"`)
	}
	return x.replay(t, []byte(body), false, 1<<30)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 1
	}
	slices.Sort(v)
	return v[len(v)/2]
}

func quantiles(v []float64) string {
	if len(v) == 0 {
		return "-"
	}
	slices.Sort(v)
	at := func(q float64) float64 { return v[int(q*float64(len(v)-1))] }
	return fmt.Sprintf("n=%-4d p5 %.2f p25 %.2f p50 %.2f p75 %.2f p95 %.2f", len(v), at(.05), at(.25), at(.5), at(.75), at(.95))
}
