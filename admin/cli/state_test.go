package cli_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/admin/cli"
	"github.com/llm-quota/caddy-llm-quota/store/badger"
)

func TestStateGolden(t *testing.T) {
	b := newBench(t)
	b.run(`groups create engineering --quota "5M manual"`).ok()
	b.run(`keys create Ada --group engineering --quota "100k manual" --models "gpt-*"`).ok()
	withinHour()
	b.spend("Ada", "gpt-4o", 86_000)
	golden(t, "state",
		b.run("explain Ada"), b.run("explain Ada --model gpt-4o --input-tokens 20k --max-output-tokens 4000"),
		b.run("explain Ada --model claude"), b.run("explain group:engineering --input-tokens 6M"), b.run("explain nobody"),
		b.run("grant Ada 20k"), b.run("grant group:engineering -- -1M"), b.run("reset Ada"), b.run("reset group:engineering --limits quota,tokens_per_day"),
		b.run("reset Ada --limits everything"), b.run("grant group:nobody 5"), b.run("verify"),
	)
}

func TestStatus(t *testing.T) {
	b := newBench(t)
	b.run("keys create Ada").ok()
	withinHour()
	b.spend("Ada", "gpt-4o", 86_000)
	b.run("status").ok().prints("store      works\n           badger, ", "accounts   1 key, 0 groups\n", "under way  0 calls\n",
		"today      1 request (0 failed), and 0 refused\n           86,000 tokens: 43,000 of input, 43,000 of output\n")
	if s := read[admin.Status](b.run("status --json")); s.Keys != 1 || s.Totals.Total != 86_000 {
		t.Errorf("%+v", s)
	}
}

// fake lets commands speak to a server that says what a gate cannot be brought
// to say.
func fake(t *testing.T, serve http.HandlerFunc) *bench {
	t.Helper()
	s := httptest.NewServer(serve)
	was := caddy.DefaultAdminListen
	caddy.DefaultAdminListen = strings.TrimPrefix(s.URL, "http://")
	t.Cleanup(func() {
		caddy.DefaultAdminListen = was
		s.CloseClientConnections()
		s.Close()
	})
	return &bench{TB: t}
}

// answers serves values as JSON, by path.
func answers(t *testing.T, values map[string]any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, known := values[r.URL.Path]
		if !known {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		if err := json.NewEncoder(w).Encode(v); err != nil {
			t.Error(err)
		}
	}
}

func TestVerifyFindsDifferences(t *testing.T) {
	b := newBench(t)
	b.run("keys create Ada").ok()
	id := b.key("Ada").ID
	f := fake(t, answers(t, map[string]any{
		"/llm_quota/verify": admin.Verification{Checked: 3, Differences: []admin.Difference{
			{Account: admin.Ref(id), Counter: "quota", Stored: 1_234_567, Computed: 1_000_000},
			{Counter: "usage", Stored: 1, Computed: 2},
		}},
		"/llm_quota/keys/" + id.String(): map[string]any{"name": "Ada"},
	}))
	golden(t, "verify", f.run("verify"))
	f.run("verify --json").exits(1).prints(`"stored":1234567`)
}

// The status is shown also of a store whose usage cannot be read.
func TestStatusOfFailingStore(t *testing.T) {
	f := fake(t, answers(t, map[string]any{
		"/llm_quota/status": admin.Status{Store: admin.StoreStatus{Engine: "badger", Problem: "the disk is gone"}},
	}))
	f.run("status").ok().prints("fails: the disk is gone", "cannot be read")
}

// What was backed up is there after it has been restored, and a backup that
// breaks off leaves the file that was there.
func TestBackupAndRestore(t *testing.T) {
	b := newBench(t)
	b.run(`keys create Ada --quota "100k manual"`).ok()
	b.spend("Ada", "gpt-4o", 86_000)
	dir := t.TempDir()
	file := filepath.Join(dir, "ledger.backup")
	b.run("backup %s", file).ok().says("backed up to " + file)
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 || info.Size() == 0 {
		t.Fatalf("%v (%v)", info, err)
	}
	var out bytes.Buffer
	b.runIn(&cli.World{Stdout: &out, Shows: true}, "backup -").ok().says("\r\x1b[Kbacked up ")
	restored := filepath.Join(dir, "restored")
	w := func(in string) *cli.World { return &cli.World{Restore: badger.Restore, In: in} }
	b.runIn(w(""), "restore --dir %s %s", restored, file).ok().says("restored into " + restored)
	b.runIn(w(""), "restore --dir %s %s", restored, file).exits(1).says("Error: restoring " + file)
	second := filepath.Join(dir, "second")
	b.runIn(w(out.String()), "restore --dir %s -", second).ok()
	b.runIn(w("no backup"), "restore --dir %s -", filepath.Join(dir, "third")).exits(1)
	b.runIn(w(""), "restore --dir %s %s", filepath.Join(dir, "third"), filepath.Join(dir, "none")).exits(1).says("opening the backup")
	for _, b.store = range []string{restored, second} {
		b.load(`{}`)
		if k := b.key("Ada"); k.State.Quota.Used != 86_000 {
			t.Errorf("%s: %+v", b.store, k.State.Quota)
		}
		b.run("verify").ok()
	}

	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	broken := fake(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte("the beginning"))
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	broken.run("backup %s", file).exits(1).says("Error: backing up to "+file, "EOF")
	after, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the older backup is gone (%v)", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 3 {
		t.Errorf("there are %v (%v)", left, err)
	}
}
