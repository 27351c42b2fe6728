package dialect

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// exchange is one recorded exchange with a provider, and what it should cost.
type exchange struct {
	ID             string            `json:"id"`
	Provider       string            `json:"provider"`
	API            string            `json:"api"`
	Method         string            `json:"method"`
	Path           string            `json:"path"`
	RequestHeaders map[string]string `json:"request_headers"`
	RequestBody    string            `json:"request_body"`
	Status         int               `json:"status"`
	Headers        map[string]string `json:"response_headers"`
	Framing        string            `json:"framing"`
	Body           *string           `json:"response_body"`
	BodyB64        string            `json:"response_body_b64"`
	Wire           string            `json:"response_wire_b64"`
	Flags          []string          `json:"flags"`
	Request        struct {
		Stream   bool   `json:"stream"`
		Model    string `json:"model"`
		URLModel string `json:"url_model"`
	} `json:"request"`
	Usage *struct {
		Input  int64 `json:"input"`
		Output int64 `json:"output"`
	} `json:"usage"`
	Canonical *struct {
		Input  int64    `json:"input"`
		Output int64    `json:"output"`
		Notes  []string `json:"notes"`
	} `json:"canonical"`
}

func (x *exchange) body() []byte {
	if x.Body != nil {
		return []byte(*x.Body)
	}
	b, _ := base64.StdEncoding.DecodeString(x.BodyB64)
	return b
}

// loadCorpus reads the recorded exchanges, or skips the test where they are not.
func loadCorpus(t testing.TB) []*exchange {
	dir := os.Getenv("LLM_QUOTA_CORPUS")
	if dir == "" {
		dir = filepath.Join("..", "..", "shared", "corpus")
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if len(files) == 0 {
		if os.Getenv("REQUIRE_CORPUS") == "1" {
			t.Fatalf("no recorded exchanges in %s", dir)
		}
		t.Skipf("no recorded exchanges in %s: set LLM_QUOTA_CORPUS to their directory", dir)
	}
	var all []*exchange
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		sc := bufio.NewScanner(f)
		sc.Buffer(nil, 64<<20)
		for sc.Scan() {
			x := &exchange{}
			if err := json.Unmarshal(sc.Bytes(), x); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			all = append(all, x)
		}
		f.Close()
		if sc.Err() != nil {
			t.Fatal(sc.Err())
		}
	}
	return all
}

// request builds the recorded request.
func (x *exchange) request() *http.Request {
	r := httptest.NewRequest(x.Method, "http://gate"+strings.ReplaceAll(x.Path, " ", "%20"), strings.NewReader(x.RequestBody))
	for k, v := range x.RequestHeaders {
		r.Header.Set(k, v)
	}
	r.Header.Del("Content-Encoding")
	r.Header.Del("Content-Length")
	return r
}

// replay sends the exchange through Read and a Writer, the answer in pieces of
// the given sizes in turn, and returns the call, its outcome and what the
// client got.
func (x *exchange) replay(t testing.TB, body []byte, coded bool, sizes ...int) (*Call, quota.Outcome, []byte) {
	r := x.request()
	c, ref := Read(r, Options{MaxBody: 64 << 20, InjectUsage: true})
	if ref != nil {
		t.Errorf("%s: refused: %v %s", x.ID, ref, ref.Detail)
	}
	c.Forward(r)
	rec := httptest.NewRecorder()
	w := NewWriter(rec, c, nil)
	for k, v := range x.Headers {
		if coded || !strings.EqualFold(k, "Content-Encoding") {
			w.Header().Set(k, v)
		}
	}
	w.WriteHeader(x.Status)
	for i := 0; len(body) > 0; i++ {
		n := min(sizes[i%len(sizes)], len(body))
		if _, err := w.Write(bytes.Clone(body[:n])); err != nil {
			t.Fatal(err)
		}
		body = body[n:]
	}
	w.Finish()
	return c, w.Outcome(End{}), rec.Body.Bytes()
}

// unlike are the exchanges that cost something else, and why they should: none.
var unlike = map[string]string{}

func TestCorpus(t *testing.T) {
	type tally struct{ exact, total int }
	counts := map[string]*tally{}
	for _, x := range loadCorpus(t) {
		key := x.Provider + " " + x.API
		if counts[key] == nil {
			counts[key] = &tally{}
		}
		counts[key].total++
		c, out, got := x.replay(t, x.body(), false, 1, 7, 64, 3, 1024, 5000)
		why := x.differs(c, out)
		if why == "" && !c.injected && !bytes.Equal(got, x.body()) {
			why = "the client got other bytes"
		}
		if why == "" {
			for _, sizes := range [][]int{{1 << 30}, {13}, {4096}} {
				_, again, same := x.replay(t, x.body(), false, sizes...)
				if again != out || !bytes.Equal(got, same) {
					why = fmt.Sprintf("in pieces of %d: %+v, not %+v", sizes, again, out)
				}
			}
		}
		if why == "" && x.Wire != "" {
			wire, _ := base64.StdEncoding.DecodeString(x.Wire)
			_, coded, same := x.replay(t, wire, true, 1, 7, 64, 3, 1021, 5003)
			if !bytes.Equal(wire, same) {
				why = "the client got other coded bytes"
			} else if coded != out {
				why = fmt.Sprintf("coded: %+v, not %+v", coded, out)
			}
		}
		if why == "" {
			counts[key].exact++
		} else if unlike[x.ID] != "" {
			t.Logf("%s %s: %s: %s", x.ID, key, why, unlike[x.ID])
		} else {
			t.Errorf("%s %s %s %s: %s %v", x.ID, key, x.Method, x.Path, why, x.Flags)
		}
	}
	keys := make([]string, 0, len(counts))
	for k := range counts {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	var all tally
	for _, k := range keys {
		t.Logf("%-40s %4d of %4d", k, counts[k].exact, counts[k].total)
		all.exact += counts[k].exact
		all.total += counts[k].total
	}
	t.Logf("%-40s %4d of %4d", "all", all.exact, all.total)
}

// differs tells in what the outcome is not as it should be.
func (x *exchange) differs(c *Call, out quota.Outcome) string {
	got := fmt.Sprintf("kind %d, charged %d+%d, estimated %t, failed %t", c.Kind, out.Tokens.Input, out.Tokens.Output, out.Estimated, out.Failed)
	if want := x.Canonical; want != nil {
		if out.Tokens.Input != want.Input || out.Tokens.Output != want.Output || out.Estimated {
			return fmt.Sprintf("%s; want %d+%d %v", got, want.Input, want.Output, want.Notes)
		}
		return ""
	}
	generates := c.Kind == Generate || c.Kind == Embed || c.Kind == Media
	if strings.Contains(strings.Join(x.Flags, " "), "response-status-queued") {
		if out.Later == "" || out.Failed || out.Tokens.Charge() != 0 {
			return got + "; want it left to the ledger"
		}
		return ""
	}
	onlyError := out.Failed && out.Tokens.Charge() == 0 && bytes.Contains(x.body(), []byte(`"error":{`))
	if generates && x.Status == 200 && !onlyError {
		if !out.Estimated || out.Tokens.Charge() == 0 {
			return got + "; want an estimate"
		}
		return ""
	}
	if out.Tokens.Charge() != 0 {
		return got + "; want nothing"
	}
	if x.Status >= 400 && !out.Failed {
		return got + "; want failed"
	}
	return ""
}
