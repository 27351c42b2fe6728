package admin

import (
	"errors"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

func TestReset(t *testing.T) {
	b := newBench(t)
	b.newGroup(`{"name":"g","quota":{"tokens":100,"reset":"monthly"}}`)
	k := b.newKey(`{"name":"k","group":"name:g","quota":{"tokens":50,"reset":"daily"},"limits":{"requests_per_day":10,"tokens_per_day":90,"requests_per_minute":5,"tokens_per_minute":95}}`)
	path := "/llm_quota/keys/name:k"
	b.spend(k.ID, "m", 40)
	b.do("POST", path+"/grant", `{"tokens":5}`).ok(200)
	got := read[Key](b.do("POST", path+"/reset", "").ok(200))
	if q := got.State.Quota; q.Used != 0 || q.Granted != 0 || q.Remaining != 50 {
		t.Errorf("quota after the reset: %+v", q)
	}
	if got.State.Limits[quota.TokensPerDay].Used != 40 || got.State.Limits[quota.RequestsPerMinute].Used != 1 {
		t.Errorf("other limits were reset: %+v", got.State.Limits)
	}
	got = read[Key](b.do("POST", path+"/reset", `{"limits":["tokens_per_day","requests_per_minute","tokens_per_minute","requests_per_day","tokens_per_day"]}`).ok(200))
	for name, l := range got.State.Limits {
		if l.Used != 0 {
			t.Errorf("%s after the reset: %+v", name, l)
		}
	}
	if g := read[Group](b.do("GET", "/llm_quota/groups/name:g", "")); g.State.Quota.Used != 40 {
		t.Errorf("the group was reset too: %+v", g.State)
	}
	if g := read[Group](b.do("POST", "/llm_quota/groups/name:g/reset", `{"limits":null}`).ok(200)); g.State.Quota.Used != 0 {
		t.Errorf("the group after its reset: %+v", g.State)
	}
	for body, words := range map[string]string{
		`{"limits":["qutoa"]}`: "qutoa", `{"limits":[]}`: "limits", `{"limits":"quota"}`: "limits", `{"limits":[1]}`: "limits",
		`{"limits":["concurrent_requests"]}`: "concurrent_requests", `{"limit":["quota"]}`: "limit", `[]`: "object",
	} {
		b.do("POST", path+"/reset", body).fails(400, words)
	}
	b.do("POST", "/llm_quota/keys/name:x/reset", "").fails(404)
}

func TestGrant(t *testing.T) {
	b := newBench(t)
	b.newKey(`{"name":"k","quota":{"tokens":50,"reset":"daily"}}`)
	b.newKey(`{"name":"free"}`)
	path := "/llm_quota/keys/name:k/grant"
	if k := read[Key](b.do("POST", path, `{"tokens":10}`).ok(200)); k.State.Quota.Granted != 10 || k.State.Quota.Remaining != 60 {
		t.Errorf("%+v", k.State.Quota)
	}
	if k := read[Key](b.do("POST", path, `{"tokens":-3e1}`).ok(200)); k.State.Quota.Granted != -20 || k.State.Quota.Remaining != 30 {
		t.Errorf("%+v", k.State.Quota)
	}
	if k := read[Key](b.do("POST", path, `{"tokens":-1000}`).ok(200)); k.State.Quota.Remaining != 0 {
		t.Errorf("%+v", k.State.Quota)
	}
	for _, body := range []string{
		"", `{}`, `{"tokens":null}`, `{"tokens":"5"}`, `{"tokens":1.5}`, `{"tokens":1e300}`, `{"tokens":true}`,
		`{"tokens":9007199254740993}`, `{"tokens":-99999999999999999999}`,
	} {
		b.do("POST", path, body).fails(400, "tokens")
	}
	b.do("POST", path, `{"amount":5}`).fails(400, "amount")
	b.do("POST", "/llm_quota/keys/name:free/grant", `{"tokens":5}`).fails(409, "no quota")
	b.now = b.now.Add(24 * time.Hour)
	if k := read[Key](b.do("GET", "/llm_quota/keys/name:k", "").ok(200)); k.State.Quota.Granted != 0 {
		t.Errorf("the grant outlived its period: %+v", k.State.Quota)
	}
}

func TestRotate(t *testing.T) {
	b := newBench(t)
	works := func(secret string) bool {
		t.Helper()
		_, err := b.ledger.Authenticate(b.now, secret)
		if err != nil && !errors.Is(err, quota.ErrNotFound) {
			t.Fatal(err)
		}
		return err == nil
	}
	path := "/llm_quota/keys/name:k/rotate"
	first := b.newKey(`{"name":"k"}`)
	if !works(first.Secret) {
		t.Fatal("the first secret does not work")
	}
	second := read[Key](b.do("POST", path, `{"grace":"24h"}`).ok(200))
	if second.ID != first.ID || second.Prefix == first.Prefix || !works(first.Secret) || !works(second.Secret) {
		t.Error("after the first rotation not both work")
	}
	third := read[Key](b.do("POST", path, "").ok(200))
	if works(second.Secret) || !works(third.Secret) || !works(first.Secret) {
		t.Error("without grace the secret before works, or another one does not")
	}
	b.now = b.now.Add(24*time.Hour - time.Second)
	if !works(first.Secret) {
		t.Error("the grace ended early")
	}
	b.now = b.now.Add(time.Second)
	if works(first.Secret) {
		t.Error("the grace does not end")
	}
	for range 4 {
		b.do("POST", path, `{"grace":"30d"}`).ok(200)
	}
	b.do("POST", path, `{"grace":"1h"}`).fails(409, "5 secrets")
	last := read[Key](b.do("POST", path, `{"grace":"0s"}`).ok(200))
	if !works(last.Secret) || !works(third.Secret) {
		t.Error("a rotation without grace at the most secrets")
	}
	for _, body := range []string{`{"grace":"31d"}`, `{"grace":"-1s"}`, `{"grace":5}`, `{"grace":"soon"}`, `{"grace":""}`} {
		b.do("POST", path, body).fails(400, "grace")
	}
	b.do("POST", path, `{"after":"1h"}`).fails(400, "after")
}
