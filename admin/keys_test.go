package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// The object is written to the letter.
func TestKeyObject(t *testing.T) {
	b := newBench(t)
	g := b.newGroup(`{"name":"g","member":{"limits":{"tokens_per_day":7000}}}`)
	r := b.do("POST", "/llm_quota/keys", `{"name":"Production","group":"name:g","models":["gpt-4o*"],
		"quota":{"tokens":1e6,"reset":"monthly"},
		"limits":{"requests_per_minute":60,"concurrent_requests":"unlimited","requests_per_day":null}}`).ok(201)
	k := read[Key](r)
	want := fmt.Sprintf(`{"id":%q,"name":"Production","group":%q,"prefix":%q,"source":"api",`+
		`"disabled":false,"expires_at":null,"models":["gpt-4o*"],"allowed_ips":[],"alert_at":null,"metadata":{},`+
		`"quota":{"tokens":1000000,"reset":"monthly"},`+
		`"limits":{"requests_per_minute":60,"tokens_per_minute":null,"requests_per_day":null,"tokens_per_day":null,"concurrent_requests":"unlimited"},`+
		`"effective":{"quota":{"tokens":1000000,"reset":"monthly","time_zone":"UTC","at":"00:00","month_day":1},`+
		`"limits":{"requests_per_minute":60,"tokens_per_minute":null,"requests_per_day":null,"tokens_per_day":7000,"concurrent_requests":"unlimited"}},`+
		`"created_at":"2026-05-15T10:20:30Z","updated_at":"2026-05-15T10:20:30Z","last_used_at":null,`+
		`"state":{"quota":{"used":0,"reserved":0,"granted":0,"remaining":1000000,"resets_at":"2026-06-01T00:00:00Z"},`+
		`"limits":{"requests_per_minute":{"used":0,"remaining":60,"resets_at":null},`+
		`"tokens_per_day":{"used":0,"remaining":7000,"resets_at":"2026-05-16T00:00:00Z"}}},"secret":%q}`+"\n",
		k.ID, g.ID, k.Prefix, k.Secret)
	if r.body != want {
		t.Errorf("got  %swant %s", r.body, want)
	}
	if got := r.header.Get("Location"); got != "/llm_quota/keys/"+k.ID.String() {
		t.Errorf("Location %q", got)
	}
	if got := r.header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control %q", got)
	}
	b.spend(k.ID, "gpt-4o", 100)
	k = read[Key](b.do("GET", "/llm_quota/keys/name:Production", "").ok(200))
	if q := k.State.Quota; q.Used != 100 || q.Remaining != 999900 {
		t.Errorf("quota state %+v", q)
	}
	rpm := k.State.Limits[quota.RequestsPerMinute]
	if rpm.Used != 1 || rpm.Remaining != 59 || rpm.ResetsAt == nil || !rpm.ResetsAt.After(b.now) {
		t.Errorf("requests per minute: %+v", rpm)
	}
	if k.LastUsedAt == nil || !k.LastUsedAt.Equal(b.now) {
		t.Errorf("last used %v", k.LastUsedAt)
	}
}

func TestCreateKeyRefusals(t *testing.T) {
	b := newBench(t)
	b.newKey(`{"name":"taken","secret":"sk-brought-along-0123456789"}`)
	b.newGroup(`{"name":"g"}`)
	for body, words := range map[string]string{
		`{}`:                                   "name",
		`{"name":null}`:                        "name",
		`{"name":""}`:                          "name",
		`{"name":1}`:                           "name is not a string",
		`{"name":"a/b"}`:                       "without /",
		`{"name":"a\u0007"}`:                   "printable",
		`{"name":"x","naam":"y"}`:              "naam",
		`{"name":"x","Name":"y"}`:              "Name",
		`{"name":"x","id":"key_1"}`:            "id cannot be set",
		`{"name":"x","state":{}}`:              "state cannot be set",
		`{"name":"x","group":1}`:               "group is not a string",
		`{"name":"x","group":"no"}`:            "group: there is no group no",
		`{"name":"x","group":""}`:              "group: there is no group",
		`{"name":"x","group":"name:none"}`:     "group: there is no group name:none",
		`{"name":"x","disabled":1}`:            "disabled is not true or false",
		`{"name":"x","disabled":"true"}`:       "disabled is not true or false",
		`{"name":"x","expires_at":1}`:          "expires_at",
		`{"name":"x","expires_at":"tomorrow"}`: "expires_at",
		`{"name":"x","expires_at":"9999-12-31T23:00:00-23:00"}`:                      "expires_at",
		`{"name":"x","models":"gpt"}`:                                                "models is not an array of strings",
		`{"name":"x","models":[1]}`:                                                  "models is not an array of strings",
		`{"name":"x","models":[null]}`:                                               "models is not an array of strings",
		`{"name":"x","models":[""]}`:                                                 "models",
		`{"name":"x","allowed_ips":["10.0.0.0/33"]}`:                                 "allowed_ips: 10.0.0.0/33",
		`{"name":"x","allowed_ips":["fe80::1%eth0"]}`:                                "allowed_ips",
		`{"name":"x","allowed_ips":{}}`:                                              "allowed_ips",
		`{"name":"x","alert_at":80}`:                                                 "alert_at",
		`{"name":"x","alert_at":["80"]}`:                                             "alert_at",
		`{"name":"x","alert_at":[null]}`:                                             "alert_at",
		`{"name":"x","alert_at":[0]}`:                                                "alert_at",
		`{"name":"x","alert_at":[1e999]}`:                                            "alert_at",
		`{"name":"x","metadata":[]}`:                                                 "metadata is not an object",
		`{"name":"x","metadata":{"a":1}}`:                                            "metadata.a is not a string",
		`{"name":"x","metadata":{"a":"b","a":"c"}}`:                                  "metadata.a comes twice",
		`{"name":"x","metadata":{"":"c"}}`:                                           "metadata",
		`{"name":"x","quota":5}`:                                                     "quota is not an object",
		`{"name":"x","quota":{}}`:                                                    "quota.tokens is missing",
		`{"name":"x","quota":{"tokens":null,"reset":"daily"}}`:                       "quota.tokens is missing",
		`{"name":"x","quota":{"tokens":5}}`:                                          "reset is missing",
		`{"name":"x","quota":{"tokens":-5,"reset":"daily"}}`:                         "quota.tokens: -5",
		`{"name":"x","quota":{"tokens":1.5,"reset":"daily"}}`:                        "quota.tokens: 1.5",
		`{"name":"x","quota":{"tokens":"5M","reset":"daily"}}`:                       "quota.tokens",
		`{"name":"x","quota":{"tokens":5,"reset":"hourly"}}`:                         "hourly",
		`{"name":"x","quota":{"tokens":5,"reset":3}}`:                                "quota.reset is not a string",
		`{"name":"x","quota":{"tokens":5,"reset":"daily","time_zone":"Mars/Base"}}`:  "time_zone",
		`{"name":"x","quota":{"tokens":5,"reset":"daily","at":"24:00"}}`:             "24:00",
		`{"name":"x","quota":{"tokens":5,"reset":"weekly","week_start":"noday"}}`:    "week_start",
		`{"name":"x","quota":{"tokens":5,"reset":"monthly","month_day":32}}`:         "quota.month_day",
		`{"name":"x","quota":{"tokens":5,"reset":"daily","period":1}}`:               "quota.period",
		`{"name":"x","limits":[]}`:                                                   "limits is not an object",
		`{"name":"x","limits":{"quota":5}}`:                                          "limits.quota",
		`{"name":"x","limits":{"tokens_per_minute":"x"}}`:                            "limits.tokens_per_minute",
		`{"name":"x","limits":{"tokens_per_minute":1e20}}`:                           "limits.tokens_per_minute",
		`{"name":"x","limits":{"tokens_per_day":1,"tokens_per_day":2}}`:              "limits.tokens_per_day comes twice",
		`{"name":"x","secret":5}`:                                                    "secret is not a string",
		`{"name":"x","secret":""}`:                                                   "secret is not 20 to 512",
		`{"name":"x","secret":"short"}`:                                              "secret is not 20 to 512",
		`{"name":"x","secret":"sk-with space-0123456789"}`:                           "secret is not 20 to 512",
		`{"name":"x","secret":"lq_abcdefgh_01234567890123456789012345678901234567"}`: "checksum",
	} {
		b.do("POST", "/llm_quota/keys", body).fails(400, words)
	}
	for field, of := range map[string]string{"models": "m", "allowed_ips": "10.0.0.1"} {
		many := strings.Repeat(`,"`+of+`"`, 1000)
		b.do("POST", "/llm_quota/keys", fmt.Sprintf(`{"name":"x","%s":["%s"%s]}`, field, of, many)).fails(400, field+" has more than 1000")
	}
	b.do("POST", "/llm_quota/keys", `{"name":"taken"}`).fails(409, `name "taken" is taken`)
	b.do("POST", "/llm_quota/keys", `{"name":"x","secret":"sk-brought-along-0123456789"}`).fails(409, "secret")
	b.do("POST", "/llm_quota/keys?x=1", `{"name":"x"}`).fails(400, "x is not a parameter")
	if keys := read[Keys](b.do("GET", "/llm_quota/keys", "").ok(200)); len(keys.Keys) != 1 {
		t.Errorf("%d keys after the refusals", len(keys.Keys))
	}
}

func TestCreateManyKeys(t *testing.T) {
	b := newBench(t)
	keys := read[[]Key](b.do("POST", "/llm_quota/keys", ` [{"name":"a"},{"name":"b","secret":"sk-brought-along-0123456789"},{"name":"c"}]`).ok(201))
	if len(keys) != 3 || keys[0].Name != "a" || keys[0].Secret == "" || keys[1].Secret != "sk-brought-along-0123456789" || keys[2].Secret == keys[0].Secret {
		t.Errorf("%+v", keys)
	}
	b.do("POST", "/llm_quota/keys", `[]`).ok(201)
	for body, status := range map[string]int{
		`[{"name":"d"},{"name":"e","oops":1}]`:                               400,
		`[{"name":"d"},{"name":""}]`:                                         400,
		`[{"name":"d"},{"name":"a"}]`:                                        409,
		`[{"name":"d"},{"name":"d"}]`:                                        409,
		`[{"name":"d"},{"name":"e","secret":"sk-brought-along-0123456789"}]`: 409,
	} {
		b.do("POST", "/llm_quota/keys", body).fails(status)
	}
	b.do("POST", "/llm_quota/keys", `[{"name":"d"},{"name":"e","oops":1}]`).fails(400, "[1].oops")
	if keys := read[Keys](b.do("GET", "/llm_quota/keys", "").ok(200)); len(keys.Keys) != 3 {
		t.Errorf("%d keys after the refusals", len(keys.Keys))
	}
}

func TestMostKeysAtOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("slow")
	}
	b := newBench(t)
	var body strings.Builder
	for i := range maxKeys {
		fmt.Fprintf(&body, `,{"name":"key %d","metadata":{"n":"%d"}}`, i, i)
	}
	keys := read[[]Key](b.do("POST", "/llm_quota/keys", "["+body.String()[1:]+"]").ok(201))
	if len(keys) != maxKeys {
		t.Fatalf("%d keys", len(keys))
	}
	if s := read[Status](b.do("GET", "/llm_quota/status", "").ok(200)); s.Keys != maxKeys {
		t.Errorf("%d keys in the status", s.Keys)
	}
	begin := time.Now()
	page := read[Keys](b.do("GET", "/llm_quota/keys?limit=1000", "").ok(200))
	t.Logf("a page of %d keys takes %s", len(page.Keys), time.Since(begin))
	if _, err := b.ledger.Authenticate(b.now, keys[maxKeys-1].Secret); err != nil {
		t.Error(err)
	}
}

// What a patch does to each field, and back.
func TestPatchKey(t *testing.T) {
	b := newBench(t)
	g := b.newGroup(`{"name":"g"}`)
	k := b.newKey(`{"name":"k","metadata":{"a":"1","b":"2"},"quota":{"tokens":100,"reset":"monthly","month_day":3}}`)
	path := "/llm_quota/keys/" + k.ID.String()
	for _, step := range []struct {
		patch string
		field string
		want  string
	}{
		{`{"name":"other"}`, "name", `"other"`},
		{`{"name":"k"}`, "name", `"k"`},
		{`{"group":"name:g"}`, "group", `"` + g.ID.String() + `"`},
		{`{"group":null}`, "group", `null`},
		{`{"group":"` + g.ID.String() + `"}`, "group", `"` + g.ID.String() + `"`},
		{`{"disabled":true}`, "disabled", `true`},
		{`{"disabled":null}`, "disabled", `false`},
		{`{"expires_at":"2027-01-01T02:00:00+02:00"}`, "expires_at", `"2027-01-01T00:00:00Z"`},
		{`{"expires_at":"2027-01-01","quota":{"time_zone":"Europe/Berlin"}}`, "expires_at", `"2026-12-31T23:00:00Z"`},
		{`{"expires_at":null,"quota":{"time_zone":null}}`, "expires_at", `null`},
		{`{"models":["a","b"]}`, "models", `["a","b"]`},
		{`{"models":["c"]}`, "models", `["c"]`},
		{`{"models":null}`, "models", `[]`},
		{`{"allowed_ips":["10.1.2.3/8","192.0.2.1","2001:db8::1"]}`, "allowed_ips", `["10.0.0.0/8","192.0.2.1/32","2001:db8::1/128"]`},
		{`{"allowed_ips":[]}`, "allowed_ips", `[]`},
		{`{"alert_at":[90.5]}`, "alert_at", `[90.5]`},
		{`{"alert_at":null}`, "alert_at", `null`},
		{`{"metadata":{"b":null,"c":"3"}}`, "metadata", `{"a":"1","c":"3"}`},
		{`{"metadata":null}`, "metadata", `{}`},
		{`{"metadata":{"x":null}}`, "metadata", `{}`},
		{`{"quota":{"tokens":200}}`, "quota", `{"tokens":200,"reset":"monthly","month_day":3}`},
		{`{"quota":{"month_day":"last"}}`, "quota", `{"tokens":200,"reset":"monthly","month_day":"last"}`},
		{`{"quota":{"reset":"manual","month_day":null}}`, "quota", `{"tokens":200,"reset":"manual"}`},
		{`{"quota":null}`, "quota", `null`},
		{`{"quota":{"tokens":"unlimited"}}`, "quota", `{"tokens":"unlimited"}`},
		{`{"limits":{"tokens_per_day":5,"requests_per_day":6}}`, "limits", `{"requests_per_minute":null,"tokens_per_minute":null,"requests_per_day":6,"tokens_per_day":5,"concurrent_requests":null}`},
		{`{"limits":{"tokens_per_day":null}}`, "limits", `{"requests_per_minute":null,"tokens_per_minute":null,"requests_per_day":6,"tokens_per_day":null,"concurrent_requests":null}`},
		{`{"limits":null}`, "limits", `{"requests_per_minute":null,"tokens_per_minute":null,"requests_per_day":null,"tokens_per_day":null,"concurrent_requests":null}`},
		{`{}`, "name", `"k"`},
	} {
		b.do("PATCH", path, step.patch).ok(200)
		got := read[map[string]json.RawMessage](b.do("GET", path, "").ok(200))
		if string(got[step.field]) != step.want {
			t.Errorf("after %s: %s is %s, want %s", step.patch, step.field, got[step.field], step.want)
		}
	}
	b.do("PATCH", path, `{"name":null}`).fails(400, "name")
	b.do("PATCH", path, `{"prefix":"x"}`).fails(400, "prefix cannot be set")
	b.do("PATCH", path, `{"secret":"sk-brought-along-0123456789"}`).fails(400, "secret cannot be set")
	b.do("PATCH", path, `{"x":1}`).fails(400, "x is not a field")
	b.do("PATCH", path+"?carry=maybe", `{}`).fails(400, "carry")
	b.newKey(`{"name":"taken"}`)
	b.do("PATCH", path, `{"name":"taken"}`).fails(409, "taken")
	b.do("PATCH", "/llm_quota/keys/key_0000000000002", `{}`).fails(404)
	b.do("PATCH", "/llm_quota/keys/"+g.ID.String(), `{}`).fails(404)
}

func TestKeyPaths(t *testing.T) {
	b := newBench(t)
	for _, name := range []string{"a", "with space", "ünïcode ✓", "..", "100%", "a?b#c", "name:x", "key_0000000000002", "+"} {
		body, _ := json.Marshal(map[string]string{"name": name})
		k := b.newKey(string(body))
		var escaped strings.Builder
		for _, c := range []byte("name:" + name) {
			fmt.Fprintf(&escaped, "%%%02X", c)
		}
		if got := read[Key](b.do("GET", "/llm_quota/keys/"+escaped.String(), "").ok(200)); got.ID != k.ID {
			t.Errorf("%q finds %s, want %s", name, got.ID, k.ID)
		}
	}
	for _, id := range []string{"a", "name:", "name:none", "key_", "key_0000000000002", "grp_0000000000001", "key_zzzzzzzzzzzzz", "%00"} {
		b.do("GET", "/llm_quota/keys/"+id, "").fails(404, "no key")
	}
}

func TestETag(t *testing.T) {
	b := newBench(t)
	created := b.do("POST", "/llm_quota/keys", `{"name":"k","metadata":{},"models":[],"quota":{"tokens":100,"reset":"daily"},"expires_at":"2030-01-01T00:00:00.123456789+05:00"}`).ok(201)
	k := read[Key](created)
	path := "/llm_quota/keys/name:k"
	tag := created.header.Get("ETag")
	b.spend(k.ID, "m", 10)
	b.do("POST", path+"/grant", `{"tokens":5}`).ok(200)
	b.now = b.now.Add(time.Hour)
	if got := b.do("GET", path, "").header.Get("ETag"); got != tag || len(tag) < 8 {
		t.Errorf("ETag %s became %s by use", tag, got)
	}
	b.do("PATCH", path, `{"disabled":true}`, "If-Match", `"other"`).fails(412)
	b.do("PATCH", path, `{"disabled":true}`, "If-Match", "W/"+tag).fails(412)
	b.do("DELETE", path, "", "If-Match", `"other"`).fails(412)
	for _, action := range []string{"rotate", "reset", "grant"} {
		b.do("POST", path+"/"+action, `{}`, "If-Match", `"other"`).fails(412)
	}
	b.do("POST", path+"/grant", `{"tokens":1}`, "If-Match", tag).ok(200)
	b.newGroup(`{"name":"g"}`)
	b.do("POST", "/llm_quota/groups/name:g/reset", "", "If-Match", `"other"`).fails(412)
	if read[Key](b.do("GET", path, "")).Disabled {
		t.Error("a failed If-Match changed the key")
	}
	changed := b.do("PATCH", path, `{"disabled":true}`, "If-Match", `"other", `+tag).ok(200)
	next := changed.header.Get("ETag")
	if next == tag || next == "" {
		t.Errorf("ETag %s became %s by a change", tag, next)
	}
	b.do("PATCH", path, `{"disabled":false}`, "If-Match", tag).fails(412, next)
	b.do("PATCH", path, `{"disabled":false}`, "If-Match", strings.TrimSuffix(next, `"`)+`-gzip"`).ok(200)
	b.do("PATCH", path, `{"disabled":false}`, "If-Match", "*").ok(200)
	rotated := b.do("POST", path+"/rotate", "").ok(200).header.Get("ETag")
	if rotated == tag {
		t.Error("the ETag is the same after rotate")
	}
	b.do("DELETE", path, "", "If-Match", rotated).ok(204)
}

func TestDeleteKey(t *testing.T) {
	b := newBench(t)
	k := b.newKey(`{"name":"k"}`)
	path := "/llm_quota/keys/" + k.ID.String()
	b.do("DELETE", "/llm_quota/keys/name:k", "").ok(204)
	if _, err := b.ledger.Authenticate(b.now, k.Secret); !errors.Is(err, quota.ErrNotFound) {
		t.Errorf("the secret works: %v", err)
	}
	gone := read[Key](b.do("GET", path, "").ok(200))
	if gone.DeletedAt == nil || !gone.DeletedAt.Equal(b.now) || !gone.Disabled {
		t.Errorf("%+v", gone)
	}
	b.do("GET", "/llm_quota/keys/name:k", "").fails(404)
	b.do("DELETE", path, "").fails(404)
	b.do("PATCH", path, `{"disabled":false}`).fails(404)
	b.do("POST", path+"/reset", "").fails(404)
	b.do("POST", path+"/grant", `{"tokens":1}`).fails(404)
	b.do("POST", path+"/rotate", "").fails(404)
	if again := b.newKey(`{"name":"k"}`); again.ID == k.ID {
		t.Error("the ID is used twice")
	}
	b.do("POST", "/llm_quota/keys", fmt.Sprintf(`{"name":"x","secret":%q}`, k.Secret)).fails(409, "secret") // it never works again
}

// Of many changes at the same time none is lost.
func TestConcurrentPatches(t *testing.T) {
	b := newBench(t)
	k := b.newKey(`{"name":"k"}`)
	path := "/llm_quota/keys/" + k.ID.String()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if r := b.do("PATCH", path, fmt.Sprintf(`{"metadata":{"n%d":"%d"}}`, i, i)); r.status != 200 {
				t.Error(r.body)
			}
		})
	}
	wg.Wait()
	if k = read[Key](b.do("GET", path, "")); len(k.Metadata) != 50 {
		t.Errorf("%d of 50 changes are left", len(k.Metadata))
	}
}

// Of many If-Match changes of one state exactly one is made.
func TestConcurrentIfMatch(t *testing.T) {
	b := newBench(t)
	tag := b.do("POST", "/llm_quota/keys", `{"name":"k"}`).header.Get("ETag")
	var wg sync.WaitGroup
	statuses := make([]int, 20)
	for i := range statuses {
		wg.Go(func() {
			statuses[i] = b.do("PATCH", "/llm_quota/keys/name:k", fmt.Sprintf(`{"metadata":{"n":"%d"}}`, i), "If-Match", tag).status
		})
	}
	wg.Wait()
	slices.Sort(statuses)
	if statuses[0] != 200 || statuses[1] != 412 {
		t.Errorf("%v", statuses)
	}
}

// No alerts are something else than those of the app.
func TestNoAlerts(t *testing.T) {
	b := newBench(t)
	for _, path := range []string{"/llm_quota/keys", "/llm_quota/groups"} {
		b.do("POST", path, `{"name":"a"}`).ok(201)
		for _, at := range []string{"[]", "null", "[90]", "[]"} {
			r := b.do("PATCH", path+"/name:a", `{"alert_at":`+at+`}`).ok(200)
			if !strings.Contains(r.body, `"alert_at":`+at+`,`) {
				t.Errorf("set to %s: %s", at, r.body)
			}
		}
	}
}
