package admin

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
	"github.com/llm-quota/caddy-llm-quota/store/badger"
)

// What explain says is what the next call meets, and asking changes nothing.
func TestExplain(t *testing.T) {
	b := newBench(t)
	b.newGroup(`{"name":"top","limits":{"requests_per_minute":5}}`)
	g := b.newGroup(`{"name":"team","parent":"name:top","quota":{"tokens":100,"reset":"daily"}}`)
	k := b.newKey(`{"name":"k","group":"name:team","limits":{"tokens_per_minute":1000},"models":["gpt-*"]}`)
	b.spend(k.ID, "gpt-4o", 60)
	path := "/llm_quota/keys/name:k/explain"
	get := func(path string) Explanation {
		t.Helper()
		return read[Explanation](b.do("GET", path, "").ok(200))
	}
	limits := func(x Explanation) string {
		var s []string
		for _, l := range x.Limits {
			s = append(s, fmt.Sprintf("%s %s %d/%d+%d %t", l.Name, l.Limit, l.Used, l.Max, l.Remaining, l.Fits))
		}
		return strings.Join(s, "; ")
	}
	x := get(path + "?model=gpt-4o&input_tokens=30&max_output_tokens=20")
	want := "k tokens_per_minute 60/1000+940 true; team quota 60/100+40 true; top requests_per_minute 1/5+4 true"
	if !x.Admitted || x.Reason != "" || x.Reserve.Input != 30 || x.Reserve.Output != 10 || limits(x) != want {
		t.Errorf("got %+v: %s", x, limits(x))
	}
	for range 9 { // or the sixth would be one request too many
		x = get(path + "?input_tokens=41")
	}
	want = strings.Replace(want, "+40 true", "+40 false", 1)
	if x.Admitted || x.Reason != string(quota.QuotaSpent) || x.Account != Ref(g.ID) || x.Limit != quota.TokenQuota || x.Message == "" || x.Reserve.Input != 0 || limits(x) != want {
		t.Errorf("got %+v: %s", x, limits(x))
	}
	x = get("/llm_quota/groups/name:team/explain?input_tokens=41")
	if want := "team quota 60/100+40 false; top requests_per_minute 1/5+4 true"; x.Admitted || limits(x) != want {
		t.Errorf("got %+v: %s", x, limits(x))
	}
	if x = get(path + "?model=claude"); x.Admitted || x.Reason != string(quota.ModelNotAllowed) {
		t.Errorf("a model that is not allowed: %+v", x)
	}
	b.do("PATCH", "/llm_quota/keys/name:k", `{"disabled":true}`).ok(200)
	if x = get(path); x.Admitted || x.Reason != string(quota.DisabledKey) {
		t.Errorf("a disabled key: %+v", x)
	}
	b.do("GET", path+"?input_tokens=-1", "").fails(400, "input_tokens")
	b.do("GET", path+"?max_output_tokens=x", "").fails(400, "max_output_tokens")
	b.do("GET", path+"?tokens=1", "").fails(400, "tokens is not a parameter")
	b.do("GET", "/llm_quota/keys/name:none/explain", "").fails(404)
	b.do("POST", path, "{}").fails(405)
	if u := read[Usage](b.do("GET", "/llm_quota/usage", "").ok(200)); u.Totals.Refused != 0 || u.Totals.Requests != 1 {
		t.Errorf("asking was counted: %+v", u.Totals)
	}
}

func TestVerify(t *testing.T) {
	b := newBench(t)
	g := b.newGroup(`{"name":"team","quota":{"tokens":1000,"reset":"daily"}}`)
	k := b.newKey(`{"name":"k","group":"name:team","quota":{"tokens":1000,"reset":"monthly"}}`)
	b.spend(k.ID, "m", 100)
	b.do("POST", "/llm_quota/groups/"+g.ID.String()+"/reset", `{}`).ok(200)
	b.spend(k.ID, "m", 10)
	if v := read[Verification](b.do("GET", "/llm_quota/verify", "").ok(200)); !v.OK || v.Checked == 0 || v.Differences == nil || len(v.Differences) != 0 {
		t.Errorf("got %+v", v)
	}
	b.do("GET", "/llm_quota/verify?x=1", "").fails(400, "x")
}

// A backup is the store: what is restored from it has the same keys, secrets,
// counters and history.
func TestBackup(t *testing.T) {
	b := newBench(t)
	made := b.newKey(`{"name":"k","quota":{"tokens":1000,"reset":"monthly"}}`)
	b.spend(made.ID, "m", 100)
	r := b.do("GET", "/llm_quota/backup", "").ok(200)
	if got := r.header.Get("Content-Type"); got != "application/octet-stream" {
		t.Errorf("Content-Type is %q", got)
	}
	if strings.Contains(r.body, made.Secret) {
		t.Error("the secret is in the backup")
	}
	dir := filepath.Join(t.TempDir(), "again")
	if err := badger.Restore(dir, strings.NewReader(r.body)); err != nil {
		t.Fatal(err)
	}
	if err := badger.Restore(dir, strings.NewReader(r.body)); err == nil {
		t.Error("restored into a directory that is not empty")
	}
	if err := badger.Restore(filepath.Join(t.TempDir(), "cut"), bytes.NewReader([]byte(r.body)[:len(r.body)-10])); err == nil {
		t.Error("restored from a file that is not whole")
	}
	st, err := badger.Open(badger.Options{Dir: dir, SyncInterval: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(st, b.now, func(op string, err error) { t.Errorf("%s: %v", op, err) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close(b.now)
	a, err := l.Authenticate(b.now, made.Secret)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := l.State(b.now, a.ID()); err != nil || s.Limits[0].Used != 100 {
		t.Errorf("restored is %+v, %v", s, err)
	}
}

// What a key used moves along when it is told to.
func TestCarry(t *testing.T) {
	b := newBench(t)
	for _, name := range []string{"from", "to"} {
		b.newGroup(`{"name":"` + name + `","quota":{"tokens":1000,"reset":"daily"}}`)
	}
	k := b.newKey(`{"name":"k","group":"name:from"}`)
	b.spend(k.ID, "m", 100)
	used := func(group string) int64 {
		return read[Group](b.do("GET", "/llm_quota/groups/name:"+group, "").ok(200)).State.Quota.Used
	}
	b.do("PATCH", "/llm_quota/keys/name:k?carry=true", `{"group":"name:to"}`).ok(200)
	if used("from") != 0 || used("to") != 100 {
		t.Errorf("carried: from has %d, to has %d", used("from"), used("to"))
	}
	b.do("PATCH", "/llm_quota/keys/name:k?carry=false", `{"group":"name:from"}`).ok(200)
	if used("from") != 0 || used("to") != 100 {
		t.Errorf("not carried: from has %d, to has %d", used("from"), used("to"))
	}
}

// The audit log says who made a change, as far as that can be known.
func TestAuthors(t *testing.T) {
	b := newBench(t)
	b.do("POST", "/llm_quota/groups", `{"name":"a"}`).ok(201)
	b.do("POST", "/llm_quota/groups", `{"name":"b"}`, "User-Agent", CLIAgent+"v1", ActorHeader, "ada").ok(201)
	b.do("POST", "/llm_quota/groups", `{"name":"c"}`, ActorHeader, "bad\x01name").ok(201)
	r := httptest.NewRequest("POST", "/llm_quota/groups", strings.NewReader(`{"name":"d"}`))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set(ActorHeader, "somebody else")
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Subject: pkix.Name{CommonName: "operator"}}}}
	w := httptest.NewRecorder()
	b.mux.ServeHTTP(w, r)
	(&reply{t, w.Code, w.Header(), w.Body.String()}).ok(201)
	var got []string
	if err := b.ledger.Changes(0, func(c *quota.Change) bool {
		got = append(got, c.Name+" "+c.Actor+" "+c.Source)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"d CN=operator api", "c  api", "b ada cli", "a  api"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
