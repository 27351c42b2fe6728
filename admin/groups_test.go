package admin

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

func TestGroupObject(t *testing.T) {
	b := newBench(t)
	up := b.newGroup(`{"name":"up"}`)
	r := b.do("POST", "/llm_quota/groups", `{"name":"g","parent":"name:up","metadata":{"a":"b"},"alert_at":[50],
		"quota":{"tokens":5000,"reset":"weekly","week_start":"sunday"},"limits":{"requests_per_day":9},
		"member":{"quota":{"tokens":10,"reset":"daily"},"limits":{"tokens_per_minute":7}}}`).ok(201)
	g := read[Group](r)
	const unset = `"requests_per_minute":null,`
	want := fmt.Sprintf(`{"id":%q,"name":"g","parent":%q,"quota":{"tokens":5000,"reset":"weekly","week_start":"sunday"},`+
		`"limits":{`+unset+`"tokens_per_minute":null,"requests_per_day":9,"tokens_per_day":null,"concurrent_requests":null},`+
		`"member":{"quota":{"tokens":10,"reset":"daily"},"limits":{`+unset+`"tokens_per_minute":7,"requests_per_day":null,"tokens_per_day":null,"concurrent_requests":null}},`+
		`"alert_at":[50],"metadata":{"a":"b"},"source":"api",`+
		`"effective":{"quota":{"tokens":5000,"reset":"weekly","time_zone":"UTC","at":"00:00","week_start":"sunday"},`+
		`"limits":{`+unset+`"tokens_per_minute":null,"requests_per_day":9,"tokens_per_day":null,"concurrent_requests":null}},`+
		`"created_at":"2026-05-15T10:20:30Z","updated_at":"2026-05-15T10:20:30Z","last_used_at":null,`+
		`"state":{"quota":{"used":0,"reserved":0,"granted":0,"remaining":5000,"resets_at":"2026-05-17T00:00:00Z"},`+
		`"limits":{"requests_per_day":{"used":0,"remaining":9,"resets_at":"2026-05-16T00:00:00Z"}}},"keys":0}`+"\n", g.ID, up.ID)
	if r.body != want {
		t.Errorf("got  %swant %s", r.body, want)
	}
	k := b.newKey(`{"name":"k","group":"name:g"}`)
	if k.Effective.Quota.Tokens != quota.At(10) || k.Quota != nil || k.State.Limits[quota.TokensPerMinute].Remaining != 7 {
		t.Errorf("what a member inherits: %+v", k)
	}
	b.newKey(`{"name":"gone","group":"name:g"}`)
	b.do("DELETE", "/llm_quota/keys/name:gone", "").ok(204)
	b.spend(k.ID, "m", 100)
	if g = read[Group](b.do("GET", "/llm_quota/groups/name:g", "").ok(200)); g.Keys != 1 || g.State.Quota.Used != 100 || g.LastUsedAt == nil {
		t.Errorf("%+v", g)
	}
}

func TestGroupRefusals(t *testing.T) {
	b := newBench(t)
	b.newGroup(`{"name":"a"}`)
	b.newGroup(`{"name":"b","parent":"name:a"}`)
	for body, words := range map[string]string{
		`{}`:                                  "name",
		`{"name":"x","parent":"a"}`:           "parent: there is no group a",
		`{"name":"x","parent":[]}`:            "parent is not a string",
		`{"name":"x","group":"name:a"}`:       "group",
		`{"name":"x","disabled":true}`:        "disabled",
		`{"name":"x","keys":3}`:               "keys cannot be set",
		`{"name":"x","member":5}`:             "member is not an object",
		`{"name":"x","member":{"models":[]}}`: "member.models",
		`{"name":"x","member":{"quota":{}}}`:  "member: quota.tokens",
		`{"name":"x","member":{"quota":{"tokens":"many","reset":"daily"}}}`: "member.quota.tokens",
		`{"name":"x","member":{"limits":{"tokens_per_day":-1}}}`:            "member.limits.tokens_per_day",
		`[{"name":"x"}]`: "object",
	} {
		b.do("POST", "/llm_quota/groups", body).fails(400, words)
	}
	b.do("POST", "/llm_quota/groups", `{"name":"a"}`).fails(409, "taken")
	b.do("PATCH", "/llm_quota/groups/name:a", `{"parent":"name:b"}`).fails(400, "above itself")
	b.do("PATCH", "/llm_quota/groups/name:a", `{"parent":"name:a"}`).fails(400, "above itself")
	b.do("PATCH", "/llm_quota/groups/name:none", `{}`).fails(404, "no group")
	parent := "a"
	for i := range quota.MaxDepth - 1 {
		name := fmt.Sprintf("deep%d", i)
		b.newGroup(fmt.Sprintf(`{"name":%q,"parent":"name:%s"}`, name, parent))
		parent = name
	}
	b.do("POST", "/llm_quota/groups", fmt.Sprintf(`{"name":"deeper","parent":"name:%s"}`, parent)).fails(400, "8 groups")
}

func TestPatchGroup(t *testing.T) {
	b := newBench(t)
	up := b.newGroup(`{"name":"up"}`)
	b.newGroup(`{"name":"g"}`)
	path := "/llm_quota/groups/name:g"
	none := `{"requests_per_minute":null,"tokens_per_minute":null,"requests_per_day":null,"tokens_per_day":null,"concurrent_requests":null}`
	for _, step := range []struct{ patch, field, want string }{
		{`{"parent":"name:up"}`, "parent", `"` + up.ID.String() + `"`},
		{`{"parent":null}`, "parent", `null`},
		{`{"member":{"quota":{"tokens":5,"reset":"daily"}}}`, "member", `{"quota":{"tokens":5,"reset":"daily"},"limits":` + none + `}`},
		{`{"member":{"quota":{"tokens":6}}}`, "member", `{"quota":{"tokens":6,"reset":"daily"},"limits":` + none + `}`},
		{`{"member":{"quota":null}}`, "member", `{"quota":null,"limits":` + none + `}`},
		{`{"member":{"limits":{"tokens_per_day":"unlimited"}}}`, "member", `{"quota":null,"limits":{"requests_per_minute":null,"tokens_per_minute":null,"requests_per_day":null,"tokens_per_day":"unlimited","concurrent_requests":null}}`},
		{`{"member":null}`, "member", `{"quota":null,"limits":` + none + `}`},
	} {
		b.do("PATCH", path, step.patch).ok(200)
		got := read[map[string]json.RawMessage](b.do("GET", path, "").ok(200))
		if string(got[step.field]) != step.want {
			t.Errorf("after %s: %s is %s, want %s", step.patch, step.field, got[step.field], step.want)
		}
	}
	tag := b.do("GET", path, "").header.Get("ETag")
	b.do("PATCH", path, `{"name":"h"}`, "If-Match", `"x"`).fails(412)
	b.do("PATCH", path, `{"name":"h"}`, "If-Match", tag).ok(200)
	b.do("DELETE", "/llm_quota/groups/name:h", "", "If-Match", tag).fails(412)
}

func TestDeleteGroup(t *testing.T) {
	b := newBench(t)
	up := b.newGroup(`{"name":"up"}`)
	g := b.newGroup(`{"name":"g","parent":"name:up"}`)
	b.newGroup(`{"name":"child","parent":"name:g"}`)
	b.newKey(`{"name":"k","group":"name:g"}`)
	b.do("DELETE", "/llm_quota/groups/name:g", "").fails(409, "not empty", "keys: 1, groups: 1")
	b.do("DELETE", "/llm_quota/groups/name:g?force=false", "").fails(409)
	b.do("DELETE", "/llm_quota/groups/name:g?force=1", "").fails(400, "force")
	b.do("DELETE", "/llm_quota/groups/name:g?force=true", "").ok(204)
	if k := read[Key](b.do("GET", "/llm_quota/keys/name:k", "").ok(200)); k.Group != Ref(up.ID) {
		t.Errorf("the key is in %s", k.Group)
	}
	if c := read[Group](b.do("GET", "/llm_quota/groups/name:child", "").ok(200)); c.Parent != Ref(up.ID) {
		t.Errorf("the child is under %s", c.Parent)
	}
	gone := read[Group](b.do("GET", "/llm_quota/groups/"+g.ID.String(), "").ok(200))
	if gone.DeletedAt == nil {
		t.Error("deleted_at is missing")
	}
	b.do("PATCH", "/llm_quota/groups/"+g.ID.String(), `{}`).fails(404)
	b.do("DELETE", "/llm_quota/groups/"+g.ID.String(), "").fails(404)
	b.do("POST", "/llm_quota/keys", fmt.Sprintf(`{"name":"x","group":%q}`, g.ID)).fails(400, "group")
	b.newGroup(`{"name":"g"}`)
}

func TestListGroups(t *testing.T) {
	b := newBench(t)
	up := b.newGroup(`{"name":"up"}`)
	for i := range 4 {
		b.newGroup(fmt.Sprintf(`{"name":"G%d","parent":%q}`, i, up.ID))
	}
	b.do("DELETE", "/llm_quota/groups/name:G2", "").ok(204)
	b.newKey(`{"name":"k","group":"name:G1"}`)
	for query, want := range map[string]string{
		"": "G3 G1 G0 up ", "q=g": "G3 G1 G0 ", "status=deleted": "G2 ", "status=active&limit=1000": "G3 G1 G0 up ",
		"parent=name:up": "G3 G1 G0 ",
	} {
		var got string
		for _, g := range read[Groups](b.do("GET", "/llm_quota/groups?"+query, "").ok(200)).Groups {
			got += g.Name + " "
			if (g.Keys == 1) != (g.Name == "G1") {
				t.Errorf("%s has %d keys", g.Name, g.Keys)
			}
		}
		if got != want {
			t.Errorf("%s lists %s, want %s", query, got, want)
		}
	}
	first := read[Groups](b.do("GET", "/llm_quota/groups?limit=2", "").ok(200))
	second := read[Groups](b.do("GET", "/llm_quota/groups?limit=2&cursor="+*first.NextCursor, "").ok(200))
	if second.Groups[0].Name != "G0" || second.NextCursor != nil {
		t.Errorf("%+v", second)
	}
	b.do("GET", "/llm_quota/groups?status=expired", "").fails(400, "status")
}
