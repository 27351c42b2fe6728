// Package client speaks with the admin API of a gate that runs, through Caddy's
// admin endpoint.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Client makes requests to one admin endpoint. It may be used by many
// goroutines.
type Client struct {
	address string
	origin  string
	network bool // an Origin is due: not a socket of this machine
	header  http.Header
	http    *http.Client
}

// New returns a client of the admin endpoint at a network address of Caddy's,
// such as localhost:2019 or unix//run/caddy.sock. agent and actor are sent with
// every request; the audit log shows the actor.
func New(address, agent, actor string) (*Client, error) {
	a, err := caddy.ParseNetworkAddress(address)
	if err != nil {
		return nil, fmt.Errorf("reading the admin address %s: %w", address, err)
	}
	if a.PortRangeSize() > 1 {
		return nil, fmt.Errorf("the admin address %s has more than one port", address)
	}
	c := &Client{address: address, origin: "http://127.0.0.1", header: http.Header{}}
	c.header.Set("User-Agent", agent)
	c.header.Set(admin.ActorHeader, actor)
	switch {
	case a.IsUnixNetwork():
		a.Host, _, _ = strings.Cut(a.Host, "|") // the socket's permissions
	case !a.IsFdNetwork():
		// As caddycmd.AdminAPIRequest does, whose answers have no status or
		// header.
		c.origin, c.network = "http://"+a.JoinHostPort(0), true
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, a.Network, a.JoinHostPort(0))
	}
	c.http = &http.Client{Transport: &http.Transport{DialContext: dial, DisableCompression: true}}
	return c, nil
}

// Address returns the address as it was given.
func (c *Client) Address() string { return c.address }

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Request is a request to the API.
type Request struct {
	Method string // "" is GET
	// Path is what follows /llm_quota, beginning with a slash and escaped.
	Path  string
	Query url.Values
	// Body is sent as JSON; nil: none.
	Body any
	// IfMatch, when not empty, is the ETag that must still be the object's.
	IfMatch string
	// LastEvent, when not empty, is the ID of the event that was read last.
	LastEvent string
}

// Answer is an answer, read to its end.
type Answer struct {
	Body []byte
	ETag string
}

// Error is an answer that refuses.
type Error struct {
	Status  int
	Message string // the API's; "" when it was not the API that answered
}

// Error returns what the API says.
func (e *Error) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("status %d %s", e.Status, http.StatusText(e.Status))
	}
	return e.Message
}

// UnreachableError says that no request got through.
type UnreachableError struct {
	Address string
	Err     error
}

// Error names the address and the reason.
func (e *UnreachableError) Error() string {
	return "reaching Caddy at " + e.Address + ": " + e.Err.Error()
}

// Unwrap returns the reason.
func (e *UnreachableError) Unwrap() error { return e.Err }

// Do makes a request. The error is *Error when the API refuses it and
// *UnreachableError when it did not get there.
func (c *Client) Do(ctx context.Context, r Request) (*Answer, error) {
	resp, err := c.Open(ctx, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	return &Answer{body, resp.Header.Get("ETag")}, nil
}

// Open is Do with an answer whose body is yet to be read and closed.
func (c *Client) Open(ctx context.Context, r Request) (*http.Response, error) {
	req, err := c.request(ctx, r)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if outer, ok := errors.AsType[*url.Error](err); ok {
			err = outer.Err // the URL says nothing that the address does not
		}
		return nil, &UnreachableError{c.address, err}
	}
	if resp.StatusCode >= http.StatusBadRequest {
		defer resp.Body.Close()
		refused := &Error{Status: resp.StatusCode}
		text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		var api struct{ Error string }
		if err == nil && json.Unmarshal(text, &api) == nil {
			refused.Message = api.Error
		}
		return nil, refused
	}
	return resp, nil
}

func (c *Client) request(ctx context.Context, r Request) (*http.Request, error) {
	var body io.Reader
	if r.Body != nil {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(r.Body); err != nil {
			return nil, fmt.Errorf("writing the request: %w", err)
		}
		body = &b
	}
	target := c.origin + "/llm_quota" + r.Path
	if len(r.Query) > 0 {
		target += "?" + r.Query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, target, body)
	if err != nil {
		return nil, fmt.Errorf("making the request: %w", err)
	}
	req.Header = c.header.Clone()
	if c.network {
		req.Header.Set("Origin", c.origin)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for name, value := range map[string]string{"If-Match": r.IfMatch, "Last-Event-ID": r.LastEvent} {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	return req, nil
}

// Ref returns how the API is told of the account that s names: its ID, or its
// plain name. "name:" before it says that it is a name, whatever it looks like.
func Ref(kind quota.Kind, s string) string {
	if id, err := quota.ParseID(s); (err == nil && id != 0 && id.Kind() == kind) || strings.HasPrefix(s, "name:") {
		return s
	}
	return "name:" + s
}

// Path returns the path of the account that s names, and of what is below it.
func Path(kind quota.Kind, s string, below ...string) string {
	path := "/" + kind.String() + "s/" + url.PathEscape(Ref(kind, s))
	for _, b := range below {
		path += "/" + b
	}
	return path
}
