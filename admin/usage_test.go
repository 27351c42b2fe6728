package admin

import (
	"encoding/csv"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

func TestUsage(t *testing.T) {
	b := newBench(t)
	g := b.newGroup(`{"name":"g"}`)
	child := b.newGroup(`{"name":"child","parent":"name:g"}`)
	k := b.newKey(`{"name":"k","group":"name:child"}`)
	free := b.newKey(`{"name":"free"}`)
	b.spend(k.ID, "gpt-4o", 100)
	b.now = b.now.Add(time.Hour)
	b.spend(k.ID, "claude", 30)
	b.spend(free.ID, "gpt-4o", 11)
	usage := func(query string) Usage {
		t.Helper()
		return read[Usage](b.do("GET", "/llm_quota/usage?"+query, "").ok(200))
	}
	u := usage("")
	if len(u.Series) != 25 || u.Step != "hour" || u.TimeZone != "UTC" || len(u.Breakdown) != 0 {
		t.Errorf("%+v", u)
	}
	if u.Totals.Total != 141 || u.Totals.Requests != 3 || u.Series[24].Totals.Total != 41 || u.Series[23].Totals.Total != 100 {
		t.Errorf("%+v", u)
	}
	if !u.From.Equal(time.Date(2026, 5, 14, 11, 0, 0, 0, time.UTC)) || !u.To.Equal(time.Date(2026, 5, 15, 12, 0, 0, 0, time.UTC)) {
		t.Errorf("from %s to %s", u.From, u.To)
	}
	for query, want := range map[string]int64{
		"key=name:free": 11, "key=" + k.ID.String(): 130, "group=name:g": 130, "group=" + child.ID.String(): 130,
		"model=gpt-4o": 111, "model=none": 0, "group=name:g&model=claude": 30, "key=name:free&group=name:g": 0,
		"from=2026-05-15T11:00:00Z": 41, "from=2026-05-15T13:00:00%2b02:00": 41, "from=2026-05-15T13:00:00+02:00": 41,
		"to=2026-05-15T11:00:00Z": 100, "from=2026-05-15&to=2026-05-16&step=day": 141, "from=2026-05-16&to=2026-05-17": 0,
		"from=2026-05-15&to=2026-05-16&step=day&time_zone=Pacific/Kiritimati": 0, // over at 10:00 UTC
		"from=2026-05-15&to=2026-05-15T12:00:00Z&step=minute":                 141,
		"from=2026-01-01&step=month":                                          141, "from=2026-03-01&step=month&time_zone=Asia/Tokyo": 141,
	} {
		if got := usage(query); got.Totals.Total != want {
			t.Errorf("%s: %d tokens, want %d", query, got.Totals.Total, want)
		}
	}
	b.do("DELETE", "/llm_quota/keys/name:k", "").ok(204)
	if got := usage("key=" + k.ID.String()); got.Totals.Total != 130 {
		t.Errorf("the deleted key's history: %+v", got.Totals)
	}
	b.do("DELETE", "/llm_quota/groups/name:g?force=true", "").ok(204)
	if got := usage("group=" + g.ID.String()); got.Totals.Total != 0 {
		t.Errorf("the deleted group's history, of which no descendant is left: %+v", got.Totals)
	}
}

// The answer is written to the letter.
func TestUsageObject(t *testing.T) {
	b := newBench(t)
	g := b.newGroup(`{"name":"g"}`)
	k := b.newKey(`{"name":"k","group":"name:g"}`)
	free := b.newKey(`{"name":"free"}`)
	b.spend(k.ID, "m", 5)
	b.spend(free.ID, "m", 7)
	zero := `{"requests":0,"refused":0,"failed":0,"input_tokens":0,"cached_input_tokens":0,"cache_write_tokens":0,"output_tokens":0,"reasoning_tokens":0,"total_tokens":0,"estimated_tokens":0}`
	totals := func(requests, input, output int) string {
		return fmt.Sprintf(`{"requests":%d,"refused":0,"failed":0,"input_tokens":%d,"cached_input_tokens":0,"cache_write_tokens":0,"output_tokens":%d,"reasoning_tokens":0,"total_tokens":%d,"estimated_tokens":0}`, requests, input, output, input+output)
	}
	got := b.do("GET", "/llm_quota/usage?from=2026-05-14&to=2026-05-16&step=day&by=group,model&time_zone=Europe/Berlin", "").ok(200).body
	want := `{"from":"2026-05-14T00:00:00+02:00","to":"2026-05-16T00:00:00+02:00","step":"day","time_zone":"Europe/Berlin","totals":` + totals(2, 7, 5) +
		`,"breakdown":[{"model":"m","group":null,"totals":` + totals(1, 4, 3) + `},{"model":"m","group":"` + g.ID.String() + `","totals":` + totals(1, 3, 2) + `}]` +
		`,"series":[{"start":"2026-05-14T00:00:00+02:00","totals":` + zero + `},{"start":"2026-05-15T00:00:00+02:00","totals":` + totals(2, 7, 5) + `}]}` + "\n"
	if got != want {
		t.Errorf("got  %swant %s", got, want)
	}
	got = b.do("GET", "/llm_quota/usage?by=key", "").ok(200).body
	if !strings.Contains(got, `"breakdown":[{"key":"`+free.ID.String()+`","totals":`) {
		t.Error(got)
	}
	got = b.do("GET", "/llm_quota/usage?key=name:k&from=2026-05-01&to=2026-05-02", "").ok(200).body
	if !strings.Contains(got, `"breakdown":[],`) {
		t.Error(got)
	}
}

func TestUsageZone(t *testing.T) {
	b := newBench(t)
	b.configure(ledger.Config{Zone: "Asia/Kolkata"})
	if u := read[Usage](b.do("GET", "/llm_quota/usage?from=2026-05-14&step=day", "").ok(200)); u.TimeZone != "Asia/Kolkata" || u.From.Hour() != 0 {
		t.Errorf("%+v", u)
	}
}

// A year by day can be asked for in every time zone, and it is told from where
// on the days are exact.
func TestUsageRough(t *testing.T) {
	b := newBench(t)
	u := read[Usage](b.do("GET", "/llm_quota/usage?from=2026-01-01&step=day&time_zone=Europe/Berlin", "").ok(200))
	if at := u.RoughBefore; at == nil || b.now.Sub(*at) > 90*24*time.Hour || b.now.Sub(*at) < 89*24*time.Hour {
		t.Errorf("rough before %v, at %v", at, b.now)
	}
	b.do("GET", "/llm_quota/usage?from=2026-01-01&step=hour&time_zone=Europe/Berlin", "").fails(400, "kept for 90d")
	if u := read[Usage](b.do("GET", "/llm_quota/usage?from=2026-01-01&step=day", "").ok(200)); u.RoughBefore != nil {
		t.Errorf("days of UTC are rough before %v", u.RoughBefore)
	}
}

func TestUsageCSV(t *testing.T) {
	b := newBench(t)
	b.newGroup(`{"name":"g"}`)
	k := b.newKey(`{"name":"k","group":"name:g"}`)
	free := b.newKey(`{"name":"free"}`)
	b.spend(k.ID, `a,"b"`, 5)
	b.spend(free.ID, "m", 7)
	r := b.do("GET", "/llm_quota/usage?format=csv&from=2026-05-15T10:00:00Z&to=2026-05-15T12:00:00Z", "").ok(200)
	if got := r.header.Get("Content-Type"); got != "text/csv; charset=utf-8" {
		t.Errorf("Content-Type %q", got)
	}
	want := "start,requests,refused,failed,input_tokens,cached_input_tokens,cache_write_tokens,output_tokens,reasoning_tokens,total_tokens,estimated_tokens\n" +
		"2026-05-15T10:00:00Z,2,0,0,7,0,0,5,0,12,0\n2026-05-15T11:00:00Z,0,0,0,0,0,0,0,0,0,0\n"
	if r.body != want {
		t.Errorf("got\n%swant\n%s", r.body, want)
	}
	r = b.do("GET", "/llm_quota/usage?format=csv&by=model,key,group&from=2026-05-15T10:00:00Z&to=2026-05-15T12:00:00Z", "").ok(200)
	lines, err := csv.NewReader(strings.NewReader(r.body)).ReadAll()
	if err != nil || len(lines) != 5 {
		t.Fatalf("%d lines, %v", len(lines), err)
	}
	if got := strings.Join(lines[0][:4], " "); got != "start model key group" {
		t.Errorf("columns %s", got)
	}
	if l := lines[1]; l[1] != "m" || l[2] != free.ID.String() || l[3] != "" || l[12] != "7" {
		t.Errorf("%v", l)
	}
	if l := lines[2]; l[1] != `a,"b"` || l[2] != k.ID.String() || l[3] == "" || l[12] != "5" {
		t.Errorf("%v", l)
	}
	if l := lines[4]; l[0] != "2026-05-15T11:00:00Z" || l[12] != "0" {
		t.Errorf("%v", l)
	}
}

func TestUsageRefusals(t *testing.T) {
	b := newBench(t)
	for query, words := range map[string]string{
		"from=yesterday":                "from: yesterday",
		"to=2026-13-01":                 "to: 2026-13-01",
		"from=2026-05-15&to=2026-05-15": "to is not after from",
		"from=2027-01-01":               "to is not after from",
		"step=week":                     "step: week",
		"by=day":                        "by: day",
		"by=model,":                     "by:",
		"key=name:none":                 "key: there is no key",
		"key=grp_0000000000001":         "key: there is no key",
		"group=x":                       "group: there is no group",
		"format=xml":                    "format: xml",
		"time_zone=Mars/Base":           "time_zone",
		"time_zone=../../etc/passwd":    "time_zone",
		"time_zone=Local":               "time_zone",
		"from=2026-05-12&to=2026-05-14&step=minute":                 "kept for 2d",
		"from=2026-05-14&to=2026-06-30&step=minute":                 "10000 rows",
		"from=2026-01-01&step=hour":                                 "kept for 90d",
		"from=2020-01-01&step=day&time_zone=Europe/Berlin":          "kept for 1095d",
		"from=2020-01-01&step=month":                                "1095d",
		"from=0001-01-01&to=9999-01-01&step=minute":                 "10000 rows",
		"from=0000-01-01T00:00:00%2b23:59&to=9999-12-31&step=month": "from",
		"form=2026-01-01":                                           "form",
		"model=a&model=b":                                           "model comes twice",
	} {
		b.do("GET", "/llm_quota/usage?"+query, "").fails(400, words)
	}
	for _, query := range []string{
		"from=9999-12-31&to=9999-12-31T23:59:59Z", "from=9999-12-30&to=9999-12-31&time_zone=Asia/Tokyo&step=month",
		"from=9999-12-31T23:00:00-23:00&to=9999-12-31T23:59:59-23:59",
	} { // no time could be written that ends the last step
		b.do("GET", "/llm_quota/usage?"+query, "").fails(400, "years 1 and 9999")
	}
}

func TestServeSelf(t *testing.T) {
	b := newBench(t)
	k := b.newKey(`{"name":"k","metadata":{"internal":"note"},"quota":{"tokens":100,"reset":"monthly","at":"06:10","time_zone":"Asia/Kolkata"}}`)
	b.newKey(`{"name":"free"}`)
	b.spend(k.ID, "m", 100)
	b.now = b.now.Add(24 * time.Hour)
	b.spend(k.ID, "m", 10)
	self := func(name string) Self {
		t.Helper()
		a, err := b.ledger.ByName(b.now, name)
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		if err := ServeSelf(w, b.ledger, a, b.now); err != nil {
			t.Fatal(err)
		}
		if body := w.Body.String(); strings.Contains(body, "metadata") || strings.Contains(body, "hash") {
			t.Error(body)
		}
		return read[Self](&reply{t: t, body: w.Body.String()})
	}
	s := self("k")
	if s.ID != k.ID || s.State.Quota.Used != 110 || s.Usage.Today.Total != 10 || s.Usage.Period == nil || s.Usage.Period.Total != 110 {
		t.Errorf("%+v", s)
	}
	if s = self("free"); s.Usage.Period != nil || s.Usage.Today.Requests != 0 {
		t.Errorf("%+v", s)
	}
}
