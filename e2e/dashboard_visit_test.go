package e2e

import (
	"context"
	"net/http"
	"testing"
)

// firstVisit follows an operator from an empty store through the whole life of
// a key. What each step does is checked on the page and in the admin API.
func firstVisit(t *testing.T, chromium context.Context) {
	s := startSite(t, "", "")
	p := newPage(t, chromium, s, "alice", "")
	p.sees("Overview", "No keys yet", "A key is what callers present to this gate.", "Create the first key", "curl https://", "alice")

	p.follow("Groups")
	p.sees("No groups yet")
	p.press("Create the first group")
	p.fill("Name", "Research")
	p.fill("Token quota / Tokens in each period", "150")
	p.press("Create group")
	p.sees("The group “Research” was created.", "0 of 150 tokens")
	check(t, s.named("groups", "Research"), "quota.tokens", "150", "quota.reset", `"monthly"`, "keys", "0")

	secret := p.createInGroup("crawler")
	p.sees("Keys in it 1")
	key := s.named("keys", "crawler")
	check(t, key, "group", s.named("groups", "Research").Get("id").Raw, "prefix", `"`+secret[:11]+`"`)
	id := key.Get("id").String()

	p.follow("Overview")
	p.sees("Tokens 0", "Calls appear here as they end.", "No calls in this time.")
	s.calls(t, secret, "gpt-4o", 1)
	p.sees("50 crawler gpt-4o", "Tokens 50") // live, without a reload
	check(t, s.get("/usage"), "totals.total_tokens", "50", "totals.requests", "1")

	p.follow("Keys")
	p.follow("crawler")
	s.calls(t, secret, "gpt-4o", 2)
	s.refused(t, secret, 429, "insufficient_quota")
	p.sees("insufficient_quota gpt-4o", "150 tokens in 3 requests · 1 refused · 0 failed")
	p.follow("Research")
	p.sees("150 of 150 tokens", "0 remain")
	p.press("Edit")
	p.fill("Token quota / Tokens in each period", "1k")
	p.press("Save")
	p.sees("“Research” was saved.", "150 of 1,000 tokens")
	check(t, s.named("groups", "Research"), "quota.tokens", "1000", "state.quota.used", "150")
	s.calls(t, secret, "gpt-4o", 1)
	p.sees("200 of 1,000 tokens")

	var group map[string]any
	s.api(http.MethodPost, "/groups", map[string]any{"name": "Production"}, &group)
	p.goTo("#/keys/" + id)
	p.press("Move")
	p.choose("To the group", "Production")
	p.press("Move")
	p.sees("“crawler” was moved.", "Group Production")
	check(t, s.get("/keys/"+id), "group", s.named("groups", "Production").Get("id").Raw, "name", `"crawler"`)
	check(t, s.named("groups", "Research"), "keys", "0", "state.quota.used", "200")
	s.calls(t, secret, "gpt-4o", 1)

	secret = p.rotate(secret)
	p.life(id, secret)
}

// createInGroup makes a key on the page of a group, and returns its secret,
// which is shown once.
func (p *page) createInGroup(name string) (secret string) {
	p.t.Helper()
	p.press("New key")
	p.fill("Name", name)
	p.press("Create key")
	p.sees("Copy the secret now.", "It is not stored, and will not be shown again.")
	return p.takeSecret()
}

// takeSecret copies the secret that is shown, closes its dialog, and checks
// that the page holds it no more.
func (p *page) takeSecret() (secret string) {
	p.t.Helper()
	secret = evaluate[string](p, "e2e.value('Secret')")
	if len(secret) != len("lq_12345678_")+38 {
		p.t.Fatalf("the secret is shown as %q", secret)
	}
	p.press("Copy")
	p.sees("Copied")
	if copied := evaluate[string](p, "navigator.clipboard.readText()"); copied != secret {
		p.t.Errorf("%q was copied, want %q", copied, secret)
	}
	p.press("Done")
	p.holds("document.querySelector('dialog') === null")
	const held = "document.documentElement.outerHTML.includes(%s) || [...document.querySelectorAll('input')].some((i) => i.value.includes(%s)) || location.href.includes(%s) || JSON.stringify({...localStorage, ...sessionStorage}).includes(%s)"
	if rest := secret[12:]; evaluate[bool](p, held, rest, rest, rest, rest) {
		p.t.Error("the page still holds the secret")
	}
	return secret
}

// rotate gives the key that is shown a new secret, at once.
func (p *page) rotate(old string) (secret string) {
	p.t.Helper()
	p.press("New secret")
	p.choose("The old secret stops working", "At once")
	p.press("Make a new secret")
	p.sees("has a new secret")
	secret = p.takeSecret()
	p.site.refused(p.t, old, 401, "invalid_api_key")
	p.site.calls(p.t, secret, "gpt-4o", 1)
	p.sees("Secret " + secret[:11] + "…")
	return secret
}

// life spends, resets, grants, disables, enables and deletes the key that is
// shown.
func (p *page) life(id, secret string) {
	t, s := p.t, p.site
	t.Helper()
	p.press("Edit")
	p.fill("Token quota / Tokens in each period", "300")
	p.press("Save")
	p.sees("300 of 300 tokens") // six calls so far, which a new quota counts
	s.refused(t, secret, 429, "insufficient_quota")
	p.press("Grant")
	p.fill("Tokens", "none")
	p.press("Grant")
	p.sees("This is a whole number such as 50000 or 50k.")
	p.fill("Tokens", "100")
	p.press("Grant")
	p.sees("100 tokens were granted.", "300 of 400 tokens", "100 granted for this period")
	check(t, s.get("/keys/"+id), "state.quota.granted", "100", "state.quota.remaining", "100")
	s.calls(t, secret, "gpt-4o", 1)

	p.press("Reset")
	p.press("Reset")
	p.sees("“crawler” was reset.", "0 of 300 tokens")
	check(t, s.get("/keys/"+id), "state.quota.used", "0", "state.quota.granted", "0")

	p.press("Disable")
	p.press("Disable")
	p.sees("“crawler” was disabled.", "crawler disabled")
	check(t, s.get("/keys/"+id), "disabled", "true")
	s.refused(t, secret, 401, "api_key_disabled")
	p.press("Enable")
	p.press("Enable")
	p.sees("“crawler” was enabled.", "crawler active")
	s.calls(t, secret, "gpt-4o", 1)

	p.press("Delete")
	p.sees("Its secret will never work again.")
	p.fill("Type the name to delete it: crawler", "Crawler")
	p.press("Delete")
	p.sees("This is not its name.")
	check(t, s.get("/keys/"+id), "deleted_at", "")
	p.fill("Type the name to delete it: crawler", "crawler")
	p.press("Delete")
	p.sees("Key “crawler” was deleted.", "No keys yet")
	if s.get("/keys/"+id).Get("deleted_at").String() == "" {
		t.Error("the API shows the key as living")
	}
	s.refused(t, secret, 401, "invalid_api_key")
	p.goTo("#/keys/" + id)
	p.sees("crawler deleted")
	p.holds("e2e.find('button', 'Edit') === undefined")
}
