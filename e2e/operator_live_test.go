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

	"github.com/tidwall/gjson"
)

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
