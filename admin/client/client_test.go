package client

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

func TestPath(t *testing.T) {
	id := quota.NextID(quota.KindGroup, 0, time.Unix(1.8e9, 0))
	for _, tt := range []struct {
		kind quota.Kind
		name string
		want string
	}{
		{quota.KindKey, "Ada", "/keys/name:Ada/reset"},
		{quota.KindKey, "a b?c%d#", "/keys/name:a%20b%3Fc%25d%23/reset"},
		{quota.KindKey, "name:key_x", "/keys/name:key_x/reset"},
		{quota.KindKey, "..", "/keys/name:../reset"},
		{quota.KindGroup, id.String(), "/groups/" + id.String() + "/reset"},
		{quota.KindKey, id.String(), "/keys/name:" + id.String() + "/reset"}, // of the other kind
	} {
		if got := Path(tt.kind, tt.name, "reset"); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestErrors(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/llm_quota/refused":
			w.WriteHeader(http.StatusConflict)
			io.WriteString(w, `{"error":"the name is taken"}`)
		case "/llm_quota/plain":
			http.Error(w, "404 page not found", http.StatusNotFound)
		case "/llm_quota/broken":
			w.Header().Set("Content-Length", "50")
			io.WriteString(w, "{")
		}
	}))
	defer s.Close()
	c, err := New(strings.TrimPrefix(s.URL, "http://"), "agent", "actor")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Do(t.Context(), Request{Path: "/refused"})
	if refused, is := errors.AsType[*Error](err); !is || refused.Status != 409 || refused.Error() != "the name is taken" {
		t.Error(err)
	}
	_, err = c.Do(t.Context(), Request{Path: "/plain"})
	if refused, is := errors.AsType[*Error](err); !is || refused.Status != 404 || refused.Error() != "status 404 Not Found" {
		t.Error(err)
	}
	if _, err = c.Do(t.Context(), Request{Path: "/broken"}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	s.Close()
	_, err = c.Do(t.Context(), Request{Path: "/refused"})
	if _, is := errors.AsType[*UnreachableError](err); !is || !strings.Contains(err.Error(), c.Address()) {
		t.Error(err)
	}
	for _, bad := range []string{"localhost:1-9", "localhost:x"} {
		if _, err := New(bad, "", ""); err == nil {
			t.Errorf("%s is an address", bad)
		}
	}
}

// A socket's permissions are no part of its name.
func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Skip(err) // the folder's name is too long for a socket
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "127.0.0.1" || r.Header.Get("Origin") != "" || r.Header.Get("If-Match") != `"x"` || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("host %s, header %v", r.Host, r.Header)
		}
		w.Header().Set("ETag", `"y"`)
		io.Copy(w, r.Body)
	}))
	s.Listener = l
	s.Start()
	defer s.Close()
	c, err := New("unix/"+path+"|0222", "agent", "actor")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a, err := c.Do(t.Context(), Request{Method: http.MethodPatch, Path: "/keys/x", Body: map[string]string{"name": "a<b"}, IfMatch: `"x"`})
	if err != nil || a.ETag != `"y"` || string(a.Body) != "{\"name\":\"a<b\"}\n" {
		t.Errorf("%s (%v)", a.Body, err)
	}
}
