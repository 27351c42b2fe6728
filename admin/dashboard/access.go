package dashboard

import (
	"html"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// The roles of callers.
const (
	viewer   = "viewer"
	operator = "operator"
)

// caller is who makes a request.
type caller struct {
	user string // as the authentication handler names them; "" if none did
	role string
}

// readOnly returns why the caller may change nothing; "" if they may.
func (c caller) readOnly(all bool) string {
	switch {
	case all:
		return "this dashboard is read-only"
	case c.role != operator:
		return "the role " + c.role + " may look, and change nothing"
	}
	return ""
}

// admit returns who makes the request, if they may be here, and comes from
// here if it could change something or be costly.
func (h *Handler) admit(r *http.Request) (caller, error) {
	var c caller
	repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if ok {
		c.user, _ = repl.GetString("http.auth.user.id")
	}
	if c.user == "" && !h.AllowUnauthenticated && !fromHere(r) {
		return c, refuse(http.StatusForbidden, "This dashboard is open only to callers who have been authenticated. "+
			"In the Caddyfile, put basic_auth or another authentication handler into the site, or allow_unauthenticated "+
			"into the block of llm_quota_dashboard if something else guards it. "+
			"On the machine itself it also opens at localhost, if no proxy is between.")
	}
	c.role = operator
	if h.Role != "" {
		if c.role = ""; ok {
			c.role = repl.ReplaceAll(h.Role, "")
		}
		if c.role != viewer && c.role != operator {
			return c, refuse(http.StatusForbidden, "Your account has no role here. It needs to be viewer or operator.")
		}
	}
	if err := h.origins.Check(r); err != nil {
		return c, refuse(http.StatusForbidden, "another site has made this request: %w", err)
	}
	return c, nil
}

// fromHere tells whether the request comes from this machine, as far as can be
// told: the host is checked because of pages whose name is made to lead here,
// the headers because of proxies.
func fromHere(r *http.Request) bool {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !peer.Addr().Unmap().IsLoopback() {
		return false
	}
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if host = strings.Trim(host, "[]"); !strings.EqualFold(host, "localhost") && host != "127.0.0.1" && host != "::1" {
		return false
	}
	for name := range r.Header {
		switch name = http.CanonicalHeaderKey(name); name {
		case "Forwarded", "X-Real-Ip", "Via", "Cf-Connecting-Ip", "True-Client-Ip":
			return false
		}
		if strings.HasPrefix(name, "X-Forwarded-") {
			return false
		}
	}
	return true
}

// writePage answers with a page of plain text.
func writePage(w http.ResponseWriter, status int, message string) error {
	title := http.StatusText(status)
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, err := io.WriteString(w, "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n"+
		"<meta name=\"viewport\" content=\"width=device-width\">\n<meta name=\"color-scheme\" content=\"light dark\">\n"+
		"<title>"+title+"</title>\n<h1>"+title+"</h1>\n<p>"+html.EscapeString(message)+"</p>\n</html>\n")
	return err
}
