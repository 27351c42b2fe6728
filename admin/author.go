package admin

import (
	"net/http"
	"strings"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

const (
	// CLIAgent is how the User-Agent of the command line begins.
	CLIAgent = "caddy-llm-quota-cli/"
	// ActorHeader says who makes a request to the admin endpoint, for the audit
	// log. It is believed, as all is that comes there; the subject of a client
	// certificate is believed more.
	ActorHeader = "X-LLM-Quota-Actor"
)

// maxActor is how many bytes the name of an actor may have.
const maxActor = 128

// authorOf returns who sent a request to the admin endpoint.
func authorOf(r *http.Request) quota.Author {
	a := quota.Author{Source: quota.ByAPI}
	if strings.HasPrefix(r.UserAgent(), CLIAgent) {
		a.Source = quota.ByCLI
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		a.Actor = r.TLS.PeerCertificates[0].Subject.String()
	}
	if a.Actor == "" {
		a.Actor = r.Header.Get(ActorHeader)
	}
	if len(a.Actor) > maxActor || !quota.Printable(a.Actor) {
		a.Actor = ""
	}
	return a
}
