package llmquota

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

// recorded is one exchange with a provider, as others recorded it.
type recorded struct {
	ID, Provider, API, Method, Path string
	RequestHeaders                  map[string]string `json:"request_headers"`
	RequestBody                     string            `json:"request_body"`
	Status                          int
	ResponseHeaders                 map[string]string `json:"response_headers"`
	ResponseBody                    *string           `json:"response_body"`
	ResponseBodyB64                 string            `json:"response_body_b64"`
	Wire                            string            `json:"response_wire_b64"` // as it came, where it came coded
	Flags                           []string
	Canonical                       *struct{ Input, Output int64 }
}

// readCorpus reads the exchanges with all providers.
func readCorpus(t *testing.T) (all []*recorded) {
	t.Helper()
	dir := os.Getenv("LLM_QUOTA_CORPUS")
	if dir == "" {
		dir = filepath.Join("..", "shared", "corpus")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if len(files) == 0 && os.Getenv("REQUIRE_CORPUS") == "1" {
		t.Fatalf("no recorded exchanges in %s (%v)", dir, err)
	} else if len(files) == 0 {
		t.Skipf("no recorded exchanges in %s: set LLM_QUOTA_CORPUS to their directory", dir)
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 64<<20)
		for lines.Scan() {
			x := new(recorded)
			if err := json.Unmarshal(lines.Bytes(), x); err != nil {
				t.Fatalf("%s: %v", f.Name(), err)
			}
			all = append(all, x)
		}
		if err := lines.Err(); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func (x *recorded) body() []byte {
	if x.ResponseBody != nil {
		return []byte(*x.ResponseBody)
	}
	b, _ := base64.StdEncoding.DecodeString(x.ResponseBodyB64)
	return b
}

// wire is the answer's body as the provider sent it, as far as that is known.
func (x *recorded) wire() (body []byte, coded bool) {
	if b, err := base64.StdEncoding.DecodeString(x.Wire); err == nil && len(b) > 0 {
		return b, true
	}
	return x.body(), false
}

var keyInQuery = regexp.MustCompile(`([?&]key=)[^&]*`)

// request is the recorded one, with another credential.
func (x *recorded) request(secret string) *http.Request {
	path := keyInQuery.ReplaceAllString(strings.ReplaceAll(x.Path, " ", "%20"), "${1}"+secret)
	r := httptest.NewRequest(x.Method, "http://gate"+path, strings.NewReader(x.RequestBody))
	for name, v := range x.RequestHeaders {
		r.Header.Set(name, v)
	}
	for _, name := range []string{"Content-Encoding", "Content-Length", "Authorization", "X-Api-Key", "Api-Key", "X-Goog-Api-Key"} {
		r.Header.Del(name)
	}
	if x.Provider == "anthropic" {
		r.Header.Set("X-Api-Key", secret)
	} else {
		r.Header.Set("Authorization", "Bearer "+secret)
	}
	return r
}

// replay sends the exchange through the handler, its answer in odd pieces, and
// tells what was not passed on as it should.
func (x *recorded) replay(b *bench, secret string) (wrong string) {
	body, coded := x.wire()
	var asked []byte
	got := b.serve(x.request(secret), func(w http.ResponseWriter, r *http.Request) error {
		asked, _ = io.ReadAll(r.Body)
		for name, v := range x.ResponseHeaders {
			if coded || !strings.EqualFold(name, "Content-Encoding") { // the body is recorded plain
				w.Header().Set(name, v)
			}
		}
		w.WriteHeader(x.Status)
		sizes := [...]int{1, 7, 64, 3, 1024, 5000}
		for i, rest := 0, body; len(rest) > 0; i++ {
			n := min(sizes[i%len(sizes)], len(rest))
			if _, err := w.Write(bytes.Clone(rest[:n])); err != nil {
				return err
			}
			rest = rest[n:]
		}
		return nil
	})
	switch {
	case asked == nil && got.status != x.Status:
		return fmt.Sprintf("refused with %d %s", got.status, got.body)
	case got.status != x.Status:
		return fmt.Sprintf("the client got status %d", got.status)
	case string(asked) == x.RequestBody && got.body != string(body):
		return "the client got other bytes"
	case string(asked) != x.RequestBody && !strings.Contains(string(asked), `"include_usage":true`):
		return "the upstream got another body"
	case got.body != string(body) && !lacksUsageAlone(got.body, string(body)):
		return "the client got other bytes besides the usage chunk"
	}
	return ""
}

// lacksUsageAlone tells whether got is body without one event that has no
// choices but usage.
func lacksUsageAlone(got, body string) bool {
	at := 0
	for at < len(got) && got[at] == body[at] {
		at++
	}
	// What was cut begins at or before the first difference.
	start := max(strings.LastIndex(body[:at], "\n\n")+2, strings.LastIndex(body[:at], "\r\n\r\n")+4, 0)
	n := len(body) - len(got)
	if n <= 0 || start+n > len(body) || body[:start]+body[start+n:] != got {
		return false
	}
	event := strings.TrimSpace(body[start : start+n])
	var doc struct {
		Choices []any
		Usage   map[string]any
	}
	return json.Unmarshal([]byte(strings.TrimSpace(strings.TrimPrefix(event, "data:"))), &doc) == nil && len(doc.Choices) == 0 && doc.Usage != nil
}

// metered are the wire formats whose answers cost something.
var metered = []string{
	"openai-chat", "openai-completions", "openai-responses", "openai-embeddings", "openai-images", "openai-speech", "openai-transcription",
	"anthropic-messages", "anthropic-complete",
}

// charged tells in what an exchange's charge is not as it should be: equal to
// what the provider counted or, where it told nothing, as in the README's table.
func (x *recorded) charged(n quota.Totals) (wrong string) {
	if n.Requests != 1 || n.Refused != 0 || n.Total != n.Input+n.Output {
		return fmt.Sprintf("counted as %+v", n)
	}
	if want := x.Canonical; want != nil {
		if n.Input != want.Input || n.Output != want.Output || n.Estimated != 0 {
			return fmt.Sprintf("charged %+v, want %d + %d", n, want.Input, want.Output)
		}
		return ""
	}
	if x.Provider != "openai" && x.Provider != "azure" && x.Provider != "anthropic" {
		if n.Estimated != n.Total { // what each kind of call is charged then is dialect's to prove
			return fmt.Sprintf("charged %+v, though the provider told nothing", n)
		}
		return ""
	}
	onlyError := n.Failed == 1 && bytes.Contains(x.body(), []byte(`"error":{`))
	estimated := slices.Contains(metered, x.API) && x.Status == 200 && !onlyError
	switch {
	case estimated && (n.Total == 0 || n.Estimated != n.Total):
		return fmt.Sprintf("charged %+v, want an estimate", n)
	case !estimated && n.Total != 0:
		return fmt.Sprintf("charged %+v, want nothing", n)
	case x.Status >= 400 && n.Failed != 1:
		return fmt.Sprintf("charged %+v, want failed", n)
	}
	return ""
}

// Every recorded exchange, through the handler into the ledger: each is made by
// a key of its own, so that what it was charged can be read from the report.
func TestCorpus(t *testing.T) {
	all := readCorpus(t)
	b := newBench(t, filepath.Join(t.TempDir(), "store"), `{"name":"k","secret":"`+secret+`"}`, `{}`)
	if err := b.app.Start(); err != nil {
		t.Fatal(err)
	}
	l, err := b.app.Ledger()
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	specs := make([]ledger.NewKey, len(all))
	for i, x := range all {
		specs[i].Name = fmt.Sprint(i, " ", x.ID)
	}
	keys, err := l.CreateKeys(start, specs)
	if err != nil {
		t.Fatal(err)
	}
	wrong := make([]string, len(all))
	for i, x := range all {
		wrong[i] = x.replay(b, keys[i].Secret)
	}
	report, err := l.Report(time.Now(), ledger.ReportQuery{
		From: start, To: time.Now().Add(time.Second), Step: ledger.PerMinute, By: ledger.By{Key: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	used := map[quota.ID]quota.Totals{}
	for _, line := range report.Lines {
		used[line.Key] = line.Totals
	}
	type tally struct{ exact, all int }
	counts := map[string]tally{}
	for i, x := range all {
		if wrong[i] == "" {
			wrong[i] = x.charged(used[keys[i].Key.ID])
		}
		for _, kind := range []string{x.Provider + " " + x.API, x.Provider, "all"} {
			n := counts[kind]
			n.all++
			if wrong[i] == "" {
				n.exact++
			}
			counts[kind] = n
		}
		if wrong[i] != "" {
			t.Errorf("%s %s %s %s %s: %s %v", x.ID, x.Provider, x.API, x.Method, x.Path, wrong[i], x.Flags)
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		t.Logf("%-32s %4d of %4d", kind, counts[kind].exact, counts[kind].all)
	}
}
