// Package e2e tests the gate from outside, as its users meet it: a real Caddy
// process, official SDKs, kill -9, the example that the README shows, and what
// all this costs. It is a module of its own, so that none of what it needs
// comes to those who import the gate.
//
// The gate is built from the sources beside this folder, which `go test` does
// not know of: run these tests with -count=1 or -shuffle, which are not cached.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// caddy is the binary under test.
var caddy string

func TestMain(m *testing.M) {
	for _, v := range os.Environ() { // SDKs take credentials, addresses and headers from there
		name, _, _ := strings.Cut(v, "=")
		for _, prefix := range []string{"OPENAI_", "ANTHROPIC_", "GOOGLE_", "GEMINI_", "AWS_", "OLLAMA_"} {
			if strings.HasPrefix(name, prefix) {
				os.Unsetenv(name)
			}
		}
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "llm-quota-e2e-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	caddy = filepath.Join(dir, "caddy")
	if runtime.GOOS == "windows" {
		caddy += ".exe"
	}
	// From the gate's own folder, so that its go.mod decides about versions.
	build := exec.Command("go", "build", "-o", caddy, "./cmd/caddy")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("building caddy: %w\n%s", err, out)
	}
	code = m.Run()
	if chaosLong() {
		fmt.Print(chaosTable())
	}
	return code, nil
}

// skip leaves a test out, saying why, unless REQUIRE_ALL is set: then what the
// test needs has to be there.
func skip(t *testing.T, format string, args ...any) {
	t.Helper()
	reason := fmt.Sprintf(format, args...)
	if os.Getenv("REQUIRE_ALL") != "" {
		t.Fatal("REQUIRE_ALL is set, but: " + reason)
	}
	t.Skip(reason)
}
