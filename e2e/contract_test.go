package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"
)

// A contract is the description that the gate gives of its admin API. As a
// http.RoundTripper it holds every request and every answer to it, and notes
// what it has seen.
type contract struct {
	t      *testing.T
	doc    *openapi3.T
	router routers.Router

	mu   sync.Mutex
	seen map[string]bool // see item
}

// item names a part of an operation that has to be seen: a status, a parameter,
// a header of an answer, an example of a body.
func item(operation, kind, name string) string { return operation + ": " + kind + " " + name }

// newContract reads the description from a gate.
func newContract(t *testing.T, p *process) *contract {
	t.Helper()
	resp, err := http.Get("http://" + p.admin + "/llm_quota/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	c := &contract{t: t, seen: map[string]bool{}}
	if c.doc, err = openapi3.NewLoader().LoadFromData(data); err != nil {
		t.Fatalf("loading the document: %v", err)
	}
	if err := c.doc.Validate(t.Context(), openapi3.EnableExamplesValidation()); err != nil {
		t.Fatalf("the document is not OpenAPI: %v", err)
	}
	if len(c.doc.Servers) == 0 || !strings.HasPrefix(c.doc.OpenAPI, "3.1") {
		t.Errorf("OpenAPI %s, servers %v", c.doc.OpenAPI, c.doc.Servers)
	}
	c.doc.Servers = nil // the gate under test is elsewhere
	if c.router, err = legacy.NewRouter(c.doc, openapi3.EnableExamplesValidation()); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"text/event-stream", "application/octet-stream", "text/csv"} {
		openapi3filter.RegisterBodyDecoder(kind, openapi3filter.PlainBodyDecoder)
	}
	return c
}

// operations returns all operations by their ID, sorted by it.
func (c *contract) operations() []*routers.Route {
	var all []*routers.Route
	for path, p := range c.doc.Paths.Map() {
		for method, op := range p.Operations() {
			all = append(all, &routers.Route{Spec: c.doc, Path: path, PathItem: p, Method: method, Operation: op})
		}
	}
	slices.SortFunc(all, func(a, b *routers.Route) int {
		return strings.Compare(a.Operation.OperationID, b.Operation.OperationID)
	})
	return all
}

// operation returns the operation of that ID.
func (c *contract) operation(id string) *routers.Route {
	c.t.Helper()
	for _, r := range c.operations() {
		if r.Operation.OperationID == id {
			return r
		}
	}
	c.t.Fatalf("there is no operation %s", id)
	return nil
}

// example returns an example of an operation's body, and notes that it is used.
func (c *contract) example(id, name string) string {
	c.t.Helper()
	body := c.operation(id).Operation.RequestBody.Value.Content.Get("application/json")
	e := body.Examples[name]
	if e == nil {
		c.t.Fatalf("%s has no example %s", id, name)
	}
	b, err := json.Marshal(e.Value.Value)
	if err != nil {
		c.t.Fatal(err)
	}
	c.seen[item(id, "example", name)] = true
	return string(b)
}

// RoundTrip implements http.RoundTripper.
func (c *contract) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	sent := r.Clone(context.WithoutCancel(r.Context()))
	sent.Body = http.NoBody
	if body != nil {
		sent.Body = io.NopCloser(bytes.NewReader(body))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.check(sent, resp)
	return resp, nil
}

// check holds a request and its answer to the description. A request that the
// gate has refused may be as wrong as it likes.
func (c *contract) check(r *http.Request, resp *http.Response) {
	if r.Method == http.MethodHead {
		return
	}
	route, params, err := c.router.FindRoute(r)
	if err != nil && resp.StatusCode == http.StatusMethodNotAllowed {
		c.checkMethodNotAllowed(r, resp)
		return
	}
	if err != nil {
		c.t.Errorf("%s %s is not described: %v", r.Method, r.URL, err)
		return
	}
	in := &openapi3filter.RequestValidationInput{
		Request: r, PathParams: params, Route: route,
		Options: &openapi3filter.Options{IncludeResponseStatus: true, RejectWhenRequestBodyNotSpecified: true, SkipSettingDefaults: true},
	}
	wrong := openapi3filter.ValidateRequest(r.Context(), in)
	if wrong != nil && resp.StatusCode < 300 {
		c.t.Errorf("%s %s was answered with %s, but is not as described: %v", r.Method, r.URL, resp.Status, wrong)
	}
	if wrong == nil && r.Header.Get(misshapen) != "" {
		c.t.Errorf("%s %s is as described, but was answered with %s", r.Method, r.URL, resp.Status)
	}
	c.checkAnswer(in, resp)
	id := route.Operation.OperationID
	c.seen[item(id, "status", strconv.Itoa(resp.StatusCode))] = true
	if resp.StatusCode < 300 {
		c.noteParameters(in)
	}
	if answer := route.Operation.Responses.Status(resp.StatusCode); answer != nil {
		for name := range answer.Value.Headers {
			if resp.Header.Get(name) != "" {
				c.seen[item(id, "header", name)] = true
			}
		}
		for kind := range answer.Value.Content {
			if is, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); is == kind {
				c.seen[item(id, "type", kind)] = true
			}
		}
	}
}

// misshapen is a header that says of a request that the description must forbid
// it too.
const misshapen = "X-Test-Misshapen"

// checkAnswer holds an answer to the description.
func (c *contract) checkAnswer(in *openapi3filter.RequestValidationInput, resp *http.Response) {
	answer := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: resp.StatusCode, Header: resp.Header, Options: in.Options}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		answer.SetBodyBytes([]byte(":")) // the stream goes on; the test reads it
	} else {
		answer.SetBodyBytes(c.body(resp))
	}
	if err := openapi3filter.ValidateResponse(context.Background(), answer); err != nil {
		c.t.Errorf("%s %s: the answer is not as described: %v", in.Request.Method, in.Request.URL, err)
	}
}

// checkMethodNotAllowed holds an answer to what is described for all paths.
func (c *contract) checkMethodNotAllowed(r *http.Request, resp *http.Response) {
	described := openapi3.NewResponses(openapi3.WithStatus(http.StatusMethodNotAllowed, c.doc.Components.Responses["MethodNotAllowed"]))
	c.checkAnswer(&openapi3filter.RequestValidationInput{
		Request: r, Route: &routers.Route{Spec: c.doc, Operation: &openapi3.Operation{Responses: described}},
		Options: &openapi3filter.Options{IncludeResponseStatus: true},
	}, resp)
	c.seen[item("all", "status", "405")] = true
}

// body reads an answer's body, which can be read again.
func (c *contract) body(resp *http.Response) []byte {
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Error(err)
	}
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(data))
	return data
}

// noteParameters notes which parameters a request that was served has had.
func (c *contract) noteParameters(in *openapi3filter.RequestValidationInput) {
	query := in.Request.URL.Query()
	for _, p := range parameters(in.Route) {
		switch {
		case p.In == openapi3.ParameterInQuery && query.Has(p.Name),
			p.In == openapi3.ParameterInHeader && in.Request.Header.Get(p.Name) != "",
			p.In == openapi3.ParameterInPath:
			c.seen[item(in.Route.Operation.OperationID, "parameter", p.Name)] = true
		}
	}
	for name := range query {
		if !slices.ContainsFunc(parameters(in.Route), func(p *openapi3.Parameter) bool { return p.In == openapi3.ParameterInQuery && p.Name == name }) {
			c.t.Errorf("%s: the parameter %s is not described", in.Request.URL, name)
		}
	}
}

// parameters returns the parameters of an operation, those of its path among
// them.
func parameters(r *routers.Route) (all []*openapi3.Parameter) {
	for _, p := range slices.Concat(r.PathItem.Parameters, r.Operation.Parameters) {
		all = append(all, p.Value)
	}
	return all
}

// unseen returns what is described but was not seen, apart from statuses for
// which not is true.
func (c *contract) unseen(not func(status string) bool) (all []string) {
	want := map[string]bool{item("all", "status", "405"): true}
	for _, r := range c.operations() {
		id := r.Operation.OperationID
		for _, p := range parameters(r) {
			want[item(id, "parameter", p.Name)] = true
		}
		if r.Operation.RequestBody != nil {
			for name := range r.Operation.RequestBody.Value.Content.Get("application/json").Examples {
				want[item(id, "example", name)] = true
			}
		}
		for status, answer := range r.Operation.Responses.Map() {
			if not(status) {
				continue
			}
			want[item(id, "status", status)] = true
			for name := range answer.Value.Headers {
				want[item(id, "header", name)] = true
			}
			for kind := range answer.Value.Content {
				want[item(id, "type", kind)] = true
			}
		}
	}
	for _, w := range slices.Sorted(maps.Keys(want)) {
		if !c.seen[w] {
			all = append(all, w)
		}
	}
	return all
}

// schema checks JSON against a schema of the document.
func (c *contract) schema(name string, data []byte) {
	c.t.Helper()
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		c.t.Errorf("%s: %v", data, err)
		return
	}
	if err := c.doc.Components.Schemas[name].Value.VisitJSON(v, openapi3.EnableJSONSchema2020()); err != nil {
		c.t.Errorf("%s is not as %s is described: %v", data, name, err)
	}
}

// webhook holds a delivery to the description.
func (c *contract) webhook(r *http.Request) {
	item := c.doc.Webhooks["alert"]
	err := openapi3filter.ValidateRequest(r.Context(), &openapi3filter.RequestValidationInput{
		Request: r, Route: &routers.Route{Spec: c.doc, PathItem: item, Method: r.Method, Operation: item.Post},
		Options: &openapi3filter.Options{SkipSettingDefaults: true},
	})
	if err != nil || r.Method != http.MethodPost {
		c.t.Errorf("a webhook got what is not described: %s, %v", r.Method, err)
	}
}

// readEvents reads a stream of events until it has had one of each type, and
// returns the ID of the last one.
func (c *contract) readEvents(stream io.Reader, types ...string) (last string) {
	c.t.Helper()
	missing := map[string]bool{}
	for _, kind := range types {
		missing[kind] = true
	}
	for lines := bufio.NewScanner(stream); len(missing) > 0; {
		if !lines.Scan() {
			c.t.Fatalf("the stream has ended without %v: %v", slices.Collect(maps.Keys(missing)), lines.Err())
		}
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch name {
		case "id":
			last = value
		case "event":
			delete(missing, value)
		case "data":
			c.schema("Event", []byte(value))
		}
	}
	return last
}
