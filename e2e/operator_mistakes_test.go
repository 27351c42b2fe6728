package e2e

import (
	"net/http"
	"strings"
	"testing"

	"github.com/tidwall/gjson"
)

func (d *day) mistaken() {
	for _, body := range []string{
		`{"name":"x","colour":"red"}`, `{"name":7}`, `{"name":"x","limits":{"requests_per_minute":"lots"}}`, `{"name":"x","quota":{"tokens":"1k","reset":"daily"}}`,
		`{"name":"x","quota":{"tokens":1,"reset":"yearly"}}`, `{"name":"x","quota":"5M monthly"}`, `{"name":"x","group":"name:nobody"}`, `{"name":"ci"}`,
		`{"name":"bell\u0007 and \u001b[31mred"}`, `{"name":"a/b"}`, `{"name":""}`, `{"name":"x","expires_at":"soon"}`, `{"name":"x","expires_at":1}`,
		`{"name":"x","models":["gpt-4o",null]}`, `{"name":"x","allowed_ips":["10.0.0.0/33"]}`, `{"name":"x","name":"y"}`, `{"name":"x"`, `[{"name":"x"},{"name":"x"}]`,
		`{"name":"x","metadata":{"a":{"b":"c"}}}`, `{"name":"x","secret":"too short"}`, `{"name":"x","alert_at":[80,"100%"]}`,
	} {
		d.curl(http.MethodPost, "/keys", body)
	}
	d.curl(http.MethodGet, "/keys?limit=100000", "")
	d.curl(http.MethodGet, "/keys?cursor=gossip", "")
	d.curl(http.MethodGet, "/keys?colour=red", "")
	d.curl(http.MethodGet, "/keys?status=lost", "")
	d.curl(http.MethodGet, "/usage?from=yesterday", "")
	d.curl(http.MethodGet, "/usage?from=2020-01-01&to=2020-01-02&step=minute", "")
	d.curl(http.MethodGet, "/usage?from=2026-01-01&to=2026-12-31&step=minute", "")
	d.curl(http.MethodGet, "/usage?time_zone=Mars/Olympus", "")
	d.curl(http.MethodGet, "/keys/name:%3Cscript%3Ealert(1)%3C%2Fscript%3E", "")
	d.curl(http.MethodGet, "/keys/key_0000000000000", "")
	d.curl(http.MethodGet, "/nothing", "")
	d.curl(http.MethodPut, "/keys", `{}`)
	d.curl(http.MethodPost, "/keys", `name=x`, "Content-Type: application/x-www-form-urlencoded")
	d.curl(http.MethodPost, "/keys", `{"name":"`+strings.Repeat("x", 1<<20)+`"}`)
	d.curl(http.MethodPost, "/keys/name:ci/reset", `{"limits":["concurrent_requests"]}`)
	d.curl(http.MethodPost, "/keys/name:ci/grant", `{"tokens":"1k"}`)
	d.curl(http.MethodPost, "/groups", `{"name":"<img src=x onerror=alert(1)>"}`)
	d.quota("groups show '<img src=x onerror=alert(1)>'")
	d.chapter("12_mistakes_api")

	d.quota("keys show nobody")
	d.quota("keys show group:engineering")
	d.quota("keys create ci")
	d.quota("keys create 'a/b'")
	d.quota("keys create \"bell\a and \x1b[31mred\"")
	d.quota("keys create x --group nobody")
	d.quota("keys create x --quota 5M")
	d.quota("keys create x --quota '5M yearly'")
	d.quota("keys create x --requests-per-minute lots")
	d.quota("keys create x --quota-time-zone Mars/Olympus --quota '1k daily'")
	d.quota("keys create x --secret-from no.file")
	d.runIn("too short\n", "caddy llm-quota keys create x --secret-from -")
	d.quota("keys kreate x")
	d.quota("grant ci lots")
	d.quota("grant fixed 1k")
	d.quota("usage --by colour")
	d.quota("usage --from 2020-01-01 --to 2020-01-02 --step minute")
	d.quota("reset ci --limits speed")
	d.file("wrong.yaml", `groups:
  - name: research
    parent: nobody
  - quota: 5M monthly
keys:
  - name: x
    colour: red
    quota: 5M yearly
    limits:
      requests_per_minute: lots
      requests_per_hour: 5
  - name: x
    models: gpt-4o
    expires_at: soon
  - name: "a/b"
`)
	d.quota("import wrong.yaml")
	d.file("nobody.yaml", "keys:\n  - name: y\n    group: nobody\n  - name: fixed\n    disabled: true\n    limits: {requests_per_day: 9}\n")
	d.quota("import nobody.yaml")
	d.runIn("keys: [\n", "caddy llm-quota import -")
	d.quota("import no.file")
	d.quota("status --address 127.0.0.1:1")
	d.chapter("13_mistakes_cli")
}

// misconfigured shows what Caddy says of wrong options of alerts.
func (d *day) misconfigured() {
	for _, options := range []string{
		"webhook", "webhook ftp://example.com", "webhook http://", "webhook https://example.com {\n\tformat xml\n}",
		"webhook https://example.com {\n\tsecret\n}", "webhook https://example.com {\n\tsecret {env.NO_SUCH_SECRET}\n}",
		"webhook https://example.com {\n\tcolour red\n}", "webhook https://user:password@example.com/hook?token=secret\nwebhook https://example.com/hook",
		"alert_at lots", "alert_at 0%", "alert_on speed", "forecast maybe",
	} {
		d.file("Caddyfile", "{\n\tllm_quota {\n\t\t"+strings.ReplaceAll(options, "\n", "\n\t\t")+"\n\t}\n}\n")
		out, err := d.command("validate", "--config", "Caddyfile", "--adapter", "caddyfile").CombinedOutput()
		if err == nil {
			d.t.Errorf("%s is valid", options)
		}
		d.add("$ caddy validate --config Caddyfile --adapter caddyfile\n")
		for line := range strings.Lines(string(out)) {
			if gjson.Get(line, "level").String() == "error" {
				d.add("! %s\n", gjson.Get(line, "msg"))
			}
		}
		d.add("\n")
	}
	d.chapter("14_webhooks")
}

// TestOperatorHelp shows the help of every command.
func TestOperatorHelp(t *testing.T) {
	s := newTranscript(t, &gate{process: &process{t: t, dir: t.TempDir(), admin: "localhost:2019"}}, "UTC")
	n := 0
	var walk func(path []string)
	walk = func(path []string) {
		n++
		out, err := s.command(append(path, "--help")...).Output()
		if err != nil {
			t.Fatalf("%v: %v", path, err)
		}
		s.add("$ caddy %s --help\n%s\n", strings.Join(path, " "), out)
		_, list, _ := strings.Cut(string(out), "Available Commands:\n")
		list, _, _ = strings.Cut(list, "\n\n")
		for line := range strings.Lines(list) {
			if name := strings.Fields(line); len(name) > 0 {
				walk(append(path[:len(path):len(path)], name[0]))
			}
		}
	}
	walk([]string{"llm-quota"})
	if n < 30 {
		t.Errorf("there are only %d commands", n)
	}
	s.compare("help", s.text.String())
}
