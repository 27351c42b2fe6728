package admin

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// newOrdered makes keys that have used a share of their quotas, or nothing, or
// have no quota.
func newOrdered(t *testing.T) *bench {
	b := newBench(t)
	b.newGroup(`{"name":"g"}`)
	for i, settings := range []string{
		`{"name":"Beta 0","quota":{"tokens":1000,"reset":"daily"},"group":"name:g"}`,
		`{"name":"alpha 1","quota":{"tokens":1000,"reset":"daily"}}`,
		`{"name":"delta 2"}`,
		`{"name":"Gamma 3","quota":{"tokens":100,"reset":"monthly"},"group":"name:g"}`,
		`{"name":"epsilon 4","quota":{"tokens":1000,"reset":"daily"}}`,
		`{"name":"zeta 5","quota":{"tokens":0,"reset":"daily"}}`,
	} {
		k := b.newKey(settings)
		if tokens := []int64{100, 500, 300, 90, 0, 0}[i]; tokens > 0 {
			b.now = b.now.Add(time.Second)
			b.spend(k.ID, "gpt-4o", tokens)
		}
	}
	return b
}

func TestListKeysSorted(t *testing.T) {
	b := newOrdered(t)
	for sort, want := range map[string]string{
		"":           "5 4 3 2 1 0",
		"created":    "5 4 3 2 1 0",
		"-created":   "0 1 2 3 4 5",
		"name":       "1 0 2 4 3 5",
		"-name":      "5 3 4 2 0 1",
		"last_used":  "3 2 1 0 5 4",
		"-last_used": "4 5 0 1 2 3",
		"used":       "3 1 0 5 4 2",
		"-used":      "2 4 5 0 1 3",
	} {
		for limit := range 7 {
			query := url.Values{"sort": {sort}, "limit": {fmt.Sprint(limit + 1)}}
			var all []string
			for {
				page := read[Keys](b.do("GET", "/llm_quota/keys?"+query.Encode(), "").ok(200))
				all = append(all, names(page)...)
				if page.NextCursor == nil {
					break
				}
				if len(page.Keys) != limit+1 || len(all) > 6 {
					t.Fatalf("sort=%s: %v, then more", sort, all)
				}
				query.Set("cursor", *page.NextCursor)
			}
			if got := strings.Join(all, " "); got != want {
				t.Errorf("sort=%s with %d on a page is %s, want %s", sort, limit+1, got, want)
			}
		}
	}
	for query, want := range map[string]string{
		"sort=used&group=name:g": "3 0", "sort=-name&group=name:g": "3 0", "sort=name&q=eta": "0 5",
		"sort=name&status=disabled": "", "sort=last_used&status=active&limit=2": "3 2",
	} {
		if got := strings.Join(names(read[Keys](b.do("GET", "/llm_quota/keys?"+query, "").ok(200))), " "); got != want {
			t.Errorf("%s lists %s, want %s", query, got, want)
		}
	}
}

// A page begins after the last key of the one before, also when that key has
// gone, and others have come.
func TestListKeysSortedPages(t *testing.T) {
	b := newOrdered(t)
	first := read[Keys](b.do("GET", "/llm_quota/keys?sort=name&limit=3", "").ok(200))
	b.do("DELETE", "/llm_quota/keys/name:delta%202", "").ok(204) // the last one shown
	b.newKey(`{"name":"ALPHA 6"}`)                               // before it
	b.newKey(`{"name":"Eta 7"}`)                                 // after it
	second := read[Keys](b.do("GET", "/llm_quota/keys?sort=name&limit=3&cursor="+*first.NextCursor, "").ok(200))
	third := read[Keys](b.do("GET", "/llm_quota/keys?sort=name&limit=3&cursor="+*second.NextCursor, "").ok(200))
	if got := strings.Join(slices.Concat(names(first), names(second), names(third)), " "); got != "1 0 2 4 7 3 5" || third.NextCursor != nil {
		t.Errorf("pages hold %s, then %v", got, third.NextCursor)
	}
	// Deleted keys may share a name, and a place with it.
	for range 3 {
		b.newKey(`{"name":"delta 2"}`)
		b.do("DELETE", "/llm_quota/keys/name:delta%202", "").ok(204)
	}
	query, n := "sort=name&status=deleted&limit=1", 0
	for cursor := ""; ; n++ {
		page := read[Keys](b.do("GET", "/llm_quota/keys?"+query+cursor, "").ok(200))
		if len(page.Keys) != 1 || n > 4 {
			t.Fatalf("page %d holds %d keys", n, len(page.Keys))
		}
		if page.NextCursor == nil {
			break
		}
		cursor = "&cursor=" + *page.NextCursor
	}
	if n != 3 {
		t.Errorf("%d pages of deleted keys, want 4", n+1)
	}
}

func TestListKeysSortRefused(t *testing.T) {
	b := newOrdered(t)
	cursors := map[string]string{}
	for _, sort := range []string{"created", "-created", "name", "-name", "last_used", "used"} {
		cursors[sort] = *read[Keys](b.do("GET", "/llm_quota/keys?limit=2&sort="+sort, "").ok(200)).NextCursor
	}
	for of, cursor := range cursors {
		for sort := range cursors {
			r := b.do("GET", "/llm_quota/keys?limit=2&sort="+sort+"&cursor="+cursor, "")
			if of == sort {
				r.ok(200)
				continue
			}
			r.fails(400, "cursor")
			r.fails(400, "sort="+of)
		}
	}
	for query, word := range map[string]string{
		"sort=size": "sort: size", "sort=-": "sort: -", "sort=--name": "sort: --name", "sort=Name": "sort: Name", "sort=name&sort=name": "sort comes twice",
		"sort=name&cursor=x": "cursor: x", "sort=name&cursor=AAAAAAAAAAA": "cursor", "sort=name&cursor=AAAAAAAAAAEAAAAAAAAAAA": "cursor",
		"sort=name&cursor=AAAAAAAAAAEAAAAAAAAAAG5hbWU": "cursor", "cursor=AAAAAAAAAAEA": "cursor",
	} {
		b.do("GET", "/llm_quota/keys?"+query, "").fails(400, word)
	}
}
