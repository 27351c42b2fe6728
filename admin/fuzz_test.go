package admin

import (
	"encoding/json"
	"slices"
	"testing"
)

var seeds = []string{
	`{"name":"k"}`, `[{"name":"k"},{"name":"l","secret":"sk-brought-along-0123456789"}]`, `{}`, `[]`, `null`, `{"name":"k","name":"k"}`,
	`{"name":"k","group":"name:g","disabled":true,"expires_at":"2027-01-01","models":["gpt-*"],"allowed_ips":["10.0.0.0/8","::1"],"alert_at":[50,99.5],"metadata":{"a":"b"}}`,
	`{"name":"k","quota":{"tokens":1e6,"reset":"monthly","time_zone":"Europe/Berlin","at":"06:00","week_start":"monday","month_day":"last"}}`,
	`{"name":"k","limits":{"requests_per_minute":60,"tokens_per_minute":"unlimited","requests_per_day":null,"tokens_per_day":0,"concurrent_requests":1.0}}`,
	`{"name":null,"group":null,"disabled":null,"expires_at":null,"models":null,"allowed_ips":null,"alert_at":null,"metadata":null,"quota":null,"limits":null}`,
	`{"expires_at":"9999-12-31T23:59:59-23:59"}`, `{"expires_at":"0001-01-01T00:00:00+23:59"}`, `{"expires_at":"0000-01-01"}`,
	`{"quota":{"month_day":null,"tokens":null}}`, `{"metadata":{"a":null,"":"x"}}`, `{"a":`, "{\"name\":\"\xff\"}", `{"name":"\ud800"}`, ` { } x`,
}

// answers fails the test unless the status is one that a request's body may
// lead to, and the body is JSON.
func (r *reply) answers(statuses ...int) {
	r.t.Helper()
	if !slices.Contains(append(statuses, 400, 409), r.status) || !json.Valid([]byte(r.body)) {
		r.t.Errorf("status %d: %s", r.status, r.body)
	}
}

func FuzzCreateKey(f *testing.F) {
	for _, s := range seeds {
		f.Add(s)
	}
	b := newBench(f)
	b.newGroup(`{"name":"g"}`)
	f.Fuzz(func(t *testing.T, body string) {
		b := *b
		b.TB = t
		b.do("POST", "/llm_quota/keys", body).answers(201)
		for _, k := range read[Keys](b.do("GET", "/llm_quota/keys?limit=1000", "").ok(200)).Keys {
			b.do("DELETE", "/llm_quota/keys/"+k.ID.String(), "").ok(204)
		}
	})
}

func FuzzPatchKey(f *testing.F) {
	for _, s := range seeds {
		f.Add(s)
	}
	b := newBench(f)
	b.newGroup(`{"name":"g"}`)
	k := b.newKey(`{"name":"k"}`)
	path := "/llm_quota/keys/" + k.ID.String()
	f.Fuzz(func(t *testing.T, body string) {
		b := *b
		b.TB = t
		r := b.do("PATCH", path, body)
		r.answers(200)
		shown := b.do("GET", path, "").ok(200)
		if r.status == 200 && r.header.Get("ETag") != shown.header.Get("ETag") {
			t.Errorf("the ETag is another after the change is stored: %s", body)
		}
		// A patch is idempotent.
		if r.status == 200 {
			if again := b.do("PATCH", path, body).ok(200); again.header.Get("ETag") != r.header.Get("ETag") {
				t.Errorf("the same patch again changes the key: %s", body)
			}
		}
	})
}

func FuzzPatchGroup(f *testing.F) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Add(`{"parent":"name:g","member":{"quota":{"tokens":5,"reset":"daily"},"limits":{"tokens_per_day":3}}}`)
	b := newBench(f)
	g := b.newGroup(`{"name":"g"}`)
	path := "/llm_quota/groups/" + g.ID.String()
	f.Fuzz(func(t *testing.T, body string) {
		b := *b
		b.TB = t
		b.do("PATCH", path, body).answers(200)
		b.do("GET", path, "").ok(200)
	})
}
