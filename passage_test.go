package llmquota

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// A handler that copies a file to the client does so by ReadFrom, wherever the
// writer it is given has one.
func TestReadFromIsMetered(t *testing.T) {
	dir := t.TempDir()
	body := answer(11, 7) + strings.Repeat(" ", 100_000)
	write(t, filepath.Join(dir, "answer.json"), body)
	setInner(t, "copy", func(w http.ResponseWriter, _ *http.Request, _ caddyhttp.Handler) error {
		f, err := os.Open(filepath.Join(dir, "answer.json"))
		if err != nil {
			return err
		}
		defer f.Close()
		w.Header().Set("Content-Type", "application/json")
		_, err = io.Copy(w, f)
		return err
	})
	g := startGate(t, keyK("quota 1000 monthly"), "llm_quota\nroute /v1/* {\ntest_inner copy\n}\nfile_server {\nroot "+dir+"\n}\n")
	if r := g.chat().ok(200); r.body != body {
		t.Errorf("the client got %d bytes of %d", len(r.body), len(body))
	}
	g.wants(used{requests: 1, input: 11, output: 7})
	if r := g.do("GET", "/answer.json", "").ok(200); r.body != body {
		t.Errorf("the client got %d bytes of %d from file_server", len(r.body), len(body))
	}
	if r := g.do("GET", "/answer.json", "", "Range", "bytes=0-9").ok(206); r.body != body[:10] {
		t.Errorf("the client got the part %q", r.body)
	}
	g.wants(used{requests: 3, input: 11, output: 7}) // GETs cost no tokens
}

// The body arrives plain, whatever the client accepts, and is compressed for
// the client all the same.
func TestCompressedAnswers(t *testing.T) {
	body := strings.Replace(answer(11, 7), "hello", strings.Repeat("hello ", 2000), 1)
	t.Run("upstream asks what is accepted", func(t *testing.T) {
		up := upstream(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if accept := r.Header.Get("Accept-Encoding"); accept != "gzip" { // as Go's transport asks, and decodes
				t.Errorf("the upstream is told that %q is accepted", accept)
			} else {
				w.Header().Set("Content-Encoding", "gzip")
				w.Write(gzipped(body)) //nolint:errcheck // seen by the client
				return
			}
			io.WriteString(w, body) //nolint:errcheck // seen by the client
		})
		g := startGate(t, keyK(), "encode gzip\n"+proxy(up))
		for _, accept := range []string{"gzip", "gzip, br, zstd", "identity", ""} {
			r := g.chat("Accept-Encoding", accept).ok(200)
			if coded := r.header.Get("Content-Encoding") == "gzip"; coded != strings.Contains(accept, "gzip") {
				t.Errorf("accepting %q, the client got Content-Encoding %q", accept, r.header.Get("Content-Encoding"))
			} else if coded {
				r.body = gunzipped(t, r.body)
			}
			if r.body != body {
				t.Errorf("accepting %q, the client got %d bytes of %d", accept, len(r.body), len(body))
			}
		}
		g.wants(used{requests: 4, input: 44, output: 28})
	})
	t.Run("upstream compresses unasked", func(t *testing.T) {
		coded := string(gzipped(body))
		up := upstream(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Encoding", "gzip")
			io.WriteString(w, coded) //nolint:errcheck // seen by the client
		})
		site := strings.TrimSuffix(proxy(up), "\n") + " {\ntransport http {\ncompression off\n}\n}\n"
		g := startGate(t, keyK(), site)
		if r := g.chat("Accept-Encoding", "gzip").ok(200); r.body != coded || r.header.Get("Content-Encoding") != "gzip" {
			t.Errorf("the client got %d bytes of %d, %v", len(r.body), len(coded), r.header)
		}
		g.wants(used{requests: 1, input: 11, output: 7})
	})
}

func gzipped(s string) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	io.WriteString(w, s) //nolint:errcheck // a buffer takes all
	w.Close()
	return b.Bytes()
}

func gunzipped(t *testing.T, s string) string {
	t.Helper()
	r, err := gzip.NewReader(strings.NewReader(s))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(plain)
}
