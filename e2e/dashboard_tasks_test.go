package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/tidwall/gjson"
)

// tasks does what the dashboard is for, each task in a window of its own.
func tasks(t *testing.T, chromium context.Context) {
	s := startSite(t, "", "")
	for name, task := range map[string]func(*testing.T, *page){
		"quota of a key": quotaOfKey, "schedule": schedule, "rate limits": rateLimits,
		"group, its members and their budget": groupAndMembers, "move": moveKey, "usage": lookAtUsage,
		"alerts": lookAtAlerts, "alert rules": lookAtRules, "refusals": lookAtRefusals, "several keys": severalKeys, "sort": sortKeys, "own locale": ownLocale, "explain": explain, "audit": lookAtAudit,
	} {
		t.Run(name, func(t *testing.T) { task(t, newPage(t, chromium, s, "alice", "")) })
	}
}

// ofKey makes a key through the admin API and shows its page.
func (p *page) ofKey(settings map[string]any) (k keyObject) {
	p.t.Helper()
	k = p.site.makeKey(p.t.Name(), settings)
	p.goTo("#/keys/" + k.ID)
	p.sees(k.Name)
	return k
}

// save saves the form of the dialog that is open, and waits until it is gone.
func (p *page) save() {
	p.t.Helper()
	p.press("Save")
	p.holds("document.querySelector('dialog') === null")
}

func quotaOfKey(t *testing.T, p *page) {
	k := p.ofKey(nil)
	p.sees("No token quota")
	for _, one := range [][3]string{
		{"2.5M", "0 of 2,500,000 tokens", "2500000"},
		{"0", "0 of 0 tokens", "0"},
		{"unlimited", "Nothing is limited here.", `"unlimited"`},
		{"1,500", "0 of 1,500 tokens", "1500"},
	} {
		p.press("Edit")
		p.fill("Token quota / Tokens in each period", one[0])
		p.save()
		p.sees(one[1])
		check(t, p.site.get("/keys/"+k.ID), "quota.tokens", one[2])
	}
	p.press("Edit")
	p.fill("Token quota / Tokens in each period", "")
	p.save()
	p.sees("No token quota")
	check(t, p.site.get("/keys/"+k.ID), "quota", "null")
}

func schedule(t *testing.T, p *page) {
	k := p.ofKey(map[string]any{"quota": map[string]any{"tokens": 1000, "reset": "daily"}})
	p.sees("Quota: daily")
	p.press("Edit")
	p.choose("Starts anew", "Weekly")
	p.choose("Week starts", "Wednesday")
	p.choose("At", "06:30")
	p.fill("Time zone", "America/New_York")
	p.save()
	p.sees("Quota: weekly on wednesday at 06:30, America/New_York")
	check(t, p.site.get("/keys/"+k.ID), "quota.reset", `"weekly"`, "quota.week_start", `"wednesday"`, "quota.at", `"06:30"`, "quota.time_zone", `"America/New_York"`)

	p.press("Edit")
	p.choose("Starts anew", "Monthly")
	p.choose("Month starts on day", "The last")
	p.save()
	p.sees("Quota: monthly on the last day at 06:30, America/New_York")
	check(t, p.site.get("/keys/"+k.ID), "quota.reset", `"monthly"`, "quota.month_day", `"last"`, "quota.week_start", "")

	p.press("Edit")
	p.fill("Time zone", "Europe/Atlantis")
	p.expect("400 PATCH /keys/" + k.ID)
	p.press("Save")
	p.sees("Europe/Atlantis")
	p.holds("e2e.find('field', 'Time zone').getAttribute('aria-invalid') === 'true' && e2e.focus().name === 'Time zone'")
	p.fill("Time zone", "Asia/Kathmandu")
	p.choose("Month starts on day", "31")
	p.save()
	p.sees("Quota: monthly on day 31 at 06:30, Asia/Kathmandu")
}

func rateLimits(t *testing.T, p *page) {
	k := p.ofKey(nil)
	p.press("Edit")
	p.fill("Requests per minute", "2")
	p.fill("Tokens per minute", "40k")
	p.fill("Requests per day", "2000")
	p.fill("Tokens per day", "many")
	p.fill("Concurrent requests", "unlimited")
	p.press("Save")
	p.sees("This is a whole number such as 20000 or 20k, the word unlimited, or nothing.")
	p.fill("Tokens per day", "500k")
	p.save()
	p.sees("Requests per minute 0 2", "Tokens per minute 0 40,000", "Requests per day 0 2,000", "Tokens per day 0 500,000")
	check(t, p.site.get("/keys/"+k.ID), "limits.requests_per_minute", "2", "limits.tokens_per_minute", "40000",
		"limits.requests_per_day", "2000", "limits.tokens_per_day", "500000", "limits.concurrent_requests", `"unlimited"`)
	p.site.calls(t, k.Secret, "gpt-4o", 2)
	p.site.refused(t, k.Secret, 429, "rate_limit_exceeded")
	p.sees("Requests per minute 2 2", "Tokens per day 100 500,000", "rate_limit_exceeded gpt-4o")

	p.press("Edit")
	p.fill("Requests per minute", "600")
	p.save()
	p.sees("Requests per minute 2 600")
	p.site.calls(t, k.Secret, "gpt-4o", 1)
}

func groupAndMembers(t *testing.T, p *page) {
	s := p.site
	one, two := s.makeKey("member one", nil), s.makeKey("member two", nil)
	p.follow("Groups")
	p.press("New group")
	p.fill("Name", "Platform")
	p.fill("Token quota / Tokens in each period", "100")
	p.choose("Token quota / Starts anew", "Daily")
	p.fill("Defaults for each member / Requests per minute", "77")
	p.press("Create group")
	p.sees("0 of 100 tokens", "77 requests per minute")
	group := s.named("groups", "Platform")
	check(t, group, "quota.tokens", "100", "quota.reset", `"daily"`, "member.limits.requests_per_minute", "77", "keys", "0")

	p.press("Assign keys")
	p.sees("member one")
	p.press("Assign")
	p.sees("Choose at least one key.")
	p.fill("Find keys", "member")
	p.tick("member one")
	p.tick("member two")
	p.sees("2 chosen")
	p.press("Assign")
	p.sees("2 keys were assigned.", "Keys in it 2")
	for _, k := range []keyObject{one, two} {
		check(t, s.get("/keys/"+k.ID), "group", group.Get("id").Raw, "effective.limits.requests_per_minute", "77")
	}
	s.calls(t, one.Secret, "gpt-4o", 1)
	s.calls(t, two.Secret, "gpt-4o", 1)
	s.refused(t, one.Secret, 429, "insufficient_quota")
	p.sees("100 of 100 tokens", "What each member used", "member one 50 50%", "member two 50 50%")
	p.follow("Keys")
	p.choose("Group", "Platform")
	p.sees("2 keys, newest first")
	p.holds("location.hash === %s", "#/keys?group="+group.Get("id").String())
}

func moveKey(t *testing.T, p *page) {
	s := p.site
	var from, to map[string]any
	ample := map[string]any{"tokens": 10000, "reset": "monthly"}
	s.api(http.MethodPost, "/groups", map[string]any{"name": "Old home", "quota": ample}, &from)
	s.api(http.MethodPost, "/groups", map[string]any{"name": "New home", "quota": ample}, &to)
	k := p.ofKey(map[string]any{"group": from["id"]})
	s.calls(t, k.Secret, "gpt-4o", 2)
	s.settled()
	p.press("Move")
	p.choose("To the group", "New home")
	p.tick("Carry along what was used in the current period")
	p.press("Move")
	p.sees("Group New home")
	check(t, s.get("/keys/"+k.ID), "id", `"`+k.ID+`"`, "group", fmt.Sprintf("%q", to["id"]))
	check(t, s.named("groups", "New home"), "state.quota.used", "100")
	check(t, s.named("groups", "Old home"), "state.quota.used", "0")
	s.calls(t, k.Secret, "gpt-4o", 1) // the same secret
	p.follow("New home")
	p.sees("150 of 10,000 tokens")
	check(t, s.get("/keys/"+k.ID), "group", fmt.Sprintf("%q", to["id"]))
}

func lookAtUsage(t *testing.T, p *page) {
	s := p.site
	k := s.makeKey("who uses", nil)
	s.calls(t, k.Secret, "gpt-4o", 2)
	s.calls(t, k.Secret, "claude-sonnet-4-5", 1)
	s.settled()
	p.goTo("#/keys/" + k.ID)
	p.sees("150 tokens in 3 requests · 0 refused · 0 failed", "gpt-4o 100 in 2", "claude-sonnet-4-5 50 in 1")
	check(t, s.get("/usage?key="+k.ID), "totals.total_tokens", "150", "totals.requests", "3")
	for _, button := range []string{"Hour", "Week", "Month", "Year", "Day"} {
		p.press(button)
		p.holds("location.hash.endsWith(%s) && e2e.find('button', %s).getAttribute('aria-pressed') === 'true'", "range="+strings.ToLower(button), button)
		p.idle()
		p.sees("150 tokens in 3 requests")
		p.unfold()
		p.holds("[...document.querySelectorAll('details[open] tbody td')].reduce((sum, td) => sum + Number(td.textContent.replaceAll(',', '')), 0) === 150")
	}
	p.press("Own…")
	const inputs = "2006-01-02T15:04"
	p.choose("From", time.Now().AddDate(0, 0, -40).Format(inputs))
	p.choose("To", time.Now().AddDate(0, 0, -30).Format(inputs))
	p.press("Show")
	p.sees("0 tokens in 0 requests", "Nothing was used in this time.")

	p.goTo("#/")
	all := s.get("/usage?by=model")
	shown := func(metric string) string { return p.number(all.Get("totals." + metric).Int()) }
	p.sees("Tokens "+shown("total_tokens"), "Requests "+shown("requests"), "Refused "+shown("refused"), "Top models", "Top keys", "who uses 150")
	for _, line := range all.Get("breakdown").Array() {
		p.sees(line.Get("model").String() + " " + p.number(line.Get("totals.total_tokens").Int()))
	}
	for _, by := range []string{"key", "group", "model"} {
		p.choose("By", by)
		p.idle()
		p.holds("document.querySelector('.plot title').textContent === %s", "Tokens over time, by "+by)
	}
	csv := evaluate[string](p, "fetch(e2e.find('link', 'Save as CSV').href).then((r) => r.text())")
	if !strings.HasPrefix(csv, "start,") || !strings.Contains(csv, "claude-sonnet-4-5") {
		t.Errorf("what is saved as CSV begins %.200q", csv)
	}
}

// number writes a number as the page does.
func (p *page) number(n int64) string {
	p.t.Helper()
	return evaluate[string](p, "new Intl.NumberFormat('en-US').format(%s)", n)
}

func lookAtAlerts(t *testing.T, p *page) {
	s := p.site
	k := p.ofKey(map[string]any{"quota": map[string]any{"tokens": 100, "reset": "manual"}})
	p.press("Edit")
	p.fill("Alert at", "50, 100")
	p.save()
	p.sees("Alerts at 50%, 100%, set here")
	check(t, s.get("/keys/"+k.ID), "alert_at", "[50,100]")

	p.goTo("#/alerts?account=" + k.ID)
	p.sees("None is like that")
	s.calls(t, k.Secret, "gpt-4o", 1)
	p.sees("threshold", k.Name, "Token quota", "50% 50 of 100", "Starts anew by hand") // live, and before the limit is hit
	s.calls(t, k.Secret, "gpt-4o", 1)
	p.sees("100% 100 of 100")
	s.refused(t, k.Secret, 429, "insufficient_quota")
	kinds := gjson.Result{Type: gjson.JSON, Raw: "[]"}
	p.until("the API's alerts", func() string {
		kinds = s.get("/alerts?account=" + k.ID)
		if n := len(kinds.Get("alerts").Array()); n < 2 {
			return fmt.Sprint("there are ", n)
		}
		return ""
	})
	if first := kinds.Get("alerts.#(threshold==50)"); first.Get("used").Int() != 50 {
		t.Errorf("the alert at 50 %% is %s", first.Raw)
	}
	p.choose("All kinds", "threshold")
	p.holds("location.hash.includes('kind=threshold')")
	p.sees("50% 50 of 100")
	p.fill("Search what is loaded", "no such thing")
	p.sees("None is like that")
}

// lookAtRefusals looks at what was refused before the page was opened.
func lookAtRefusals(t *testing.T, p *page) {
	s := p.site
	var group map[string]any
	s.api(http.MethodPost, "/groups", map[string]any{"name": "Complaints", "limits": map[string]any{"requests_per_day": 1}}, &group)
	k := s.makeKey("who complains", map[string]any{"group": group["id"]})
	s.calls(t, k.Secret, "gpt-4o", 1)
	s.refused(t, k.Secret, 429, "rate_limit_exceeded")
	kept := s.get("/refusals?key=" + k.ID)
	check(t, kept, "by_reason.rate_limit_exceeded", "1", "refusals.0.limit", `"requests_per_day"`, "refusals.0.account", fmt.Sprintf("%q", group["id"]))

	p.goTo("#/")
	p.must(chromedp.Do(p.ctx, chromedp.Reload()))
	p.sees("Refusals by reason since ", "rate limit exceeded "+p.number(s.get("/refusals?decision=refused").Get("by_reason.rate_limit_exceeded").Int()))
	s.refused(t, "lq_nobody", 401, "invalid_api_key")
	p.sees("without a known key, since this page was opened")
	p.goTo("#/keys/" + k.ID)
	p.sees("Last refusals since ", "rate_limit_exceeded gpt-4o · requests per day of Complaints")
	p.goTo("#/groups/" + group["id"].(string))
	p.sees("who complains rate_limit_exceeded · gpt-4o · requests per day")

	calm := s.makeKey("who does not", nil)
	p.goTo("#/keys/" + calm.ID)
	p.sees("None since ")
	s.api(http.MethodPatch, "/keys/"+calm.ID, map[string]any{"disabled": true}, &map[string]any{})
	s.refused(t, calm.Secret, 401, "api_key_disabled")
	p.sees("Last refusals since ", "api_key_disabled") // live
}

func explain(t *testing.T, p *page) {
	k := p.ofKey(map[string]any{"quota": map[string]any{"tokens": 500, "reset": "daily"}})
	p.fill("Model", "gpt-4o")
	p.fill("Input tokens", "1k")
	p.press("Would it be admitted?")
	p.sees("Refused", "What decides: token quota of "+k.Name+".", "500 of 500", "Decides")
	check(t, p.site.get("/keys/"+k.ID+"/explain?model=gpt-4o&input_tokens=1000"), "admitted", "false", "account", `"`+k.ID+`"`, "limit", `"quota"`)
	p.fill("Input tokens", "100")
	p.fill("Most output tokens", "200")
	p.press("Would it be admitted?")
	p.sees("Admitted 100 input and 200 output tokens would be held.", "Fits")
	check(t, p.site.get("/keys/"+k.ID+"/explain?model=gpt-4o&input_tokens=100&max_output_tokens=200"), "admitted", "true", "reserve.input", "100", "reserve.output", "200")
	check(t, p.site.get("/keys/"+k.ID), "state.quota.used", "0") // it changes nothing
}

func lookAtAudit(t *testing.T, p *page) {
	k := p.ofKey(nil)
	p.press("Edit")
	p.fill("Requests per minute", "123")
	p.save()
	p.sees("update alice, dashboard")
	p.follow("In the audit log")
	p.sees("Only those about "+k.Name+".", "update", "alice dashboard", "limits.requests_per_minute", "123")
	last := p.site.get("/audit?account=" + k.ID).Get("entries.0")
	check(t, last, "actor", `"alice"`, "source", `"dashboard"`, "action", `"update"`, "after.limits.requests_per_minute", "123")
	p.choose("All actions", "create")
	p.holds("location.hash.includes('action=create')")
	p.lacks("limits.requests_per_minute")
	p.sees("create", k.Name)
}

// readers checks what those see and can do who may only look: viewers, and
// everybody where the dashboard is read-only.
func readers(t *testing.T, chromium context.Context) {
	for name, reader := range map[string]struct{ user, options string }{
		"viewer": {user: "bob"}, "read-only": {"alice", "read_only"},
	} {
		t.Run(name, func(t *testing.T) {
			s := startSite(t, "", reader.options)
			k := s.makeKey("looked at", map[string]any{"quota": map[string]any{"tokens": 1000, "reset": "daily"}})
			s.api(http.MethodPost, "/groups", map[string]any{"name": "Looked into"}, &map[string]any{})
			s.calls(t, k.Secret, "gpt-4o", 1)
			p := newPage(t, chromium, s, reader.user, "")
			p.sees("Tokens 50", reader.user+", read-only")
			p.follow("Keys")
			p.sees("looked at")
			p.offersNothing()
			p.follow("looked at")
			p.sees("50 of 1,000 tokens")
			p.offersNothing()
			p.fill("Input tokens", "1")
			p.press("Would it be admitted?")
			p.sees("Admitted")
			p.follow("Groups")
			p.offersNothing()
			p.follow("Looked into")
			p.sees("Nothing is limited here.")
			p.offersNothing()
			p.follow("Audit")
			p.sees("create", "looked at")
			p.apiRefuses(k.ID)
		})
	}
}

// offersNothing checks that the page has no control that changes anything.
func (p *page) offersNothing() {
	p.t.Helper()
	for _, name := range []string{"New key", "New group", "Edit", "Disable", "Grant", "Reset", "Move", "New secret", "Delete", "Assign keys", "Create the first key"} {
		if evaluate[bool](p, "e2e.find('button', %s) !== undefined", name) {
			p.t.Errorf("there is a button %q", name)
		}
	}
	p.holds("document.querySelector('td.pick') === null")
}

// apiRefuses checks that the dashboard's API refuses what the page does not
// offer.
func (p *page) apiRefuses(id string) {
	p.t.Helper()
	before := p.site.get("/audit").Raw
	for request, body := range map[string]any{
		"POST /keys": map[string]any{"name": "x"}, "PATCH /keys/" + id: map[string]any{"disabled": true}, "DELETE /keys/" + id: nil,
		"POST /keys/" + id + "/rotate": map[string]any{}, "POST /keys/" + id + "/reset": map[string]any{}, "POST /groups": map[string]any{"name": "x"},
	} {
		p.expect("403 " + request)
		method, path, _ := strings.Cut(request, " ")
		sent, err := json.Marshal(body)
		p.must(err)
		got := evaluate[int](p, "fetch(new URL('api' + %s, location.href.replace(/#.*/, '')), {method: %s, headers: {'Content-Type': 'application/json'}, body: %s}).then((r) => r.status)", path, method, string(sent))
		if got != http.StatusForbidden {
			p.t.Errorf("%s was answered %d", request, got)
		}
	}
	if p.site.get("/audit").Raw != before {
		p.t.Error("something was changed")
	}
}
