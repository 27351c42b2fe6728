package ledger

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// However many names callers think of, few are kept, and none of one key's
// making takes the place of another key's.
func TestNamesAreBounded(t *testing.T) {
	const most, perKey, unproven, keys = 50, 10, 20, 8
	for _, proven := range []bool{true, false} {
		n := newNames(most, perKey, unproven)
		bound := map[bool]int{true: most, false: unproven}[proven]
		brought := map[string]quota.ID{} // who brought which name
		seed := rand.Uint64()
		random := rand.New(rand.NewPCG(seed, 0))
		for i := range 20_000 {
			key := quota.ID(1 + random.IntN(keys))
			name := fmt.Sprintf("model-%d", random.IntN(5000))
			by, known := brought[name]
			switch got := n.name(key, name, proven); {
			case got == name && !known:
				brought[name] = key
			case got == otherName && known:
				t.Fatalf("seed %d: call %d of %s, which %s has brought, counts as %s", seed, i, name, by, got)
			case got != name && got != otherName:
				t.Fatalf("seed %d: %s counts as %s", seed, name, got)
			}
		}
		count := map[quota.ID]int{}
		for _, key := range brought {
			count[key]++
		}
		for key, k := range count {
			if k > perKey {
				t.Errorf("key %d brought %d names, want %d at most", key, k, perKey)
			}
		}
		if len(brought) != bound || len(n.m) != bound || len(n.byKey) > keys {
			t.Errorf("proven %v: %d names, and %d kept of %d keys, want %d", proven, len(brought), len(n.m), len(n.byKey), bound)
		}
	}
}

func TestNamesThatAreNotKept(t *testing.T) {
	n := newNames(50, 10, 0)
	for _, tt := range []struct {
		name   string
		proven bool
		want   string
	}{
		{"", true, ""},
		{"gpt-4o", false, otherName}, // which may be no model at all
		{"gpt-4o", true, "gpt-4o"},
		{"gpt-4o", false, "gpt-4o"},
		{strings.Repeat("m", maxNameLen), true, strings.Repeat("m", maxNameLen)},
		{strings.Repeat("m", maxNameLen+1), true, otherName},
		{"gpt\n4o", true, otherName},
		{"gpt\xff", true, otherName},
		{otherName, true, otherName},
	} {
		if got := n.name(1, tt.name, tt.proven); got != tt.want {
			t.Errorf("%q, proven %v, counts as %q, want %q", tt.name, tt.proven, got, tt.want)
		}
	}
}
