package dialect

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// maxSecret is the length of the longest secret, in bytes.
const maxSecret = 512

// credentialHeaders are the conventional places besides Authorization.
var credentialHeaders = [...]string{"X-Api-Key", "Api-Key", "X-Goog-Api-Key"}

// ReadCredential returns the caller's secret, "" if there is none. With an
// empty header it may stand in every conventional place: Authorization:
// Bearer, x-api-key, api-key, x-goog-api-key and ?key=; else in that header
// alone. Two values that differ, or one header twice, are refused, and so is
// what cannot be a secret.
func ReadCredential(r *http.Request, header string) (secret string, ref *quota.Refusal) {
	c := credential{}
	if header != "" {
		name := http.CanonicalHeaderKey(header)
		c.header(r.Header[name], name == "Authorization", true)
		return c.secret, c.refusal
	}
	c.header(r.Header["Authorization"], true, false)
	for _, name := range credentialHeaders {
		if v := r.Header[name]; v != nil {
			c.header(v, false, false)
		}
	}
	if strings.Contains(r.URL.RawQuery, "key=") || strings.Contains(r.URL.RawQuery, "%") {
		c.query(r.URL.RawQuery)
	}
	if c.refusal != nil {
		return "", c.refusal
	}
	return c.secret, nil
}

// credential gathers what was presented.
type credential struct {
	secret  string
	refusal *quota.Refusal
}

// header takes the values of one header. Authorization has a scheme in front;
// where the header was named, one without a scheme will do.
func (c *credential) header(values []string, authorization, named bool) {
	if len(values) > 1 {
		c.refuse(quota.AmbiguousCredential)
	}
	for _, v := range values {
		v = strings.TrimSpace(v)
		if authorization {
			scheme, rest, _ := strings.Cut(v, " ")
			switch {
			case strings.EqualFold(scheme, "Bearer"):
				v = strings.TrimSpace(rest)
			case !named || rest != "":
				continue
			}
		}
		c.value(v)
	}
}

// query takes the values of ?key=.
func (c *credential) query(raw string) {
	for raw != "" {
		var pair string
		pair, raw, _ = strings.Cut(raw, "&")
		value, ok := keyParameter(pair)
		if !ok {
			continue
		}
		c.value(strings.TrimSpace(value))
	}
}

// keyParameter returns the value of a query's pair if its name is key.
func keyParameter(pair string) (value string, ok bool) {
	name, value, _ := strings.Cut(pair, "=")
	if name != "key" {
		if !strings.Contains(name, "%") {
			return "", false
		}
		if plain, err := url.QueryUnescape(name); err != nil || plain != "key" {
			return "", false
		}
	}
	if plain, err := url.QueryUnescape(value); err == nil {
		value = plain
	}
	return value, true
}

func (c *credential) value(v string) {
	switch {
	case v == "" || c.refusal != nil:
	case !visible(v):
		c.refuse(quota.InvalidKey)
	case c.secret != "" && c.secret != v:
		c.refuse(quota.AmbiguousCredential)
	default:
		c.secret = v
	}
}

func (c *credential) refuse(why quota.Reason) {
	if c.refusal == nil || why == quota.AmbiguousCredential {
		c.secret, c.refusal = "", &quota.Refusal{Reason: why}
	}
}

// visible tells whether s can be a secret: up to 512 visible ASCII characters.
func visible(s string) bool {
	if len(s) > maxSecret {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// RemoveCredential takes the credential out of the request before it goes
// upstream, from where [ReadCredential] looks for it: an Authorization header
// whatever its scheme; of the query, all else stays byte for byte.
func RemoveCredential(r *http.Request, header string) {
	if header != "" {
		r.Header.Del(header)
		return
	}
	delete(r.Header, "Authorization")
	for _, name := range credentialHeaders {
		delete(r.Header, name)
	}
	if strings.Contains(r.URL.RawQuery, "key") || strings.Contains(r.URL.RawQuery, "%") {
		if kept := removeKey(r.URL.RawQuery); kept != r.URL.RawQuery {
			r.URL.RawQuery = kept
			r.RequestURI = r.URL.RequestURI() // which logs show
		}
	}
}

// removeKey returns the query without its key parameters.
func removeKey(raw string) string {
	kept := make([]string, 0, 8)
	for pair := range strings.SplitSeq(raw, "&") {
		if _, is := keyParameter(pair); !is {
			kept = append(kept, pair)
		}
	}
	return strings.Join(kept, "&")
}
