package dialect

import (
	"hash/maphash"
	"net/http"
	"strings"
	"sync/atomic"
)

// found remembers what was found of a path. Callers use few of them, over and
// over; whatever they send, no more than these are kept.
var found [256]atomic.Pointer[finding]

// finding is what look says of a POST, and all that it rests on.
type finding struct {
	path             string
	azure, anthropic bool
	endpoint         endpoint
	known            bool
}

// maxFound is the longest path that is remembered.
const maxFound = 256

var foundSeed = maphash.MakeSeed()

// find returns what is known of a request by its path and headers alone.
func find(r *http.Request) (e endpoint, known bool) {
	p := r.URL.Path
	if r.Method != http.MethodPost || r.URL.RawPath != "" || len(p) > maxFound || r.Header["Upgrade"] != nil {
		return look(r)
	}
	azure := strings.Contains(r.URL.RawQuery, "api-version=")
	anthropic := anthropicHeader(r)
	place := &found[maphash.String(foundSeed, p)%uint64(len(found))]
	if f := place.Load(); f != nil && f.path == p && f.azure == azure && f.anthropic == anthropic {
		return f.endpoint, f.known
	}
	e, known = look(r)
	place.Store(&finding{strings.Clone(p), azure, anthropic, e, known})
	return e, known
}
