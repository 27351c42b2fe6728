package e2e

import (
	"context"
	"net/http"
	"strings"
	"testing"
)

// hostileNames are names that are markup, scripts, addresses of scripts, or
// hard to show.
var hostileNames = []string{
	`<img src=x onerror=alert(1)>`,
	`"><script>alert(2)<`,
	`' onmouseover='alert(3)`,
	`{{constructor.constructor('alert(4)')()}}`,
	`javascript:alert(5)`,
	`שלום עולם مرحبا`,
	`👩👧🚀 family é̂ ẗ̈`,
	`=HYPERLINK("x","y"), a "quoted, name"`,
	strings.Repeat("x", 128),
	strings.Repeat("名", 128),
}

// hostile checks that names, models, metadata and reasons stay text wherever
// they are shown, and that the longest make no page wider than a phone.
func hostile(t *testing.T, chromium context.Context) {
	s := startSite(t, "", "")
	var keys, groups []string
	var parent any
	for i, name := range hostileNames {
		var group map[string]any
		s.api(http.MethodPost, "/groups", map[string]any{"name": name, "parent": parent, "quota": map[string]any{"tokens": 60, "reset": "daily"}}, &group)
		if i < 3 {
			parent = group["id"]
		}
		var k keyObject
		s.api(http.MethodPost, "/keys", map[string]any{"name": name, "group": group["id"], "metadata": map[string]any{name[:min(len(name), 126)]: name, "note": strings.Repeat("<b>long</b>", 20)}}, &k)
		s.call(t, k.Secret, name) // charged to those above too: some are refused
		s.call(t, k.Secret, name)
		keys, groups = append(keys, k.ID), append(groups, group["id"].(string))
	}
	s.settled()
	p := newPage(t, chromium, s, "alice", "#/")
	p.size(390, 844)
	p.everyName("Overview", "") // the busiest eight of each kind
	for _, by := range []string{"key", "group"} {
		p.goTo("#/?by=" + by)
		p.fits()
	}
	p.goTo("#/keys")
	p.everyName("Keys", strings.Join(hostileNames, "\n"))
	p.goTo("#/groups")
	p.everyName("Groups", strings.Join(hostileNames, "\n"))
	p.goTo("#/audit")
	p.everyName("Audit", strings.Join(hostileNames, "\n"))
	p.goTo("#/alerts")
	p.sees("exceeded")
	p.everyName("Alerts", hostileNames[0])
	for i, name := range hostileNames {
		p.goTo("#/keys/" + keys[i])
		p.everyName(name, name)
		p.press("Edit")
		p.everyName("Edit “"+name+"”", "")
		p.press("Cancel")
		p.goTo("#/groups/" + groups[i])
		p.everyName(name, name)
	}
	p.press("Delete")
	p.everyName("Delete the group “"+hostileNames[len(hostileNames)-1]+"”", "")
	p.press("Cancel")
	p.goTo("#/keys?q=" + "%3Cimg%20src%3Dx")
	p.sees(hostileNames[0])
}

// everyName checks that each of the names, one a line, can be read as it is,
// that nothing on the page came from any of them, and that the page is no
// wider than its window.
func (p *page) everyName(heading, names string) {
	p.t.Helper()
	p.sees(heading)
	for name := range strings.SplitSeq(names, "\n") {
		p.holds("e2e.plain(document.body.textContent).includes(e2e.plain(%s))", name)
	}
	p.fits()
	const strange = "[...document.querySelectorAll('script, iframe, object, b, [onerror], [onmouseover], img:not(.brand img), a[href^=\"javascript:\" i]')].filter((e) => !e.closest('head')).map((e) => e.outerHTML)"
	if found := evaluate[[]string](p, strange); len(found) > 0 {
		p.t.Errorf("at %q the page holds %q", heading, found)
	}
}

// fits checks that the page cannot be scrolled sideways.
func (p *page) fits() {
	p.t.Helper()
	p.idle()
	if wide := evaluate[[]string](p, "e2e.wide()"); len(wide) > 0 {
		p.t.Errorf("%s is wider than its window: %q", evaluate[string](p, "location.hash"), wide)
	}
}
