package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/tidwall/gjson"
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

func (d *day) editing() {
	d.quota("keys edit batch --requests-per-day 1k --metadata team=data --alert-at 25%")
	d.quota(`keys edit batch --quota "10k weekly" --quota-week-start sunday --quota-at 06:30`)
	d.quota("keys edit batch --quota-at none --concurrent-requests none --unset-metadata team --alert-at off")
	d.quota("keys show batch")
	d.quota("keys edit batch --alert-at none")
	d.quota("groups edit engineering --member-requests-per-day none --name platform")
	d.quota("groups show platform")
	d.quota("groups edit platform --name engineering --json")
	d.curl(http.MethodPatch, "/keys/name:batch", `{"disabled":true}`, `If-Match: "0123456789abcdef01234567"`)
	d.meddled("keys edit batch --requests-per-day 2k")
	d.quota("keys edit fixed --requests-per-day 1")
	d.chapter("07_edit")
}

// meddled runs a command while somebody else changes the key that it is about,
// just before it does.
func (d *day) meddled(line string) {
	d.t.Helper()
	target, err := url.Parse("http://" + d.gate.admin)
	if err != nil {
		d.t.Fatal(err)
	}
	between := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		if r.In.Method == http.MethodPatch {
			d.gate.api(http.MethodPatch, "/keys/name:batch", map[string]any{"metadata": map[string]any{"by": "another"}}, new(keyObject))
		}
		r.SetURL(target)
		r.Out.Header.Del("Origin") // it is the proxy's
	}})
	defer between.Close()
	d.say("meanwhile somebody else changes batch")
	d.admin = strings.TrimPrefix(between.URL, "http://")
	defer func() { d.admin = "" }()
	d.quota("%s", line)
}

// crowded lets many clients edit one key at the same time, each only what it has
// seen: none of the edits is lost.
func (d *day) crowded(clients int) {
	d.t.Helper()
	d.gate.makeKey("crowd", nil)
	var refused atomic.Int64
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			for !d.mark(fmt.Sprintf("client-%02d", i)) {
				refused.Add(1)
			}
		})
	}
	all.Wait()
	var k struct{ Metadata map[string]string }
	d.gate.api(http.MethodGet, "/keys/name:crowd", nil, &k)
	n := 0
	for name := range k.Metadata {
		if strings.HasPrefix(name, "client-") {
			n++
		}
	}
	d.say("%d clients edit the key crowd at the same time, each with the ETag that it has seen; when one is refused, it tries again", clients)
	d.say("crowd has the marks of %d of them", n)
	if n != clients {
		d.t.Errorf("%d of %d edits were kept; %d were refused", n, clients, refused.Load())
	}
	d.expect(d.quota("keys delete crowd --yes"), 0)
}

// mark adds a mark to the key crowd as it has been read, and tells whether it
// was still so.
func (d *day) mark(mark string) bool {
	resp, err := http.Get("http://" + d.gate.admin + "/llm_quota/keys/name:crowd")
	if err != nil {
		d.t.Error(err)
		return true
	}
	resp.Body.Close()
	r, err := http.NewRequest(http.MethodPatch, "http://"+d.gate.admin+"/llm_quota/keys/name:crowd", strings.NewReader(fmt.Sprintf(`{"metadata":{%q:"was here"}}`, mark)))
	if err != nil {
		d.t.Error(err)
		return true
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("If-Match", resp.Header.Get("ETag"))
	if resp, err = http.DefaultClient.Do(r); err != nil {
		d.t.Error(err)
		return true
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPreconditionFailed {
		d.t.Errorf("status %d", resp.StatusCode)
	}
	return resp.StatusCode != http.StatusPreconditionFailed
}

func (d *day) warned() {
	d.secrets["alarm"] = d.create(`alarm --quota "1k monthly"`)
	d.calls("alarm", "gpt-4o")
	d.calls("alarm", "gpt-4o")
	d.told("account=name:alarm", 2)
	d.quota("alerts --limit 2")
	d.curl(http.MethodGet, "/alerts?account=name:alarm&kind=exceeded", "")
	d.quota("audit --limit 12")
	d.curl(http.MethodGet, "/audit?account=name:batch&action=create", "")
	d.quota("audit --limit 1 --json")
	d.crowded(50)
	d.chapter("08_alerts")
}

// told waits until there are so many alerts, and every webhook knows of them.
func (d *day) told(query string, alerts int) {
	d.t.Helper()
	d.gate.until(fmt.Sprintf("%d alerts are delivered", alerts), func() bool {
		var page json.RawMessage
		d.gate.api(http.MethodGet, "/alerts?"+query, nil, &page)
		return int(gjson.GetBytes(page, `alerts.#(deliveries.0.state=="delivered")#|#`).Int()) == alerts && int(gjson.GetBytes(page, "alerts.#").Int()) == alerts
	})
}

func (d *day) tailing() {
	d.secrets["live"] = d.create(`live --group research --quota "1k daily" --alert-at off`)
	c := d.command("llm-quota", "tail")
	out, err := c.StdoutPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		d.t.Fatal(err)
	}
	lines := make(chan string, 1000)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()
	d.heard(lines)
	d.add("$ caddy llm-quota tail\n\n")
	shown := func(n int) {
		for range n {
			line, ok := <-lines
			if !ok {
				d.t.Fatal("tail has ended")
			}
			d.add("%s\n", line)
		}
		d.add("\n")
	}
	d.calls("live", "gpt-4o")
	shown(2)
	d.calls("live", "gpt-4o-mini", "gpt-4o", "gpt-4o")
	shown(5)
	d.gate.api(http.MethodPatch, "/keys/name:live", map[string]any{"quota": map[string]any{"tokens": 5000}}, new(keyObject))
	shown(1)
	if err := c.Process.Signal(syscall.SIGINT); err != nil {
		d.t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		d.t.Errorf("tail has ended with %v", err)
	}
	d.chapter("09_tail")
}

// heard waits until tail shows what happens.
func (d *day) heard(lines chan string) {
	d.t.Helper()
	d.gate.makeKey("probe", nil)
	n := 0
	d.gate.until("tail shows what happens", func() bool {
		n++
		d.gate.api(http.MethodPatch, "/keys/name:probe", map[string]any{"metadata": map[string]any{"n": fmt.Sprint(n)}}, new(keyObject))
		select {
		case <-lines:
			return true
		default:
			return false
		}
	})
	d.quota("keys delete probe --yes")
	for line := range lines {
		if strings.Contains(line, "delete") {
			return
		}
	}
}

func (d *day) backingUp() {
	d.quota("verify")
	d.quota("verify --json")
	d.quota("backup ledger.backup")
	if info, err := os.Stat(filepath.Join(d.dir, "ledger.backup")); err != nil || info.Mode().Perm() != 0o600 {
		d.t.Errorf("the backup is %v (%v)", info, err)
	}
	d.quota("restore --dir restored ledger.backup")
	d.quota("restore --dir restored ledger.backup")
	d.quota("restore --dir elsewhere no.backup")
	d.file("broken.backup", "this is no backup\n")
	d.quota("restore --dir elsewhere broken.backup")
	d.quota("restore ledger.backup")
	before := d.expect(d.run("caddy llm-quota usage --since 7d --by key,model"), 0)

	exported := d.quota("export")
	if err := os.WriteFile(filepath.Join(d.dir, "exported.yaml"), []byte(exported.out), 0o600); err != nil {
		d.t.Fatal(err)
	}
	at := freeAddresses(d.t, 1)
	again := newProcess(d.t, fmt.Sprintf("{\n\tadmin %s\n\tpersist_config off\n\tllm_quota {\n\t\ttime_zone %s\n\t\tstore badger %s\n\t}\n}\n",
		at[0], d.zone, filepath.Join(d.dir, "restored")), at[0])
	again.start()
	first := d.gate
	d.gate = &gate{process: again}
	d.named[first.dir] = "<data>"
	d.say("another Caddy runs on the restored store, whose configuration sets no key")
	if after := d.run("caddy llm-quota usage --since 7d --by key,model"); after.out != before.out {
		d.t.Errorf("the restored usage is\n%s, and was\n%s", after.out, before.out)
	}
	d.quota("import exported.yaml")
	d.quota("import exported.yaml --prune --dry-run")
	d.quota("keys list --search fixed")
	d.quota("verify")
	again.stop()
	d.gate = first
	d.chapter("10_backup")
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
