package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/fetch"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// patience is how long the page may take for what a test waits for. It is only
// used up when a test fails.
const patience = 30 * time.Second

// startChromium starts a Chromium without a window, for as long as the test.
func startChromium(t *testing.T) context.Context {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		skip(t, "there is no chromium, which the tests of the dashboard need")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("lang", "en-US"),
		chromedp.WindowSize(1280, 900), chromedp.WSURLReadTimeout(2*time.Minute),
	)
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("starting chromium: %v", err)
	}
	return ctx
}

// A page is a window of its own in front of a dashboard, with its own cookies
// and passwords. Whatever goes wrong in it fails the test: errors on the
// console, violations of the content security policy, exceptions, dialogs that
// nobody expects, and requests that fail, but those that expect names.
type page struct {
	t        *testing.T
	chromium context.Context
	ctx      context.Context
	site     *site

	mu       sync.Mutex
	wrong    []string
	requests map[network.RequestID]string // "POST /keys"
	expected []string                     // "409 POST /keys"
	answers  []answerTo                   // to questions that are expected
	down     bool                         // nobody may be there to answer requests
}

// answerTo is what to answer to a question that contains a text.
type answerTo struct {
	question string
	accept   bool
}

// newPage opens the dashboard of a site as a user, at an address such as
// "#/keys".
func newPage(t *testing.T, chromium context.Context, s *site, user, at string) *page {
	t.Helper()
	ctx, cancel := chromedp.NewContext(chromium, chromedp.WithNewBrowserContext())
	p := &page{t: t, chromium: chromium, ctx: ctx, site: s, requests: map[network.RequestID]string{}}
	t.Cleanup(func() {
		p.finish()
		cancel()
	})
	p.must(chromedp.Listen(ctx, p.heed))
	script, err := os.ReadFile("testdata/page.js")
	p.must(err)
	_, err = chromedp.Call(ctx, cdppage.AddScriptToEvaluateOnNewDocument, cdppage.AddScriptToEvaluateOnNewDocumentParams{Source: string(script)})
	p.must(err)
	_, err = chromedp.Call(ctx, emulation.SetTimezoneOverride, emulation.SetTimezoneOverrideParams{TimezoneID: "Europe/Berlin"})
	p.must(err)
	_, err = chromedp.Call(ctx, emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true})
	p.must(err)
	p.allowClipboard()
	if user != "" {
		p.signIn(user)
	}
	p.must(chromedp.Do(ctx, chromedp.Navigate(s.url+"/llm-quota/"+at)))
	p.idle()
	return p
}

// allowClipboard lets the page write there, as a click of its reader does, and
// the test read it.
func (p *page) allowClipboard() {
	for _, name := range []string{"clipboard-write", "clipboard-read"} {
		_, err := chromedp.CallBrowser(p.ctx, browser.SetPermission, browser.SetPermissionParams{
			Permission: &browser.PermissionDescriptor{Name: name}, Setting: browser.PermissionSettingGranted,
			BrowserContextID: chromedp.FromContext(p.ctx).BrowserContextID,
		})
		p.must(err)
	}
}

// signIn answers the browser's question for a password.
func (p *page) signIn(user string) {
	yes := true
	_, err := chromedp.Call(p.ctx, fetch.Enable, fetch.EnableParams{
		Patterns: []*fetch.RequestPattern{{URLPattern: p.site.url + "/llm-quota/", ResourceType: network.ResourceTypeDocument}}, HandleAuthRequests: &yes,
	})
	p.must(err)
	p.must(chromedp.Listen(p.ctx, func(ev any) {
		switch ev := ev.(type) {
		case *fetch.EventRequestPaused:
			go chromedp.Call(p.ctx, fetch.ContinueRequest, fetch.ContinueRequestParams{RequestID: ev.RequestID}) //nolint:errcheck // the page will not load
		case *fetch.EventAuthRequired:
			go chromedp.Call(p.ctx, fetch.ContinueWithAuth, fetch.ContinueWithAuthParams{RequestID: ev.RequestID, //nolint:errcheck // the page will not load
				AuthChallengeResponse: &fetch.AuthChallengeResponse{Response: fetch.AuthChallengeResponseResponseProvideCredentials, Username: user, Password: "password"}})
		}
	}))
}

// heed notes what goes wrong.
func (p *page) heed(ev any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	complain := func(format string, args ...any) { p.wrong = append(p.wrong, fmt.Sprintf(format, args...)) }
	switch ev := ev.(type) {
	case *runtime.EventExceptionThrown:
		complain("an exception: %s %s", ev.ExceptionDetails.Text, describe(ev.ExceptionDetails.Exception))
	case *runtime.EventConsoleAPICalled:
		if ev.Type == runtime.ConsoleAPICalledTypeError || ev.Type == runtime.ConsoleAPICalledTypeWarning || ev.Type == runtime.ConsoleAPICalledTypeAssert {
			for _, arg := range ev.Args {
				complain("the console says: %s", describe(arg))
			}
		}
	case *log.EventEntryAdded:
		// That a request failed is known more exactly from the request.
		if (ev.Entry.Level == log.EntryLevelError || ev.Entry.Level == log.EntryLevelWarning) && !strings.HasPrefix(ev.Entry.Text, "Failed to load resource") {
			complain("the log says: %s (%s)", ev.Entry.Text, ev.Entry.URL)
		}
	case *network.EventRequestWillBeSent:
		if u, err := url.Parse(ev.Request.URL); err == nil {
			p.requests[ev.RequestID] = ev.Request.Method + " " + strings.TrimPrefix(u.Path, "/llm-quota/api")
		}
	case *network.EventResponseReceived:
		if ev.Response.Status < 400 {
			return
		}
		what := fmt.Sprintf("%d %s", ev.Response.Status, p.requests[ev.RequestID])
		if i := slices.Index(p.expected, what); i >= 0 {
			p.expected = slices.Delete(p.expected, i, i+1)
			return
		}
		complain("a request failed: %s (%s)", what, ev.Response.URL)
	case *network.EventLoadingFailed:
		if p.down && strings.HasPrefix(ev.ErrorText, "net::ERR_") && ev.BlockedReason == "" {
			return
		}
		if !ev.Canceled && ev.ErrorText != "net::ERR_ABORTED" || ev.BlockedReason != "" {
			complain("a request failed: %s %s %s", p.requests[ev.RequestID], ev.ErrorText, ev.BlockedReason)
		}
	case *cdppage.EventJavascriptDialogOpening:
		accept := true
		if len(p.answers) > 0 && strings.Contains(ev.Message, p.answers[0].question) {
			accept = p.answers[0].accept
			p.answers = p.answers[1:]
		} else {
			complain("the page asks: %q", ev.Message)
		}
		go chromedp.Call(p.ctx, cdppage.HandleJavaScriptDialog, cdppage.HandleJavaScriptDialogParams{Accept: accept}) //nolint:errcheck // the next step fails
	}
}

func describe(o *runtime.RemoteObject) string {
	if o == nil {
		return ""
	}
	return strings.TrimSpace(o.Description + " " + string(o.Value))
}

// expect says that a request, such as "409 POST /keys", will be refused.
func (p *page) expect(request string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expected = append(p.expected, request)
}

// answer answers the next question of the browser, which contains a text.
func (p *page) answer(question string, accept bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answers = append(p.answers, answerTo{question, accept})
}

// asked checks that every question that was expected has been asked.
func (p *page) asked() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.answers) > 0 {
		p.t.Errorf("the page has not asked %q", p.answers[0].question)
		p.answers = nil
	}
}

// finish tells what went wrong.
func (p *page) finish() {
	p.t.Helper()
	if p.t.Failed() {
		p.show()
	}
	p.asked()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.wrong {
		p.t.Error(w)
	}
	for _, e := range p.expected {
		p.t.Errorf("there was no answer %s", e)
	}
}

// show logs what the page shows and keeps a picture of it.
func (p *page) show() {
	ctx, cancel := context.WithTimeout(p.ctx, 10*time.Second)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Evaluate[string]("location.hash + '\\n' + document.body.innerText"))
	p.t.Logf("the page shows (%v)\n%s", err, text)
	if dir := os.Getenv("E2E_SCREENSHOTS"); dir != "" {
		if png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot()); err == nil {
			name := filepath.Join(dir, "failed-"+strings.NewReplacer("/", "-", " ", "-").Replace(p.t.Name())+".png")
			p.t.Logf("a picture is in %s (%v)", name, os.WriteFile(name, png, 0o600))
		}
	}
}

func (p *page) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// evaluate returns what an expression of JavaScript is on the page; a promise,
// when it has been kept.
func evaluate[T any](p *page, expression string, args ...any) T {
	p.t.Helper()
	v, err := tryEvaluate[T](p, expression, args...)
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// tryEvaluate writes args into the expression as JSON, at each %s.
func tryEvaluate[T any](p *page, expression string, args ...any) (T, error) {
	for i, arg := range args {
		b, err := json.Marshal(arg)
		p.must(err)
		args[i] = string(b)
	}
	if len(args) > 0 {
		expression = fmt.Sprintf(expression, args...)
	}
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	return chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
}

// until waits until try finds nothing amiss.
func (p *page) until(what string, try func() (problem string)) {
	p.t.Helper()
	problem := ""
	for start := time.Now(); time.Since(start) < patience; time.Sleep(20 * time.Millisecond) {
		if problem = try(); problem == "" {
			return
		}
	}
	p.t.Fatalf("%s: %s", what, problem)
}

// holds waits until an expression is true.
func (p *page) holds(expression string, args ...any) {
	p.t.Helper()
	p.until(expression, func() string {
		is, err := tryEvaluate[bool](p, expression, slices.Clone(args)...)
		if is {
			return ""
		}
		return fmt.Sprintf("it is %v (%v)", is, err)
	})
}

// idle waits until the page has loaded what it shows.
func (p *page) idle() {
	p.t.Helper()
	p.holds("globalThis.e2e !== undefined && !e2e.busy()")
}

// sees waits until each text can be read: in the dialog that is open, or else
// anywhere.
func (p *page) sees(texts ...string) {
	p.t.Helper()
	for _, text := range texts {
		p.until(fmt.Sprintf("reading %q", text), func() string {
			shown, err := tryEvaluate[string](p, "e2e.text()")
			if strings.Contains(shown, text) {
				return ""
			}
			return fmt.Sprintf("there is none (%v)", err)
		})
	}
}

// lacks waits until none of the texts can be read.
func (p *page) lacks(texts ...string) {
	p.t.Helper()
	for _, text := range texts {
		p.holds("!e2e.text().includes(%s)", text)
	}
}

// press clicks a button with the mouse.
func (p *page) press(name string) { p.t.Helper(); p.click("button", name) }

// follow clicks a link, again if the list that it stands in was made anew just
// then.
func (p *page) follow(name string) {
	p.t.Helper()
	p.holds("e2e.find('link', %s) !== undefined", name)
	to := evaluate[string](p, "e2e.find('link', %s).hash", name)
	p.again("link", name, "location.hash === %s", to)
	p.idle()
}

// tick clicks a checkbox.
func (p *page) tick(name string) {
	p.t.Helper()
	p.holds("e2e.find('field', %s) !== undefined", name)
	before := evaluate[bool](p, "e2e.find('field', %s).checked", name)
	p.again("field", name, "e2e.find('field', %s)?.checked === %s", name, !before)
}

// unfold opens the table below a chart.
func (p *page) unfold() {
	p.t.Helper()
	p.again("button", "Show as table", "document.querySelector('details[open]') !== null")
}

// again clicks until an expression is true: a click does nothing when what is
// below it is made anew in the middle of it.
func (p *page) again(kind, name, expression string, args ...any) {
	p.t.Helper()
	for range 5 {
		p.click(kind, name)
		for range 50 {
			if is, err := tryEvaluate[bool](p, expression, slices.Clone(args)...); is && err == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	p.t.Fatalf("clicking the %s %q has no effect", kind, name)
}

// click clicks what is called so, once it is there and nothing covers it.
func (p *page) click(kind, name string) {
	p.t.Helper()
	type place struct {
		X       float64 `json:"x"`
		Y       float64 `json:"y"`
		Problem string  `json:"problem"`
	}
	var at place
	p.until(fmt.Sprintf("clicking the %s %q", kind, name), func() string {
		found, err := tryEvaluate[place](p, "e2e.at(%s, %s)", kind, name)
		if err != nil {
			return err.Error()
		}
		at = found
		return found.Problem
	})
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	p.must(chromedp.Do(ctx, chromedp.MouseClickXY(at.X, at.Y)))
}

// fill types a text into a field, in the place of what it holds.
func (p *page) fill(name, text string) {
	p.t.Helper()
	p.click("field", name)
	p.holds("(() => { const f = e2e.find('field', %s); f.select(); return document.activeElement === f; })()", name)
	if text == "" {
		p.keys(kb.Delete)
	} else {
		_, err := chromedp.Call(p.ctx, input.InsertText, input.InsertTextParams{Text: text})
		p.must(err)
	}
	p.holds("e2e.value(%s) === %s", name, text)
}

// choose takes an option of a select, or sets a date or time.
func (p *page) choose(name, value string) {
	p.t.Helper()
	p.until(fmt.Sprintf("choosing %q in %q", value, name), func() string {
		problem, err := tryEvaluate[string](p, "e2e.put(%s, %s)", name, value)
		return problem + errorText(err)
	})
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// keys presses keys one after another: the text of each is typed where it is a
// character.
func (p *page) keys(keys ...string) {
	p.t.Helper()
	for _, k := range keys {
		p.must(chromedp.Do(p.ctx, chromedp.KeyEvent(k)))
	}
}

// goTo shows another address, as from a bookmark.
func (p *page) goTo(at string) {
	p.t.Helper()
	evaluate[chromedp.Void](p, "void (location.hash = %s)", at)
	p.idle()
}

// size sets the size of the window in CSS pixels.
func (p *page) size(width, height int64) {
	p.t.Helper()
	p.must(chromedp.Do(p.ctx, chromedp.EmulateViewport(width, height)))
}

// picture returns the page as PNG: all of it, or what the window shows.
func (p *page) picture(whole bool) []byte {
	p.t.Helper()
	take := chromedp.CaptureScreenshot()
	if whole {
		take = chromedp.FullScreenshot(100)
	}
	png, err := chromedp.Run(p.ctx, take)
	p.must(err)
	return png
}
