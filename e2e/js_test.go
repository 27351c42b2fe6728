package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A jsCase is what js/main.mjs does with one key.
type jsCase struct {
	Case   string `json:"case"`
	URL    string `json:"url"`
	Key    string `json:"key"`
	Script string `json:"script"`
	Do     string `json:"do"`
	Spend  int    `json:"spend"`
	Twice  bool   `json:"twice"`
}

// A jsResult is what it prints of that: what the SDK read of the last answer,
// or what its error holds.
type jsResult struct {
	Case    string   `json:"case"`
	Text    string   `json:"text"`
	Total   int64    `json:"total"`
	Unasked bool     `json:"unasked"`
	Tool    string   `json:"tool"`
	City    string   `json:"city"`
	Error   *jsError `json:"error"`
	Stack   string   `json:"stack"`
}

type jsError struct {
	Class   string `json:"class"`
	Typed   bool   `json:"typed"`
	Tries   int    `json:"tries"`
	Status  int    `json:"status"`
	Type    string `json:"type"`
	Code    string `json:"code"`
	Message string `json:"message"`
	ID      string `json:"id"`
}

// A jsSDK is one SDK of JavaScript, with what it shows of refusals.
type jsSDK struct {
	model string
	one   totals // what "call" is charged
	calls []jsCall

	errors map[string]jsError // by refusal
	id     bool               // its errors have a request ID
	// tries are the requests that a refusal with status 429 costs if the gate
	// says that coming again does not help, and patient tells whether the SDK
	// comes again where it does.
	tries   int
	patient bool
}

// A jsCall is a call that succeeds.
type jsCall struct {
	do     string
	answer http.HandlerFunc
	want   jsResult
	model  string // if another
	charge totals
}

var (
	said   = jsResult{Text: text}
	called = jsResult{Tool: "weather", City: "Reykjavík"}
)

func saidOf(total int64) jsResult { return jsResult{Text: text, Total: total} }

func jsSDKs() map[string]*jsSDK {
	openaiErrors := func(auth, denied, limited string) map[string]jsError {
		return map[string]jsError{
			"wrong key":            {Class: auth, Status: 401, Type: "invalid_request_error", Code: "invalid_api_key"},
			"disabled key":         {Class: auth, Status: 401, Type: "invalid_request_error", Code: "api_key_disabled"},
			"expired key":          {Class: auth, Status: 401, Type: "invalid_request_error", Code: "api_key_expired"},
			"model not allowed":    {Class: denied, Status: 403, Type: "invalid_request_error", Code: "model_not_allowed"},
			"address not allowed":  {Class: denied, Status: 403, Type: "invalid_request_error", Code: "ip_not_allowed"},
			"quota spent":          {Class: limited, Status: 429, Type: "insufficient_quota", Code: "insufficient_quota"},
			"quota spent for good": {Class: limited, Status: 429, Type: "insufficient_quota", Code: "insufficient_quota"},
			"requests per day":     {Class: limited, Status: 429, Type: "requests", Code: "rate_limit_exceeded"},
			"input above a limit":  {Class: limited, Status: 429, Type: "tokens", Code: "request_too_large"},
		}
	}
	chat := totals{Requests: 1, Input: 1219, Cached: 1024, Output: 310, Reasoning: 192}
	return map[string]*jsSDK{
		"openai": {
			model: "gpt-4o-mini", one: chat, id: true, tries: 1, patient: true,
			calls: []jsCall{
				{do: "call", answer: answer("chat.json"), want: saidOf(1529), charge: chat},
				{do: "stream", answer: answer("chat.sse"), want: said, charge: totals{Requests: 1, Input: 21, Output: 7}},
				{do: "tools", answer: answer("tools.json"), want: called, charge: totals{Requests: 1, Input: 68, Output: 17}},
				{do: "response", answer: answer("response.sse"), want: saidOf(50), model: "gpt-5-mini", charge: totals{Requests: 1, Input: 41, Output: 9}},
			},
			errors: openaiErrors("AuthenticationError", "PermissionDeniedError", "RateLimitError"),
		},
		"anthropic": {
			model: "claude-sonnet-4-5", id: true, tries: 1, patient: true,
			one: totals{Requests: 1, Input: 2360, Cached: 2048, CacheWrite: 300, Output: 9},
			calls: []jsCall{
				{do: "call", answer: answer("message.json"), want: saidOf(9), charge: totals{Requests: 1, Input: 2360, Cached: 2048, CacheWrite: 300, Output: 9}},
				{do: "stream", answer: answer("message.sse"), want: saidOf(11), charge: totals{Requests: 1, Input: 14, Output: 11}},
				{do: "tools", answer: answer("tool_use.json"), want: called, charge: totals{Requests: 1, Input: 390, Output: 61}},
			},
			errors: map[string]jsError{
				"wrong key":            {Class: "AuthenticationError", Status: 401, Type: "authentication_error"},
				"disabled key":         {Class: "AuthenticationError", Status: 401, Type: "authentication_error"},
				"expired key":          {Class: "AuthenticationError", Status: 401, Type: "authentication_error"},
				"model not allowed":    {Class: "PermissionDeniedError", Status: 403, Type: "permission_error"},
				"address not allowed":  {Class: "PermissionDeniedError", Status: 403, Type: "permission_error"},
				"quota spent":          {Class: "RateLimitError", Status: 429, Type: "rate_limit_error"},
				"quota spent for good": {Class: "RateLimitError", Status: 429, Type: "rate_limit_error"},
				"requests per day":     {Class: "RateLimitError", Status: 429, Type: "rate_limit_error"},
				"input above a limit":  {Class: "RateLimitError", Status: 429, Type: "rate_limit_error"},
			},
		},
		// Google's SDK tries again only where its caller has asked for it.
		"genai": {
			model: geminiModel, tries: 1,
			one: totals{Requests: 1, Input: 1219, Cached: 1024, Output: 201, Reasoning: 192},
			calls: []jsCall{
				{do: "call", answer: answer("gemini.json"), want: saidOf(1420), charge: totals{Requests: 1, Input: 1219, Cached: 1024, Output: 201, Reasoning: 192}},
				{do: "stream", answer: crlf("gemini.sse"), want: saidOf(67), charge: totals{Requests: 1, Input: 20, Output: 47, Reasoning: 40}},
				{do: "tools", answer: answer("gemini_call.json"), want: called, charge: totals{Requests: 1, Input: 68, Output: 17}},
				{do: "embeddings", answer: answer("gemini_embeddings.json"), want: jsResult{Total: 2}, model: "gemini-embedding-2", charge: totals{Requests: 1, Input: 11}},
				{do: "count", answer: answer("gemini_count.json"), want: jsResult{Total: 2095}, charge: totals{Requests: 1}},
			},
			errors: map[string]jsError{
				"wrong key":            {Class: "ApiError", Status: 400, Type: "INVALID_ARGUMENT", Code: "API_KEY_INVALID"},
				"disabled key":         {Class: "ApiError", Status: 400, Type: "INVALID_ARGUMENT", Code: "API_KEY_INVALID"},
				"expired key":          {Class: "ApiError", Status: 400, Type: "INVALID_ARGUMENT", Code: "API_KEY_INVALID"},
				"model not allowed":    {Class: "ApiError", Status: 403, Type: "PERMISSION_DENIED"},
				"address not allowed":  {Class: "ApiError", Status: 403, Type: "PERMISSION_DENIED"},
				"quota spent":          {Class: "ApiError", Status: 429, Type: "RESOURCE_EXHAUSTED", Code: "TokenQuotaPerKey"},
				"quota spent for good": {Class: "ApiError", Status: 429, Type: "RESOURCE_EXHAUSTED", Code: "TokenQuotaPerKey"},
				"requests per day":     {Class: "ApiError", Status: 429, Type: "RESOURCE_EXHAUSTED", Code: "RequestsPerDayPerKey"},
				"input above a limit":  {Class: "ApiError", Status: 429, Type: "RESOURCE_EXHAUSTED", Code: "TokensPerMinutePerKey"},
				"one at a time":        {Class: "ApiError", Status: 429, Type: "RESOURCE_EXHAUSTED", Code: "ConcurrentRequestsPerKey"},
			},
		},
		// Ollama's has one sort of error and never tries again.
		"ollama": {
			model: "llama3.2", tries: 1,
			one: totals{Requests: 1, Input: 31, Output: 8},
			calls: []jsCall{
				{do: "call", answer: answer("ollama.json"), want: saidOf(8), charge: totals{Requests: 1, Input: 31, Output: 8}},
				{do: "stream", answer: ndjson("ollama.ndjson"), want: saidOf(7), charge: totals{Requests: 1, Input: 33, Output: 7}},
				{do: "tools", answer: answer("ollama_tool.json"), want: called, charge: totals{Requests: 1, Input: 171, Output: 18}},
			},
			errors: map[string]jsError{
				"wrong key":            {Class: "ResponseError", Status: 401},
				"disabled key":         {Class: "ResponseError", Status: 401},
				"expired key":          {Class: "ResponseError", Status: 401},
				"model not allowed":    {Class: "ResponseError", Status: 403},
				"address not allowed":  {Class: "ResponseError", Status: 403},
				"quota spent":          {Class: "ResponseError", Status: 429},
				"quota spent for good": {Class: "ResponseError", Status: 429},
				"requests per day":     {Class: "ResponseError", Status: 429},
				"input above a limit":  {Class: "ResponseError", Status: 429},
				"one at a time":        {Class: "ResponseError", Status: 429},
			},
		},
		// The AI SDK tries any 429 three times: it reads Retry-After up to a
		// minute, else it waits 2 and 4 s, but not X-Should-Retry.
		"ai": {
			model: "gpt-4o-mini", one: chat, id: true, tries: 3, patient: true,
			calls: []jsCall{
				{do: "call", answer: answer("chat.json"), want: saidOf(1529), charge: chat},
				{do: "stream", answer: answer("chat.sse"), want: said, charge: totals{Requests: 1, Input: 21, Output: 7}},
				{do: "tools", answer: answer("tools.json"), want: called, charge: totals{Requests: 1, Input: 68, Output: 17}},
				{
					do: "response", answer: answer("response.json"), want: saidOf(240), model: "gpt-5-mini",
					charge: totals{Requests: 1, Input: 40, Cached: 8, Output: 200, Reasoning: 192},
				},
				{do: "responseStream", answer: answer("response.sse"), want: said, model: "gpt-5-mini", charge: totals{Requests: 1, Input: 41, Output: 9}},
			},
			errors: openaiErrors("APICallError", "APICallError", "RetryError"),
		},
	}
}

// jsRefusals are the refusals that each SDK gets, under the names that its
// errors have in the table.
func jsRefusals() []jsRefusal {
	with := func(what string, v any) map[string]any { return map[string]any{what: v} }
	return []jsRefusal{
		{name: "wrong key", secret: "lq_00000000_" + strings.Repeat("0", 38)},
		{name: "disabled key", settings: with("disabled", true)},
		{name: "expired key", settings: with("expires_at", "2020-01-01T00:00:00Z")},
		{name: "model not allowed", settings: with("models", []string{"another-*"})},
		{name: "address not allowed", settings: with("allowed_ips", []string{"192.0.2.0/24"})},
		{name: "quota spent", settings: with("quota", map[string]any{"tokens": 30, "reset": "monthly"}), spend: 1},
		{name: "quota spent for good", settings: with("quota", map[string]any{"tokens": 30, "reset": "manual"}), spend: 1},
		{name: "requests per day", settings: with("limits", with("requests_per_day", 1)), spend: 1},
		{name: "input above a limit", settings: with("limits", with("tokens_per_minute", 2))},
	}
}

type jsRefusal struct {
	name     string
	settings map[string]any
	secret   string // instead of the key's
	spend    int    // calls before the one that is refused
}

// TestJavaScript runs the SDKs of JavaScript against the gate: calls with what
// they are charged, and refusals with the error that each SDK has for them and
// the HTTP requests that they cost.
func TestJavaScript(t *testing.T) {
	dir := installJS(t)
	s := newStage(t, "")
	at := newCounter(t, s.url)
	for name, sdk := range jsSDKs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var cases []jsCase
			checks := map[string]func(*testing.T, jsResult){}
			add := func(do jsCase, settings map[string]any, secret string, answered http.HandlerFunc, check func(*caller, jsResult)) {
				k := s.makeKey(t.Name()+" "+do.Case, settings)
				c := &caller{t: t, stage: s, key: k, secret: k.Secret, script: s.upstream.script(answered)}
				if do.URL, do.Key, do.Script = at.URL, c.secret, c.script.name; secret != "" {
					do.Key = secret
				}
				cases = append(cases, do)
				checks[do.Case] = func(t *testing.T, got jsResult) {
					c.t = t
					check(c, got)
				}
			}
			for _, call := range sdk.calls {
				add(jsCase{Case: call.do, Do: call.do}, ample(), "", call.answer, func(c *caller, got jsResult) { sdk.checkCall(c, at, call, got) })
			}
			for _, r := range jsRefusals() {
				do := jsCase{Case: r.name, Do: "call", Spend: r.spend}
				add(do, r.settings, r.secret, sdk.calls[0].answer, func(c *caller, got jsResult) { sdk.checkRefusal(c, at, r, got) })
			}
			one := map[string]any{"limits": map[string]any{"concurrent_requests": 1}}
			add(jsCase{Case: "one at a time", Do: "call", Twice: true}, one, "", slowly(sdk.calls[0].answer), func(c *caller, got jsResult) { sdk.checkThrottle(c, at, got) })

			results := runJS(t, dir, name, cases)
			for _, one := range cases {
				t.Run(one.Case, func(t *testing.T) {
					got, ok := results[one.Case]
					if !ok {
						t.Fatal("the script printed nothing of this")
					}
					checks[one.Case](t, got)
				})
			}
		})
	}
}

func (sdk *jsSDK) checkCall(c *caller, at *counter, call jsCall, got jsResult) {
	c.t.Helper()
	want := call.want
	want.Case = call.do
	if got.Error != nil || got != want {
		c.t.Errorf("the SDK read %+v %+v, want %+v", got, got.Error, want)
	}
	if n := at.requests(c.script.name); n != 1 {
		c.t.Errorf("the call cost %d requests", n)
	}
	c.script.requests(c.t) // had no credential
	model := sdk.model
	if call.model != "" {
		model = call.model
	}
	c.charged(model, call.charge)
}

func (sdk *jsSDK) checkRefusal(c *caller, at *counter, r jsRefusal, got jsResult) {
	c.t.Helper()
	want, requests := sdk.errors[r.name], 1
	sdk.checkError(c, got, want)
	if want.Status == http.StatusTooManyRequests {
		requests = sdk.tries
	}
	if n := at.requests(c.script.name) - r.spend; n != requests {
		c.t.Errorf("the refusal cost %d requests, want %d", n, requests)
	}
	if n := len(c.script.requests(c.t)); n != r.spend {
		c.t.Errorf("%d requests reached the provider, want %d", n, r.spend)
	}
	var charge totals
	if r.spend > 0 {
		charge = sdk.one
	}
	if r.secret == "" {
		charge.Refused = int64(requests)
	}
	c.charged("", charge)
}

// checkThrottle checks two calls at once of a key that has one place.
func (sdk *jsSDK) checkThrottle(c *caller, at *counter, got jsResult) {
	c.t.Helper()
	admitted := int64(1)
	if sdk.patient {
		admitted = 2
		if got.Error != nil || got.Text != text {
			c.t.Errorf("the SDK read %+v %+v, want an answer at its second try", got, got.Error)
		}
	} else {
		sdk.checkError(c, got, sdk.errors["one at a time"])
	}
	refused := int64(at.requests(c.script.name)) - admitted
	if refused < 1 || refused > 2 {
		c.t.Errorf("%d requests were refused, want one, or two on a slow machine", refused)
	}
	one := sdk.one
	c.charged("", totals{
		Requests: admitted, Refused: refused, Input: admitted * one.Input, Cached: admitted * one.Cached,
		CacheWrite: admitted * one.CacheWrite, Output: admitted * one.Output, Reasoning: admitted * one.Reasoning,
	})
}

// checkError checks that the SDK has its own error for a refusal.
func (sdk *jsSDK) checkError(c *caller, got jsResult, want jsError) {
	c.t.Helper()
	if got.Error == nil {
		c.t.Fatalf("the SDK read %+v, want an error", got)
	}
	e := *got.Error
	if !e.Typed {
		c.t.Errorf("the error is none of the SDK's own: %s", got.Stack)
	}
	if e.Message == "" || sdk.id && e.ID == "" {
		c.t.Errorf("the error has the message %q and the request ID %q", e.Message, e.ID)
	}
	if e.Tries > 1 && e.Tries != sdk.tries {
		c.t.Errorf("the SDK gave up after %d tries", e.Tries)
	}
	e.Typed, e.Tries, e.Message, e.ID = false, 0, "", ""
	if e != want {
		c.t.Errorf("the SDK read %+v, want %+v", e, want)
	}
}

// slowly delays an answer for less than the second after which those who are
// refused for its sake come again.
func slowly(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(500 * time.Millisecond)
		h(w, r)
	}
}

// ndjson answers with a fixture line by line, as Ollama does.
func ndjson(name string) http.HandlerFunc {
	body := fixture(name)
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/x-ndjson")
		for line := range bytes.SplitAfterSeq(body, []byte("\n")) {
			w.Write(line)
			w.(http.Flusher).Flush()
			time.Sleep(time.Millisecond)
		}
	}
}

// A counter stands in front of a gate and counts the requests to it, by
// script.
type counter struct {
	*httptest.Server
	mu sync.Mutex
	n  map[string]int
}

func newCounter(t *testing.T, to string) *counter {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{n: map[string]int{}}
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(u) },
		Transport: &http.Transport{DisableCompression: true},
	}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		c.n[r.Header.Get(scriptHeader)]++
		c.mu.Unlock()
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(c.Close)
	return c
}

func (c *counter) requests(script string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[script]
}

// installJS installs what js/package-lock.json names into a folder of the
// test's own, beside copies of the scripts.
func installJS(t *testing.T) (dir string) {
	t.Helper()
	for _, name := range []string{"node", "npm"} {
		if _, err := exec.LookPath(name); err != nil {
			skip(t, "%s is not there, which the SDKs of JavaScript need", name)
		}
	}
	node, err := exec.Command("node", "-p", "process.versions.node.split('.')[0]").Output()
	if major, _ := strconv.Atoi(strings.TrimSpace(string(node))); err != nil || major < 20 {
		skip(t, "the SDKs of JavaScript need node 20, and here is %q (%v)", node, err)
	}
	dir = t.TempDir()
	scripts, err := filepath.Glob("js/*.*js*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range scripts {
		b, err := os.ReadFile(name)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, filepath.Base(name)), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	npm := exec.CommandContext(ctx, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
	npm.Dir = dir
	if out, err := npm.CombinedOutput(); err != nil {
		skip(t, "npm cannot install the SDKs of JavaScript: %v\n%s", err, out)
	}
	return dir
}

// runJS lets one SDK do all cases, side by side, and returns what the script
// printed of each.
func runJS(t *testing.T, dir, sdk string, cases []jsCase) map[string]jsResult {
	t.Helper()
	var in, out, complaints bytes.Buffer
	for _, one := range cases {
		if err := json.NewEncoder(&in).Encode(one); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	node := exec.CommandContext(ctx, "node", "main.mjs", sdk)
	node.Dir, node.Stdin, node.Stdout, node.Stderr = dir, &in, &out, &complaints
	for _, v := range os.Environ() { // node takes proxies and options from there
		name, _, _ := strings.Cut(strings.ToUpper(v), "=")
		if !strings.HasPrefix(name, "NODE_") && !strings.HasSuffix(name, "_PROXY") {
			node.Env = append(node.Env, v)
		}
	}
	if err := node.Run(); err != nil {
		t.Fatalf("the script: %v\n%s%s", err, &out, &complaints)
	}
	results := map[string]jsResult{}
	for line := range strings.Lines(out.String()) {
		var r jsResult
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("the script printed %q: %v", line, err)
		}
		results[r.Case] = r
	}
	return results
}
