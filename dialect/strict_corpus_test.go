package dialect

import (
	"slices"
	"testing"
)

// shortened are exchanges of which the request was shortened after it was
// recorded.
var shortened = []string{"8eb2b129ac5f992e0c54", "d10bae192687c510c886"}

// TestBoundsOfCorpus holds what was recorded against the bounds: no input that
// has one used more. Their requests keep what they say when their output is
// limited.
func TestBoundsOfCorpus(t *testing.T) {
	bounded, text := 0, 0
	unbounded := map[string]int{}
	for _, x := range loadCorpus(t) {
		c, ref := Read(x.request(), Options{Strict: true, InjectUsage: true})
		if ref != nil {
			t.Errorf("%s: refused", x.ID)
			continue
		}
		if c.Kind == Free {
			continue
		}
		if (c.Bound > 0) == (c.Unbounded != "") || c.Choices < 1 {
			t.Errorf("%s: bound %d, unbounded %q, choices %d", x.ID, c.Bound, c.Unbounded, c.Choices)
		}
		for _, n := range []int64{c.Choices, 100 * c.Choices, 1 << 30} {
			checkLimit(t, x.request, n)
		}
		if c.Unbounded != "" {
			unbounded[c.Unbounded]++
			continue
		}
		bounded++
		if c.Kind == Generate {
			text++
		}
		if x.Canonical != nil && x.Canonical.Input > c.Bound && !slices.Contains(shortened, x.ID) {
			t.Errorf("%s %s %s: input %d, bound %d", x.ID, x.Provider, x.Path, x.Canonical.Input, c.Bound)
		}
	}
	whys := make([]string, 0, len(unbounded))
	for why := range unbounded {
		whys = append(whys, why)
	}
	slices.Sort(whys)
	for _, why := range whys {
		t.Logf("%4d unbounded for %s", unbounded[why], why)
	}
	t.Logf("%d bounded, %d of them generate", bounded, text)
}
