package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"
)

// scriptHeader names the script by which the upstream answers a request.
const scriptHeader = "X-Script"

// An upstream stands for the provider, and answers as scripts say.
type upstream struct {
	*httptest.Server
	mu      sync.Mutex
	scripts map[string]*script
}

// A script is the provider's part in one test.
type script struct {
	name string
	// answers are given in turn; the last one again and again.
	answers []http.HandlerFunc

	mu       sync.Mutex
	received []received
}

// received is a request as it reached the provider.
type received struct {
	method, uri string
	header      http.Header
	body        []byte
}

func newUpstream() *upstream {
	u := &upstream{scripts: map[string]*script{}}
	u.Server = httptest.NewServer(u)
	return u
}

// script adds a script.
func (u *upstream) script(answers ...http.HandlerFunc) *script {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := &script{name: fmt.Sprint(len(u.scripts)), answers: answers}
	u.scripts[s.name] = s
	return s
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	s := u.scripts[r.Header.Get(scriptHeader)]
	u.mu.Unlock()
	if s == nil {
		http.Error(w, "no such script", http.StatusNotImplemented)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	s.received = append(s.received, received{r.Method, r.RequestURI, r.Header.Clone(), body})
	answer := s.answers[min(len(s.received), len(s.answers))-1]
	s.mu.Unlock()
	r.Body = io.NopCloser(bytes.NewReader(body))
	answer(w, r)
}

// requests returns what the script has received so far, and checks that no
// credential was among it.
func (s *script) requests(t *testing.T) []received {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.received {
		for _, name := range []string{"Authorization", "X-Api-Key", "X-Goog-Api-Key"} {
			if v := r.header.Get(name); v != "" {
				t.Errorf("the provider was sent the caller's credential in %s", name)
			}
		}
	}
	return s.received
}

// fixture returns a file of testdata.
func fixture(name string) []byte {
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		panic(err)
	}
	return b
}

// answer answers with a fixture: JSON, or a stream whose events come one by
// one. As OpenAI does, it reports the usage of a chat's stream only if asked.
func answer(name string) http.HandlerFunc {
	body := fixture(name)
	if strings.HasSuffix(name, ".json") {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("X-Ratelimit-Limit-Requests", "30000") // the provider's own
			w.Header().Set("X-Request-Id", "req_of_provider")
			w.Write(body)
		}
	}
	return func(w http.ResponseWriter, r *http.Request) {
		sent, _ := io.ReadAll(r.Body)
		asked := gjson.GetBytes(sent, "stream_options.include_usage").Bool()
		w.Header().Set("Content-Type", "text/event-stream")
		for event := range bytes.SplitAfterSeq(body, []byte("\n\n")) {
			if !asked && isUsage(event) {
				continue
			}
			w.Write(event)
			w.(http.Flusher).Flush()
			time.Sleep(time.Millisecond)
		}
	}
}

// failing answers with a fixture under an error status.
func failing(status int, name string) http.HandlerFunc {
	body := fixture(name)
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		w.Write(body)
	}
}

// isUsage tells whether an event is the one that reports a chat's usage.
func isUsage(event []byte) bool { return bytes.Contains(event, []byte(`"choices":[],"usage":{`)) }

// withoutUsage returns a stream without the event that reports its usage.
func withoutUsage(stream []byte) []byte {
	var kept []byte
	for event := range bytes.SplitAfterSeq(stream, []byte("\n\n")) {
		if !isUsage(event) {
			kept = append(kept, event...)
		}
	}
	return kept
}
