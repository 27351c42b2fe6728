package e2e

import (
	"bytes"
	"context"
	"fmt"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// The most that a view may take to be usable, and elements that it may have.
// Views take well under a second on a quiet machine; the bound only finds what
// grows with the store.
const (
	usableWithin = 10 * time.Second
	mostElements = 6000
)

// large shows a store with 10,000 keys in 50 groups and a year of history.
func large(t *testing.T, chromium context.Context) {
	s := newSite(t, "", "")
	s.fill()
	s.start()
	p := newPage(t, chromium, s, "alice", "#/")
	p.calm()
	check(t, s.get("/status"), "keys", "10000", "groups", "50")
	spent := s.live(t)
	t.Run("load", func(t *testing.T) { p.t = t; p.underLoad() })
	t.Run("pictures", func(t *testing.T) { p.t = t; p.pictures(spent) })
	p.t = t
}

// fill writes the store before the gate is started.
func (s *site) fill() {
	s.t.Helper()
	program := filepath.Join(s.t.TempDir(), "fill")
	if runtime.GOOS == "windows" {
		program += ".exe"
	}
	if out, err := exec.Command("go", "build", "-o", program, "./fill").CombinedOutput(); err != nil {
		s.t.Fatalf("building fill: %v\n%s", err, out)
	}
	out, err := exec.Command(program, filepath.Join(s.dir, "caddy", "llm_quota")).CombinedOutput()
	if err != nil {
		s.t.Fatalf("filling the store: %v\n%s", err, out)
	}
	s.t.Logf("filled the store in %s", bytes.TrimSpace(out))
}

// underLoad goes through the views, and tells how long each takes until it can
// be used.
func (p *page) underLoad() {
	t, s := p.t, p.site
	group := s.named("groups", "Product EU").Get("id").String()
	busy := s.busiest()
	for _, view := range []struct{ name, at, shows string }{
		{"overview, a day by model", "#/?range=day", "Top models"},
		{"overview, a week by key", "#/?range=week&by=key", "Top keys"},
		{"overview, a month by group", "#/?range=month&by=group", "Top groups"},
		{"overview, a year by model", "#/?range=year", "Top models"},
		{"overview, a year by key", "#/?range=year&by=key", "Top keys"},
		{"keys", "#/keys", "Page 1, 50 keys"},
		{"keys, searched", "#/keys?q=captions-99", "captions-9"},
		{"keys of a group", "#/keys?group=" + group, "Product EU"},
		{"keys, by share used", "#/keys?sort=used", "most of the quota used first"},
		{"keys, by last use", "#/keys?sort=last_used", "last used first"},
		{"keys, by name", "#/keys?sort=-name", "Z to A"},
		{"500 keys", "#/keys?limit=500", "Page 1, 500 keys"},
		{"key, a day", "#/keys/" + busy, "Limits now"},
		{"key, a year", "#/keys/" + busy + "?range=year", "Limits now"},
		{"groups", "#/groups", "50 groups"},
		{"group, a day", "#/groups/" + group, "What each member used"},
		{"group, a year", "#/groups/" + group + "?range=year", "What each member used"},
		{"alerts", "#/alerts", "The newest"},
		{"audit", "#/audit", "The newest"},
	} {
		const show = `new Promise((done) => {
			const start = performance.now();
			const look = () => (!e2e.busy() && document.querySelector('main').innerText.includes(%s) ? done(performance.now() - start) : setTimeout(look, 5));
			addEventListener('hashchange', () => look(), {once: true});
			location.hash = %s;
		})`
		took := time.Duration(evaluate[float64](p, show, view.shows, view.at) * float64(time.Millisecond))
		elements := evaluate[int](p, "document.querySelectorAll('*').length")
		t.Logf("%-28s %4d ms %6d elements", view.name, took.Milliseconds(), elements)
		if took > usableWithin {
			t.Errorf("%s can be used after %v", view.name, took)
		}
		if elements > mostElements && view.name != "500 keys" {
			t.Errorf("%s has %d elements", view.name, elements)
		}
	}
	p.pages()
}

// live makes calls with new keys in the filled store, some of which are refused,
// and returns the last of the keys.
func (s *site) live(t *testing.T) (k keyObject) {
	t.Helper()
	for i, name := range []string{"playground", "code-review", "newsletter"} {
		k = s.makeKey(name, map[string]any{"group": "name:Design EU", "quota": map[string]any{"tokens": 200 * (i + 1), "reset": "monthly"}})
		for j := range 4*(i+1) + 1 {
			status, _ := s.call(t, k.Secret, []string{"gpt-4o-mini", "claude-sonnet-4-5", "gemini-2.5-flash"}[j%3])
			if want := map[bool]int{true: 200, false: 429}[j < 4*(i+1)]; status != want {
				t.Errorf("call %d of %s was answered %d, want %d", j, name, status, want)
			}
		}
	}
	s.settled()
	return k
}

// busiest returns the key that has used the most.
func (s *site) busiest() string {
	s.t.Helper()
	return s.get("/usage?by=key").Get("breakdown.0.key").String()
}

// pages checks that the list of keys comes by pages from the server.
func (p *page) pages() {
	p.t.Helper()
	const names = "[...document.querySelectorAll('tbody th a')].map((a) => a.textContent).join()"
	p.goTo("#/keys")
	p.sees("Page 1, 50 keys, newest first")
	first := evaluate[string](p, names)
	p.follow("Next page")
	p.sees("Page 2, 50 keys, newest first")
	second := evaluate[string](p, names)
	if strings.Count(first, ",") != 49 || strings.Count(second, ",") != 49 || first == second {
		p.t.Errorf("the first page holds %s, the second %s", first, second)
	}
	p.follow("First page")
	p.sees("Page 1, 50 keys, newest first")
	if again := evaluate[string](p, names); again != first {
		p.t.Errorf("the first page holds %s, before %s", again, first)
	}
	p.fill("#search", "captions-9992")
	p.sees("1 key, newest first")
}

// pictures takes a picture of every view in light and dark and on a phone,
// where none may be scrolled sideways. With -update those in the README are
// taken anew.
func (p *page) pictures(spent keyObject) {
	t, s := p.t, p.site
	dir := t.TempDir()
	if to := os.Getenv("E2E_SCREENSHOTS"); to != "" {
		dir = to
	}
	group, key := s.named("groups", "Product EU").Get("id").String(), s.busiest()
	views := map[string]string{
		"overview": "#/", "overview-year": "#/?range=year&by=group", "keys": "#/keys", "key": "#/keys/" + key + "?range=month", "groups": "#/groups",
		"group": "#/groups/" + group + "?range=month", "alerts": "#/alerts", "audit": "#/audit",
	}
	for _, look := range []struct {
		name, theme   string
		width, height int64
	}{{"light", "light", 1280, 900}, {"dark", "dark", 1280, 900}, {"phone", "light", 390, 844}, {"phone-dark", "dark", 390, 844}} {
		p.size(look.width, look.height)
		p.must(chromedp.Do(p.ctx, chromedp.Evaluate[chromedp.Void]("localStorage.setItem('llm-quota-theme', '"+look.theme+"')"), chromedp.Reload()))
		p.happens(spent)
		for name, at := range views {
			p.goTo(at)
			p.settled()
			p.fits()
			p.snap(filepath.Join(dir, look.name+"-"+name+".png"), true)
			if *update && look.name == "light" && (name == "overview" || name == "key") {
				p.snap(filepath.Join("..", "docs", "dashboard-"+name+".png"), false)
			}
		}
		p.dialogPictures(filepath.Join(dir, look.name), key)
	}
}

// happens makes calls that the page follows, as it is given a key without
// tokens.
func (p *page) happens(spent keyObject) {
	p.t.Helper()
	p.goTo("#/")
	p.sees("Live")
	p.holds("document.getElementById('live').textContent === 'Live'")
	k := p.site.makeKey(fmt.Sprint("demo-", evaluate[int](p, "Math.floor(performance.now())")), map[string]any{"limits": map[string]any{"requests_per_minute": 6}})
	for i, model := range []string{"gpt-4o-mini", "claude-sonnet-4-5", "gpt-4o", "gpt-4o-mini", "gemini-2.5-flash", "gpt-4o-mini"} {
		p.site.calls(p.t, k.Secret, model, 1)
		if i%3 == 0 {
			p.site.refused(p.t, spent.Secret, 429, "insufficient_quota")
		}
	}
	p.site.refused(p.t, k.Secret, 429, "rate_limit_exceeded")
	reasons := p.site.get("/refusals?decision=refused&limit=1").Get("by_reason")
	p.sees("insufficient quota "+reasons.Get("insufficient_quota").Raw, "rate limit exceeded "+reasons.Get("rate_limit_exceeded").Raw)
}

// dialogPictures takes pictures of dialogs.
func (p *page) dialogPictures(prefix, key string) {
	p.t.Helper()
	p.goTo("#/keys/" + key)
	for _, button := range []string{"Edit", "Move", "Delete"} {
		p.press(button)
		p.holds("document.querySelector('dialog[open]') !== null")
		p.fits()
		p.snap(prefix+"-dialog-"+strings.ToLower(button)+".png", false)
		p.press("Cancel")
	}
}

// settled waits until nothing on the page is loading any more.
func (p *page) settled() {
	p.t.Helper()
	p.idle()
	p.lacks("Loading…")
}

// snap writes a picture that can be read as one.
func (p *page) snap(name string, whole bool) {
	p.t.Helper()
	b := p.picture(whole)
	c, err := png.DecodeConfig(bytes.NewReader(b))
	p.must(err)
	if c.Width == 0 || c.Height == 0 {
		p.t.Errorf("%s is %d by %d", name, c.Width, c.Height)
	}
	p.must(os.MkdirAll(filepath.Dir(name), 0o755))
	p.must(os.WriteFile(name, b, 0o644)) //nolint:gosec // pictures are no secret
}
