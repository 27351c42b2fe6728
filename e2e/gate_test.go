package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A process of Caddy, with its data in a folder of its own.
type process struct {
	t     *testing.T
	dir   string   // Caddy's data, its configuration and its log
	admin string   // address of the admin endpoint
	wait  []string // addresses that accept connections when it is ready
	cmd   *exec.Cmd
	done  chan struct{} // closed when cmd has ended
}

// newProcess prepares a process; start starts it. When the test ends it is
// killed, and its log shown if the test has failed.
func newProcess(t *testing.T, caddyfile, admin string, sites ...string) *process {
	t.Helper()
	p := &process{t: t, dir: t.TempDir(), admin: admin, wait: sites}
	if err := os.WriteFile(filepath.Join(p.dir, "Caddyfile"), []byte(caddyfile), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			for i, line := range p.complaints(0) {
				if i < 20 {
					t.Logf("the gate warned: %s", line)
				}
			}
			t.Logf("the log of Caddy ends:\n%s", p.logEnd())
		}
	})
	return p
}

// start starts the process and waits until it serves.
func (p *process) start() {
	p.t.Helper()
	if err := p.tryStart(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) tryStart() error {
	log, err := os.OpenFile(filepath.Join(p.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd = exec.Command(caddy, "run", "--config", filepath.Join(p.dir, "Caddyfile"), "--adapter", "caddyfile")
	p.cmd.Env = append(os.Environ(), "HOME="+p.dir, "XDG_DATA_HOME="+p.dir, "XDG_CONFIG_HOME="+p.dir)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = dieWithParent
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("starting caddy: %w", err)
	}
	cmd, done := p.cmd, make(chan struct{})
	p.done = done
	go func() {
		cmd.Wait() //nolint:errcheck // killed on purpose, as a rule
		close(done)
	}()
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		select {
		case <-done:
			return fmt.Errorf("caddy has ended: %v", cmd.ProcessState)
		default:
		}
		if p.serves() {
			return nil
		}
	}
	return errors.New("caddy does not serve after a minute")
}

func (p *process) serves() bool {
	for _, address := range p.wait {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return false
		}
		c.Close()
	}
	resp, err := http.Get("http://" + p.admin + "/config/")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// kill ends the process as a crash would, with SIGKILL.
func (p *process) kill() {
	if p.cmd == nil {
		return
	}
	p.cmd.Process.Kill() //nolint:errcheck // it may have ended
	<-p.done
	p.cmd = nil
}

// stop ends the process as an operator would, with SIGTERM.
func (p *process) stop() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		p.t.Fatal("caddy does not stop")
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		p.t.Errorf("caddy stopped with exit code %d", code)
	}
	p.cmd = nil
}

// log returns all that the process has logged, over all its starts.
func (p *process) log() []byte {
	b, err := os.ReadFile(filepath.Join(p.dir, "log"))
	if err != nil {
		p.t.Error(err)
	}
	return b
}

func (p *process) logEnd() string {
	lines := bytes.Split(bytes.TrimSpace(p.log()), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-60):], []byte("\n")))
}

// freeAddresses returns n loopback addresses that nobody listens on. They lie
// below the ports that systems give to connections, so that none is taken
// while a process is between two starts.
func freeAddresses(t *testing.T, n int) []string {
	t.Helper()
	var all []string
	for range 1000 {
		if len(all) == n {
			return all
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 12000+rand.IntN(20000)))
		if err == nil {
			defer l.Close() // only at the end, so that no address comes twice
			all = append(all, l.Addr().String())
		}
	}
	t.Fatal("found no free ports")
	return nil
}

// A gate is a process that guards one upstream.
type gate struct {
	*process
	url string
}

// newGate starts a gate in front of upstream, with these options in the global
// block and in the handler's.
func newGate(t *testing.T, upstream, global, handler string) *gate {
	t.Helper()
	at := freeAddresses(t, 2)
	g := &gate{newProcess(t, caddyfile(at[0], at[1], upstream, global, "llm_quota {\n"+handler+"\n}"), at[0], at[1]), "http://" + at[1]}
	g.start()
	return g
}

// caddyfile returns the configuration of one site with these handlers in front
// of upstream.
func caddyfile(admin, site, upstream, global, handlers string) string {
	if global != "" {
		global = "llm_quota {\n" + global + "\n}"
	}
	return fmt.Sprintf(`{
	admin %s
	persist_config off
	log {
		exclude admin.api
	}
	%s
}
http://%s {
	%s
	reverse_proxy %s
}
`, admin, global, site, handlers, strings.TrimPrefix(upstream, "http://"))
}

// What the admin API answers, as far as these tests read it.
type (
	keyObject struct {
		ID     string `json:"id"`
		Name   string `json:"name"`
		Secret string `json:"secret"`
		State  state  `json:"state"`
	}
	state struct {
		Quota *struct {
			Used      int64 `json:"used"`
			Reserved  int64 `json:"reserved"`
			Remaining int64 `json:"remaining"`
		} `json:"quota"`
		Limits map[string]struct {
			Used      int64 `json:"used"`
			Remaining int64 `json:"remaining"`
		} `json:"limits"`
	}
	totals struct {
		Requests   int64 `json:"requests"`
		Refused    int64 `json:"refused"`
		Failed     int64 `json:"failed"`
		Input      int64 `json:"input_tokens"`
		Cached     int64 `json:"cached_input_tokens"`
		CacheWrite int64 `json:"cache_write_tokens"`
		Output     int64 `json:"output_tokens"`
		Reasoning  int64 `json:"reasoning_tokens"`
		Total      int64 `json:"total_tokens"`
		Estimated  int64 `json:"estimated_tokens"`
	}
	usage struct {
		Totals    totals `json:"totals"`
		Breakdown []struct {
			Model  string `json:"model"`
			Totals totals `json:"totals"`
		} `json:"breakdown"`
		Series []struct {
			Totals totals `json:"totals"`
		} `json:"series"`
	}
	status struct {
		Store struct {
			Engine  string `json:"engine"`
			Healthy bool   `json:"healthy"`
		} `json:"store"`
		OpenReservations int64 `json:"open_reservations"`
	}
)

// model returns the totals of one model.
func (u *usage) model(name string) totals {
	for _, line := range u.Breakdown {
		if line.Model == name {
			return line.Totals
		}
	}
	return totals{}
}

// api calls the admin API and reads its answer into the value.
func (p *process) api(method, path string, body, into any) {
	p.t.Helper()
	var sent io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			p.t.Fatal(err)
		}
		sent = bytes.NewReader(b)
	}
	r, err := http.NewRequest(method, "http://"+p.admin+"/llm_quota"+path, sent)
	if err != nil {
		p.t.Fatal(err)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	if resp.StatusCode >= 300 {
		p.t.Fatalf("%s %s: %s: %s", method, path, resp.Status, answer)
	}
	if err := json.Unmarshal(answer, into); err != nil {
		p.t.Fatalf("%s %s: %v: %s", method, path, err, answer)
	}
}

// makeKey makes a key through the admin API. settings are fields of the key.
func (p *process) makeKey(name string, settings map[string]any) keyObject {
	p.t.Helper()
	fields := map[string]any{"name": strings.ReplaceAll(name, "/", " ")}
	for k, v := range settings {
		fields[k] = v
	}
	var k keyObject
	p.api(http.MethodPost, "/keys", fields, &k)
	return k
}

// key returns the key's object, by ID or name:<name>.
func (p *process) key(id string) (k keyObject) {
	p.t.Helper()
	p.api(http.MethodGet, "/keys/"+url.PathEscape(id), nil, &k)
	return k
}

// usage returns the last 24 hours by model; of one key, or "" for all.
func (p *process) usage(key string) (u usage) {
	p.t.Helper()
	path := "/usage?by=model"
	if key != "" {
		path += "&key=" + url.QueryEscape(key)
	}
	p.api(http.MethodGet, path, nil, &u)
	return u
}

// status returns what the gate says of itself.
func (p *process) status() (s status) {
	p.t.Helper()
	p.api(http.MethodGet, "/status", nil, &s)
	return s
}

// settled waits until nothing is under way, at most the second that the gate
// may take to show what it has done, and a little for a busy machine.
func (p *process) settled() {
	p.t.Helper()
	var s status
	for range 200 {
		if s = p.status(); s.OpenReservations == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	p.t.Errorf("%d reservations are open though no call is under way", s.OpenReservations)
}
