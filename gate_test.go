package llmquota

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

// patience bounds every wait for something that must come.
const patience = 30 * time.Second

// TestMain keeps Caddy's folders out of the user's home.
func TestMain(m *testing.M) {
	home, err := os.MkdirTemp("", "llm-quota-home-")
	if err != nil {
		panic(err)
	}
	for _, name := range []string{"HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"} {
		os.Setenv(name, home)
	}
	caddy.RegisterModule(logSink{})
	caddy.RegisterModule(inner{})
	caddy.RegisterModule(panickingStore{})
	caddy.RegisterModule(new(lateStore))
	httpcaddyfile.RegisterHandlerDirective("test_inner", func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		h.Next()
		in := new(inner)
		if !h.Args(&in.Name) {
			return nil, h.ArgErr()
		}
		return in, nil
	})
	httpcaddyfile.RegisterDirectiveOrder("test_inner", httpcaddyfile.Before, "reverse_proxy")
	code := m.Run()
	os.RemoveAll(home)
	os.Exit(code)
}

// skip skips a test for want of something; where all is required, that fails.
func skip(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("REQUIRE_ALL") != "" {
		t.Fatalf("REQUIRE_ALL is set: "+format, args...)
	}
	t.Skipf(format, args...)
}

// secret is the secret of the key "k" of every gate.
const secret = "test-secret-of-the-key-k"

// gate is Caddy, running in this process, with the module under test.
type gate struct {
	testing.TB
	dir    string // of the store
	url    string // of the site
	admin  string // of the admin endpoint
	client *http.Client
	// logFormat is the default logger's.
	logFormat string
	// listeners is how many sockets the running configuration's sites have.
	listeners int
}

// newGate returns a gate that does not run yet. It stops when the test ends.
func newGate(t testing.TB) *gate {
	t.Helper()
	g := &gate{TB: t, logFormat: "format json", dir: filepath.Join(t.TempDir(), "store"), url: "http://" + freeAddr(t), admin: "http://" + freeAddr(t)}
	g.client = &http.Client{Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}, Timeout: 2 * patience}
	takeLogs()
	t.Cleanup(func() {
		g.client.CloseIdleConnections()
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
		g.released(g.dir)
	})
	return g
}

// startGate starts a gate. options go into the block of the global option
// llm_quota, site into the site.
func startGate(t testing.TB, options, site string) *gate {
	t.Helper()
	g := newGate(t)
	g.load(options, site)
	return g
}

// freeAddr returns an address of this machine on which nobody listens.
func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// caddyfile is the gate's configuration.
func (g *gate) caddyfile(options, site string) string {
	return fmt.Sprintf(`{
	admin %s
	persist_config off
	auto_https off
	log default {
		output test_sink
		level DEBUG
		%s
	}
	metrics
	llm_quota {
		store badger %s
		%s
	}
}
%s {
	%s
}
`, strings.TrimPrefix(g.admin, "http://"), g.logFormat, g.dir, options, g.url, site)
}

// adapt returns a Caddyfile as JSON.
func adapt(t testing.TB, text string) []byte {
	t.Helper()
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), nil)
	if err != nil {
		t.Fatalf("adapting: %v\n%s", err, text)
	}
	return config
}

// load loads a configuration, which must succeed.
func (g *gate) load(options, site string) {
	g.Helper()
	if err := g.tryLoad(options, site); err != nil {
		g.Fatalf("loading: %v", err)
	}
}

// tryLoad loads a configuration. One that never ends, as over a pool that is
// locked for ever, ends the test.
func (g *gate) tryLoad(options, site string) error {
	g.Helper()
	return g.loadText(g.caddyfile(options, site))
}

func (g *gate) loadText(text string) error {
	g.Helper()
	config := adapt(g, text)
	done := make(chan error, 1)
	go func() { done <- caddy.Load(config, true) }()
	select {
	case err := <-done:
		if err == nil {
			g.listeners = listeners(g, config)
		}
		g.settled()
		return err
	case <-time.After(patience):
		g.Fatal("the configuration is still being loaded")
		return nil
	}
}

// listeners counts the addresses on which a configuration's sites listen.
func listeners(t testing.TB, config []byte) (n int) {
	t.Helper()
	var c struct {
		Apps struct {
			HTTP struct {
				Servers map[string]struct{ Listen []string }
			}
		}
	}
	if err := json.Unmarshal(config, &c); err != nil {
		t.Fatal(err)
	}
	for _, s := range c.Apps.HTTP.Servers {
		n += len(s.Listen)
	}
	return n
}

// settled waits until only the servers of the running configuration accept
// calls. Those of one that has ended, or failed, close their sockets at their
// leisure, and until then the system gives them new connections too.
func (g *gate) settled() {
	g.Helper()
	g.client.CloseIdleConnections()
	g.until("the servers of other configurations have closed", func() bool {
		return len(goroutines("created by github.com/caddyserver/caddy/v2/modules/caddyhttp.(*App).Start")) == g.listeners
	})
}

// validate does what caddy validate does with a configuration.
func validate(config []byte) error {
	c := new(caddy.Config)
	if err := json.Unmarshal(config, c); err != nil {
		return err
	}
	return caddy.Validate(c)
}

// app returns the app that runs.
func (g *gate) app() *App {
	g.Helper()
	app, err := caddy.ActiveContext().AppIfConfigured("llm_quota")
	if err != nil {
		g.Fatal(err)
	}
	return app.(*App)
}

// ledger returns the ledger of the app that runs.
func (g *gate) ledger() *ledger.Ledger {
	g.Helper()
	l, err := g.app().Ledger()
	if err != nil {
		g.Fatal(err)
	}
	return l
}

// until waits until ok.
func (g *gate) until(what string, ok func() bool) {
	g.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			g.Fatalf("waited in vain until %s", what)
		}
	}
}

// released waits until nothing holds the store in dir.
func (g *gate) released(dir string) {
	g.Helper()
	g.until("the store in "+dir+" is released", func() bool {
		booksMu.Lock() // a store that is being closed is gone from the pool already
		defer booksMu.Unlock()
		_, held := books.References(dir)
		return !held
	})
}

// request makes a request to the site with the secret of key "k". headers come
// in pairs and replace what is set; an empty value takes a header away.
func (g *gate) request(method, path, body string, headers ...string) *http.Request {
	g.Helper()
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(g.Context(), method, g.url+path, in)
	if err != nil {
		g.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+secret)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i+1] == "" {
			r.Header.Del(headers[i])
		} else {
			r.Header.Set(headers[i], headers[i+1])
		}
	}
	return r
}

// reply is an answer, read to its end.
type reply struct {
	testing.TB
	status int
	header http.Header
	body   string
}

// do makes a request and reads its answer.
func (g *gate) do(method, path, body string, headers ...string) *reply {
	g.Helper()
	return g.send(g.request(method, path, body, headers...))
}

// open sends a request, and returns its answer with the body to be read.
func (g *gate) open(r *http.Request) *http.Response {
	g.Helper()
	resp, err := g.client.Do(r)
	if err != nil {
		g.Fatal(err)
	}
	return resp
}

func (g *gate) send(r *http.Request) *reply {
	g.Helper()
	resp := g.open(r)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		g.Fatalf("reading the answer: %v", err)
	}
	return &reply{g.TB, resp.StatusCode, resp.Header, string(b)}
}

// chat asks for a chat completion.
func (g *gate) chat(headers ...string) *reply {
	g.Helper()
	return g.do("POST", "/v1/chat/completions", chatBody, headers...)
}

// chatBody is a request that reserves 1 + 4 + 20 tokens or so.
const chatBody = `{"model":"gpt-4o","max_tokens":20,"messages":[{"role":"user","content":"hi"}]}`

// ok fails the test unless the status is the given one.
func (r *reply) ok(status int) *reply {
	r.Helper()
	if r.status != status {
		r.Fatalf("status %d, want %d: %s", r.status, status, r.body)
	}
	return r
}

// refused fails the test unless the answer is OpenAI's error of that code.
func (r *reply) refused(status int, code string) *reply {
	r.Helper()
	var e struct {
		Error struct{ Message, Type, Code string }
	}
	if err := json.Unmarshal([]byte(r.body), &e); err != nil || r.status != status || e.Error.Code != code || e.Error.Message == "" {
		r.Fatalf("status %d, %s; want %d with the code %s", r.status, r.body, status, code)
	}
	return r
}

// api makes a request to the admin API.
func (g *gate) api(method, path, body string) *reply {
	g.Helper()
	r, err := http.NewRequestWithContext(g.Context(), method, g.admin+path, strings.NewReader(body))
	if err != nil {
		g.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	return g.send(r)
}

func decode[T any](r *reply) (v T) {
	r.Helper()
	if err := json.Unmarshal([]byte(r.body), &v); err != nil {
		r.Fatalf("reading %s: %v", r.body, err)
	}
	return v
}

// key returns a key by its name, as the admin API shows it.
func (g *gate) key(name string) admin.Key {
	g.Helper()
	return decode[admin.Key](g.api("GET", "/llm_quota/keys/name:"+name, "").ok(200))
}

// usage waits until no call is under way, and returns what was used.
// parameters are of the usage report.
func (g *gate) usage(parameters string) admin.Usage {
	g.Helper()
	g.until("every call is settled", func() bool {
		return decode[admin.Status](g.api("GET", "/llm_quota/status", "").ok(200)).OpenReservations == 0
	})
	return decode[admin.Usage](g.api("GET", "/llm_quota/usage?"+parameters, "").ok(200))
}

// used is what tests compare of totals.
type used struct {
	requests, refused, failed, input, output, estimated int64
}

// totals returns what was used in all.
func (g *gate) totals() used {
	g.Helper()
	t := g.usage("").Totals
	if t.Total != t.Input+t.Output {
		g.Errorf("total %d is not the sum of %d and %d", t.Total, t.Input, t.Output)
	}
	return used{t.Requests, t.Refused, t.Failed, t.Input, t.Output, t.Estimated}
}

// wants fails the test unless exactly that was used.
func (g *gate) wants(want used) {
	g.Helper()
	if got := g.totals(); got != want {
		g.Errorf("used %+v, want %+v", got, want)
	}
}

// keyK configures the key "k" with the given options.
func keyK(options ...string) string {
	return "key k {\n secret " + secret + "\n" + strings.Join(options, "\n") + "\n}\n"
}

// proxy is the site of a gate in front of an upstream.
func proxy(up *httptest.Server, options ...string) string {
	return "llm_quota {\n" + strings.Join(options, "\n") + "\n}\nreverse_proxy " + strings.TrimPrefix(up.URL, "http://") + "\n"
}

// upstream starts a server that stands for a provider.
func upstream(t testing.TB, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// answer is a chat completion that used that much.
func answer(input, output int) string {
	return fmt.Sprintf(`{"id":"c","object":"chat.completion","model":"gpt-4o","choices":[{"index":0,"message":`+
		`{"role":"assistant","content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}`,
		input, output, input+output)
}

// completes is a provider that uses 11 + 7 tokens for each call.
func completes(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body) //nolint:errcheck // what came does not matter
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, answer(11, 7)) //nolint:errcheck // nor whether anybody listens
}

// chunk is one event of a streamed chat completion.
func chunk(text string) string {
	return `data: {"id":"c","object":"chat.completion.chunk","model":"gpt-4o","choices":[{"index":0,"delta":{"content":` + strconv.Quote(text) + `},"finish_reason":null}]}` + "\n\n"
}

// lastChunks are the end of a stream that used that much, as far as usage was
// asked for.
func lastChunks(usage string) string {
	return `data: {"id":"c","object":"chat.completion.chunk","model":"gpt-4o","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n" + usage + "data: [DONE]\n\n"
}

func usageChunk(input, output int) string {
	return fmt.Sprintf(`data: {"id":"c","object":"chat.completion.chunk","model":"gpt-4o","choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}`+"\n\n",
		input, output, input+output)
}

// say writes to w, and sees that it leaves.
func say(w http.ResponseWriter, s string) {
	io.WriteString(w, s)                  //nolint:errcheck // a caller that has gone is a test's own doing
	http.NewResponseController(w).Flush() //nolint:errcheck // the same
}

// streamBody is a request for a stream that does not ask for usage.
const streamBody = `{"model":"gpt-4o","max_tokens":50,"stream":true,"messages":[{"role":"user","content":"hi"}]}`

// logs is what Caddy has logged since takeLogs.
var logs struct {
	sync.Mutex
	bytes.Buffer
}

// takeLogs returns what was logged since it was called last.
func takeLogs() string {
	logs.Lock()
	defer logs.Unlock()
	s := logs.String()
	logs.Reset()
	return s
}

// seenLogs returns what was logged, and leaves it there.
func seenLogs() string {
	logs.Lock()
	defer logs.Unlock()
	return logs.String()
}

// logSink is a log writer that keeps what is written.
type logSink struct{}

func (logSink) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.logging.writers.test_sink", New: func() caddy.Module { return new(logSink) }}
}

func (logSink) String() string                                   { return "test_sink" }
func (logSink) WriterKey() string                                { return "test_sink" }
func (logSink) OpenWriter() (io.WriteCloser, error)              { return logSink{}, nil }
func (*logSink) UnmarshalCaddyfile(d *caddyfile.Dispenser) error { d.Next(); return nil }
func (logSink) Close() error                                     { return nil }
func (logSink) Write(p []byte) (int, error) {
	logs.Lock()
	defer logs.Unlock()
	return logs.Write(p)
}

// inner is a handler behind the gate, or before it, that a test writes.
type inner struct {
	Name string `json:"name"`
}

// innerFuncs are the handlers by name.
var innerFuncs sync.Map

// setInner makes f the handler of that name.
func setInner(t testing.TB, name string, f func(http.ResponseWriter, *http.Request, caddyhttp.Handler) error) {
	innerFuncs.Store(name, f)
	t.Cleanup(func() { innerFuncs.Delete(name) })
}

func (inner) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.test_inner", New: func() caddy.Module { return new(inner) }}
}

func (in *inner) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	f, ok := innerFuncs.Load(in.Name)
	if !ok {
		return fmt.Errorf("no handler %q", in.Name)
	}
	return f.(func(http.ResponseWriter, *http.Request, caddyhttp.Handler) error)(w, r, next)
}

// bench is a handler in front of its app, which has been provisioned but not
// started, without servers.
type bench struct {
	testing.TB
	app     *App
	handler *Handler
}

// newBench returns a bench with one key, as JSON, and a handler's options.
func newBench(t testing.TB, dir, key, handler string) *bench {
	t.Helper()
	app, err := json.Marshal(map[string]any{
		"store": map[string]string{"engine": "badger", "dir": dir},
		"keys":  []json.RawMessage{json.RawMessage(key)},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, err := caddy.ProvisionContext(&caddy.Config{
		Admin:   &caddy.AdminConfig{Disabled: true},
		AppsRaw: caddy.ModuleMap{"llm_quota": app},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := caddy.NewContext(ctx)
	b := &bench{TB: t}
	v, err := ctx.App("llm_quota")
	if err != nil {
		t.Fatal(err)
	}
	b.app = v.(*App)
	v, err = ctx.LoadModuleByID("http.handlers.llm_quota", json.RawMessage(handler))
	if err != nil {
		t.Fatal(err)
	}
	b.handler = v.(*Handler)
	t.Cleanup(func() {
		cancel()
		if err := b.app.Cleanup(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// serve sends a request through the handler.
func (b *bench) serve(r *http.Request, next caddyhttp.HandlerFunc) *reply {
	b.Helper()
	if r.Body == nil {
		r.Body = http.NoBody
	}
	w := httptest.NewRecorder()
	r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, new(caddyhttp.Server))
	if err := b.handler.ServeHTTP(w, r, next); err != nil {
		b.Errorf("the handler returned %v", err)
	}
	return &reply{b.TB, w.Code, w.Header(), w.Body.String()}
}

// answers is a handler behind the gate with a fixed answer.
func answers(status int, body string) caddyhttp.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, err := io.WriteString(w, body)
		return err
	}
}

// goroutines returns the stacks of the goroutines that run code of one of the
// given packages.
func goroutines(packages ...string) []string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	var found []string
	for s := range strings.SplitSeq(string(buf), "\n\n") {
		if slices.ContainsFunc(packages, func(p string) bool { return strings.Contains(s, p) }) {
			found = append(found, s)
		}
	}
	return found
}

var (
	_ caddy.WriterOpener          = logSink{}
	_ caddyhttp.MiddlewareHandler = (*inner)(nil)
)
