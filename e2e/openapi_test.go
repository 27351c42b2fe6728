package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// TestOpenAPI drives every operation of the admin API to every status that it
// is described to have, but 503, with every parameter and every example of a
// body, and holds each request and each answer to the description.
func TestOpenAPI(t *testing.T) {
	delivered := make(chan *http.Request, 100)
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		r = r.Clone(t.Context())
		r.Body = io.NopCloser(bytes.NewReader(body))
		delivered <- r
	}))
	defer hook.Close()
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}],"usage":{"prompt_tokens":450,"completion_tokens":450,"total_tokens":900}}`)
	}))
	defer provider.Close()
	g := newGate(t, provider.URL, fmt.Sprintf(`
webhook %s {
	secret shh
}
group frozen
key fixed {
	secret lq-secret-of-the-configuration
}`, hook.URL), "")
	d := newDescribed(t, nil, g)

	d.making()
	d.looking()
	d.happening(delivered)
	d.changing()
	d.refusing()
	d.unwinding()
	d.absent()

	for _, what := range d.unseen(func(status string) bool { return status == "503" }) {
		t.Errorf("never seen: %s", what)
	}
}

// making makes what the rest is about, from the examples of the document.
func (d *described) making() {
	for _, q := range []apiRequest{
		{op: "createGroup", body: d.example("createGroup", "shared")},
		{op: "createGroup", body: d.example("createGroup", "below")},
		{op: "createKeys", body: d.example("createKeys", "one")},
		{op: "createKeys", body: d.example("createKeys", "brought")},
		{op: "createKeys", body: d.example("createKeys", "many")},
	} {
		q.status = http.StatusCreated
		d.do(q)
	}
}

// looking reads all there is to read.
func (d *described) looking() {
	var page struct {
		Next string `json:"next_cursor"`
	}
	for list, query := range map[string]string{
		"listKeys": "status=active&limit=1", "listGroups": "status=active&limit=1", "listAudit": "source=api&action=create&limit=1",
	} {
		_, body := d.do(apiRequest{op: list, query: query, status: http.StatusOK})
		if err := json.Unmarshal([]byte(body), &page); err != nil || page.Next == "" {
			d.t.Fatalf("%s: %v: %s", list, err, body)
		}
		query += "&cursor=" + url.QueryEscape(page.Next)
		query += map[string]string{
			"listKeys": "&q=a&group=name:engineering", "listGroups": "&q=b&parent=name:engineering", "listAudit": "&account=name:engineering",
		}[list]
		d.do(apiRequest{op: list, query: query, status: http.StatusOK})
	}
	for _, q := range []apiRequest{
		{op: "listKeys"}, {op: "listKeys", query: "sort=-used"}, {op: "listGroups"}, {op: "listAudit"}, {op: "listAlerts"},
		{op: "getKey", id: "name:ci"}, {op: "getKey", id: "name:fixed"}, {op: "getKey", id: "name:legacy"},
		{op: "getGroup", id: "name:engineering"}, {op: "getGroup", id: "name:frozen"},
		{op: "explainKey", id: "name:ci"}, {op: "explainKey", id: "name:ci", query: "model=gpt-4o&input_tokens=20&max_output_tokens=4000"},
		{op: "explainKey", id: "name:ci", query: "model=gpt-4o&input_tokens=1000000000"},
		{op: "explainGroup", id: "name:engineering"},
		{op: "explainGroup", id: "name:backend", query: "model=gpt-4o&input_tokens=20&max_output_tokens=4000"},
		{op: "getUsage"}, {op: "getStatus"}, {op: "verify"}, {op: "backup"}, {op: "getOpenAPI"},
	} {
		q.status = http.StatusOK
		d.do(q)
	}
}

// happening makes calls, and looks at what they have led to.
func (d *described) happening(delivered chan *http.Request) {
	body := `{"name":"busy","group":"name:engineering","quota":{"tokens":1000,"reset":"monthly"},"alert_at":[50,90]}`
	_, made := d.do(apiRequest{op: "createKeys", body: body, status: http.StatusCreated})
	var k keyObject
	if err := json.Unmarshal([]byte(made), &k); err != nil {
		d.t.Fatal(err)
	}
	events := d.open(apiRequest{op: "streamEvents"})
	defer events.Body.Close()
	for range 3 { // of which two are refused: its quota is spent
		r, err := http.NewRequest(http.MethodPost, d.url+"/v1/chat/completions", strings.NewReader(`{"model":"m","max_tokens":100,"messages":[{"role":"user","content":"`+strings.Repeat("work ", 200)+`"}]}`))
		if err != nil {
			d.t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+k.Secret)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			d.t.Fatal(err)
		}
		resp.Body.Close()
	}
	d.settled()
	d.do(apiRequest{op: "updateKey", id: "name:busy", body: `{"metadata":{"note":"spent"}}`, status: http.StatusOK})
	last := d.readEvents(events.Body, "admission", "settlement", "refusal", "alert", "change")
	for range 2 { // thresholds
		d.webhook(<-delivered)
	}
	again := d.open(apiRequest{
		op: "streamEvents", query: "types=change,alert&key=" + k.ID + "&group=name:engineering", header: "Last-Event-ID: " + last,
	})
	again.Body.Close()
	var page struct {
		Next string `json:"next_cursor"`
	}
	_, list := d.do(apiRequest{op: "listAlerts", query: "kind=threshold&limit=1", status: http.StatusOK})
	if err := json.Unmarshal([]byte(list), &page); err != nil || page.Next == "" {
		d.t.Fatalf("%v: %s", err, list)
	}
	d.do(apiRequest{op: "listAlerts", query: "account=name:busy&cursor=" + url.QueryEscape(page.Next), status: http.StatusOK})
	_, list = d.do(apiRequest{op: "listRefusals", query: "limit=1", status: http.StatusOK})
	if err := json.Unmarshal([]byte(list), &page); err != nil || page.Next == "" {
		d.t.Fatalf("%v: %s", err, list)
	}
	for _, query := range []string{"key=name:busy&group=name:engineering&decision=refused&cursor=" + url.QueryEscape(page.Next), "decision=observed"} {
		d.do(apiRequest{op: "listRefusals", query: query, status: http.StatusOK})
	}
	for _, query := range []string{
		"from=2026-01-01&to=2099-01-01T00:00:00Z&step=month&time_zone=UTC&by=model,key,group&format=json",
		"key=name:busy&group=name:engineering&model=m&step=minute", "by=model&format=csv",
	} {
		d.do(apiRequest{op: "getUsage", query: query, status: http.StatusOK})
	}
}

// changing changes what is there.
func (d *described) changing() {
	for _, q := range []apiRequest{
		{op: "updateKey", id: "name:ci", body: d.example("updateKey", "limits")},
		{op: "updateKey", id: "name:Ada", body: d.example("updateKey", "disable")},
		{op: "updateKey", id: "name:ci", query: "carry=true", body: d.example("updateKey", "move"), header: "If-Match: *"},
		{op: "updateKey", id: "name:fixed", body: `{"disabled":true}`},
		{op: "updateKey", id: "name:Grace", body: `{"quota":{"tokens":"unlimited"},"expires_at":"2098-01-01T12:00:00+02:00","alert_at":[],"metadata":{"a":"b","c":null},"limits":null}`},
		{op: "rotateKey", id: "name:ci", body: d.example("rotateKey", "day"), header: "If-Match: *"},
		{op: "rotateKey", id: "name:ci"},
		{op: "resetKey", id: "name:ci", body: d.example("resetKey", "day")},
		{op: "resetKey", id: "name:ci", header: "If-Match: *"},
		{op: "grantToKey", id: "name:ci", body: d.example("grantToKey", "more")},
		{op: "grantToKey", id: "name:ci", body: d.example("grantToKey", "less"), header: "If-Match: *"},
		{op: "updateGroup", id: "name:engineering", body: d.example("updateGroup", "quota"), header: "If-Match: *"},
		{op: "updateGroup", id: "name:engineering", body: d.example("updateGroup", "member")},
		{op: "resetGroup", id: "name:engineering", body: d.example("resetGroup", "day"), header: "If-Match: *"},
		{op: "grantToGroup", id: "name:engineering", body: d.example("grantToGroup", "more")},
		{op: "grantToGroup", id: "name:engineering", body: d.example("grantToGroup", "less"), header: "If-Match: *"},
		{op: "getKey", id: "name:ci"}, {op: "getGroup", id: "name:engineering"},
	} {
		q.status = http.StatusOK
		d.do(q)
	}
}

// refusing makes the requests that are refused.
func (d *described) refusing() {
	for _, q := range []apiRequest{
		{op: "createKeys", body: `{"name":"ci"}`, status: http.StatusConflict},
		{op: "updateKey", id: "name:fixed", body: `{"models":[]}`, status: http.StatusConflict},
		{op: "deleteKey", id: "name:fixed", status: http.StatusConflict},
		{op: "rotateKey", id: "name:fixed", status: http.StatusConflict},
		{op: "grantToKey", id: "name:fixed", body: `{"tokens":1}`, status: http.StatusConflict},
		{op: "createGroup", body: `{"name":"frozen"}`, status: http.StatusConflict},
		{op: "updateGroup", id: "name:frozen", body: `{"limits":{}}`, status: http.StatusConflict},
		{op: "deleteGroup", id: "name:engineering", status: http.StatusConflict},
		{op: "grantToGroup", id: "name:frozen", body: `{"tokens":1}`, status: http.StatusConflict},
	} {
		d.do(q)
	}
	for _, q := range d.plain() {
		operation := d.operation(q.op).Operation
		wrong := q
		wrong.query, wrong.status = "gossip=true", http.StatusBadRequest
		d.do(wrong)
		if operation.Responses.Status(http.StatusPreconditionFailed) != nil {
			stale := q
			stale.header, stale.status = `If-Match: "stale"`, http.StatusPreconditionFailed
			d.do(stale)
		}
		if q.id != "" {
			nobody := q
			nobody.id, nobody.status = "name:nobody", http.StatusNotFound
			d.do(nobody)
		}
		if operation.RequestBody != nil {
			form, large := q, q
			form.header, form.status = "Content-Type: text/plain", http.StatusUnsupportedMediaType
			d.do(form)
			large.body, large.status = `{"name":"`+strings.Repeat("x", 1<<20)+`"}`, http.StatusRequestEntityTooLarge
			d.do(large)
		}
	}
	d.misshapen()
	paths := map[string]bool{}
	for _, r := range d.operations() {
		if paths[r.Path] {
			continue
		}
		paths[r.Path] = true
		d.bare(http.MethodPut, r.Path, http.StatusMethodNotAllowed)
		if r.PathItem.Get != nil {
			d.bare(http.MethodHead, r.Path, http.StatusOK)
		}
	}
}

// misshapen makes requests that the description forbids as the gate does.
func (d *described) misshapen() {
	for _, q := range []apiRequest{
		{op: "createKeys", body: `{}`}, {op: "createKeys", body: `{"name":"x","colour":"red"}`}, {op: "createKeys", body: `{"name":7}`},
		{op: "createKeys", body: `{"name":""}`}, {op: "createKeys", body: `{"name":"a/b"}`}, {op: "createKeys", body: `{"name":"a\u0000b"}`},
		{op: "createKeys", body: `{"name":"` + strings.Repeat("x", 129) + `"}`}, {op: "createKeys", body: `{"name":null}`},
		{op: "createKeys", body: `{"name":"x","secret":"short"}`}, {op: "createKeys", body: `[{"name":"x"},{"name":"y","id":"z"}]`},
		{op: "createKeys", body: `{"name":"x","models":"gpt"}`}, {op: "createKeys", body: `{"name":"x","models":[""]}`},
		{op: "createKeys", body: `{"name":"x","allowed_ips":[1]}`}, {op: "createKeys", body: `{"name":"x","alert_at":[0]}`},
		{op: "createKeys", body: `{"name":"x","alert_at":[1001]}`}, {op: "createKeys", body: `{"name":"x","disabled":"yes"}`},
		{op: "createKeys", body: `{"name":"x","limits":{"requests_per_minute":-1}}`}, {op: "createKeys", body: `{"name":"x","limits":{"requests_per_minute":"many"}}`},
		{op: "createKeys", body: `{"name":"x","limits":{"requests_per_minute":1.5}}`}, {op: "createKeys", body: `{"name":"x","limits":{"requests_per_hour":1}}`},
		{op: "createKeys", body: `{"name":"x","quota":{"tokens":1,"reset":"yearly"}}`}, {op: "createKeys", body: `{"name":"x","quota":{"tokens":1,"reset":"daily","at":"24:00"}}`},
		{op: "createKeys", body: `{"name":"x","quota":{"tokens":1,"reset":"monthly","month_day":32}}`}, {op: "createKeys", body: `{"name":"x","quota":{"tokens":null,"reset":"daily"}}`},
		{op: "createKeys", body: `{"name":"x","metadata":{"a":1}}`}, {op: "createKeys", body: `null`}, {op: "createKeys", body: `"x"`},
		{op: "createGroup", body: `{"name":"x","member":{"name":"y"}}`}, {op: "createGroup", body: `{"name":"x","group":"name:engineering"}`},
		{op: "updateKey", id: "name:ci", body: `{"secret":"sk-not-by-patch-0123456789"}`}, {op: "updateKey", id: "name:ci", body: `[]`},
		{op: "updateKey", id: "name:ci", query: "carry=maybe", body: `{}`}, {op: "updateGroup", id: "name:engineering", body: `{"keys":7}`},
		{op: "deleteGroup", id: "name:engineering", query: "force=maybe"},
		{op: "resetKey", id: "name:ci", body: `{"limits":["concurrent_requests"]}`}, {op: "resetKey", id: "name:ci", body: `{"limits":[]}`}, {op: "resetKey", id: "name:ci", body: `{"limit":["quota"]}`},
		{op: "grantToKey", id: "name:ci", body: `{}`}, {op: "grantToKey", id: "name:ci", body: `{"tokens":"100k"}`}, {op: "grantToGroup", id: "name:engineering", body: `{"tokens":1e17}`},
		{op: "rotateKey", id: "name:ci", body: `{"grace":24}`},
		{op: "listKeys", query: "limit=0"}, {op: "listKeys", query: "limit=1001"}, {op: "listGroups", query: "limit=x"}, {op: "listKeys", query: "status=lost"}, {op: "listGroups", query: "status=disabled"},
		{op: "listAlerts", query: "kind=gossip"}, {op: "listAudit", query: "source=hearsay"}, {op: "listAudit", query: "action=read"},
		{op: "listRefusals", query: "limit=0"}, {op: "listRefusals", query: "decision=admitted"},
		{op: "getUsage", query: "step=week"}, {op: "getUsage", query: "by=colour"}, {op: "getUsage", query: "format=xml"}, {op: "streamEvents", query: "types=gossip"},
		{op: "explainKey", id: "name:ci", query: "input_tokens=-1"}, {op: "explainGroup", id: "name:engineering", query: "max_output_tokens=1000000001"},
	} {
		q.status, q.misshapen = http.StatusBadRequest, true
		d.do(q)
	}
}

// unwinding deletes what is there, and looks at what is left of it.
func (d *described) unwinding() {
	ids := map[string]string{}
	for name, op := range map[string]string{"ci": "getKey", "backend": "getGroup"} {
		_, body := d.do(apiRequest{op: op, id: "name:" + name, status: http.StatusOK})
		var of keyObject
		if err := json.Unmarshal([]byte(body), &of); err != nil {
			d.t.Fatal(err)
		}
		ids[name] = of.ID
	}
	for _, q := range []apiRequest{
		{op: "deleteGroup", id: "name:backend", query: "force=true", header: "If-Match: *", status: http.StatusNoContent},
		{op: "deleteKey", id: "name:ci", header: "If-Match: *", status: http.StatusNoContent},
		{op: "getKey", id: ids["ci"], status: http.StatusOK}, {op: "getGroup", id: ids["backend"], status: http.StatusOK},
		{op: "listKeys", query: "status=deleted", status: http.StatusOK}, {op: "listGroups", query: "status=deleted", status: http.StatusOK},
		{op: "updateKey", id: ids["ci"], body: `{}`, status: http.StatusNotFound},
		{op: "listAudit", query: "limit=1000", status: http.StatusOK},
	} {
		d.do(q)
	}
}

// absent asks a Caddy without a gate.
func (d *described) absent() {
	at := freeAddresses(d.t, 1)
	p := newProcess(d.t, fmt.Sprintf("{\n\tadmin %s\n\tpersist_config off\n}\n", at[0]), at[0])
	p.start()
	without := newDescribed(d.t, d.contract, &gate{process: p})
	for _, q := range d.plain() {
		q.status = http.StatusNotFound
		without.do(q)
	}
}
