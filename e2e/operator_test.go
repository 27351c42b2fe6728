package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestOperator follows an operator through a day at a gate, by the command line
// and by the API. What they see is in testdata/operator; -update writes it anew.
func TestOperator(t *testing.T) {
	provider := httptest.NewServer(http.HandlerFunc(operatorsProvider))
	defer provider.Close()
	hook := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer hook.Close()
	zone := noonZone()
	g := newGate(t, provider.URL, fmt.Sprintf(`
time_zone %s
webhook %s
key fixed {
	secret lq-secret-of-the-configuration
	requests_per_day 500
}`, zone, hook.URL), "")
	d := &day{newTranscript(t, g, zone), map[string]string{}}
	d.transcript.name(hook.URL, "http://hook")
	d.morning()
	d.importing()
	d.calling()
	d.spending()
	d.moving()
	d.rotating()
	d.editing()
	d.warned()
	d.tailing()
	d.backingUp()
	d.deleting()
	d.mistaken()
	d.misconfigured()
}

// operatorsProvider answers a chat with as many tokens as the model says.
func operatorsProvider(w http.ResponseWriter, r *http.Request) {
	var ask struct{ Model string }
	if json.NewDecoder(r.Body).Decode(&ask) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	tokens := map[string][2]int{"gpt-4o": {300, 200}, "gpt-4o-mini": {120, 30}, "claude-sonnet-4-5": {700, 300}}[ask.Model]
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"object":"chat.completion","model":%q,"choices":[{"index":0,"message":{"role":"assistant","content":"Hello."},"finish_reason":"stop"}],`+
		`"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_tokens_details":{"cached_tokens":20}}}`,
		ask.Model, tokens[0], tokens[1], tokens[0]+tokens[1])
}

// A day is the operator's, who keeps the secrets of keys by their names.
type day struct {
	*transcript
	secrets map[string]string
}

// create creates a key, whose secret must be alone on the standard output.
func (d *day) create(line string) string {
	d.t.Helper()
	out := d.expect(d.quota("keys create %s", line), 0).out
	secret := strings.TrimSuffix(out, "\n")
	if len(secret) != 50 || strings.ContainsAny(secret, " \n") {
		d.t.Errorf("keys create %s printed %q", line, out)
	}
	return secret
}

// calls makes calls as a key.
func (d *day) calls(name string, models ...string) (status int) {
	d.t.Helper()
	for _, model := range models {
		status = d.call(name, d.secrets[name], model)
	}
	return status
}

func (d *day) morning() {
	d.quota("version")
	d.quota("status")
	d.quota("status --json")
	d.quota("keys list")
	d.quota("groups list")
	d.quota(`groups create engineering --quota "20k monthly" --member-quota "5k daily" --member-requests-per-day 100`)
	d.quota("groups create backend --parent engineering --metadata cost-centre=4711")
	d.quota("groups create research")
	d.secrets["ci"] = d.create(`ci --group backend --quota "2k daily" --models "gpt-4o*,claude-*" --alert-at 50%,100%`)
	d.secrets["Ada"] = d.create(`"Ada" --group engineering --expires 2099-01-01`)
	d.curl(http.MethodPost, "/keys", `{"name":"batch","limits":{"concurrent_requests":4}}`, "X-LLM-Quota-Actor: ada")
	d.quota("groups show engineering")
	d.quota("groups list")
	d.quota("keys show ci")
	d.quota("keys show ci --json")
	d.chapter("01_morning")
}

func (d *day) importing() {
	d.file("accounts.yaml", `groups:
  - name: research
    parent: engineering
    quota: {tokens: 6k, reset: weekly, week_start: monday}
keys:
  - name: Grace
    group: research
    quota: 3k daily
    limits: {tokens_per_day: 4_000, concurrent_requests: 8}
    metadata: {team: numerics}
  - name: Linus
    group: research
    disabled: true
`)
	d.quota("import accounts.yaml --dry-run")
	d.quota("keys list")
	for line := range strings.Lines(d.expect(d.quota("import accounts.yaml"), 0).out) {
		name, secret, _ := strings.Cut(strings.TrimSpace(line), "\t")
		d.secrets[name] = secret
	}
	if len(d.secrets) != 4 {
		d.t.Errorf("%d secrets", len(d.secrets))
	}
	d.quota("import accounts.yaml")
	d.quota("import accounts.yaml --json")
	d.quota("keys list")
	d.quota("keys list --group research --status disabled")
	d.quota("keys list --search GRA --limit 1")
	d.quota("keys list --limit 2")
	d.quota("keys show Grace")
	d.quota("groups show research")
	d.chapter("02_import")
}

func (d *day) calling() {
	d.calls("ci", "gpt-4o", "gpt-4o-mini")
	d.calls("Ada", "claude-sonnet-4-5", "claude-sonnet-4-5", "gpt-4o")
	d.calls("Grace", "gpt-4o")
	if d.calls("Linus", "gpt-4o") != http.StatusUnauthorized {
		d.t.Error("a disabled key may call")
	}
	d.call("somebody", "lq-no-such-secret-as-this", "gpt-4o")
	d.call("ci", d.secrets["ci"], "o3")
	d.quota("usage --since 7d")
	d.quota("usage --since 7d --by model")
	d.quota("usage --since 7d --by key,group")
	d.quota("usage --since 7d --by model --group engineering --top 1")
	d.quota("usage --since 2d --step day --by model --csv")
	d.quota("usage --since 2d --step day --key ci --json")
	d.curl(http.MethodGet, "/usage?step=day&by=group&key=name:ci", "")
	d.quota("usage --from 2020-01-01 --to 2020-02-01")
	d.quota("status")
	d.chapter("03_usage")
}

func (d *day) spending() {
	d.quota("explain ci --model gpt-4o --input-tokens 300 --max-output-tokens 200")
	d.calls("ci", "gpt-4o", "gpt-4o", "gpt-4o") // 500 each: 2,150 of 2,000
	d.told("account=name:ci", 2)
	d.quota("explain ci --model gpt-4o --input-tokens 300 --max-output-tokens 200")
	d.quota("explain ci --model o3")
	d.quota("explain group:engineering --input-tokens 5k")
	if d.calls("ci", "gpt-4o") != http.StatusTooManyRequests {
		d.t.Error("a spent quota admits")
	}
	d.curl(http.MethodGet, "/keys/name:ci/explain?model=gpt-4o&input_tokens=300&max_output_tokens=200", "")
	d.quota("keys show ci")
	d.quota("grant ci 1k")
	d.quota("grant ci -- -200")
	if d.calls("ci", "gpt-4o") != http.StatusOK {
		d.t.Error("a grant does not help")
	}
	d.quota("keys show ci")
	d.quota("reset ci")
	d.quota("reset ci --limits requests_per_day,tokens_per_day")
	d.quota("reset group:engineering --json")
	d.calls("ci", "gpt-4o-mini")
	d.quota("groups list")
	d.chapter("04_quota")
}

func (d *day) moving() {
	d.quota("groups create operations --quota '9k monthly'")
	d.quota("keys move Grace operations")
	d.say("what Grace has used stays where it was spent")
	d.quota("groups list")
	d.quota("keys move Grace research --json")
	d.quota("keys move Grace operations --carry")
	d.say("Grace has taken along what it has used")
	d.quota("groups list")
	d.quota("keys move Ada none")
	d.quota("keys move Ada engineering")
	d.quota("groups move operations engineering")
	d.quota("groups move engineering operations")
	d.quota("groups move operations none")
	d.chapter("05_move")
}

func (d *day) rotating() {
	old := d.secrets["Ada"]
	rotate := func(line string) string {
		return strings.TrimSpace(d.expect(d.quota("keys rotate %s", line), 0).out)
	}
	second := rotate("Ada --grace 1h")
	if d.call("Ada, by the old secret,", old, "gpt-4o-mini") != 200 || d.call("Ada, by the new secret,", second, "gpt-4o-mini") != 200 {
		d.t.Error("a secret does not work")
	}
	third := rotate("Ada")
	if d.call("Ada, by the second secret,", second, "gpt-4o-mini") != 401 || d.call("Ada, by the third secret,", third, "gpt-4o-mini") != 200 {
		d.t.Error("a grace of nothing has not ended, or the secret does not work")
	}
	d.secrets["Ada"] = third
	d.quota("keys rotate Ada --grace 31d")
	d.quota("keys rotate fixed")
	d.curl(http.MethodPost, "/keys/name:batch/rotate", `{"grace":"24h"}`)
	d.quota("keys disable Ada")
	d.quota("keys list --status disabled")
	d.calls("Ada", "gpt-4o-mini")
	d.quota("keys enable Ada")
	d.calls("Ada", "gpt-4o-mini")
	d.quota("keys disable fixed")
	d.quota("keys enable fixed")
	d.chapter("06_rotate")
}

func (d *day) deleting() {
	d.quota("keys delete live")
	d.quota("keys delete live --yes")
	if d.calls("live", "gpt-4o") != http.StatusUnauthorized {
		d.t.Error("a deleted key may call")
	}
	d.quota("keys show live")
	d.quota("keys list --status deleted")
	d.quota("keys delete fixed --yes")
	d.quota("groups delete research --yes")
	d.quota("groups delete research --yes --force")
	d.quota("groups list")
	d.curl(http.MethodDelete, "/groups/name:operations", "")
	d.quota("audit --limit 5")
	d.chapter("11_delete")
}
