// Package admin is for whoever looks at or manages a running gate: the routes
// on Caddy's admin endpoint and their JSON types, the self-service page of a
// key, metrics, and what a request leaves in logs and placeholders.
package admin

import (
	"errors"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

// API serves the routes below /llm_quota on Caddy's admin endpoint. It keeps
// nothing: the admin endpoint outlives the configuration it was made with, so
// each request asks for the gate that runs.
type API struct {
	gate func() (Gate, error) // nil: the running app
	now  func() time.Time     // nil: time.Now
}

// Gate is what is managed: the app.
type Gate interface {
	// Ledger returns the open ledger, or why it cannot be used.
	Ledger() (*ledger.Ledger, error)
	// Version returns the version of this module.
	Version() string
	// Emit emits an event through Caddy's events app. It returns when every
	// handler of the event has.
	Emit(event string, data map[string]any)
	// Hub returns where events are read live; nil: nowhere.
	Hub() *Hub
	// Targets returns the webhooks that are told of alerts.
	Targets() []Target
	// Done is closed when the gate's configuration no longer runs.
	Done() <-chan struct{}
}

// CaddyModule returns the Caddy module information.
func (API) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "admin.api.llm_quota", New: func() caddy.Module { return new(API) }}
}

// methods are the functions that serve one path.
type methods map[string]func(*call) error

// routes are the paths of the API. They have no methods in them, because
// http.ServeMux would answer a wrong one in plain text.
var routes = map[string]methods{
	"/llm_quota":                     nil,
	"/llm_quota/":                    nil,
	"/llm_quota/keys":                {http.MethodGet: listKeys, http.MethodPost: createKeys},
	"/llm_quota/keys/{id}":           {http.MethodGet: showKey, http.MethodPatch: patchKey, http.MethodDelete: deleteKey},
	"/llm_quota/keys/{id}/reset":     {http.MethodPost: resetKey},
	"/llm_quota/keys/{id}/grant":     {http.MethodPost: grantKey},
	"/llm_quota/keys/{id}/rotate":    {http.MethodPost: rotateKey},
	"/llm_quota/keys/{id}/explain":   {http.MethodGet: explainKey},
	"/llm_quota/groups":              {http.MethodGet: listGroups, http.MethodPost: createGroup},
	"/llm_quota/groups/{id}":         {http.MethodGet: showGroup, http.MethodPatch: patchGroup, http.MethodDelete: deleteGroup},
	"/llm_quota/groups/{id}/reset":   {http.MethodPost: resetGroup},
	"/llm_quota/groups/{id}/grant":   {http.MethodPost: grantGroup},
	"/llm_quota/groups/{id}/explain": {http.MethodGet: explainGroup},
	"/llm_quota/usage":               {http.MethodGet: showUsage},
	"/llm_quota/alerts":              {http.MethodGet: listAlerts},
	"/llm_quota/audit":               {http.MethodGet: listAudit},
	"/llm_quota/refusals":            {http.MethodGet: listRefusals},
	"/llm_quota/events":              {http.MethodGet: showEvents},
	"/llm_quota/status":              {http.MethodGet: showStatus},
	"/llm_quota/verify":              {http.MethodGet: verify},
	"/llm_quota/backup":              {http.MethodGet: backup},
	"/llm_quota/openapi.json":        {http.MethodGet: showOpenAPI},
}

// Routes returns the routes of the API.
func (a API) Routes() []caddy.AdminRoute {
	all := make([]caddy.AdminRoute, 0, len(routes))
	for pattern, m := range routes {
		all = append(all, caddy.AdminRoute{Pattern: pattern, Handler: a.handler(m)})
	}
	return all
}

// call is one request to the API.
type call struct {
	w      http.ResponseWriter
	r      *http.Request
	gate   Gate
	ledger *ledger.Ledger
	author quota.Author // who asks
	now    time.Time
	query  url.Values
}

func (a API) handler(m methods) caddy.AdminHandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		c := &call{w: w, r: r, author: authorOf(r), now: time.Now()}
		if a.now != nil {
			c.now = a.now()
		}
		find := a.gate
		if find == nil {
			find = running
		}
		return m.answer(c, find)
	}
}

// answer serves a call on the gate that find returns.
func (m methods) answer(c *call, find func() (Gate, error)) error {
	serve, err := m.find(c.w, c.r)
	if err != nil {
		return err
	}
	if c.gate, err = find(); err != nil {
		return err
	}
	books, err := c.gate.Ledger()
	if err != nil {
		return fail(http.StatusServiceUnavailable, "opening the ledger: %w", err)
	}
	c.ledger = books.As(c.author)
	return answered(serve(c))
}

// find returns the function that serves the request's method.
func (m methods) find(w http.ResponseWriter, r *http.Request) (func(*call) error, error) {
	if m == nil {
		return nil, fail(http.StatusNotFound, "there is nothing at this path")
	}
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	if serve, ok := m[method]; ok {
		return serve, nil
	}
	var allowed []string
	for name := range m {
		allowed = append(allowed, name)
	}
	slices.Sort(allowed)
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	return nil, fail(http.StatusMethodNotAllowed, "method %s is not allowed here, only %s", r.Method, strings.Join(allowed, ", "))
}

// running returns the gate of the configuration that runs.
func running() (Gate, error) {
	app, err := caddy.ActiveContext().AppIfConfigured("llm_quota")
	if errors.Is(err, caddy.ErrNotConfigured) {
		return nil, fail(http.StatusNotFound, "llm_quota is not in the running configuration")
	}
	if err != nil {
		return nil, fail(http.StatusServiceUnavailable, "llm_quota is not running: %w", err)
	}
	gate, ok := app.(Gate)
	if !ok {
		return nil, fail(http.StatusServiceUnavailable, "the app llm_quota is a %T, not the gate", app)
	}
	return gate, nil
}

// Version returns the version of this module, as the binary knows it.
func Version() string {
	const path = "github.com/llm-quota/caddy-llm-quota"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, m := range append([]*debug.Module{&info.Main}, info.Deps...) {
		if m.Path != path {
			continue
		}
		if m.Replace != nil && m.Replace.Version != "" {
			m = m.Replace
		}
		if m.Version != "" {
			return m.Version
		}
	}
	return "(devel)"
}

// Interface guards.
var (
	_ caddy.Module      = API{}
	_ caddy.AdminRouter = API{}
)
