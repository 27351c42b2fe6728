package dashboard_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// budget is the most bytes that the page may take to load, compressed.
const budget = 100_000

// sources returns what is embedded, by its path below assets.
func sources(t testing.TB) map[string]string {
	t.Helper()
	all := map[string]string{}
	root := os.DirFS("assets")
	if err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(root, name)
		all[name] = string(b)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if len(all) < 10 || all["index.html"] == "" || all["app.css"] == "" || all["js/main.js"] == "" {
		t.Fatalf("there are only %d files", len(all))
	}
	return all
}

func TestHeaders(t *testing.T) {
	p := newPage(t, "llm_quota_dashboard")
	build := p.build()
	far := visitor{peer: "192.0.2.7:1234"}
	for name, r := range map[string]*http.Response{
		"the page": p.do(visitor{}, "GET", "/llm-quota/", ""), "the API": p.do(visitor{}, "GET", "/llm-quota/api/keys", ""),
		"a file": p.do(visitor{}, "GET", build+"js/main.js", ""), "an error": p.do(visitor{}, "GET", "/llm-quota/api/nothing", ""),
		"a refusal": p.do(far, "GET", "/llm-quota/", ""), "a refusal by the API": p.do(far, "GET", "/llm-quota/api/keys", ""),
		"a secret": p.do(visitor{}, "POST", "/llm-quota/api/keys", `{"name":"x"}`), "the redirect": p.do(visitor{}, "GET", "/llm-quota", ""),
	} {
		want := map[string]string{
			"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
				"font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
			"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin",
			"Cross-Origin-Resource-Policy": "same-origin", "X-Frame-Options": "DENY", "Cache-Control": "no-store",
		}
		if name == "a file" {
			want["Cache-Control"] = "public, max-age=31536000, immutable"
		}
		for header, value := range want {
			if got := r.Header.Values(header); len(got) != 1 || got[0] != value {
				t.Errorf("%s: %s is %q, want %q", name, header, got, value)
			}
		}
	}
	other := p.do(visitor{}, "GET", "/elsewhere", "")
	if len(other.Header) != 0 {
		t.Errorf("what is not the dashboard's gets headers: %v", other.Header)
	}
}

// plain returns a body without its coding.
func plain(t testing.TB, r *http.Response) []byte {
	t.Helper()
	in := io.Reader(r.Body)
	switch coding := r.Header.Get("Content-Encoding"); coding {
	case "":
	case "gzip":
		z, err := gzip.NewReader(in)
		if err != nil {
			t.Fatal(err)
		}
		in = z
	case "zstd":
		z, err := zstd.NewReader(in)
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		in = z
	default:
		t.Fatalf("coding %q", coding)
	}
	b, err := io.ReadAll(in)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCodings(t *testing.T) {
	p := newPage(t, "llm_quota_dashboard")
	target := p.build() + "js/main.js"
	want := []byte(sources(t)["js/main.js"])
	tags := map[string]bool{}
	for accepted, coding := range map[string]string{
		"": "", "identity": "", "br": "", "gzip": "gzip", "zstd": "zstd", "gzip, deflate, br, zstd": "zstd", "gzip;q=1, zstd;q=0.5": "gzip",
		"gzip;q=0, zstd;q=0": "", "GZIP": "gzip", "identity;q=1, gzip;q=0.5": "",
	} {
		who := visitor{}.with("Accept-Encoding", accepted)
		r := p.do(who, "GET", target, "")
		if got := r.Header.Get("Content-Encoding"); r.StatusCode != 200 || got != coding {
			t.Errorf("%q: status %d in %q, want %q", accepted, r.StatusCode, got, coding)
		}
		if !bytes.Equal(plain(t, r), want) {
			t.Errorf("%q: it is not the file", accepted)
		}
		if got := r.Header.Values("Vary"); !slices.Equal(got, []string{"Accept-Encoding"}) {
			t.Errorf("%q: Vary is %q", accepted, got)
		}
		if got := r.Header.Get("Content-Type"); got != "text/javascript; charset=utf-8" {
			t.Errorf("%q: Content-Type is %q", accepted, got)
		}
		tag := r.Header.Get("ETag")
		tags[tag] = true
		r = p.do(who.with("If-None-Match", tag), "GET", target, "")
		if body := p.is(r, 304); body != "" || r.Header.Get("ETag") != tag || r.Header.Get("Vary") == "" {
			t.Errorf("%q: unchanged, it answers %v %q", accepted, r.Header, body)
		}
		if body := p.is(p.do(who, "HEAD", target, ""), 200); body != "" {
			t.Errorf("%q: HEAD has a body", accepted)
		}
	}
	if len(tags) != 3 {
		t.Errorf("the ETags of three codings are %v", tags)
	}
}

// All files are served below a hash of all, which the page names, and are
// small enough together.
func TestFiles(t *testing.T) {
	p := newPage(t, "llm_quota_dashboard")
	build := p.build()
	html := p.is(p.do(visitor{}, "GET", "/llm-quota/", ""), 200)
	total := 0
	for name, source := range sources(t) {
		target := build + name
		if name == "index.html" {
			p.is(p.do(visitor{}, "GET", target, ""), 404)
			target = "/llm-quota/"
		} else {
			r := p.do(visitor{}, "GET", target, "")
			if body := p.is(r, 200); body != source {
				t.Errorf("%s is not what is embedded", name)
			}
			if r.Header.Get("Content-Type") == "" {
				t.Errorf("%s has no type", name)
			}
		}
		total += len(text(t, p.do(visitor{}.with("Accept-Encoding", "gzip"), "GET", target, "")))
		if strings.HasPrefix(name, "js/") {
			if link := `<link rel="modulepreload" href="` + strings.TrimPrefix(target, "/llm-quota/") + `">`; !strings.Contains(html, link) {
				t.Errorf("the page does not link %s", name)
			}
		}
	}
	t.Logf("%d bytes compressed", total)
	if total > budget {
		t.Errorf("the page takes %d bytes, more than %d", total, budget)
	}
	for _, m := range regexp.MustCompile(`(?:href|src)="([^"]+)"`).FindAllStringSubmatch(html, -1) {
		if strings.HasPrefix(m[1], "#") {
			continue
		}
		if r := p.do(visitor{}, "GET", "/llm-quota/"+m[1], ""); r.StatusCode != 200 || !strings.HasPrefix("/llm-quota/"+m[1], build) {
			t.Errorf("the page links %s: status %d", m[1], r.StatusCode)
		}
	}
	if other := newPage(t, "llm_quota_dashboard").build(); other != build {
		t.Errorf("the same files are at %s and at %s", build, other)
	}
	if strings.Contains(build, "0000000000000000") || len(build) != len("/llm-quota/assets/")+2*8+1 || sha256.Size < 8 {
		t.Errorf("%s holds no hash", build)
	}
}

// Nothing is inline, since the policy forbids it, and nothing comes from
// elsewhere.
func TestNothingInline(t *testing.T) {
	inline := map[string]*regexp.Regexp{
		"a style":             regexp.MustCompile(`(?i)<style|\sstyle\s*=`),
		"a script":            regexp.MustCompile(`(?i)<script(?:\s+type="module")?>|<script[^>]*>[^<]`),
		"a handler":           regexp.MustCompile(`(?i)\son[a-z]+\s*=`),
		"a javascript: URL":   regexp.MustCompile(`(?i)javascript:`),
		"something elsewhere": regexp.MustCompile(`(?i)(?:src|href)="(?:[a-z]+:)?//`),
	}
	for name, re := range map[string]string{
		"a style": `<p style="x">`, "a script": `<script>x</script>`, "a handler": `<p onclick="x">`, "a javascript: URL": `href="javascript:x"`, "something elsewhere": `src="//x"`,
	} {
		if !inline[name].MatchString(re) {
			t.Fatalf("the pattern for %s does not find %s", name, re)
		}
	}
	// Names are written by others: they become text, never markup or code.
	unsafe := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute\('style|createContextualFragment|DOMParser|srcdoc|setTimeout\(['"]`)
	elsewhere := regexp.MustCompile(`['"(]https?://[^'")<]*['")]`)
	for name, source := range sources(t) {
		if strings.HasSuffix(name, ".html") || strings.HasSuffix(name, ".svg") {
			for what, re := range inline {
				if m := re.FindString(source); m != "" {
					t.Errorf("%s has %s: %s", name, what, m)
				}
			}
			continue
		}
		if m := unsafe.FindString(source); m != "" {
			t.Errorf("%s uses %s", name, m)
		}
		for _, m := range elsewhere.FindAllString(source, -1) {
			if !strings.Contains(m, "http://www.w3.org/2000/svg") {
				t.Errorf("%s names %s", name, m)
			}
		}
	}
}

var imports = regexp.MustCompile(`(?m)^\s*(?:import|export)\b[^'"]*?\bfrom\s+['"]([^'"]+)['"]|^\s*import\s+['"]([^'"]+)['"]|\bimport\(\s*['"]([^'"]+)['"]`)

var (
	named    = regexp.MustCompile(`(?m)^import \{([^}]+)\} from '([^']+)';`)
	exported = regexp.MustCompile(`(?m)^export (?:async )?(?:function|const|let|class) (\w+)`)
)

// Each import names a module that is there, and something that it exports.
func TestImports(t *testing.T) {
	all := sources(t)
	reached := map[string]bool{}
	var follow func(name string)
	follow = func(name string) {
		if reached[name] {
			return
		}
		reached[name] = true
		for _, m := range imports.FindAllStringSubmatch(all[name], -1) {
			to := path.Join(path.Dir(name), m[1]+m[2]+m[3])
			if all[to] == "" || !strings.HasPrefix(m[1]+m[2]+m[3], ".") {
				t.Errorf("%s imports %s, which is not there", name, m[1]+m[2]+m[3])
				continue
			}
			follow(to)
		}
		for _, m := range named.FindAllStringSubmatch(all[name], -1) {
			from := all[path.Join(path.Dir(name), m[2])]
			var offers []string
			for _, e := range exported.FindAllStringSubmatch(from, -1) {
				offers = append(offers, e[1])
			}
			for what := range strings.SplitSeq(m[1], ",") {
				what, _, _ = strings.Cut(strings.TrimSpace(what), " as ")
				if !slices.Contains(offers, what) {
					t.Errorf("%s imports %s, which %s does not export", name, what, m[2])
				}
				if uses := regexp.MustCompile(`\b`+what+`\b`).FindAllString(all[name], -1); len(uses) < 2 {
					t.Errorf("%s imports %s and does not use it", name, what)
				}
			}
		}
	}
	follow("js/main.js")
	for name := range all {
		if strings.HasPrefix(name, "js/") && !reached[name] {
			t.Errorf("nothing imports %s", name)
		}
	}
}

// Each module is JavaScript, if node is there to tell.
func TestSyntax(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		if os.Getenv("REQUIRE_ALL") != "" {
			t.Fatal("REQUIRE_ALL is set: there is no node")
		}
		t.Skip("there is no node")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	dir := t.TempDir()
	for name, source := range sources(t) {
		if path.Ext(name) != ".js" {
			continue
		}
		file := filepath.Join(dir, strings.ReplaceAll(name, "/", "-")+".mjs") // a module, whatever node's version takes .js for
		if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(ctx, node, "--check", file).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
