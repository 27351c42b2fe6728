// Package dashboard is the page on which people look at a running gate and
// manage its keys: a handler for a site of its own, since browsers cannot open
// pages on Caddy's admin endpoint.
package dashboard

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Handler serves the dashboard: one page, what it is made of, and below api/
// the routes of the admin API. Requests to other paths go on to the next
// handler.
//
// It answers callers whom an authentication handler before it has let in, by
// whatever sets `{http.auth.user.id}`. Without one it answers only browsers on
// the same machine: the connection itself comes from a loopback address, asks
// for the host localhost, 127.0.0.1 or [::1], and bears no header of a proxy.
//
// Where authentication knows no roles, as `basic_auth` does not, the directive
// `map {http.auth.user.id} {role}` gives them, for the option `role {role}`.
type Handler struct {
	// The path below which the dashboard is. Default: /llm-quota/.
	Path string `json:"path,omitempty"`
	// Whether nobody may change anything here. Default: false.
	ReadOnly bool `json:"read_only,omitempty"`
	// A placeholder with the role of the caller: viewer, who may look, or
	// operator, who may change things too. Callers with any other role are
	// refused. Default: all are operators.
	Role string `json:"role,omitempty"`
	// Whether everyone who reaches the handler is let in. It is for sites that
	// are guarded in another way, such as forward_auth, client certificates or
	// a private network. Default: false.
	AllowUnauthenticated bool `json:"allow_unauthenticated,omitempty"`

	gate   admin.Gate
	logger *zap.Logger
	files  *files
	// closing ends when the server shuts down, which waits for its requests:
	// streams of events would let it wait for ever.
	closing context.Context
	stop    context.CancelFunc
	origins http.CrossOriginProtection
}

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.llm_quota_dashboard", New: func() caddy.Module { return new(Handler) }}
}

// Provision sets the default path and finds the app.
func (h *Handler) Provision(ctx caddy.Context) error {
	app, err := ctx.App("llm_quota")
	if err != nil {
		return err
	}
	gate, ok := app.(admin.Gate)
	if !ok {
		return fmt.Errorf("the app llm_quota is a %T, not the gate", app)
	}
	if h.files, err = embedded(); err != nil {
		return err
	}
	h.gate, h.logger = gate, ctx.Logger()
	h.Path = cmp.Or(h.Path, "/llm-quota/")
	if !strings.HasSuffix(h.Path, "/") {
		h.Path += "/"
	}
	h.closing, h.stop = context.WithCancel(context.Background())
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		server.RegisterOnShutdown(h.stop)
	}
	return nil
}

// Validate checks the options.
func (h *Handler) Validate() error {
	clean := path.Clean(h.Path)
	if clean != "/" {
		clean += "/"
	}
	if h.Path[0] != '/' || h.Path != clean {
		return fmt.Errorf("path %q is not a clean path that begins with /", h.Path)
	}
	return nil
}

// Cleanup ends the streams that are still open.
func (h *Handler) Cleanup() error {
	if h.stop != nil {
		h.stop()
	}
	return nil
}

// ServeHTTP answers requests below the path.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if r.URL.Path+"/" == h.Path {
		setHeaders(w.Header())
		// Relative, since the site may have taken a prefix off the path.
		w.Header().Set("Location", (&url.URL{Path: path.Base(h.Path) + "/", RawQuery: r.URL.RawQuery}).String())
		w.WriteHeader(http.StatusPermanentRedirect)
		return nil
	}
	below, ok := strings.CutPrefix(r.URL.Path, h.Path)
	if !ok {
		return next.ServeHTTP(w, r)
	}
	setHeaders(w.Header())
	if err := h.serve(w, r, below); err != nil {
		h.answerError(w, below, err)
	}
	return nil
}

// setHeaders forbids all that the page does not need.
func setHeaders(header http.Header) {
	for name, value := range map[string]string{
		"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; " +
			"connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
		"X-Content-Type-Options":       "nosniff",
		"Referrer-Policy":              "no-referrer",
		"Cross-Origin-Opener-Policy":   "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin",
		"X-Frame-Options":              "DENY", // frame-ancestors, for what does not know it
		"Cache-Control":                "no-store",
	} {
		header.Set(name, value)
	}
}

// serve answers a request for what is at the path below the dashboard's. An
// error is a caddy.APIError, which is not answered yet.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, below string) error {
	c, err := h.admit(r)
	if err != nil {
		return err
	}
	route, isAPI := strings.CutPrefix(below, "api/")
	switch {
	case isAPI:
		return h.serveAPI(w, r, c, route)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		return refuse(http.StatusMethodNotAllowed, "only GET and HEAD are allowed here")
	case below == "":
		h.files.page.serve(w, r)
		return nil
	}
	f := h.files.named[below]
	if f == nil {
		return refuse(http.StatusNotFound, "there is nothing at this path")
	}
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	f.serve(w, r)
	return nil
}

// session is what the page is told of its reader.
type session struct {
	User     string `json:"user"` // "" is whoever sits at the machine
	Role     string `json:"role"`
	ReadOnly bool   `json:"read_only"`
	Version  string `json:"version"`
	Build    string `json:"build"` // of the page that is served now
}

func (h *Handler) serveAPI(w http.ResponseWriter, r *http.Request, c caller, route string) error {
	// Reading changes nothing, but other sites have no business here.
	if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" || site == "same-site" {
		return refuse(http.StatusForbidden, "another site has made this request")
	}
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	if reason := c.readOnly(h.ReadOnly); reason != "" && (!reads || route == "backup") { // which holds the hashes of secrets
		return refuse(http.StatusForbidden, "%s", reason)
	}
	if route == "session" {
		if !reads {
			w.Header().Set("Allow", "GET, HEAD")
			return refuse(http.StatusMethodNotAllowed, "only GET and HEAD are allowed here")
		}
		return writeJSON(w, http.StatusOK, session{
			c.user, c.role, c.readOnly(h.ReadOnly) != "", h.gate.Version(), h.files.build,
		})
	}
	ctx := r.Context()
	if route == "events" {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(h.closing, cancel)()
	}
	in := r.Clone(ctx)
	in.URL.Path = "/llm_quota/" + route
	in.URL.RawPath = "" // the escaped path follows from the path
	return admin.Serve(w, in, h.gate, quota.Author{Actor: c.user, Source: quota.ByDashboard})
}

// refuse returns an error that is answered with the given status.
func refuse(status int, format string, args ...any) error {
	return caddy.APIError{HTTPStatus: status, Err: fmt.Errorf(format, args...)}
}

// answerError answers with an error: in JSON below api/, else as a page.
func (h *Handler) answerError(w http.ResponseWriter, below string, err error) {
	status, message := http.StatusInternalServerError, err.Error()
	if api, ok := errors.AsType[caddy.APIError](err); ok {
		status, message = api.HTTPStatus, cmp.Or(api.Message, err.Error())
	}
	if status >= http.StatusInternalServerError {
		h.logger.Error("serving the dashboard", zap.Error(err))
	}
	if strings.HasPrefix(below, "api/") {
		err = writeJSON(w, status, map[string]string{"error": message})
	} else {
		err = writePage(w, status, message)
	}
	if err != nil {
		h.logger.Debug("answering with an error", zap.Error(err))
	}
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	return json.NewEncoder(w).Encode(v)
}

// Interface guards.
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.Validator             = (*Handler)(nil)
	_ caddy.CleanerUpper          = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
	_ caddyfile.Unmarshaler       = (*Handler)(nil)
)
