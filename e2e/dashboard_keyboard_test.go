package e2e

import (
	"context"
	"net/http"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// keyboard works with the keyboard alone.
func keyboard(t *testing.T, chromium context.Context) {
	s := startSite(t, "", "")
	p := newPage(t, chromium, s, "alice", "")
	p.keys(kb.Tab)
	p.focused("Skip to content")
	p.keys(kb.Enter)
	p.holds("document.activeElement === document.querySelector('main')")

	p.keys("g", "k")
	p.sees("No keys yet")
	p.keys("n")
	p.focused("Name")
	p.keys("from the keyboard", kb.Enter)
	p.sees("Copy the secret now.")
	p.focused("Secret")
	p.holds("document.activeElement.selectionEnd === document.activeElement.value.length") // all of it is selected
	p.answer("Close without having copied the secret?", false)
	p.keys(kb.Escape)
	p.asked()
	p.keys(kb.Tab)
	p.focused("Copy")
	p.keys(kb.Enter)
	p.sees("Copied")
	p.keys(kb.Escape)
	p.sees("from the keyboard active")
	key := s.named("keys", "from the keyboard").Get("id").String()
	// The list shows its name too, and main has the focus there.
	p.holds("location.hash === %s && document.querySelector('main h1').textContent === 'from the keyboard' && document.activeElement === document.querySelector('main')", "#/keys/"+key)

	p.keys(kb.Tab)
	p.focused("Keys")
	p.keys(kb.Tab)
	p.focused("Edit")
	p.keys(kb.Enter)
	p.focused("Name")
	p.keys(kb.Escape)
	p.holds("document.querySelector('dialog') === null")
	p.focused("Edit")
	p.unsaved(key)

	p.keys("?")
	p.sees("Step through a chart that has the focus")
	p.keys(kb.Escape)
	p.focused("Edit")
	s.calls(t, p.secretOf(key), "gpt-4o", 1)
	p.sees("50 tokens in 1 request")
	evaluate[chromedp.Void](p, "void document.querySelector('.plot').focus()")
	p.keys(kb.End)
	p.holds("document.querySelector('.chart [aria-live]').textContent.includes('50 tokens')")
	p.keys(kb.ArrowLeft)
	p.holds("document.querySelector('.chart [aria-live]').textContent.includes('0 tokens')")
	p.keys("g", "k")
	p.sees("1 key, newest first")
	p.keys("/")
	p.focused("Search keys by name or prefix")
	p.keys("nothing")
	p.sees("No key is like that")
}

// secretOf gives a key a new secret by the admin API.
func (p *page) secretOf(key string) string {
	p.t.Helper()
	var rotated keyObject
	p.site.api(http.MethodPost, "/keys/"+key+"/rotate", map[string]any{}, &rotated)
	return rotated.Secret
}

// focused waits until what is called so has the focus.
func (p *page) focused(name string) {
	p.t.Helper()
	p.holds("e2e.focus().name === %s", name)
}

// unsaved checks that edits are not lost without a question: by Escape, by the
// browser's back, and by loading the page anew. The button Edit has the focus.
func (p *page) unsaved(key string) {
	p.t.Helper()
	p.keys(kb.Enter)
	p.focused("Name")
	p.keys(" edited")
	p.answer("Close without saving?", false)
	p.keys(kb.Escape)
	p.holds("e2e.value('Name') === 'from the keyboard edited'")
	p.asked()
	p.answer("Close without saving?", false)
	evaluate[chromedp.Void](p, "void history.back()")
	p.until("the question", func() string {
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.answers) > 0 {
			return "it is not asked"
		}
		return ""
	})
	p.holds("location.hash === %s && e2e.value('Name') === 'from the keyboard edited'", "#/keys/"+key)
	p.answer("", false) // the browser's own
	evaluate[chromedp.Void](p, "void location.reload()")
	p.holds("e2e.value('Name') === 'from the keyboard edited'")
	p.asked()
	p.answer("Close without saving?", true)
	p.keys(kb.Escape)
	p.holds("document.querySelector('dialog') === null")
	p.asked()
	p.focused("Edit")
	check(p.t, p.site.get("/keys/"+key), "name", `"from the keyboard"`)
}

// errorsInForms checks that what the server refuses is said where it can be
// mended, and that what was entered is kept.
func errorsInForms(t *testing.T, chromium context.Context) {
	s := startSite(t, "", "")
	k := s.makeKey("taken", nil)
	p := newPage(t, chromium, s, "alice", "#/keys")
	p.press("New key")
	p.fill("Name", "taken")
	p.fill("Tokens in each period", "5k")
	p.expect("409 POST /keys")
	p.press("Create key")
	p.holds("e2e.find('field', 'Name').getAttribute('aria-invalid') === 'true' && e2e.value('Tokens in each period') === '5k'")
	p.sees("taken")
	p.focused("Name")
	p.fill("Addresses", "somewhere")
	p.fill("Name", "free")
	p.expect("400 POST /keys")
	p.press("Create key")
	p.holds("e2e.find('field', 'Addresses').getAttribute('aria-invalid') === 'true' && e2e.value('Name') === 'free'")
	p.answer("Close without saving?", true)
	p.press("Cancel")
	p.asked()

	p.follow("taken")
	p.press("Edit")
	p.fill("Tokens per day", "777")
	var now map[string]any
	s.api(http.MethodPatch, "/keys/"+k.ID, map[string]any{"limits": map[string]any{"requests_per_minute": 33}, "name": "renamed"}, &now)
	p.expect("412 PATCH /keys/" + k.ID)
	p.press("Save")
	p.sees("Somebody changed this key meanwhile.", "Requests per minute (empty) 33 same", "Name taken renamed same")
	p.holds("e2e.value('Tokens per day') === '777' && e2e.value('Requests per minute') === '33' && e2e.value('Name') === 'renamed'")
	p.save()
	check(t, s.get("/keys/"+k.ID), "limits.tokens_per_day", "777", "limits.requests_per_minute", "33", "name", `"renamed"`)
	p.sees("renamed active")
	p.unreachable(k.ID)
}

// unreachable ends the gate under the page, in the middle of an edit, and
// starts it again.
func (p *page) unreachable(key string) {
	p.t.Helper()
	p.press("Edit")
	p.fill("Requests per minute", "44")
	p.mu.Lock()
	p.down = true
	p.mu.Unlock()
	p.site.kill()
	p.press("Save")
	p.sees("The server cannot be reached.", "Check the connection, then try again.")
	p.holds("e2e.value('Requests per minute') === '44'")
	p.site.start()
	p.press("Save")
	p.holds("document.querySelector('dialog') === null")
	p.sees("Requests per minute 0 44", "Live")
	check(p.t, p.site.get("/keys/"+key), "limits.requests_per_minute", "44")
}
