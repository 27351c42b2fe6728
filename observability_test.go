package llmquota

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/admin"
)

// A site that handles errors itself still gives refusals in the words that the
// caller's SDK reads.
func TestRefusalWithHandleErrors(t *testing.T) {
	up := upstream(t, completes)
	g := startGate(t, keyK("quota 18 monthly"), proxy(up)+"handle_errors {\nrespond \"the site's own page\" 418\n}\n")
	g.chat("Authorization", "Bearer wrong-secret-of-nobody").refused(401, "invalid_api_key")
	g.chat().ok(200)
	g.wants(used{requests: 1, input: 11, output: 7})
	r := g.chat().refused(429, "insufficient_quota")
	if r.header.Get("X-Should-Retry") != "false" || r.header.Get("Content-Type") != "application/json" || r.header.Get("X-Llm-Quota-Remaining") != "0" {
		t.Errorf("headers %v", r.header)
	}
	up.CloseClientConnections()
	up.Close()
	g.load(keyK(), proxy(up)+"handle_errors {\nrespond \"the site's own page\" 418\n}\n")
	if r := g.chat().ok(418); r.body != "the site's own page" {
		t.Errorf("an error of the upstream: %s", r.body)
	}
}

// logged returns the lines of a logger as JSON.
func logged(t *testing.T, text, logger string) (lines []map[string]any) {
	t.Helper()
	for line := range strings.Lines(text) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		if name, _ := fields["logger"].(string); strings.HasPrefix(name, logger) {
			lines = append(lines, fields)
		}
	}
	return lines
}

// What was decided and used can be seen in headers, by handlers behind the
// gate, and in the access log.
func TestPlaceholdersAndAccessLog(t *testing.T) {
	heard := make(chan http.Header, 1)
	up := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		heard <- r.Header
		completes(w, r)
	})
	site := `log {
	output test_sink
	format json
}
header {
	X-Key {http.llm_quota.key.id}/{http.llm_quota.key.name}/{http.llm_quota.key.metadata.team}
	X-Decision {http.llm_quota.decision}/{http.llm_quota.reason}
	defer
}
log_append spent {http.llm_quota.tokens.total}
log_append in {http.llm_quota.tokens.input}
log_append out {http.llm_quota.tokens.output}
` + strings.TrimSuffix(proxy(up), "\n") + ` {
	header_up X-Group {http.llm_quota.group.name}/{http.llm_quota.group.id}
	header_up X-Model {http.llm_quota.model}
}
`
	g := startGate(t, "group team {\n}\n"+keyK("group team", "metadata team platform", "quota 18 monthly"), site)
	takeLogs()
	r := g.chat().ok(200)
	k := g.key("k")
	if got, want := r.header.Get("X-Key"), k.ID.String()+"/k/platform"; got != want {
		t.Errorf("X-Key is %q, want %q", got, want)
	}
	if got := r.header.Get("X-Decision"); got != "admitted/" {
		t.Errorf("X-Decision is %q", got)
	}
	up1 := <-heard
	if got, want := up1.Get("X-Group")+" "+up1.Get("X-Model"), "team/"+k.Group.String()+" gpt-4o"; got != want {
		t.Errorf("the upstream was told %q, want %q", got, want)
	}
	if got := r.header.Get("X-Llm-Quota-Remaining"); got != "0" {
		t.Errorf("after this call's reservation %q is left", got)
	}
	g.wants(used{requests: 1, input: 11, output: 7})
	if got := g.chat().refused(429, "insufficient_quota").header.Get("X-Decision"); got != "refused/insufficient_quota" {
		t.Errorf("X-Decision of the refusal is %q", got)
	}
	var lines []map[string]any
	g.until("the access log has both calls", func() bool {
		lines = logged(t, seenLogs(), "http.log.access")
		return len(lines) == 2
	})
	want := map[string]any{
		"decision": "admitted", "key_id": k.ID.String(), "key_name": "k", "group_id": k.Group.String(), "group_name": "team",
		"model": "gpt-4o", "tokens_input": 11.0, "tokens_output": 7.0, "tokens_total": 18.0,
	}
	if got := lines[0]["llm_quota"]; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the access log has %v, want %v", got, want)
	}
	if got := fmt.Sprint(lines[0]["spent"], lines[0]["in"], lines[0]["out"]); got != "18 11 7" {
		t.Errorf("log_append wrote %s", got)
	}
	got, _ := lines[1]["llm_quota"].(map[string]any)
	if got["decision"] != "refused" || got["reason"] != "insufficient_quota" || got["tokens_total"] != nil {
		t.Errorf("the access log has %v of the refusal", got)
	}
}

// observe admits what a limit would refuse, and says so.
func TestObserve(t *testing.T) {
	up := upstream(t, completes)
	g := startGate(t, keyK("quota 1 monthly", "models gpt-*"), "log {\noutput test_sink\nformat json\n}\n"+proxy(up, "admission observe"))
	takeLogs()
	g.chat().ok(200)
	g.chat("Authorization", "Bearer wrong-secret-of-nobody").refused(401, "invalid_api_key")
	g.do("POST", "/v1/chat/completions", strings.Replace(chatBody, "gpt-4o", "o3", 1)).refused(403, "model_not_allowed")
	g.wants(used{requests: 1, refused: 1, input: 11, output: 7})
	g.until("the access log has the call", func() bool { return len(logged(t, seenLogs(), "http.log.access")) == 3 })
	got, _ := logged(t, seenLogs(), "http.log.access")[0]["llm_quota"].(map[string]any)
	if got["decision"] != "observed" || got["reason"] == nil {
		t.Errorf("the access log has %v", got)
	}
	if metrics := g.api("GET", "/metrics", "").ok(200).body; !strings.Contains(metrics, `caddy_llm_quota_requests_total{decision="observed",dialect="openai",group="",reason=`) {
		t.Errorf("no metric tells of it:\n%s", metrics)
	}
}

// logFilter is what the README gives to those who write logs.
const logFilter = `format filter {
	request>headers>X-Api-Key delete
	request>headers>Api-Key delete
	request>headers>X-Goog-Api-Key delete
	request>uri query {
		delete key
	}
}
`

// No secret, of a key or of nobody, is in any log line, error, metric or answer
// of the admin endpoint, but once where it is made.
func TestSecretsAreNotShown(t *testing.T) {
	const canary, wrong = "canary-secret-of-the-config", "canary-wrong-secret-of-nobody"
	t.Setenv("LLM_QUOTA_CANARY", canary)
	next, requests := seenUpstream(t)
	g := newGate(t)
	g.logFormat = logFilter
	const options = "key k {\n secret {env.LLM_QUOTA_CANARY}\n}\n"
	site := "log {\noutput test_sink\n" + logFilter + "}\nllm_quota\nroute /dead/* {\nreverse_proxy " + freeAddr(t) + "\n}\n" + next
	g.load(options, site)
	made := decode[admin.Key](g.api("POST", "/llm_quota/keys", `{"name":"made","limits":{"requests_per_day":8}}`).ok(201))
	imported := "canary-secret-that-is-imported"
	g.api("POST", "/llm_quota/keys", `{"name":"imported","secret":"`+imported+`"}`).ok(201)
	secrets := []string{canary, wrong, made.Secret, imported}
	var said strings.Builder
	for _, s := range secrets {
		for _, path := range []string{"/v1/chat/completions", "/dead/v1/chat/completions", "/v1/messages", "/v1/models"} {
			for i, headers := range [][]string{
				{"Authorization", "Bearer " + s},
				{"Authorization", "", "X-Api-Key", s},
				{"Authorization", "", "Api-Key", s},
				{"Authorization", "", "X-Goog-Api-Key", s},
				{"Authorization", "", "X-Goog-Api-Key", s, "Api-Key", wrong + "2"},
				{"Authorization", ""},
			} {
				target := path
				if i == 5 {
					target += "?key=" + s
				}
				r := g.do("POST", target, chatBody, headers...)
				fmt.Fprintln(&said, r.header, r.body)
			}
		}
	}
	rotated := decode[admin.Key](g.api("POST", "/llm_quota/keys/name:made/rotate", `{"grace":"1h"}`).ok(200))
	secrets = append(secrets, rotated.Secret)
	g.chat("Authorization", "Bearer "+rotated.Secret)
	g.usage("")
	// Errors that have to do with secrets.
	for _, body := range []string{
		`{"name":"again","secret":"` + imported + `"}`, `{"name":"odd","secret":"` + canary + ` "}`, `{"name":"x","secrets":"` + canary + `"}`, `{"secret":"` + canary,
	} {
		r := g.api("POST", "/llm_quota/keys", body)
		if r.status < 400 {
			t.Errorf("%s was taken", body)
		}
		fmt.Fprintln(&said, r.header, r.body)
	}
	for _, path := range []string{
		"/llm_quota/keys", "/llm_quota/keys/name:k", "/llm_quota/keys/name:made", "/llm_quota/keys/name:imported", "/llm_quota/groups", "/llm_quota/status",
		"/llm_quota/usage?by=key,model,group", "/llm_quota/usage?by=key&format=csv", "/metrics", "/config/",
	} {
		said.WriteString(g.api("GET", path, "").ok(200).body)
	}
	// The same secret twice, and in the configuration what the API has made.
	for _, more := range []string{"key twice {\n secret {env.LLM_QUOTA_CANARY}\n}\n", "key taken {\n secret " + imported + "\n}\n", "key short {\n secret " + canary[:12] + "\n}\n"} {
		if err := g.tryLoad(options+more, site); err == nil {
			t.Errorf("%s was taken", more)
		} else {
			said.WriteString(strings.ReplaceAll(err.Error(), "canary-secr\"", ""))
		}
	}
	for len(requests) > 0 {
		said.WriteString(<-requests)
	}
	g.until("the access log has all calls", func() bool { return len(logged(t, seenLogs(), "http.log.access")) == 24*4+1 })
	text := takeLogs()
	if len(logged(t, text, "http.log.error")) == 0 {
		t.Error("no errors were logged: the test lacks their lines")
	}
	for _, s := range append(secrets, wrong+"2") {
		for where, text := range map[string]string{"the answers": said.String(), "the logs": text} {
			for line := range strings.Lines(text) {
				if strings.Contains(line, s) || strings.Contains(line, s[len(s)/2:]) {
					t.Errorf("%s show a secret: %s", where, line)
					break
				}
			}
		}
	}
}
