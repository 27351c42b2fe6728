package cli_test

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/google/go-cmp/cmp"

	_ "github.com/llm-quota/caddy-llm-quota"
	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/admin/cli"
	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestMain keeps Caddy's folders out of the user's home.
func TestMain(m *testing.M) {
	home, err := os.MkdirTemp("", "llm-quota-home-")
	if err != nil {
		panic(err)
	}
	for _, name := range []string{"HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"} {
		os.Setenv(name, home)
	}
	code := m.Run()
	os.RemoveAll(home)
	os.Exit(code)
}

// bench is Caddy, running in this process with the module, and commands that
// find it by default.
type bench struct {
	testing.TB
	socket string
	admin  string // the address of the admin endpoint
	store  string
}

func newBench(t testing.TB) *bench { return benchWith(t, `{}`) }

// benchWith starts a gate whose app has the given options besides its store.
func benchWith(t testing.TB, options string) *bench {
	t.Helper()
	dir, err := os.MkdirTemp("", "q") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{TB: t, socket: filepath.Join(dir, "admin"), store: filepath.Join(dir, "store")}
	b.admin = "unix/" + b.socket
	was := caddy.DefaultAdminListen
	caddy.DefaultAdminListen = b.admin
	t.Cleanup(func() {
		caddy.DefaultAdminListen = was
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	b.load(options)
	return b
}

func (b *bench) load(options string) {
	b.Helper()
	var app map[string]any
	if err := json.Unmarshal([]byte(options), &app); err != nil {
		b.Fatal(err)
	}
	app["store"] = map[string]any{"engine": "badger", "dir": b.store}
	answer := map[string]any{
		"handler": "static_response", "headers": map[string]any{"Content-Type": []string{"application/json"}},
		"body": `{"object":"chat.completion","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}`,
	}
	site := map[string]any{
		"listen": []string{"unix/" + b.socket + "-site"},
		"routes": []any{map[string]any{"handle": []any{map[string]any{"handler": "llm_quota"}, answer}}},
	}
	b.loadApps(map[string]any{
		"llm_quota": app, "http": map[string]any{"servers": map[string]any{"site": site}},
	})
}

func (b *bench) loadApps(apps map[string]any) {
	b.Helper()
	config, err := json.Marshal(map[string]any{
		"admin":   map[string]any{"listen": b.admin, "config": map[string]any{"persist": false}},
		"logging": map[string]any{"logs": map[string]any{"default": map[string]any{"level": "ERROR"}}},
		"apps":    apps,
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := caddy.Load(config, true); err != nil {
		b.Fatal(err)
	}
}

// ledger returns the ledger that runs.
func (b *bench) ledger() *ledger.Ledger {
	b.Helper()
	app, err := caddy.ActiveContext().AppIfConfigured("llm_quota")
	if err != nil {
		b.Fatal(err)
	}
	l, err := app.(admin.Gate).Ledger()
	if err != nil {
		b.Fatal(err)
	}
	return l
}

// result is what a command has done.
type result struct {
	testing.TB
	command  string
	code     int
	out, err string
}

// run runs a command below `caddy llm-quota`, split at spaces unless they are
// within quotes.
func (b *bench) run(command string, args ...any) *result {
	b.Helper()
	return b.runIn(&cli.World{}, command, args...)
}

func (b *bench) runIn(w *cli.World, command string, args ...any) *result {
	b.Helper()
	if len(args) > 0 {
		command = fmt.Sprintf(command, args...)
	}
	if w.Actor == "" {
		w.Actor = "tester"
	}
	code := w.Run(b.Context(), append([]string{"llm-quota"}, words(b, command)...)...)
	return &result{b.TB, command, code, w.Out.String(), w.Err.String()}
}

// words splits a command as a shell does, as far as examples need it.
func words(t testing.TB, s string) (all []string) {
	t.Helper()
	for _, m := range regexp.MustCompile(`(?:"[^"]*"|'[^']*'|[^\s"']+)+`).FindAllString(s, -1) {
		all = append(all, strings.NewReplacer(`"`, "", `'`, "").Replace(m))
	}
	return all
}

// ok fails the test unless the exit code is 0.
func (r *result) ok() *result {
	r.Helper()
	return r.exits(0)
}

func (r *result) exits(code int) *result {
	r.Helper()
	if r.code != code {
		r.Fatalf("%s: exit code %d, want %d\n%s%s", r.command, r.code, code, r.out, r.err)
	}
	return r
}

// says fails the test unless all of the words are on the standard error.
func (r *result) says(texts ...string) *result {
	r.Helper()
	for _, s := range texts {
		if !strings.Contains(r.err, s) {
			r.Errorf("%s: no %q in %q", r.command, s, r.err)
		}
	}
	return r
}

// prints fails the test unless all of the words are on the standard output.
func (r *result) prints(texts ...string) *result {
	r.Helper()
	for _, s := range texts {
		if !strings.Contains(r.out, s) {
			r.Errorf("%s: no %q in %q", r.command, s, r.out)
		}
	}
	return r
}

// read reads the output as JSON.
func read[T any](r *result) (v T) {
	r.Helper()
	if err := json.Unmarshal([]byte(r.ok().out), &v); err != nil {
		r.Fatalf("%s: reading %s: %v", r.command, r.out, err)
	}
	return v
}

// key returns a key as the API shows it.
func (b *bench) key(name string) admin.Key {
	b.Helper()
	return read[admin.Key](b.run("keys show %q --json", name))
}

func (b *bench) group(name string) admin.Group {
	b.Helper()
	return read[admin.Group](b.run("groups show %q --json", name))
}

// spend makes a key use tokens, half of them output.
func (b *bench) spend(name, model string, tokens int64) {
	b.Helper()
	l, now := b.ledger(), clock()
	id, err := l.Find(quota.KindKey, name)
	if err != nil {
		b.Error(err)
		return
	}
	a, err := l.Account(now, id)
	if err != nil {
		b.Error(err)
		return
	}
	var r ledger.Reservation
	ref, err := l.Reserve(now, a, ledger.Call{Model: model, Input: tokens, Observe: true}, &r)
	if err != nil || ref != nil {
		b.Error(err, ref)
		return
	}
	half := tokens / 2
	if err := l.Settle(now, &r, quota.Outcome{Tokens: quota.Tokens{Input: tokens - half, Output: half}}); err != nil {
		b.Error(err)
	}
}

// until waits until ok, which must come.
func (b *bench) until(what string, ok func() bool) {
	b.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			b.Fatalf("waited in vain for the %s", what)
		}
	}
}

// call makes a chat completion through the gate, and returns its status.
func (b *bench) call(secret, model string) int {
	r, err := http.NewRequestWithContext(b.Context(), http.MethodPost, "http://site/v1/chat/completions",
		strings.NewReader(fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":"hello"}]}`, model)))
	if err != nil {
		b.Error(err)
		return 0
	}
	r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(secret))
	r.Header.Set("Content-Type", "application/json")
	site := &http.Client{Transport: &http.Transport{DialContext: dialer(b.socket + "-site"), DisableKeepAlives: true}}
	resp, err := site.Do(r)
	if err != nil {
		b.Error(err)
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// busy makes a key call, and be refused a model, until it is stopped.
func (b *bench) busy(secret string) (stop func()) {
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if good, bad := b.call(secret, "gpt-4o"), b.call(secret, "claude"); good != 200 || bad != 403 {
				b.Errorf("status %d and %d", good, bad)
				return
			}
		}
	}()
	return func() { cancel(); <-done }
}

func dialer(socket string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
}

// masks hide what is new each time, under something as wide.
var masks = []struct {
	is   *regexp.Regexp
	mask string
}{
	{regexp.MustCompile(`key_[0-9a-z]{13}`), "key_xxxxxxxxxxxxx"},
	{regexp.MustCompile(`grp_[0-9a-z]{13}`), "grp_xxxxxxxxxxxxx"},
	{regexp.MustCompile(`lq_[0-9A-Za-z]{8}_[0-9A-Za-z]{38}`), "lq_secret"},
	{regexp.MustCompile(`lq_[0-9A-Za-z]{8}`), "lq_xxxxxxxx"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`), "YYYY-MM-DD hh:mm:ss"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d`), "YYYY-MM-DD hh:mm"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d\b`), "YYYY-MM-DD"},
	{regexp.MustCompile(`\d\d:\d\d:\d\d`), "hh:mm:ss"},
	{regexp.MustCompile(`\b\d+[smhd] ago|\bin \d+[smhd]\b|\bnow\b`), "<when>"},
	{regexp.MustCompile(`(?m)^( *[▁▂▃▄▅▆▇█]+  most)`), "<spark>  most"},
}

func masked(s string) string {
	for _, m := range masks {
		s = m.is.ReplaceAllString(s, m.mask)
	}
	return s
}

// golden compares all that commands have printed with a file.
func golden(t testing.TB, name string, results ...*result) {
	t.Helper()
	var all strings.Builder
	for _, r := range results {
		fmt.Fprintf(&all, "$ caddy llm-quota %s\n%s", r.command, masked(r.out))
		for line := range strings.Lines(masked(r.err)) {
			all.WriteString("! " + line)
		}
		if r.code != 0 {
			fmt.Fprintf(&all, "exit code %d\n", r.code)
		}
		all.WriteString("\n")
	}
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(all.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), all.String()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

// background runs a command until it is stopped, which returns its exit code.
// What it prints must be read.
func (b *bench) background(command string) (out *bufio.Reader, stop func() int) {
	ctx, cancel := context.WithCancel(b.Context())
	pipe, in := io.Pipe()
	done := make(chan int, 1)
	go func() {
		w := &cli.World{Stdout: in, Actor: "tester"}
		code := w.Run(ctx, append([]string{"llm-quota"}, words(b, command)...)...)
		in.Close()
		done <- code
	}()
	out = bufio.NewReader(pipe)
	return out, func() int {
		cancel()
		go io.Copy(io.Discard, out)
		return <-done
	}
}

// spy lets f's commands come through a proxy that shows each request, which
// may change it.
func (b *bench) spy(see func(*http.Request), f func()) {
	b.Helper()
	proxy := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			see(r.In)
			r.Out.Header = r.In.Header.Clone()
			r.Out.Header.Del("Origin") // it is the proxy's
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "127.0.0.1"
			r.Out.Host = "127.0.0.1"
		},
		Transport:     &http.Transport{DialContext: dialer(b.socket), DisableKeepAlives: true},
		FlushInterval: -1,
	})
	defer proxy.Close()
	was := caddy.DefaultAdminListen
	caddy.DefaultAdminListen = strings.TrimPrefix(proxy.URL, "http://")
	defer func() { caddy.DefaultAdminListen = was }()
	f()
}
