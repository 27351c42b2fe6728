package e2e

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// TestOpenAPIUnavailable holds the answers of a gate to their description whose
// store cannot be opened, since its disk has too little room.
func TestOpenAPIUnavailable(t *testing.T) {
	disk := newSmallDisk(t, 8)
	whole := newGate(t, "http://127.0.0.1:1", "", "")
	c := newContract(t, whole.process)
	g := newGate(t, "http://127.0.0.1:1", "store badger "+filepath.Join(disk.dir, "store"), "")
	d := newDescribed(t, c, g)
	for _, q := range c.plain() {
		q.status = http.StatusServiceUnavailable
		d.do(q)
	}
	for _, what := range c.unseen(func(status string) bool { return status != "503" }) {
		if strings.Contains(what, ": status 503") {
			t.Errorf("never seen: %s", what)
		}
	}
}
