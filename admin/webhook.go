package admin

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Webhook is where alerts are sent, each as a POST request: as soon as it fires
// and, until an answer has a status from 200 to 299 within 10 seconds, five
// times more over about ten minutes, whatever the answer was. A Retry-After in
// it makes the pause longer, up to the longest one. Redirects are not followed.
// X-LLM-Quota-Delivery is the alert's ID, the same over retries: a receiver may
// get an alert twice, if the gate dies before it has noted that it was
// delivered.
type Webhook struct {
	// Where alerts are sent: http or https. Placeholders such as {env.HOOK_URL}
	// are replaced. User, password, query and what looks like a token in the
	// path are never shown.
	URL string `json:"url"`
	// The key of the signature, the header X-LLM-Quota-Signature:
	// t=<unix>,v1=<hex HMAC-SHA256(secret, "<t>.<body>")>, where t is the time of
	// the attempt. Placeholders are replaced. Default: no signature.
	Secret string `json:"secret,omitempty"`
	// What is sent. json: the alert as GET /llm_quota/alerts shows it, without
	// its deliveries. slack: its message, as {"text"}. Default: json.
	Format string `json:"format,omitempty"`
}

// The formats of webhooks.
const (
	FormatJSON  = "json"
	FormatSlack = "slack"
)

// Target is a webhook that is ready to be used.
type Target struct {
	name   string // the URL as it is shown
	url    string
	secret string
	slack  bool
}

// Targets checks webhooks and replaces what is to be replaced in them. The
// error names the webhook that is wrong.
func Targets(hooks []Webhook, replace func(string) (string, error)) ([]Target, error) {
	all := make([]Target, len(hooks))
	seen := make(map[string]bool, len(hooks))
	for i, w := range hooks {
		t, err := w.target(replace)
		name := t.name
		if name == "" { // without its URL, which may hold anything
			name = "number " + strconv.Itoa(i+1)
		}
		if err != nil {
			return nil, fmt.Errorf("webhook %s: %w", name, err)
		}
		if seen[name] {
			return nil, fmt.Errorf("webhook %s: it is there twice; user, password and query do not tell webhooks apart", name)
		}
		seen[name] = true
		all[i] = t
	}
	return all, nil
}

func (w *Webhook) target(replace func(string) (string, error)) (t Target, err error) {
	if t.url, err = replace(w.URL); err != nil {
		return t, fmt.Errorf("replacing placeholders in its url: %w", err)
	}
	u, err := url.Parse(t.url)
	if err != nil || u.Opaque != "" {
		return t, errors.New("its url is malformed") // which the error would show
	}
	if u.Scheme != "" && u.Host != "" {
		t.name = shownURL(u)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return t, errors.New("its url does not begin with http:// or https://")
	case u.Hostname() == "":
		return t, errors.New("its url has no host")
	case w.Format != "" && w.Format != FormatJSON && w.Format != FormatSlack:
		return t, fmt.Errorf("format %q is not json or slack", w.Format)
	}
	if t.secret, err = replace(w.Secret); err != nil {
		return t, fmt.Errorf("replacing placeholders in its secret: %w", err)
	}
	t.slack = w.Format == FormatSlack
	return t, nil
}

// rule is what is shown of the webhook.
func (t *Target) rule() WebhookRule {
	format := FormatJSON
	if t.slack {
		format = FormatSlack
	}
	return WebhookRule{t.name, format, t.secret != ""}
}

// shownURL is a URL without user, password, query and fragment, and with a
// fingerprint for each segment of its path that looks like a token: whoever
// knows the one of a Slack webhook can use it.
func shownURL(u *url.URL) string {
	segments := strings.Split(u.EscapedPath(), "/")
	for i, s := range segments {
		if looksSecret(s) {
			sum := sha256.Sum256([]byte(s))
			segments[i] = "***" + hex.EncodeToString(sum[:3])
		}
	}
	return u.Scheme + "://" + strings.ToLower(u.Host) + strings.Join(segments, "/")
}

// looksSecret tells tokens from words: they are long, and mix upper and lower
// case or letters and digits.
func looksSecret(s string) bool {
	lower, upper, digit := 0, 0, 0
	for _, r := range s {
		switch {
		case unicode.IsDigit(r):
			digit = 1
		case unicode.IsUpper(r):
			upper = 1
		case unicode.IsLower(r):
			lower = 1
		}
	}
	return len(s) >= 16 && lower+upper+digit > 1
}

// body is what is sent of an alert.
func (t *Target) body(alert quota.Alert) []byte {
	alert.Deliveries = nil
	var v any = &alert
	if t.slack {
		v = struct {
			Text string `json:"text"`
		}{strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(alert.Message)}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil { // an alert holds nothing that JSON cannot
		panic(err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

const (
	// maxAttempt is how long an attempt may take.
	maxAttempt = 10 * time.Second
	// maxAnswer is how much of an answer is read, so that the connection can be
	// used again.
	maxAnswer = 4 << 10
)

// newWebhookClient returns a client that follows no redirects. The proxy is the
// environment's.
func newWebhookClient() *http.Client {
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, DisableCompression: true,
		MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 64 << 10,
	}
	return &http.Client{
		Timeout:       maxAttempt,
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// attempt sends an alert once. after is how long the receiver wants to be left
// alone. The error holds nothing of the URL, nor of what the receiver says
// beyond its status.
func (t *Target) attempt(ctx context.Context, client *http.Client, agent string, alert quota.Alert) (after time.Duration, err error) {
	body := t.body(alert)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url, bytes.NewReader(body))
	if err != nil {
		return 0, errors.New("its url cannot be used")
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", agent)
	r.Header.Set("X-LLM-Quota-Delivery", alert.ID)
	if t.secret != "" {
		r.Header.Set("X-LLM-Quota-Signature", sign(t.secret, time.Now().Unix(), body))
	}
	resp, err := client.Do(r)
	if err != nil {
		return 0, sendingError(err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer)) //nolint:errcheck // what it holds does not matter
	if resp.StatusCode/100 == 2 {
		return 0, nil
	}
	return retryAfter(resp.Header, time.Now()), fmt.Errorf("it answered with status %d", resp.StatusCode)
}

// sign returns the signature of a body sent at a time in Unix seconds.
func sign(secret string, at int64, body []byte) string {
	t := strconv.FormatInt(at, 10)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(t + "."))
	mac.Write(body)
	return "t=" + t + ",v1=" + hex.EncodeToString(mac.Sum(nil))
}

// sendingError is why no answer came, without what the error may hold of the
// URL or of what the receiver has sent.
func sendingError(err error) error {
	if outer, ok := errors.AsType[*url.Error](err); ok {
		err = outer.Err
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return fmt.Errorf("looking up its host: %s", dns.Err)
	}
	if n, ok := errors.AsType[net.Error](err); ok && n.Timeout() {
		return fmt.Errorf("no answer within %s", maxAttempt)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
		return fmt.Errorf("connecting: %s: %w", op.Op, op.Err)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it closed the connection without an answer")
	}
	if text := err.Error(); strings.HasPrefix(text, "tls: ") || strings.HasPrefix(text, "x509: ") || strings.HasPrefix(text, "http: server gave HTTP") {
		if len(text) > 256 || !quota.Printable(text) { // names in its certificate are in there
			text = "tls: its certificate cannot be verified"
		}
		return errors.New(text)
	}
	return errors.New("it gave no valid answer")
}

// retryAfter reads the header Retry-After: seconds, or a date.
func retryAfter(h http.Header, now time.Time) time.Duration {
	s := h.Get("Retry-After")
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(s); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}
