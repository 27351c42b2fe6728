package dialect

import (
	"bytes"
	"compress/gzip"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// answered sends a request and its answer through Read and a Writer, the answer
// in pieces.
func answered(t testing.TB, method, path, body, contentType, answer string, end End) (*Call, *Writer, quota.Outcome) {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	c, ref := Read(r, Options{})
	if ref != nil {
		t.Fatal(ref)
	}
	c.Forward(r)
	rec := httptest.NewRecorder()
	w := NewWriter(rec, c, nil)
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(http.StatusOK)
	for i := 0; i < len(answer); i += 5 {
		if _, err := w.Write([]byte(answer[i:min(i+5, len(answer))])); err != nil {
			t.Fatal(err)
		}
	}
	if end == (End{}) {
		w.Finish() //nolint:errcheck // a recorder takes all
	}
	out := w.Outcome(end)
	if got := rec.Body.String(); got != answer {
		t.Errorf("the client got %q", got)
	}
	return c, w, out
}

func responseEvent(typ, response string) string {
	return "event: " + typ + "\ndata: {\"type\":\"" + typ + "\",\"response\":" + response + "}\n\n"
}

func TestBackground(t *testing.T) {
	const (
		usage   = `"usage":{"input_tokens":7,"output_tokens":9,"total_tokens":16}`
		delta   = "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"some text\"}\n\n"
		started = `{"id":"resp_1","status":"in_progress","background":true,"usage":null}`
	)
	gone := End{ClientGone: true}
	long := strings.Repeat("x", quota.MaxLater)
	for _, tc := range []struct {
		name, answer string
		end          End
		later        string
		failed       bool
		charge       int64
	}{
		{"queued", `{"id":"resp_1","status":"queued","background":true,"usage":null}`, End{}, "resp_1", false, 0},
		{"in progress", `{"id":"resp_1","object":"response","status":"in_progress","output":[{"id":"msg_1"}]}`, End{}, "resp_1", false, 0},
		{"a name with escapes", `{"id":"r\u0065sp\/1","status":"queued"}`, End{}, "resp/1", false, 0},
		{"a long name", `{"id":"` + long + `","status":"queued"}`, End{}, long, false, 0},
		{"too long a name", `{"id":"x` + long + `","status":"queued"}`, End{}, "", false, 1},
		{"far too long a name", `{"id":"` + strings.Repeat(long, 5) + `","status":"queued"}`, End{}, "", false, 1},
		{"no name", `{"id":7,"status":"queued"}`, End{}, "", false, 1},
		{"usage at once", `{"id":"resp_1","status":"in_progress",` + usage + `}`, End{}, "", false, 16},
		{"completed", `{"id":"resp_1","status":"completed",` + usage + `}`, End{}, "", false, 16},
		{"failed", `{"id":"resp_1","status":"failed","error":{"code":"x"},"usage":null}`, End{}, "", true, 0},
		{"cut off", `{"id":"resp_1","status":"queued"`, End{Err: errors.New("cut")}, "", true, 1},
		{"stream to its end", responseEvent("response.created", started) + delta + responseEvent("response.completed", `{"id":"resp_1","status":"completed","background":true,`+usage+`}`), End{}, "", false, 16},
		{"stream without its end", responseEvent("response.created", started) + delta, End{}, "resp_1", false, 0},
		{"stream left by the client", responseEvent("response.created", started) + delta, gone, "resp_1", false, 0},
		{"stream that broke", responseEvent("response.created", started) + delta, End{Panicked: true}, "resp_1", false, 0},
		{"queued stream left", responseEvent("response.queued", `{"id":"resp_1","status":"queued"}`) + responseEvent("response.in_progress", `{"id":"resp_1","status":"in_progress"}`), gone, "resp_1", false, 0},
		{"stream left at its end", responseEvent("response.created", started) + responseEvent("response.completed", `{"id":"resp_1","status":"completed",`+usage+`}`), gone, "", false, 16},
		{"foreground stream left", responseEvent("response.created", `{"id":"resp_1","status":"in_progress","background":false}`) + delta, gone, "", true, 4},
		{"stream with an error", responseEvent("response.created", started) + "event: error\ndata: {\"type\":\"error\"}\n\n", End{}, "", true, 0},
	} {
		contentType := "application/json"
		if strings.HasPrefix(tc.answer, "event") {
			contentType = "text/event-stream"
		}
		_, w, out := answered(t, "POST", "/v1/responses", `{"input":"x"}`, contentType, tc.answer, tc.end)
		if out.Later != tc.later || out.Failed != tc.failed || out.Tokens.Charge() != tc.charge || tc.later != "" && !out.Estimated {
			t.Errorf("%s: %+v", tc.name, out)
		}
		if _, ok := w.Recalled(); ok {
			t.Errorf("%s: recalled", tc.name)
		}
	}
	_, _, out := answered(t, "POST", "/v1/chat/completions", `{"messages":[]}`, "application/json", `{"id":"resp_1","status":"queued"}`, End{})
	if out.Later != "" {
		t.Errorf("chat: %+v", out)
	}
}

func TestRecalled(t *testing.T) {
	const usage = `"usage":{"input_tokens":7,"output_tokens":9,"total_tokens":16}`
	get := "/v1/responses/resp_1"
	for _, tc := range []struct {
		method, path, answer string
		ok, failed           bool
		charge               int64
	}{
		{"GET", get, `{"id":"resp_1","status":"completed",` + usage + `}`, true, false, 16},
		{"GET", get + "?include[]=x", `{"id":"resp_1","status":"incomplete",` + usage + `}`, true, false, 16},
		{"GET", get, `{"id":"resp_1","status":"failed","error":{"code":"x"},"usage":null}`, true, true, 0},
		{"GET", get, `{"id":"resp_1","status":"cancelled",` + usage + `}`, true, true, 16},
		{"POST", get + "/cancel", `{"id":"resp_1","status":"cancelled"}`, true, true, 0},
		{"GET", "/openai/responses/resp_1?api-version=1", `{"id":"resp_1","status":"completed",` + usage + `}`, true, false, 16},
		{"GET", get, `{"id":"resp_1","status":"in_progress",` + usage + `}`, false, false, 0},
		{"GET", get, `{"id":"resp_1","status":"queued","usage":null}`, false, false, 0},
		{"GET", get, `{"id":"resp_1","status":"completed","usage":null}`, false, false, 0},
		{"GET", get, `{"id":"resp_1","status":"completed","usage":{"input_tokens":1e99}}`, false, false, 0},
		{"GET", get, `{"id":"resp_2","status":"completed",` + usage + `}`, false, false, 0},
		{"GET", get, `{"id":"resp_1","status":"completed",` + usage, false, false, 0},
		{"GET", get, `{"error":{"message":"not found"}}`, false, false, 0},
		{"GET", get + "/input_items", `{"id":"resp_1","status":"completed",` + usage + `}`, false, false, 0},
		{"DELETE", get, `{"id":"resp_1","status":"completed",` + usage + `}`, false, false, 0},
		{"POST", get, `{"id":"resp_1","status":"completed",` + usage + `}`, false, false, 0},
		{"GET", "/v1/responses", `{"id":"resp_1","status":"completed",` + usage + `}`, false, false, 0},
		{"GET", get + "?stream=true", responseEvent("response.queued", `{"id":"resp_1","status":"queued"}`) + responseEvent("response.completed", `{"id":"resp_1","status":"completed",`+usage+`}`), true, false, 16},
		{"GET", get + "?stream=true", responseEvent("response.queued", `{"id":"resp_1","status":"queued"}`), false, false, 0},
	} {
		contentType := "application/json"
		if strings.HasPrefix(tc.answer, "event") {
			contentType = "text/event-stream"
		}
		c, w, out := answered(t, tc.method, tc.path, "", contentType, tc.answer, End{})
		if c.Kind == Free && (out != quota.Outcome{}) {
			t.Errorf("%s %s: its own outcome: %+v", tc.method, tc.path, out)
		}
		got, ok := w.Recalled()
		if ok != tc.ok || ok && (got.Later != "resp_1" || got.Estimated || got.Failed != tc.failed || got.Tokens.Charge() != tc.charge) {
			t.Errorf("%s %s %s: %+v, %t", tc.method, tc.path, tc.answer, got, ok)
		}
	}
}

// TestRecalledCoded says that the answer is asked for uncoded, and read all the
// same if it comes coded.
func TestRecalledCoded(t *testing.T) {
	r := httptest.NewRequest("GET", "/v1/responses/resp_1", nil)
	r.Header.Set("Accept-Encoding", "gzip")
	c, _ := Read(r, Options{})
	c.Forward(r)
	if r.Header.Get("Accept-Encoding") != "" {
		t.Error("a coded answer is asked for")
	}
	var coded bytes.Buffer
	z := gzip.NewWriter(&coded)
	z.Write([]byte(`{"id":"resp_1","status":"completed","usage":{"input_tokens":7,"output_tokens":9}}`)) //nolint:errcheck // a buffer takes all
	z.Close()                                                                                            //nolint:errcheck
	w := NewWriter(httptest.NewRecorder(), c, nil)
	w.Header().Set("Content-Encoding", "gzip")
	w.Write(coded.Bytes()) //nolint:errcheck // a recorder takes all
	w.Finish()             //nolint:errcheck
	w.Outcome(End{})
	if out, ok := w.Recalled(); !ok || out.Tokens.Charge() != 16 {
		t.Errorf("%+v, %t", out, ok)
	}
}

// TestRecallNames says that only a plain path names a stored response.
func TestRecallNames(t *testing.T) {
	for path, want := range map[string]string{
		"/v1/responses/resp_1":   "resp_1",
		"/v1/responses/resp_1/":  "resp_1",
		"/V1/Responses/Resp_1":   "Resp_1",
		"/v1/responses/resp%2f1": "",
		"/v1/responses/a%5cb":    "",
		"/v1/responses/" + strings.Repeat("x", quota.MaxLater+1):     "",
		"/v1/conversations/c/items":                                  "",
		"/v1/chat/completions/chatcmpl-1":                            "",
		"/api/responses/" + url.PathEscape("gen-1") + "?stream=true": "gen-1",
	} {
		c, _ := Read(httptest.NewRequest("GET", path, nil), Options{})
		if c.Recall != want || c.Kind != Free {
			t.Errorf("%s: %q, kind %d", path, c.Recall, c.Kind)
		}
	}
}

// TestRecalledOfCorpus asks recorded answers for what the call before used.
func TestRecalledOfCorpus(t *testing.T) {
	n := 0
	for _, x := range loadCorpus(t) {
		if x.Method != "GET" || !strings.Contains(x.Path, "/responses/") {
			continue
		}
		r := x.request()
		c, _ := Read(r, Options{})
		w := NewWriter(httptest.NewRecorder(), c, nil)
		w.WriteHeader(x.Status)
		w.Write(x.body()) //nolint:errcheck // a recorder takes all
		w.Finish()        //nolint:errcheck
		if out := w.Outcome(End{}); out != (quota.Outcome{}) {
			t.Errorf("%s: %+v", x.ID, out)
		}
		out, ok := w.Recalled()
		if !ok || x.Usage != nil && out.Tokens.Charge() != x.Usage.Input+x.Usage.Output || out.Tokens.Charge() == 0 {
			t.Errorf("%s %s: %+v, %t", x.ID, x.Path, out, ok)
		}
		n++
	}
	if n == 0 {
		t.Skip("none recorded")
	}
}
