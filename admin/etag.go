package admin

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// keyTag returns the ETag of a key. It stands for the settings alone, not for
// the state in the same answer, so that traffic does not defeat If-Match. For
// the same reason If-None-Match is not served.
func keyTag(k *quota.Key) string {
	return tag(k.ID, k.Name, k.Group, k.Prefix, k.Source, k.Disabled, k.Removed, k.KeyRules, k.Living())
}

// groupTag returns the ETag of a group.
func groupTag(g *quota.Group) string {
	return tag(g.ID, g.Name, g.Parent, g.Source, g.Removed, g.GroupRules, g.Living())
}

func tag(settings ...any) string {
	b, err := json.Marshal(settings)
	if err != nil { // records hold nothing that JSON cannot
		panic(err)
	}
	sum := sha256.Sum256(b)
	return `"` + hex.EncodeToString(sum[:12]) + `"`
}

// matchesNow is matches for what changes no settings: that they were as the
// request says when it came is all that can be asked.
func (c *call) matchesNow(id quota.ID) error {
	if id.Kind() == quota.KindGroup {
		g, err := c.ledger.Group(id)
		if err != nil {
			return err
		}
		return c.matches(groupTag(g))
	}
	k, err := c.ledger.Key(id)
	if err != nil {
		return err
	}
	return c.matches(keyTag(k))
}

// matches returns a 412 unless the request's If-Match lets the object with
// this ETag be changed.
func (c *call) matches(current string) error {
	values := c.r.Header.Values("If-Match")
	if len(values) == 0 {
		return nil
	}
	for t := range strings.SplitSeq(strings.Join(values, ","), ",") {
		t = strings.TrimSpace(t)
		// Caddy's encode handler adds the coding to the ETags of what it sends.
		if plain, _, coded := strings.Cut(t, "-"); coded && plain != "" {
			t = plain + `"`
		}
		if t == "*" || t == current {
			return nil
		}
	}
	return fail(http.StatusPreconditionFailed, "the settings have changed since: their ETag is %s now", current)
}
