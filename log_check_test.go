package llmquota

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig"
)

const keysReadable = "API keys are readable in logs"

// warnings returns what the gate has warned of its logs, and forgets it.
func warnings(t *testing.T) (all []map[string]any) {
	t.Helper()
	text := takeLogs()
	for _, line := range logged(t, text, "llm_quota") {
		if msg, _ := line["msg"].(string); strings.HasPrefix(msg, keysReadable) {
			all = append(all, line)
		}
	}
	if strings.Contains(text, "sample-key") {
		t.Errorf("the samples were written: %s", text)
	}
	return all
}

// Who starts a gate with a log that shows API keys is told so, and what to add;
// who filters them, hashes them, or logs no requests is not.
func TestWarningOfKeysInLogs(t *testing.T) {
	headers := []string{"request>headers>Api-Key delete", "request>headers>X-Api-Key delete", "request>headers>X-Goog-Api-Key delete"}
	everywhere := append(slices.Clone(headers), "request>uri query { delete key }")
	const hashes = "format filter {\nrequest>headers>X-Api-Key hash\nrequest>headers>Api-Key replace hidden\nrequest>headers>X-Goog-Api-Key delete\n" +
		"request>uri regexp [?].* \"?...\"\n}\n"
	both := []string{"http.log.access", "http.log.error"}
	for _, c := range []struct {
		name          string
		global, site  string // the default log's format, and what logs the site's requests
		gate          string
		loggers, want []string
	}{
		{"no access log", "format json\n", "", "llm_quota\n", nil, nil},
		{"plain", "format json\n", "log\n", "llm_quota\n", both, everywhere},
		{"plain twice in a site", "format json\n", "log\n", "llm_quota\nhandle /x {\nllm_quota\n}\n", both, everywhere},
		{"filtered", logFilter, "log\n", "llm_quota\n", nil, nil},
		{"other filters", hashes, "log\n", "llm_quota\n", nil, nil},
		{"its own log", logFilter, "log {\noutput test_sink\nformat console\n}\n", "llm_quota\n", []string{"http.log.access.log0"}, everywhere},
		{"its own log, filtered", logFilter, "log {\noutput test_sink\n" + logFilter + "}\n", "llm_quota\n", nil, nil},
		{"its own log, filtered, beside the default log", "format json\n", "log {\noutput test_sink\n" + logFilter + "}\n", "llm_quota\n", []string{"http.log.access", "http.log.error", "http.log.error.log0"}, everywhere},
		{"its own log, to nowhere", logFilter, "log {\noutput discard\n}\n", "llm_quota\n", nil, nil},
		{"query forgotten", strings.Replace(logFilter, "delete key", "delete other", 1), "log\n", "llm_quota\n", both, everywhere[3:]},
		{"a header forgotten", strings.Replace(logFilter, "request>headers>Api-Key delete", "", 1), "log\n", "llm_quota\n", both, headers[:1]},
		{"a header of another name", logFilter, "log\n", "llm_quota {\ncredential header x-my-key\n}\n", both, []string{"request>headers>X-My-Key delete"}},
		{"no keys at all", "format json\n", "log\n", "llm_quota {\nidentity {http.auth.user.id}\n}\n", nil, nil},
		{"no gate", "format json\n", "log\n", "", nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGate(t)
			g.logFormat = c.global
			g.load(keyK(), c.site+c.gate+"respond ok\n")
			got := warnings(t)
			if c.want == nil {
				if len(got) != 0 {
					t.Errorf("it warns: %v", got)
				}
				return
			}
			if len(got) != 1 {
				t.Fatalf("%d warnings: %v", len(got), got)
			}
			if got[0]["server"] != "srv0" || got[0]["level"] != "warn" || fmt.Sprint(got[0]["loggers"]) != fmt.Sprint(c.loggers) ||
				fmt.Sprint(got[0]["add_to_filter"]) != fmt.Sprint(c.want) {
				t.Errorf("it warns %v,\nwant %q %q", got[0], c.loggers, c.want)
			}
		})
	}
}

// Where Caddy is told to log credentials, the bearer token is one of them.
func TestWarningOfLoggedCredentials(t *testing.T) {
	g := newGate(t)
	g.logFormat = logFilter
	text := strings.Replace(g.caddyfile(keyK(), "log\nllm_quota\nrespond ok\n"), "\tmetrics\n", "\tmetrics\n\tservers {\n\t\tlog_credentials\n\t}\n", 1)
	if err := g.loadText(text); err != nil {
		t.Fatal(err)
	}
	if got := warnings(t); len(got) != 1 || fmt.Sprint(got[0]["add_to_filter"]) != "[request>headers>Authorization delete]" {
		t.Errorf("it warns %v", got)
	}
}

// Each server is warned of; a configuration with a warning is as valid as one
// without, and adapting it says nothing.
func TestWarningIsNoMore(t *testing.T) {
	g := newGate(t)
	text := g.caddyfile(keyK(), "log\nllm_quota\nrespond ok\n") + "http://" + freeAddr(t) + " {\nlog\nllm_quota\nrespond ok\n}\n"
	config, complaints, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range complaints {
		if strings.Contains(w.Message, "API") {
			t.Errorf("adapting says %v", w)
		}
	}
	if err := validate(config); err != nil {
		t.Error(err)
	}
	takeLogs()
	if err := g.loadText(text); err != nil {
		t.Fatal(err)
	}
	servers := map[any]bool{}
	for _, w := range warnings(t) {
		servers[w["server"]] = true
	}
	if len(servers) != 2 {
		t.Errorf("it warns of %v", servers)
	}
}
