package e2e

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// accessible runs axe on every view and every dialog, in both themes.
func accessible(t *testing.T, chromium context.Context) {
	axe, err := os.ReadFile(filepath.Join(installJS(t), "node_modules", "axe-core", "axe.min.js"))
	if err != nil {
		t.Fatal(err)
	}
	s := startSite(t, "", "")
	p := newPage(t, chromium, s, "alice", "")
	p.calm()
	p.must(chromedp.Do(p.ctx, chromedp.Evaluate[chromedp.Void](string(axe))))
	for _, at := range []string{"#/", "#/keys", "#/groups", "#/alerts", "#/audit"} { // while they are empty
		p.goTo(at)
		p.clean(at)
	}
	key, group := s.populate(t)
	for _, theme := range []string{"light", "dark"} {
		p.keys("t")
		p.holds("document.documentElement.dataset.theme === %s", theme)
		for _, at := range []string{"#/", "#/keys", "#/keys?q=none+like+this", "#/groups", "#/alerts", "#/audit"} {
			p.goTo(at)
			p.clean(theme + " " + at)
		}
		p.goTo("#/keys")
		p.tick("Choose all on this page")
		p.clean(theme + " chosen keys")
		for _, button := range []string{"Move…", "Disable…", "Enable…", "Reset…", "Delete…"} {
			p.press(button)
			p.holds("document.querySelector('dialog[open]') !== null")
			p.clean(theme + " chosen keys, " + button)
			p.press("Cancel")
		}
		p.goTo("#/alerts")
		p.press("Alerts fire at 80%, 100% of the token quota; no webhook is told")
		p.sees("None. To be told, set one")
		p.clean(theme + " when alerts fire")
		p.keyDialogs(theme, key)
		p.groupDialogs(theme, group)
	}
}

// calm switches off what moves, so that colours are what they will be.
func (p *page) calm() {
	p.t.Helper()
	_, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-reduced-motion", Value: "reduce"}},
	})
	p.must(err)
}

// clean runs axe.
func (p *page) clean(what string) {
	p.t.Helper()
	p.idle()
	const run = "axe.run(document, {resultTypes: ['violations']}).then((r) => r.violations.flatMap((v) => v.nodes.map((n) => `${v.id}: ${n.html.slice(0, 200)} ${n.failureSummary.replace(/\\s+/g, ' ').slice(0, 300)}`)))"
	for _, violation := range evaluate[[]string](p, run) {
		p.t.Errorf("%s: %s", what, violation)
	}
}

// keyDialogs looks at the page of a key and at what opens from it.
func (p *page) keyDialogs(theme, id string) {
	p.t.Helper()
	p.goTo("#/keys/" + id)
	p.sees("200 tokens in 4 requests · 1 refused")
	p.unfold()
	p.fill("Input tokens", "1000000")
	p.press("Would it be admitted?")
	p.sees("Refused")
	p.clean(theme + " key")
	for _, button := range []string{"Edit", "Disable", "Grant", "Reset", "Move", "New secret", "Delete"} {
		p.press(button)
		p.holds("document.querySelector('dialog[open]') !== null")
		p.clean(theme + " " + button)
		p.press("Cancel")
	}
	p.press("Grant")
	p.fill("Tokens", "none")
	p.press("Grant")
	p.sees("This is a whole number")
	p.clean(theme + " an error at a field")
	p.press("Cancel")
	p.press("New secret")
	p.press("Make a new secret")
	p.sees("Copy the secret now.")
	p.clean(theme + " the secret")
	p.press("Copy")
	p.sees("Copied")
	p.press("Done")
}

// groupDialogs looks at the page of a group and at what opens from it, and at
// the dialogs that open anywhere.
func (p *page) groupDialogs(theme, id string) {
	p.t.Helper()
	p.goTo("#/groups/" + id)
	p.sees("What each member used")
	p.clean(theme + " group")
	for _, button := range []string{"Edit", "Assign keys", "New key", "Delete"} {
		p.press(button)
		p.holds("document.querySelector('dialog[open]') !== null")
		p.clean(theme + " group, " + button)
		p.press("Cancel")
	}
	p.press("Reset")
	p.tick("Token quota")
	p.press("Reset")
	p.sees("Choose at least one limit.")
	p.clean(theme + " an error in a dialog")
	p.press("Cancel")
	p.goTo("#/groups")
	p.press("New group")
	p.clean(theme + " New group")
	p.press("Cancel")
	p.press("Keyboard shortcuts")
	p.clean(theme + " help")
	p.press("Close")
}

// populate makes groups and keys with limits that are used in part, reached,
// and not set, and returns a key and its group.
func (s *site) populate(t *testing.T) (key, group string) {
	t.Helper()
	made := func(kind string, o map[string]any) (id, secret string) {
		var answer map[string]any
		s.api(http.MethodPost, "/"+kind, o, &answer)
		secret, _ = answer["secret"].(string)
		return answer["id"].(string), secret
	}
	quota := func(tokens int, reset string) map[string]any { return map[string]any{"tokens": tokens, "reset": reset} }
	research, _ := made("groups", map[string]any{"name": "Research", "quota": quota(5000, "monthly"), "limits": map[string]any{"requests_per_minute": 600}})
	group, _ = made("groups", map[string]any{"name": "Vision", "parent": research, "quota": quota(300, "weekly"), "member": map[string]any{"limits": map[string]any{"tokens_per_minute": 40000}}})
	product, _ := made("groups", map[string]any{"name": "Product", "quota": quota(1_000_000, "monthly"), "metadata": map[string]any{"cost centre": "4711"}})
	key, secret := made("keys", map[string]any{"name": "image-captions", "group": group, "quota": quota(180, "daily"), "models": []string{"gpt-*", "claude-*"},
		"limits": map[string]any{"requests_per_minute": 60, "tokens_per_day": 500_000, "concurrent_requests": 8}, "allowed_ips": []string{"127.0.0.0/8"}, "metadata": map[string]any{"owner": "Ada"}})
	s.calls(t, secret, "gpt-4o", 2)
	s.calls(t, secret, "claude-sonnet-4-5", 1)
	s.calls(t, secret, "gpt-4o-mini", 1)
	s.refused(t, secret, 429, "insufficient_quota")
	for i, name := range []string{"checkout", "search", "support-bot", "nightly-report"} {
		_, secret := made("keys", map[string]any{"name": name, "group": product, "quota": quota((i+1)*200, "daily")})
		s.calls(t, secret, []string{"gpt-4o-mini", "gpt-4o", "claude-sonnet-4-5", "gemini-2.5-flash"}[i], 4-i)
	}
	made("keys", map[string]any{"name": "laptop of Grace", "disabled": true})
	made("keys", map[string]any{"name": "workshop", "expires_at": "2026-01-01T00:00:00Z"})
	s.settled()
	return key, group
}
