package dashboard

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/encode"
	"github.com/klauspost/compress/zstd"
)

//go:embed assets
var assets embed.FS

// files are the page and what it is made of, as they are sent.
type files struct {
	// build is the hash of everything. All URLs contain it, so that modules
	// import one another by plain relative names.
	build string
	page  *file
	named map[string]*file // by the path below the dashboard's
}

// file is one file in each coding.
type file struct {
	contentType string
	tag         string            // the beginning of its ETags
	bodies      map[string][]byte // by coding; "" is none
}

// codings are those that files are kept in, the preferred first.
var codings = []string{"zstd", "gzip"}

var contentTypes = map[string]string{
	".css": "text/css; charset=utf-8",
	".js":  "text/javascript; charset=utf-8",
	".svg": "image/svg+xml",
}

// embedded returns the files. They are prepared at the first call.
var embedded = sync.OnceValues(func() (*files, error) {
	root, err := fs.Sub(assets, "assets")
	if err != nil {
		return nil, err
	}
	return load(root)
})

const pageName = "index.html"

// load reads the files of root, hashes and compresses them.
func load(root fs.FS) (*files, error) {
	contents := map[string][]byte{}
	sum := sha256.New()
	var modules []string
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(root, name)
		contents[name] = b
		sum.Write(fmt.Appendf(nil, "%s %d\n%s", name, len(b), b))
		if strings.HasPrefix(name, "js/") {
			modules = append(modules, name)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the dashboard's files: %w", err)
	}
	all := &files{build: hex.EncodeToString(sum.Sum(nil)[:8]), named: map[string]*file{}}
	below := "assets/" + all.build + "/"
	for name, b := range contents {
		contentType := contentTypes[path.Ext(name)]
		if name == pageName {
			b, contentType = fill(b, below, modules), "text/html; charset=utf-8"
		}
		f, err := newFile(contentType, b)
		if err != nil {
			return nil, fmt.Errorf("compressing %s: %w", name, err)
		}
		if name == pageName {
			all.page = f
			continue
		}
		all.named[below+name] = f
	}
	return all, nil
}

// fill writes the place of the files into the page, and that of each module,
// so that a browser asks for all of them at once.
func fill(page []byte, below string, modules []string) []byte {
	var links strings.Builder
	for _, name := range modules {
		fmt.Fprintf(&links, "<link rel=\"modulepreload\" href=\"assets/%s\">\n", name)
	}
	text := strings.ReplaceAll(string(page), "<!-- modules -->\n", links.String())
	return []byte(strings.ReplaceAll(text, "assets/", below))
}

func newFile(contentType string, b []byte) (*file, error) {
	sum := sha256.Sum256(b)
	f := &file{contentType: contentType, tag: hex.EncodeToString(sum[:8]), bodies: map[string][]byte{"": b}}
	var zipped bytes.Buffer
	w, err := gzip.NewWriterLevel(&zipped, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(b); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	f.bodies["gzip"] = zipped.Bytes()
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	f.bodies["zstd"] = z.EncodeAll(b, nil)
	return f, z.Close()
}

// serve answers with the file in the coding that the request prefers.
func (f *file) serve(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Content-Type", f.contentType)
	header.Add("Vary", "Accept-Encoding")
	coding, tag := "", f.tag
	for _, accepted := range encode.AcceptedEncodings(r, codings) {
		if f.bodies[accepted] != nil {
			coding = accepted
			tag += "." + coding // with a "-" Caddy's encode handler would take it for its own
			header.Set("Content-Encoding", coding)
			break
		}
		if accepted == "identity" {
			break
		}
	}
	header.Set("ETag", `"`+tag+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.bodies[coding]))
}
