package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/tidwall/gjson"
)

// passwordHash is bcrypt's of "password".
const passwordHash = "$2b$04$abcdefghijklmnopqrstuughE8Ev8uGFaUgY2cNEySvxngrb/Jzdm"

// A site is a gate with a dashboard, where alice is an operator and bob a
// viewer.
type site struct{ *gate }

// newSite prepares a site, with these options in the global block and in the
// dashboard's. It is not started.
func newSite(t *testing.T, global, dashboard string) *site {
	t.Helper()
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"id":"1","object":"chat.completion","model":%q,"choices":[{"index":0,"message":{"role":"assistant","content":"Yes."}}],"usage":{"prompt_tokens":10,"completion_tokens":40,"total_tokens":50}}`, gjson.GetBytes(body, "model").String())
	}))
	t.Cleanup(provider.Close)
	handlers := fmt.Sprintf(`map {http.auth.user.id} {role} {
		alice operator
		bob viewer
	}
	@people path /llm-quota*
	basic_auth @people {
		alice %[1]s
		bob %[1]s
	}
	llm_quota_dashboard {
		role {role}
		%[2]s
	}
	llm_quota`, passwordHash, dashboard)
	at := freeAddresses(t, 2)
	return &site{&gate{newProcess(t, caddyfile(at[0], at[1], provider.URL, global, handlers), at[0], at[1]), "http://" + at[1]}}
}

// startSite starts a site with an empty store.
func startSite(t *testing.T, global, dashboard string) *site {
	t.Helper()
	s := newSite(t, global, dashboard)
	s.start()
	return s
}

// call makes a call through the gate and returns the status and what was
// answered.
func (s *site) call(t *testing.T, secret, model string) (status int, answer gjson.Result) {
	t.Helper()
	body := fmt.Sprintf(`{"model":%q,"max_tokens":40,"messages":[{"role":"user","content":"Are you there?"}]}`, model)
	r, err := http.NewRequest(http.MethodPost, s.url+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+secret)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, gjson.ParseBytes(b)
}

// calls makes n calls that have to be admitted.
func (s *site) calls(t *testing.T, secret, model string, n int) {
	t.Helper()
	for range n {
		if status, answer := s.call(t, secret, model); status != http.StatusOK {
			t.Fatalf("a call was answered %d %s", status, answer.Raw)
		}
	}
}

// refused makes a call that has to be refused with this status and code.
func (s *site) refused(t *testing.T, secret string, status int, code string) {
	t.Helper()
	got, answer := s.call(t, secret, "gpt-4o")
	if got != status || answer.Get("error.code").String() != code {
		t.Errorf("the call was answered %d %s, want %d %s", got, answer.Raw, status, code)
	}
}

// get asks the admin API.
func (s *site) get(path string) gjson.Result {
	s.t.Helper()
	var raw rawJSON
	s.api(http.MethodGet, path, nil, &raw)
	return gjson.ParseBytes(raw)
}

// named returns a key or group by name.
func (s *site) named(kind, name string) gjson.Result {
	s.t.Helper()
	return s.get("/" + kind + "/" + url.PathEscape("name:"+name))
}

// rawJSON is an answer as it came.
type rawJSON []byte

// UnmarshalJSON implements json.Unmarshaler.
func (r *rawJSON) UnmarshalJSON(b []byte) error {
	*r = append((*r)[:0], b...)
	return nil
}

// check compares fields of an object of the admin API, given as path and JSON
// in turn.
func check(t *testing.T, o gjson.Result, fields ...string) {
	t.Helper()
	for i := 0; i < len(fields); i += 2 {
		if got := o.Get(fields[i]).Raw; got != fields[i+1] {
			t.Errorf("the API says %s is %s, want %s", fields[i], got, fields[i+1])
		}
	}
}
