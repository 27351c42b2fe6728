package admin

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestListKeys(t *testing.T) {
	b := newBench(t)
	g := b.newGroup(`{"name":"g"}`)
	for i := range 7 {
		b.newKey(fmt.Sprintf(`{"name":"Key %d","group":%s}`, i, []string{"null", `"name:g"`}[i%2]))
	}
	b.do("PATCH", "/llm_quota/keys/name:Key%201", `{"disabled":true}`).ok(200)
	b.do("PATCH", "/llm_quota/keys/name:Key%202", `{"expires_at":"2026-05-15T10:20:30Z"}`).ok(200)
	b.do("DELETE", "/llm_quota/keys/name:Key%203", "").ok(204)
	prefix := read[Key](b.do("GET", "/llm_quota/keys/name:Key%204", "")).Prefix
	for query, want := range map[string]string{
		"":                                     "6 5 4 2 1 0",
		"status=active":                        "6 5 4 0",
		"status=disabled":                      "1",
		"status=expired":                       "2",
		"status=deleted":                       "3",
		"group=name:g":                         "5 1",
		"group=" + g.ID.String():               "5 1",
		"group=name:g&status=active":           "5",
		"q=kEY":                                "6 5 4 2 1 0",
		"q=key%205":                            "5",
		"q=" + strings.ToUpper(prefix):         "4",
		"q=nothing":                            "",
		"limit=1000&status=&group=&q=&cursor=": "6 5 4 2 1 0",
	} {
		if got := strings.Join(names(read[Keys](b.do("GET", "/llm_quota/keys?"+query, "").ok(200))), " "); got != want {
			t.Errorf("%s lists %s, want %s", query, got, want)
		}
	}
	for query, word := range map[string]string{
		"limit=0": "limit", "limit=1001": "limit", "limit=x": "limit", "limit=-1": "limit",
		"cursor=x": "cursor", "cursor=AAAAAAAAAAA": "cursor", "status=gone": "status: gone",
		"group=none": "group", "group=name:none": "group", "stauts=active": "stauts", "q=a&q=b": "q comes twice", "q=%zz": "query",
	} {
		b.do("GET", "/llm_quota/keys?"+query, "").fails(400, word)
	}
}

// names are the last words of the keys' names.
func names(keys Keys) (all []string) {
	for _, k := range keys.Keys {
		all = append(all, k.Name[strings.LastIndexByte(k.Name, ' ')+1:])
	}
	return all
}

// A page is followed by the next one whatever happens in between.
func TestListKeysPages(t *testing.T) {
	b := newBench(t)
	for i := range 10 {
		b.newKey(fmt.Sprintf(`{"name":"key %d"}`, i))
	}
	first := read[Keys](b.do("GET", "/llm_quota/keys?limit=4", "").ok(200))
	b.newKey(`{"name":"newer 10"}`)
	b.do("DELETE", "/llm_quota/keys/name:key%206", "").ok(204) // the last one shown
	b.do("DELETE", "/llm_quota/keys/name:key%205", "").ok(204)
	second := read[Keys](b.do("GET", "/llm_quota/keys?limit=4&cursor="+*first.NextCursor, "").ok(200))
	third := read[Keys](b.do("GET", "/llm_quota/keys?limit=4&cursor="+*second.NextCursor, "").ok(200))
	all := slices.Concat(names(first), names(second), names(third))
	if got := strings.Join(all, " "); got != "9 8 7 6 4 3 2 1 0" || third.NextCursor != nil {
		t.Errorf("pages hold %s, then %v", got, third.NextCursor)
	}
	whole := read[Keys](b.do("GET", "/llm_quota/keys?limit=9", "").ok(200))
	if len(whole.Keys) != 9 || whole.NextCursor != nil {
		t.Errorf("%d keys, then %v", len(whole.Keys), whole.NextCursor)
	}
}
