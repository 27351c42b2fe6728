package admin

import (
	"context"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// visit is a request that comes to the routes by Serve.
type visit struct {
	gate   Gate
	author quota.Author
	err    error
}

type visitKey struct{}

// router has the routes of the API for Serve.
var router = sync.OnceValue(func() *http.ServeMux {
	mux := http.NewServeMux()
	for pattern, m := range routes {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			v := r.Context().Value(visitKey{}).(*visit)
			c := &call{w: w, r: r, author: v.author, now: time.Now()}
			v.err = m.answer(c, func() (Gate, error) { return v.gate, nil })
		})
	}
	return mux
})

// Serve answers a request to the API of a gate for those who do not come
// through Caddy's admin endpoint: by the same routes, to which the path of r
// belongs, in the name of author. An error is a caddy.APIError, which is not
// answered yet.
func Serve(w http.ResponseWriter, r *http.Request, gate Gate, author quota.Author) error {
	// http.ServeMux would redirect to the clean path, which is not the one by
	// which the request came.
	if clean := path.Clean(r.URL.Path); clean != strings.TrimSuffix(r.URL.Path, "/") {
		return fail(http.StatusNotFound, "there is nothing at this path")
	}
	v := &visit{gate: gate, author: author}
	router().ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), visitKey{}, v)))
	return v.err
}
