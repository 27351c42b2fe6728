package dashboard

import (
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
)

// Parse reads the directive, before whose path a named matcher may stand.
// It is not a plain handler directive, since those take a path for a matcher.
func Parse(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	var matcher caddy.ModuleMap
	h.Next()
	named := h.NextArg() && (strings.HasPrefix(h.Val(), "@") || h.Val() == "*")
	h.Reset()
	if named {
		h.Next()
		var err error
		if matcher, err = h.ExtractMatcherSet(); err != nil {
			return nil, err
		}
	}
	handler := new(Handler)
	if err := handler.UnmarshalCaddyfile(h.Dispenser); err != nil {
		return nil, err
	}
	return h.NewRoute(matcher, handler), nil
}

// UnmarshalCaddyfile reads
//
//	llm_quota_dashboard [<path>] {
//		read_only
//		role <placeholder>
//		allow_unauthenticated
//	}
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if d.NextArg() {
		h.Path = d.Val()
		if !strings.HasPrefix(h.Path, "/") {
			return d.Errf("%q is not a path that begins with /", h.Path)
		}
	}
	if d.NextArg() {
		return d.ArgErr()
	}
	seen := map[string]bool{}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		if seen[option] {
			return d.Errf("the option %s is there twice", option)
		}
		seen[option] = true
		args := d.RemainingArgs()
		switch option {
		case "read_only", "allow_unauthenticated":
			if len(args) != 0 {
				return d.ArgErr()
			}
			h.ReadOnly = h.ReadOnly || option == "read_only"
			h.AllowUnauthenticated = h.AllowUnauthenticated || option == "allow_unauthenticated"
		case "role":
			if len(args) != 1 || args[0] == "" {
				return d.ArgErr()
			}
			h.Role = args[0]
		default:
			return d.Errf("unknown option %q", option)
		}
	}
	return nil
}
