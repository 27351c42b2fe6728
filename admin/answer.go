package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// fail returns an error that Caddy answers with the given status.
func fail(status int, format string, args ...any) error {
	return caddy.APIError{HTTPStatus: status, Err: fmt.Errorf(format, args...)}
}

// bad returns the error for something in the request that is wrong. It begins
// with the name of the field or the parameter.
func bad(format string, args ...any) error {
	return fail(http.StatusBadRequest, format, args...)
}

// answered turns an error of the domain into one that Caddy answers rightly.
func answered(err error) error {
	if err == nil {
		return nil
	}
	// Caddy asserts the type instead of unwrapping.
	if api, ok := errors.AsType[caddy.APIError](err); ok {
		api.Message = err.Error()
		return api
	}
	status := http.StatusServiceUnavailable // what is left is the store's
	switch {
	case errors.Is(err, quota.ErrInvalid):
		status = http.StatusBadRequest
	case errors.Is(err, quota.ErrConflict):
		status = http.StatusConflict
	case errors.Is(err, quota.ErrNotFound):
		status = http.StatusNotFound
	}
	return caddy.APIError{HTTPStatus: status, Err: err, Message: plain(err)}
}

// plain is the error's text without the words of the sentinels, which the
// status says already.
func plain(err error) string {
	text := err.Error()
	for _, sentinel := range []error{quota.ErrInvalid, quota.ErrConflict, quota.ErrNotFound} {
		text = strings.TrimSuffix(text, ": "+sentinel.Error())
	}
	return text
}

// json answers with v.
func (c *call) json(status int, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fail(http.StatusServiceUnavailable, "writing the answer: %w", err)
	}
	h := c.w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store") // it may hold a secret
	c.w.WriteHeader(status)
	c.w.Write(b.Bytes()) //nolint:errcheck // a client that has gone cannot be told
	return nil
}

// noContent answers that it was done.
func (c *call) noContent() error {
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}
