package cli_test

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/llm-quota/caddy-llm-quota/admin/cli"
)

func TestUsageErrors(t *testing.T) {
	b := newBench(t)
	b.run("keys create Ada").ok()
	for command, want := range map[string]string{
		"key":                                   "",
		"kyes":                                  `there is no command "kyes"; did you mean keys?`,
		"keys lsit":                             `there is no command "lsit"`,
		"keys show":                             "<key> is missing",
		"keys show a b":                         `"b" is one argument too many`,
		"keys move Ada":                         "<group|none> is missing",
		"keys list --colour":                    "unknown flag: --colour",
		"keys list --limit 0":                   "--limit: 0",
		"keys list --limit 5 --all":             "exclude one another",
		"keys edit Ada":                         "no setting is given",
		"keys edit Ada --requests-per-minute x": `--requests-per-minute: "x" is neither`,
		`keys edit Ada --quota "5M yearly"`:     `--quota: "yearly" is not`,
		"keys edit Ada --quota none --quota-at 06:00":     "nothing else can be set",
		"keys edit Ada --quota-month-day 40":              "--quota-month-day",
		"keys edit Ada --expires soon":                    `--expires: "soon" is not a date`,
		"keys edit Ada --allowed-ips here":                "--allowed-ips",
		"keys edit Ada --alert-at lots":                   "--alert-at",
		"keys edit Ada --metadata team":                   "is not name=text",
		"keys edit Ada --metadata a=b --unset-metadata a": "both set and taken away",
		"keys rotate Ada --grace soon":                    "--grace",
		"keys delete Ada":                                 "without a terminal this needs --yes",
		"keys show Ada --adapter caddyfile":               "--adapter is of no use",
		"grant Ada lots":                                  "<tokens>",
		"grant Ada -50k":                                  `a number below 0 comes after "--"`,
		"usage --since 7d --from 2026-01-01":              "--since excludes",
		"usage --from yesterday":                          "--from",
		"usage --csv --json":                              "exclude one another",
		"tail --type gossip":                              "--type",
		"restore backup.file":                             "--dir is missing",
		"explain Ada --input-tokens -5":                   "--input-tokens",
	} {
		if want == "" {
			b.run(command).ok().prints("Manages API keys")
			continue
		}
		b.run(command).exits(2).says(want, "Try 'caddy llm-quota")
	}
	if b.key("Ada").DeletedAt != nil {
		t.Error("the key is deleted")
	}
}

func TestDeleteAsks(t *testing.T) {
	b := newBench(t)
	b.run("keys create Ada").ok()
	for _, no := range []string{"", "n\n", "\n", "what\n"} {
		b.runIn(&cli.World{In: no, Asks: true}, "keys delete Ada").exits(1).says("Delete key Ada", "[y/N]", "Nothing was changed")
	}
	b.key("Ada")
	b.runIn(&cli.World{In: "Y\n", Asks: true}, "keys delete Ada").ok()
	b.run("keys show Ada").exits(1)
}

func TestHints(t *testing.T) {
	b := newBench(t)
	nowhere := filepath.Join(t.TempDir(), "s")
	b.run("status --address unix/"+nowhere).exits(1).says("reaching Caddy at unix/"+nowhere, "Hint: is Caddy running?")
	b.run("status --address localhost:1-5").exits(1).says("more than one port")
	b.loadApps(map[string]any{})
	b.run("status").exits(1).says("showing the status: llm_quota is not in the running configuration", "Hint: add the global option")
}

// The address is found as Caddy's own commands find it.
func TestAddress(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	config := filepath.Join(dir, "caddy.json")
	if err := os.WriteFile(config, []byte(`{"admin":{"listen":"unix/`+b.socket+`|0200"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	caddy.DefaultAdminListen = "unix/" + filepath.Join(dir, "nobody")
	b.run("status").exits(1)
	b.run("status --config " + config).ok()
	b.run("status -c " + config).ok()
	b.run("status --address unix/" + b.socket).ok()
	b.run("status --config " + filepath.Join(dir, "lacking.json")).exits(1).says("finding the admin endpoint")
}

// On a network Caddy checks who asks.
func TestNetworkAddress(t *testing.T) {
	b := newBench(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.admin = l.Addr().String()
	l.Close()
	b.load(`{}`)
	b.run("keys create Ada --address " + b.admin).ok()
	b.run("keys list --address tcp/" + b.admin).ok().prints("Ada")
}

// What another program has changed meanwhile is not overwritten.
func TestEditMeetsChange(t *testing.T) {
	b := newBench(t)
	b.run("keys create Ada").ok()
	etags := []string{}
	b.spy(func(r *http.Request) {
		if r.Method == http.MethodPatch {
			etags = append(etags, r.Header.Get("If-Match"))
			r.Header.Set("If-Match", `"another"`)
		}
	}, func() {
		b.run("keys edit Ada --disabled").exits(1).says("the settings have changed since", "Hint: somebody else has changed it meanwhile")
	})
	if len(etags) != 1 || len(etags[0]) < 10 || b.key("Ada").Disabled {
		t.Errorf("If-Match %q", etags)
	}
}

// Every request says who makes it, and from what.
func TestHeaders(t *testing.T) {
	b := newBench(t)
	n := 0
	b.spy(func(r *http.Request) {
		n++
		if agent := r.UserAgent(); !strings.HasPrefix(agent, "caddy-llm-quota-cli/") || r.Header.Get("X-LLM-Quota-Actor") != "tester" {
			t.Errorf("%s %s: agent %q, actor %q", r.Method, r.URL, agent, r.Header.Get("X-LLM-Quota-Actor"))
		}
		for name := range r.Header {
			if strings.HasPrefix(name, "Sec-") || name == "Cookie" {
				t.Errorf("%s is sent", name)
			}
		}
		if want := "http://" + r.Host; r.Header.Get("Origin") != want {
			t.Errorf("Origin is %q, want %q", r.Header.Get("Origin"), want)
		}
	}, func() {
		b.run("keys create Ada").ok()
		b.run("keys list").ok()
	})
	if n != 2 {
		t.Errorf("%d requests", n)
	}
}

// What could not be printed is not passed over.
func TestFullDisk(t *testing.T) {
	b := newBench(t)
	for _, command := range []string{"status", "keys create Ada", "export", "usage --json"} {
		w := &cli.World{Stdout: fullDisk{}}
		b.runIn(w, command).exits(1).says("no space left")
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no space left") }

var _ io.Writer = fullDisk{}

// An interruption ends tail as it should end.
func TestProcessInterrupted(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no process can be interrupted there")
	}
	serve, seen := eventsOf()
	fake(t, serve)
	c := mainProcess(t, "tail")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	<-seen
	if err := c.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
}

// mainProcess is a process in which Caddy's main runs a command.
func mainProcess(t *testing.T, command string) *exec.Cmd {
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProcess$")
	c.Env = append(os.Environ(), "LLM_QUOTA_TEST_MAIN="+command, "CADDY_ADMIN="+caddy.DefaultAdminListen)
	return c
}

// The exit codes and streams are those of a real process, in which Caddy's own
// main runs the command.
func TestProcess(t *testing.T) {
	if os.Getenv("LLM_QUOTA_TEST_MAIN") != "" {
		os.Args = append([]string{"caddy", "llm-quota"}, strings.Fields(os.Getenv("LLM_QUOTA_TEST_MAIN"))...)
		caddycmd.Main()
		os.Exit(0)
	}
	newBench(t)
	process := func(command string) *result {
		c := mainProcess(t, command)
		var out, err strings.Builder
		c.Stdout, c.Stderr = &out, &err
		if failed := c.Run(); failed != nil && c.ProcessState == nil {
			t.Fatal(failed)
		}
		return &result{t, command, c.ProcessState.ExitCode(), out.String(), err.String()}
	}
	secret := process("keys create Ada").ok().says("Key Ada").out
	if len(strings.TrimSpace(secret)) != 50 || strings.Contains(secret, "\x1b") {
		t.Errorf("printed %q", secret)
	}
	process("keys show nobody").exits(1).says("Error: showing key nobody: there is no key")
	process("keys list --colour").exits(2).says("Error: unknown flag")
	process("keys kreate").exits(2)
	if r := process("version").ok(); r.err != "" || !strings.Contains(r.out, "Caddy") {
		t.Errorf("printed %q and %q", r.out, r.err)
	}
	if r := process("keys show nobody"); strings.Count(r.err, "\n") != 1 {
		t.Errorf("printed %q", r.err)
	}
	process("--help").ok().prints("caddy llm-quota keys create Ada", "Available Commands")
}
