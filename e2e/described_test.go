package e2e

import (
	"cmp"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// A described gate is one whose admin API is held to its description.
type described struct {
	*gate
	*contract
	t      *testing.T
	client *http.Client
}

func newDescribed(t *testing.T, c *contract, g *gate) *described {
	if c == nil {
		c = newContract(t, g.process)
	}
	return &described{g, c, t, &http.Client{Transport: c}}
}

// apiRequest is a request to the API, of an operation by its ID.
type apiRequest struct {
	op     string
	id     string // for the path
	query  string // with its parameters named as they are described
	body   string
	header string // one, as "Name: value"
	status int    // of the answer
	// misshapen says that the description must forbid the request as well.
	misshapen bool
}

// do makes a request, and returns the answer and its body.
func (d *described) do(q apiRequest) (*http.Response, string) {
	d.t.Helper()
	resp := d.open(q)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	if resp.StatusCode != q.status {
		d.t.Errorf("%s %s?%s %.300s: status %d, want %d: %s", q.op, q.id, q.query, q.body, resp.StatusCode, q.status, body)
	}
	return resp, string(body)
}

func (d *described) open(q apiRequest) *http.Response {
	d.t.Helper()
	route := d.operation(q.op)
	target := "http://" + d.admin + strings.ReplaceAll(route.Path, "{id}", url.PathEscape(q.id))
	if q.query != "" {
		target += "?" + q.query
	}
	var body io.Reader
	if q.body != "" {
		body = strings.NewReader(q.body)
	}
	r, err := http.NewRequestWithContext(d.t.Context(), route.Method, target, body)
	if err != nil {
		d.t.Fatal(err)
	}
	if q.body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if route.Method != http.MethodGet {
		r.Header.Set("X-LLM-Quota-Actor", "tester")
	}
	if name, value, ok := strings.Cut(q.header, ": "); ok {
		r.Header.Set(name, value)
	}
	if q.misshapen {
		r.Header.Set(misshapen, "true")
	}
	resp, err := d.client.Do(r)
	if err != nil {
		d.t.Fatal(err)
	}
	return resp
}

// plain returns a request of each operation that a gate with a key "ci" and a
// group "engineering" would serve.
func (c *contract) plain() (all []apiRequest) {
	for _, r := range c.operations() {
		q := apiRequest{op: r.Operation.OperationID}
		switch {
		case strings.HasPrefix(r.Path, "/llm_quota/keys/"):
			q.id = "name:ci"
		case strings.HasPrefix(r.Path, "/llm_quota/groups/"):
			q.id = "name:engineering"
		}
		if r.Operation.RequestBody != nil {
			q.body = map[string]string{
				"createKeys": `{"name":"one more"}`, "createGroup": `{"name":"one more"}`, "grantToKey": `{"tokens":1}`, "grantToGroup": `{"tokens":1}`,
			}[q.op]
			q.body = cmp.Or(q.body, `{}`)
		}
		all = append(all, q)
	}
	return all
}

// bare makes a request that has nothing but its method and path.
func (d *described) bare(method, path string, status int) {
	d.t.Helper()
	id := "name:ci"
	if strings.HasPrefix(path, "/llm_quota/groups") {
		id = "name:engineering"
	}
	r, err := http.NewRequestWithContext(d.t.Context(), method, "http://"+d.admin+strings.ReplaceAll(path, "{id}", id), nil)
	if err != nil {
		d.t.Fatal(err)
	}
	resp, err := d.client.Do(r)
	if err != nil {
		d.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != status {
		d.t.Errorf("%s %s: status %d, want %d", method, path, resp.StatusCode, status)
	}
}
