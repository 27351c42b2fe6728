package dialect

import (
	"bytes"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// readStrict reads a call as strict admission does.
func readStrict(t testing.TB, path, body string) *Call {
	c, ref := Read(post(path, body), Options{Strict: true})
	if ref != nil {
		t.Fatalf("%s %s: refused: %s", path, body, ref.Detail)
	}
	return c
}

func TestLimitOutput(t *testing.T) {
	const (
		chat     = "/v1/chat/completions"
		claude   = "/model/anthropic.claude-3-haiku-20240307-v1:0"
		generate = "/v1beta/models/gemini-2.5-pro:generateContent"
	)
	for _, tc := range []struct {
		path, body string
		n          int64
		want       string // "": no room
	}{
		{chat, `{"model":"gpt-4o","messages":[]}`, 100, `{"max_completion_tokens":100,"model":"gpt-4o","messages":[]}`},
		{chat, `{"model":"o3-mini","messages":[]}`, 100, `{"max_completion_tokens":100,"model":"o3-mini","messages":[]}`},
		{chat, `{"model":"gpt-oss-120b","messages":[]}`, 100, `{"max_tokens":100,"model":"gpt-oss-120b","messages":[]}`},
		{chat, `{"model":"mistral-large","messages":[]}`, 100, `{"max_tokens":100,"model":"mistral-large","messages":[]}`},
		{chat, ` { "messages":[] , "max_tokens" : 500 }`, 100, ` { "messages":[] , "max_tokens" : 100 }`},
		{chat, `{"messages":[],"max_tokens":50}`, 100, `{"messages":[],"max_tokens":50}`},
		{chat, `{"messages":[],"max_tokens":500,"max_completion_tokens":70}`, 100, `{"messages":[],"max_tokens":100,"max_completion_tokens":70}`},
		{chat, `{"messages":[],"max_tokens":null}`, 100, `{"messages":[],"max_tokens":100}`},
		{chat, `{"messages":[],"max_tokens":-1}`, 100, `{"messages":[],"max_tokens":100}`},
		{chat, `{"messages":[],"max_tokens":0}`, 100, `{"messages":[],"max_tokens":1}`},
		{chat, `{"messages":[],"max_tokens":1e3}`, 100, `{"messages":[],"max_tokens":100}`},
		{chat, `{"messages":[],"max_tokens":"9999"}`, 100, `{"messages":[],"max_tokens":100}`},
		{chat, `{"messages":[],"max_tokens":[{"max_tokens":7}]}`, 100, `{"messages":[],"max_tokens":100}`},
		{chat, `{"messages":[],"Max_Tokens":500}`, 100, `{"max_tokens":100,"messages":[],"Max_Tokens":100}`},
		{chat, `{"messages":[],"max_to` + "\u212a" + `ens":500,"max_tokens":20}`, 100, `{"messages":[],"max_to` + "\u212a" + `ens":100,"max_tokens":20}`},
		{chat, `{"messages":[],"max\u005ftokens":500}`, 100, `{"messages":[],"max\u005ftokens":100}`},
		{chat, `{"messages":[{"max_tokens":500}],"max_output_tokens":30}`, 100, `{"max_tokens":30,"messages":[{"max_tokens":500}],"max_output_tokens":30}`},
		{chat, `{"messages":[],"n":4,"max_tokens":50}`, 100, `{"messages":[],"n":4,"max_tokens":25}`},
		{chat, `{"messages":[],"n":"4","max_tokens":50}`, 100, `{"messages":[],"n":"4","max_tokens":25}`},
		{chat, `{"messages":[],"n":4,"max_tokens":50}`, 4, `{"messages":[],"n":4,"max_tokens":1}`},
		{chat, `{"messages":[],"n":4,"max_tokens":50}`, 3, ``},
		{chat, `{"messages":[],"reasoning":{"max_tokens":2000},"max_tokens":4000}`, 2000, ``},
		{"/openai/deployments/d/chat/completions?api-version=1", `{"messages":[]}`, 9, `{"max_tokens":9,"messages":[]}`},
		{"/v1/completions", `{"prompt":["a","b"],"best_of":3,"n":2}`, 100, `{"max_tokens":16,"prompt":["a","b"],"best_of":3,"n":2}`},
		{"/v1/completions", `{"prompt":[1,2,3]}`, 100, `{"max_tokens":100,"prompt":[1,2,3]}`},
		{"/v1/responses", `{"input":"x"}`, 100, `{"max_output_tokens":100,"input":"x"}`},
		{"/v1/messages", `{"messages":[],"max_tokens":500}`, 100, `{"messages":[],"max_tokens":100}`},
		{"/v1/messages", `{"messages":[]}`, 100, `{"max_tokens":100,"messages":[]}`},
		{"/v1/messages", `{"messages":[],"max_tokens":3000,"thinking":{"type":"enabled","budget_tokens":2000}}`, 2001, `{"messages":[],"max_tokens":2001,"thinking":{"type":"enabled","budget_tokens":2000}}`},
		{"/v1/messages", `{"messages":[],"max_tokens":3000,"thinking":{"type":"enabled","budget_tokens":2000}}`, 2000, ``},
		{"/v1/messages", `{"messages":[],"max_tokens":2000,"thinking":{"type":"enabled","budget_tokens":9000}}`, 1000, `{"messages":[],"max_tokens":1000,"thinking":{"type":"enabled","budget_tokens":9000}}`},
		{"/v1/complete", `{"prompt":"x"}`, 100, `{"max_tokens_to_sample":100,"prompt":"x"}`},
		{generate, `{"contents":[]}`, 100, `{"generationConfig":{"maxOutputTokens":100},"contents":[]}`},
		{generate, `{"contents":[],"generationConfig":{}}`, 100, `{"contents":[],"generationConfig":{"maxOutputTokens":100}}`},
		{generate, `{"contents":[],"generationConfig":null}`, 100, `{"contents":[],"generationConfig":{"maxOutputTokens":100}}`},
		{generate, `{"contents":[],"generation_config":{"max_output_tokens":800,"candidate_count":2}}`, 100, `{"contents":[],"generation_config":{"max_output_tokens":50,"candidate_count":2}}`},
		{generate, `{"contents":[],"generationConfig":{"temperature":1}}`, 100, `{"contents":[],"generationConfig":{"maxOutputTokens":100,"temperature":1}}`},
		{"/v1beta/interactions", `{"input":"x"}`, 100, `{"generation_config":{"max_output_tokens":100},"input":"x"}`},
		{"/v1/projects/p/locations/l/publishers/anthropic/models/c:rawPredict", `{"messages":[],"max_tokens":500}`, 100, `{"messages":[],"max_tokens":100}`},
		{claude + "/converse", `{"messages":[]}`, 100, `{"inferenceConfig":{"maxTokens":100},"messages":[]}`},
		{claude + "/converse-stream", `{"messages":[],"inferenceConfig":{"maxTokens":200},"additionalModelRequestFields":{"max_tokens":300}}`, 100, `{"messages":[],"inferenceConfig":{"maxTokens":100},"additionalModelRequestFields":{"max_tokens":100}}`},
		{claude + "/invoke", `{"messages":[],"max_tokens":300}`, 100, `{"messages":[],"max_tokens":100}`},
		{"/model/amazon.titan-text-express-v1/invoke", `{"inputText":"x"}`, 100, `{"textGenerationConfig":{"maxTokenCount":100},"inputText":"x"}`},
		{"/model/meta.llama3-8b-instruct-v1:0/invoke", `{"prompt":"x","max_gen_len":512}`, 100, `{"prompt":"x","max_gen_len":100}`},
		{"/model/amazon.nova-lite-v1:0/invoke", `{"messages":[],"inferenceConfig":{"max_new_tokens":512}}`, 100, `{"messages":[],"inferenceConfig":{"max_new_tokens":100}}`},
		{"/model/cohere.command-text-v14/invoke", `{"prompt":"x","num_generations":5}`, 100, `{"max_tokens":20,"prompt":"x","num_generations":5}`},
		{"/model/arn:aws:bedrock:us-east-1:1:application-inference-profile%2Fx/invoke", `{"prompt":"x","max_gen_len":512}`, 100, `{"prompt":"x","max_gen_len":100}`},
		{"/api/chat", `{"messages":[]}`, 100, `{"options":{"num_predict":100},"messages":[]}`},
		{"/api/chat", `{"messages":[],"options":{"num_predict":-1}}`, 100, `{"messages":[],"options":{"num_predict":100}}`},
		{"/api/chat", `{"messages":[],"options":{"num_predict":0}}`, 100, `{"messages":[],"options":{"num_predict":100}}`},
		{"/api/chat", `{"messages":[],"options":{"num_predict":5},"options":{ }}`, 100, `{"messages":[],"options":{"num_predict":5},"options":{"num_predict":5 }}`},
		{"/api/chat", `{"messages":[],"Options":{"num_predict":500}}`, 100, `{"options":{"num_predict":100},"messages":[],"Options":{"num_predict":100}}`},
		{"/v2/chat", `{"messages":[]}`, 100, `{"max_tokens":100,"messages":[]}`},
		{"/v1/chat", `{"message":"x"}`, 100, `{"max_tokens":100,"message":"x"}`},
		{"/v1/embeddings", `{"input":"x","max_tokens":500}`, 100, `{"input":"x","max_tokens":500}`},
		{"/v1/chat/completions", `{"messages":[],`, 100, `{"messages":[],`},
	} {
		c := readStrict(t, tc.path, tc.body)
		ok := c.LimitOutput(tc.n)
		if ok != (tc.want != "") {
			t.Errorf("%s %s: %t", tc.path, tc.body, ok)
		}
		if tc.want == "" {
			tc.want = tc.body
		}
		if string(c.body) != tc.want {
			t.Errorf("%s %s:\n got %s\nwant %s", tc.path, tc.body, c.body, tc.want)
		}
		if ok && c.Kind == Generate && strings.HasSuffix(tc.body, "}") && (c.MaxOutput < 1 || c.MaxOutput > tc.n) {
			t.Errorf("%s %s: max %d of %d", tc.path, tc.body, c.MaxOutput, tc.n)
		}
	}
}

// TestLimitOutputWithInjection says that both changes of a body go together.
func TestLimitOutputWithInjection(t *testing.T) {
	r := post("/v1/chat/completions", `{"model":"m","stream":true,"messages":[]}`)
	c, _ := Read(r, Options{Strict: true, InjectUsage: true})
	if !c.LimitOutput(9) {
		t.Fatal("no room")
	}
	c.Forward(r)
	want := `{"max_tokens":9,"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[]}`
	if got := readBody(t, r); got != want || r.ContentLength != int64(len(want)) {
		t.Errorf("%d bytes: %s", r.ContentLength, got)
	}
}

func readBody(t testing.TB, r *http.Request) string {
	var b bytes.Buffer
	if _, err := b.ReadFrom(r.Body); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// failing is what a test's T and a property's have in common.
type failing interface {
	Fatalf(format string, args ...any)
}

// checkLimit holds a call's limited body against what it was: valid JSON that
// differs in maxima alone, none of them above its part, and the same when it
// is limited again.
func checkLimit(t failing, request func() *http.Request, n int64) {
	c, ref := Read(request(), Options{Strict: true})
	if ref != nil || c.Kind == Free {
		return
	}
	was := c.body
	if !c.LimitOutput(n) {
		if !bytes.Equal(c.body, was) {
			t.Fatalf("refused and changed: %s", c.body)
		}
		return
	}
	limited := c.body
	if c.Kind != Generate || !json.Valid(was) {
		if !bytes.Equal(was, limited) {
			t.Fatalf("changed: %s", limited)
		}
		return
	}
	if !c.LimitOutput(n) || !bytes.Equal(limited, c.body) {
		t.Fatalf("limited again: %s\nonce: %s", c.body, limited)
	}
	before, after := decoded(t, was), decoded(t, limited)
	if _, ok := before.(map[string]any); !ok {
		return
	}
	withoutMaxima(t, before, 0, 0)
	withoutMaxima(t, after, n/max(c.Choices, 1), 0)
	if diff := cmp.Diff(before, after); diff != "" {
		t.Fatalf("%s\n%s", was, diff)
	}
}

// decoded decodes JSON, numbers as they stand: they may be of any size.
func decoded(t failing, body []byte) (v any) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return v
}

// withoutMaxima takes the maxima out of a document, and settings that hold
// nothing else. Unless most is 0, none may be greater.
func withoutMaxima(t failing, v any, most int64, depth int) {
	o, ok := v.(map[string]any)
	if !ok || depth > maxSettings {
		return
	}
	for name, v := range o {
		switch plain := plainName(name); {
		case slices.Contains(maxFields, plain):
			number, _ := v.(json.Number)
			if f, err := number.Float64(); most > 0 && (err != nil || f > float64(most) || f <= 0) {
				t.Fatalf("%s: %v", name, v)
			}
			delete(o, name)
		case slices.Contains(settings, plain):
			withoutMaxima(t, v, most, depth+1)
			if inner, ok := v.(map[string]any); !ok || len(inner) == 0 {
				delete(o, name)
			}
		}
	}
}

var limitPaths = []string{
	"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/complete", "/api/chat", "/v2/chat", "/v1/chat",
	"/v1beta/models/g:generateContent", "/v1beta/interactions", "/model/x/converse", "/model/meta.llama3/invoke", "/model/x/invoke",
	"/v1/embeddings", "/v1/summarize", "/unknown",
}

// TestLimitOutputOfAny builds bodies of all that matters to the cap.
func TestLimitOutputOfAny(t *testing.T) {
	names := []string{"max_tokens", "max_completion_tokens", "max_output_tokens", "maxTokens", "MAX_TOKENS", "options", "generationConfig", "generation_config",
		"inferenceConfig", "num_predict", "maxOutputTokens", "thinking", "budget_tokens", "n", "prompt", "messages", "x", "parameters", "mâx"}
	rapid.Check(t, func(t *rapid.T) {
		var object func(depth int) string
		object = func(depth int) string {
			var members []string
			for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom(names), 0, 5, rapid.ID).Draw(t, "names") {
				v := rapid.SampledFrom([]string{"", "null", "true", "-1", "0", "7", "1e9", "500", `"a\"}"`, `["a",{"max_tokens":3}]`, "2.5"}).Draw(t, "value")
				if v == "" {
					v = "{}"
					if depth > 0 {
						v = object(depth - 1)
					}
				}
				members = append(members, `"`+name+`": `+v)
			}
			return "{" + strings.Join(members, " ,\n") + rapid.SampledFrom([]string{"}", " }"}).Draw(t, "end")
		}
		body := object(3)
		path := rapid.SampledFrom(limitPaths).Draw(t, "path")
		n := rapid.Int64Range(1, 2000).Draw(t, "n")
		checkLimit(t, func() *http.Request { return post(path, body) }, n)
	})
}

func FuzzLimitOutput(f *testing.F) {
	for i, body := range []string{
		`{"messages":[],"max_tokens":500,"n":2}`, `{"prompt":["a","b"]}`, `{"contents":[],"generationConfig":null}`,
		`{"messages":[],"options":{"num_predict":-1}}`, `{"a":"\\\"","max_tokens":1}`, ` {} `, `[]`, `{"max_tokens":"\ud800"}`,
	} {
		f.Add(uint8(i), int64(100), []byte(body))
	}
	f.Fuzz(func(t *testing.T, path uint8, n int64, body []byte) {
		p := limitPaths[int(path)%len(limitPaths)]
		checkLimit(t, func() *http.Request { return post(p, string(body)) }, max(n, 1))
	})
}
