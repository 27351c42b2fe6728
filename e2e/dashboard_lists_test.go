package e2e

import (
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// severalKeys does with several keys at once what can be done so.
func severalKeys(t *testing.T, p *page) {
	s := p.site
	s.api("POST", "/groups", map[string]any{"name": "Meeting point"}, &map[string]any{})
	group := s.named("groups", "Meeting point").Get("id").Raw
	var keys []keyObject
	for _, name := range []string{"several-one", "several-two", "several-three"} {
		keys = append(keys, s.makeKey(name, map[string]any{"quota": map[string]any{"tokens": 50, "reset": "monthly"}}))
	}
	all := func(path, want string) {
		t.Helper()
		for _, k := range keys {
			check(t, s.get("/keys/"+k.ID), path, want)
		}
	}
	choose := func() {
		t.Helper()
		p.tick("Choose all on this page")
		p.sees("3 chosen")
	}
	p.goTo("#/keys?q=several")
	p.tick("Choose several-two")
	p.sees("1 chosen")
	p.press("Choose none")
	p.lacks("chosen")
	choose()
	p.press("Move…")
	p.choose("To the group", "Meeting point")
	p.press("Move")
	p.sees("3 keys were moved.", "several-one active Meeting point")
	all("group", group)

	choose()
	p.press("Disable…")
	p.press("Disable")
	p.sees("3 keys were disabled.")
	all("disabled", "true")
	choose()
	p.press("Enable…")
	p.press("Enable")
	p.sees("3 keys were enabled.")
	all("disabled", "false")

	for _, k := range keys {
		s.calls(t, k.Secret, "gpt-4o", 1)
		s.refused(t, k.Secret, 429, "insufficient_quota")
	}
	p.sees("50 of 50")
	choose()
	p.press("Reset…")
	p.press("Reset")
	p.sees("The quotas of 3 of 3 keys were reset.", "0 of 50")
	all("state.quota.used", "0")

	choose()
	p.press("Delete…")
	p.fill("Type this to delete them: delete 3 keys", "delete")
	p.press("Delete")
	p.sees("These are not the words “delete 3 keys”.")
	all("deleted_at", "")
	p.fill("Type this to delete them: delete 3 keys", "delete 3 keys")
	p.press("Delete")
	p.sees("3 keys were deleted.", "No key is like that")
	for _, k := range keys {
		if s.get("/keys/"+k.ID).Get("deleted_at").String() == "" {
			t.Errorf("%s lives", k.Name)
		}
	}
}

// sortKeys sorts the list, which the server does.
func sortKeys(t *testing.T, p *page) {
	s := p.site
	quota := func(tokens int) map[string]any {
		return map[string]any{"quota": map[string]any{"tokens": tokens, "reset": "monthly"}}
	}
	half, _, some := s.makeKey("sorted-b", quota(100)), s.makeKey("sorted-a", quota(100)), s.makeKey("sorted-c", quota(1000))
	s.calls(t, half.Secret, "gpt-4o", 1)
	s.calls(t, some.Secret, "gpt-4o", 1)
	s.settled()
	p.goTo("#/keys?q=sorted")
	is := func(by, heading, names string) {
		t.Helper()
		p.holds("location.hash === %s", "#/keys?q=sorted"+by)
		p.holds("[...document.querySelectorAll('th[aria-sort]')].map((th) => th.textContent + ' ' + th.getAttribute('aria-sort')).join() === %s", heading)
		p.holds("[...document.querySelectorAll('tbody th a')].map((a) => a.textContent.at(-1)).join('') === %s", names)
	}
	is("", "Created descending", "cab")
	for _, step := range [][4]string{
		{"Name", "&sort=name", "Name ascending", "abc"}, {"Name", "&sort=-name", "Name descending", "cba"},
		{"Quota", "&sort=used", "Quota descending", "bca"}, {"Quota", "&sort=-used", "Quota ascending", "acb"},
		{"Last used", "&sort=last_used", "Last used descending", "cba"}, {"Last used", "&sort=-last_used", "Last used ascending", "abc"},
		{"Created", "", "Created descending", "cab"}, {"Created", "&sort=-created", "Created ascending", "bac"},
	} {
		p.press(step[0])
		is(step[1], step[2], step[3])
		p.holds("document.activeElement.textContent === %s", step[0]) // it can be pressed again
	}
	p.size(390, 844) // where there are no headings
	p.choose("Order", "Most of the quota used first")
	is("&sort=used", "Quota descending", "bca")
	p.goTo("#/keys?q=sorted&sort=nothing")
	p.sees("3 keys, newest first")
}

// lookAtRules reads when alerts fire, and who is told.
func lookAtRules(t *testing.T, p *page) {
	k := p.ofKey(nil)
	p.sees("Alerts at 80%, 100%")
	p.goTo("#/alerts")
	p.press("Alerts fire at 80%, 100% of the token quota; no webhook is told")
	p.sees("None. To be told, set one")
	s := startSite(t, `alert_at 62.5%
		webhook https://user:word@hooks.example.com/x?token=abc {
			format slack
			secret signing
		}`, "")
	other := newPage(t, p.chromium, s, "alice", "#/alerts")
	other.press("Alerts fire at 62.5% of the token quota; 1 webhook told")
	other.sees("https://hooks.example.com/x slack signed", "No alerts yet")
	other.lacks("word", "abc", "signing")
	check(t, p.site.get("/keys/"+k.ID), "alert_at", "null")
}

// ownLocale reads numbers and times as the reader writes them.
func ownLocale(t *testing.T, p *page) {
	k := p.ofKey(map[string]any{"quota": map[string]any{"tokens": 1_234_567, "reset": "monthly"}, "expires_at": "2099-01-01T00:00:00Z"})
	p.sees("0 of 1,234,567 tokens")
	_, err := chromedp.Call(p.ctx, emulation.SetUserAgentOverride, emulation.SetUserAgentOverrideParams{
		UserAgent: evaluate[string](p, "navigator.userAgent"), AcceptLanguage: "de-DE",
	})
	p.must(err)
	_, err = chromedp.Call(p.ctx, emulation.SetTimezoneOverride, emulation.SetTimezoneOverrideParams{TimezoneID: "Asia/Tokyo"})
	p.must(err)
	p.must(chromedp.Do(p.ctx, chromedp.Reload()))
	p.sees("0 of 1.234.567 tokens", "01.01.2099", "0 %")
	p.holds("[...document.querySelectorAll('main time')].some((t) => t.title.includes('2099') && t.title.includes('09:00:00 GMT+9'))")
	p.press("Edit")
	p.holds("e2e.value('Expires') === '2099-01-01T09:00'")
	p.fill("Token quota / Tokens in each period", "2.000.000")
	p.save()
	p.sees("0 of 2.000.000 tokens")
	check(t, p.site.get("/keys/"+k.ID), "quota.tokens", "2000000", "expires_at", `"2099-01-01T00:00:00Z"`)
	p.goTo("#/")
	csv := evaluate[string](p, "e2e.find('link', 'Save as CSV').href")
	if !strings.Contains(csv, "time_zone=Asia%2FTokyo") {
		t.Errorf("the days are those of %s", csv)
	}
}
