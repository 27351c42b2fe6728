package e2e

import (
	"context"
	"net/http"
	"os"
	"strings"
	"testing"
)

// demo opens the dashboard where `make run` says that it is, and finds there
// what Caddyfile.example configures, and what a call with it uses.
func demo(t *testing.T, chromium context.Context) {
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(makefile), "\n\t@echo \"dashboard:  http://localhost:8080/llm-quota/\"\n") {
		t.Error("`make run` does not say where the dashboard is")
	}
	x := startExample(t)
	s := &site{&gate{x.process, "http://" + x.site}}
	p := newPage(t, chromium, s, "", "")
	p.sees("Overview", "Tokens 0", "Calls appear here as they end.")
	p.holds("document.getElementById('live').textContent === 'Live'")
	s.calls(t, "lq-demo-key-for-local-use", "demo-small", 1)
	p.sees("50 demo demo-small", "Tokens 50", "demo-team 50")
	p.follow("Keys")
	p.sees("1 key, newest first", "demo config active demo-team 50 of 300")
	p.follow("demo")
	p.sees("50 of 300 tokens", "Quota: daily at 06:00", "Requests per minute 1 60", "Tokens per minute 50 20,000", "This key is set by Caddy’s configuration")
	p.holds("e2e.find('button', 'Edit').disabled && e2e.find('button', 'Delete').disabled")
	p.press("Grant")
	p.fill("Tokens", "1k")
	p.press("Grant")
	p.sees("1,000 tokens were granted.", "50 of 1,300 tokens")
	p.follow("demo-team")
	p.sees("50 of 100,000 tokens", "20K tokens per minute", "demo 50 100%")
	p.holds("e2e.find('button', 'Edit').disabled")
	p.follow("Audit")
	p.sees("create demo config", "grant demo dashboard")
	if status, _ := s.call(t, "lq-demo-key-for-local-use", "other"); status == http.StatusOK {
		t.Error("the demo's key takes any model")
	}
}
