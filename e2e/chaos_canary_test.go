package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestChaosCanary gives the gate secrets in every way there is, has them
// presented in every place, by calls that go well and ill, and looks for them
// in all that the gate has written or will show.
func TestChaosCanary(t *testing.T) {
	canaries := map[string]string{
		"of the configuration": "canary-of-the-config-8Hq2Zt5Wn1",
		"imported":             "canary-that-is-imported-4Rk9Lm3Xv7",
		"rotated in":           "canary-that-is-rotated-6Yb0Pc8Jd2",
		"of nobody":            "canary-of-nobody-at-all-3Fs7Gh1Qw9",
		"of the provider":      "canary-of-the-provider-5Tn4Vz6Ke0",
	}
	t.Setenv("CHAOS_CANARY_KEY", canaries["of the configuration"])
	t.Setenv("CHAOS_CANARY_PROVIDER", canaries["of the provider"])
	provider := newChaosProvider(t)
	at := freeAddresses(t, 2)
	text := caddyfile(at[0], at[1], provider.URL, `
		key canary-keeper {
			secret {env.CHAOS_CANARY_KEY}
			quota 1k manual
			models gpt-*
		}`, "log {\nimport without_keys\n}\nllm_quota")
	text = strings.Replace(text, "exclude admin.api", "import without_keys", 1)
	text = strings.Replace(text, "persist_config off", "debug", 1) // what Caddy keeps of its configuration is looked at, too
	text = strings.Replace(text, "reverse_proxy "+strings.TrimPrefix(provider.URL, "http://"), "reverse_proxy "+strings.TrimPrefix(provider.URL, "http://")+
		" {\n\t\theader_up Authorization \"Bearer {env.CHAOS_CANARY_PROVIDER}\"\n\t}", 1)
	p := newProcess(t, logFilter(t)+text, at[0], at[1])
	p.start()
	g := &gate{p, "http://" + at[1]}

	imported := g.makeKey("imported", map[string]any{"secret": canaries["imported"]})
	made := g.makeKey("made", nil)
	canaries["made"] = made.Secret
	var rotated keyObject
	g.api(http.MethodPost, "/keys/"+made.ID+"/rotate", map[string]any{"grace": "1h"}, &rotated)
	canaries["made by rotation"] = rotated.Secret
	if canaries["made"] == "" || canaries["made by rotation"] == "" {
		t.Fatal("a secret is not shown once")
	}
	expired := g.makeKey("expired", map[string]any{"secret": canaries["rotated in"]})
	n := tally{rounds: 1}
	heard := listen(t, g)
	presented := func() (statuses map[int]int) {
		statuses = map[int]int{}
		for _, secret := range canaries {
			for _, c := range canaryCalls(t, g.url, secret, canaries["of nobody"]) {
				resp, err := freshClient.Do(c)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				var answer bytes.Buffer
				resp.Header.Write(&answer) //nolint:errcheck // into memory
				answer.Write(body)
				n.leaked += find(t, "an answer", answer.Bytes(), canaries)
				n.faults++
				statuses[resp.StatusCode]++
			}
		}
		return statuses
	}
	statuses := presented()
	for _, status := range []int{200, 400, 401, 403, 429} {
		if statuses[status] == 0 {
			t.Errorf("no call was answered with %d: %v", status, statuses)
		}
	}
	g.api(http.MethodPatch, "/keys/"+expired.ID, map[string]any{"disabled": true}, &expired)
	provider.Close()
	if again := presented(); again[http.StatusBadGateway] == 0 || again[http.StatusUnauthorized] <= statuses[http.StatusUnauthorized] {
		t.Errorf("without a provider, and with a key disabled, the answers are %v", again)
	}
	n.leaked += find(t, "an event", heard(), canaries)
	for _, path := range []string{
		"/llm_quota/keys", "/llm_quota/keys?q=canary", "/llm_quota/keys/" + imported.ID, "/llm_quota/keys/" + made.ID,
		"/llm_quota/keys/" + made.ID + "/explain?model=gpt-4o", "/llm_quota/groups", "/llm_quota/usage?by=model,key,group", "/llm_quota/usage?by=model,key&format=csv",
		"/llm_quota/status", "/llm_quota/alerts", "/llm_quota/audit", "/llm_quota/verify",
		"/llm_quota/backup", "/llm_quota/openapi.json", "/metrics", "/config/",
	} {
		resp, err := http.Get("http://" + g.admin + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		n.leaked += find(t, path, body, canaries)
		n.faults++
	}
	g.kill() // the files as they are in the middle of things
	n.leaked += findInFiles(t, g.dir, canaries)
	g.start()
	g.stop() // and as they are when all is written
	n.leaked += findInFiles(t, g.dir, canaries)
	kept(t, "G12", n)
}

// logFilter returns the filter of logs that the example shows.
func logFilter(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "Caddyfile.example"))
	if err != nil {
		t.Fatal(err)
	}
	const head = "(without_keys) {\n"
	_, rest, ok := strings.Cut(string(b), head)
	filter, _, ended := strings.Cut(rest, "\n}\n")
	if !ok || !ended {
		t.Fatal("the example has no filter of logs")
	}
	return head + filter + "\n}\n"
}

// canaryCalls returns calls with a secret in every place, and with some other.
func canaryCalls(t *testing.T, url, secret, other string) (calls []*http.Request) {
	t.Helper()
	const good = `{"model":"gpt-4o","max_tokens":10,"messages":[{"role":"user","content":"?"}]}`
	add := func(path, body string, headers ...string) {
		r, err := http.NewRequest(http.MethodPost, url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		for i := 0; i < len(headers); i += 2 {
			r.Header.Add(headers[i], headers[i+1])
		}
		calls = append(calls, r)
	}
	const chat = "/v1/chat/completions"
	add(chat, good, "Authorization", "Bearer "+secret)
	add(chat, good, "Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("user:"+secret)))
	for _, name := range []string{"X-Api-Key", "Api-Key", "X-Goog-Api-Key"} {
		add(chat, good, name, secret)
	}
	add(chat+"?a=b&key="+secret, good)
	add("/v1beta/models/gpt-4o:generateContent?key="+secret, `{"contents":[{"parts":[{"text":"?"}]}]}`)
	add("/v1/messages", good, "X-Api-Key", secret, "Anthropic-Version", "2023-06-01")
	add(chat, good, "Authorization", "Bearer "+secret, "X-Api-Key", other)
	add(chat+"?key="+other, good, "Api-Key", secret)
	add(chat, strings.Replace(good, "gpt-4o", "claude", 1), "Authorization", "Bearer "+secret)
	add(chat, strings.Replace(good, "{", `{"model":"gpt-4","model":"gpt-3",`, 1), "Authorization", "Bearer "+secret)
	add(chat, strings.Replace(good, "10", "100000", 1), "Authorization", "Bearer "+secret)
	add(chat, strings.Replace(good, "?", strings.Repeat("many words ", 2000), 1), "Authorization", "Bearer "+secret)
	add("/no/such/path", "no JSON", "Authorization", "Bearer "+secret)
	get, err := http.NewRequest(http.MethodGet, url+"/llm_quota/me", nil)
	if err != nil {
		t.Fatal(err)
	}
	get.Header.Set("Authorization", "Bearer "+secret)
	return append(calls, get)
}

// listen reads the admin API's events until the function it returns is called,
// which returns them.
func listen(t *testing.T, g *gate) func() []byte {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+g.admin+"/llm_quota/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan []byte, 1)
	go func() {
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		heard <- b
	}()
	return func() []byte {
		time.AfterFunc(time.Second, cancel)
		return <-heard
	}
}

// find returns how many of the secrets are in b, as they are or in another
// writing, and tells where.
func find(t *testing.T, where string, b []byte, canaries map[string]string) (n int64) {
	t.Helper()
	for name, secret := range canaries {
		quoted, err := json.Marshal(secret)
		if err != nil {
			t.Fatal(err)
		}
		for _, form := range []string{
			secret, url.QueryEscape(secret), string(bytes.Trim(quoted, `"`)), fmt.Sprintf("%x", secret),
			base64.StdEncoding.EncodeToString([]byte("user:" + secret))[8:], base64.RawStdEncoding.EncodeToString([]byte(secret)),
			secret[len(secret)-16:], // what is hidden of a secret of which the beginning is shown
		} {
			if i := bytes.Index(b, []byte(form)); i >= 0 {
				t.Errorf("the secret %s is in %s: …%q…", name, where, b[max(0, i-200):min(len(b), i+80)])
				n++
				break
			}
		}
	}
	return n
}

// findInFiles looks for the secrets in all files of a process, and for the name
// of a key, which must be found: else nothing was looked at.
func findInFiles(t *testing.T, dir string, canaries map[string]string) (n int64) {
	t.Helper()
	named := map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		n += find(t, path, b, canaries)
		if bytes.Contains(b, []byte("canary-keeper")) {
			rel, err := filepath.Rel(dir, path)
			named[strings.Split(rel, string(filepath.Separator))[0]] = err == nil
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !named["log"] || !named["caddy"] {
		t.Errorf("the key's name is found in %v, want the log and the store", named)
	}
	return n
}
