package dialect

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

func TestReadCredential(t *testing.T) {
	long := strings.Repeat("x", 512)
	for _, tc := range []struct {
		name    string
		headers []string // name: value
		query   string
		header  string
		want    string
		refusal quota.Reason
	}{
		{name: "none"},
		{name: "bearer", headers: []string{"Authorization: Bearer abc"}, want: "abc"},
		{name: "scheme in any case, spaces", headers: []string{"Authorization:  bEARER   abc  "}, want: "abc"},
		{name: "empty is missing", headers: []string{"Authorization: Bearer ", "X-Api-Key: "}},
		{name: "bare scheme", headers: []string{"Authorization: Bearer"}},
		{name: "x-api-key", headers: []string{"X-Api-Key: abc"}, want: "abc"},
		{name: "api-key", headers: []string{"Api-Key: abc"}, want: "abc"},
		{name: "x-goog-api-key", headers: []string{"X-Goog-Api-Key: abc"}, want: "abc"},
		{name: "query", query: "alt=sse&key=abc", want: "abc"},
		{name: "query escaped", query: "k%65y=a%62c", want: "abc"},
		{name: "query of another name", query: "apikey=abc&monkey=1"},
		{name: "other scheme is none", headers: []string{"Authorization: Basic YWJj"}},
		{name: "signature is none", headers: []string{"Authorization: AWS4-HMAC-SHA256 Credential=a/b, Signature=c"}},
		{name: "no scheme is none", headers: []string{"Authorization: abc"}},
		{name: "other scheme beside a key", headers: []string{"Authorization: Basic YWJj", "X-Api-Key: abc"}, want: "abc"},
		{name: "same twice", headers: []string{"Authorization: Bearer abc", "X-Api-Key: abc"}, query: "key=abc", want: "abc"},
		{name: "two values", headers: []string{"Authorization: Bearer abc", "X-Api-Key: abd"}, refusal: quota.AmbiguousCredential},
		{name: "header and query", headers: []string{"Authorization: Bearer abc"}, query: "key=x", refusal: quota.AmbiguousCredential},
		{name: "one header twice", headers: []string{"X-Api-Key: abc", "X-Api-Key: abc"}, refusal: quota.AmbiguousCredential},
		{name: "query twice", query: "key=a&key=a", want: "a"},
		{name: "longest", headers: []string{"X-Api-Key: " + long}, want: long},
		{name: "too long", headers: []string{"X-Api-Key: " + long + "x"}, refusal: quota.InvalidKey},
		{name: "not visible", headers: []string{"X-Api-Key: a b"}, refusal: quota.InvalidKey},
		{name: "not ASCII", headers: []string{"Authorization: Bearer ä"}, refusal: quota.InvalidKey},
		{name: "named header alone", header: "x-my-key", headers: []string{"X-My-Key: abc", "Authorization: Bearer other"}, want: "abc"},
		{name: "named header missing", header: "x-my-key", headers: []string{"Authorization: Bearer other"}},
		{name: "named Authorization", header: "authorization", headers: []string{"Authorization: Bearer abc"}, want: "abc"},
		{name: "named Authorization without scheme", header: "Authorization", headers: []string{"Authorization: abc"}, want: "abc"},
		{name: "named header twice", header: "X-My-Key", headers: []string{"X-My-Key: a", "X-My-Key: a"}, refusal: quota.AmbiguousCredential},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := httptest.NewRequest("POST", "/v1/chat/completions?"+tc.query, nil)
			for _, h := range tc.headers {
				k, v, _ := strings.Cut(h, ": ")
				r.Header[k] = append(r.Header[k], v)
			}
			got, ref := ReadCredential(r, tc.header)
			if got != tc.want || (ref == nil) != (tc.refusal == "") || ref != nil && ref.Reason != tc.refusal {
				t.Errorf("got %q, %v; want %q, %q", got, ref, tc.want, tc.refusal)
			}
		})
	}
}

func TestRemoveCredential(t *testing.T) {
	r := httptest.NewRequest("POST", "/x?a=%20b&key=secret&c&KEY=d&key=e", nil)
	for _, n := range []string{"X-Api-Key", "Api-Key", "X-Goog-Api-Key", "Keep"} {
		r.Header.Set(n, "secret")
	}
	r.Header.Set("Authorization", "Bearer secret")
	RemoveCredential(r, "")
	if len(r.Header) != 1 || r.Header.Get("Keep") == "" {
		t.Errorf("headers left: %v", r.Header)
	}
	if r.URL.RawQuery != "a=%20b&c&KEY=d" || r.RequestURI != "/x?a=%20b&c&KEY=d" {
		t.Errorf("query %q, URI %q", r.URL.RawQuery, r.RequestURI)
	}

	r = httptest.NewRequest("POST", "/x?monkey=1&&b=%zz", nil)
	r.Header.Set("Authorization", "Basic YTpi") // of no use to a provider, and not for its eyes
	r.Header.Set("X-Other", "a")
	RemoveCredential(r, "")
	if r.Header.Get("Authorization") != "" || r.Header.Get("X-Other") == "" || r.URL.RawQuery != "monkey=1&&b=%zz" {
		t.Errorf("what is no credential went: %v %q", r.Header, r.URL.RawQuery)
	}

	r = httptest.NewRequest("POST", "/x?key=a", nil)
	r.Header = http.Header{"Authorization": {"Bearer a"}, "X-My-Key": {"b"}}
	RemoveCredential(r, "x-my-key")
	if len(r.Header) != 1 || r.Header.Get("Authorization") == "" || r.URL.RawQuery != "key=a" {
		t.Errorf("left: %v %q", r.Header, r.URL.RawQuery)
	}
}

// FuzzCredential: after RemoveCredential nothing is found, and what is found
// before it is a possible secret.
func FuzzCredential(f *testing.F) {
	f.Add("Bearer abc", "abc", "key=abc&x=1")
	f.Add("bearer", "", "k%65y=%61&key")
	f.Add("Basic x", "é", "&&=&key=%zz")
	f.Fuzz(func(t *testing.T, auth, key, query string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header["Authorization"], r.Header["X-Api-Key"], r.URL.RawQuery = []string{auth}, []string{key}, query
		secret, ref := ReadCredential(r, "")
		if ref != nil && secret != "" || !visible(secret) {
			t.Fatalf("secret %q, refusal %v", secret, ref)
		}
		RemoveCredential(r, "")
		if left, ref := ReadCredential(r, ""); left != "" || ref != nil {
			t.Fatalf("left %q, %v", left, ref)
		}
	})
}
