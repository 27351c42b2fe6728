package dialect

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestBound(t *testing.T) {
	const tool = `,"tools":[{"type":"function","function":{"name":"f"}}]`
	for _, tc := range []struct {
		path, body           string
		beside, choices, max int64
	}{
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":"hi"}],"max_tokens":5}`, hiddenTokens, 1, 5},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}],"n":3` + tool + `}`, hiddenWithTools, 3, -1},
		{"/v1/chat/completions", `{"messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"c","content":"1"}]}`, hiddenTokens, 1, -1},
		{"/v1/completions", `{"prompt":["a","b"],"n":2,"best_of":5}`, hiddenTokens, 10, -1},
		{"/v1/completions", `{"prompt":[1,"a","b"]}`, hiddenTokens, 2, -1},
		{"/v1/responses", `{"input":[{"type":"reasoning","id":"rs","summary":[],"encrypted_content":"x"},{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"1"}],"background":false,"previous_response_id":null}`, hiddenTokens, 1, -1},
		{"/v1/messages", `{"system":[{"type":"text","text":"x","cache_control":{"type":"ephemeral"}}],"messages":[{"role":"assistant","content":[{"type":"thinking","thinking":"x","signature":"y"},{"type":"tool_use","id":"i","name":"f","input":{"image_url":"x","type":"image"}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"i","content":[{"type":"text","text":"1"}]}]}],"tools":[{"name":"f","input_schema":{"type":"object"}},{"type":"bash_20250124","name":"bash"}]}`, hiddenWithTools, 1, -1},
		{"/v1beta/models/g:generateContent", `{"contents":[{"parts":[{"text":"hi"},{"functionCall":{"name":"f","args":{"fileData":1}}},{"functionResponse":{"name":"f","response":{"x":1}}}]}],"tools":[{"functionDeclarations":[{"name":"f"}]}],"generationConfig":{"candidateCount":4}}`, hiddenWithTools, 4, -1},
		{"/model/anthropic.c/converse", `{"messages":[{"role":"user","content":[{"text":"x"},{"cachePoint":{"type":"default"}},{"toolResult":{"toolUseId":"i","content":[{"json":{"image":1}}]}}]}],"toolConfig":{"tools":[{"toolSpec":{"name":"f"}}]}}`, hiddenWithTools, 1, -1},
		{"/api/chat", `{"messages":[{"role":"user","content":"x","thinking":"y"}],"options":{"num_ctx":1}}`, hiddenTokens, 1, -1},
		{"/v2/chat", `{"messages":[{"role":"tool","tool_call_id":"c","content":[{"type":"document","document":{"id":"1","data":"x"}}]}]}`, cohereTokensHidden, 1, -1},
		{"/v2/chat", `{"messages":[]` + tool + `}`, cohereHiddenWithTools, 1, -1},
		{"/v2/chat", `{"messages":[],"documents":[{"any":"x"},{"name":"y"}]}`, cohereTokensHidden + 2*tokensPerText, 1, -1},
		{"/v1/embeddings", `{"input":["a","b","c"]}`, 4 * tokensPerText, 1, -1},
		{"/v1/rerank", `{"query":"abc","documents":["a","b"]}`, 3*tokensPerText + 2*int64(len(`"abc"`)), 1, -1},
		{"/v1/models/text:embedContent", `{"content":{"parts":[{"text":"x"}]}}`, tokensPerText, 1, -1},
	} {
		c := readStrict(t, tc.path, tc.body)
		if want := int64(len(tc.body)) + tc.beside; c.Unbounded != "" || c.Bound != want || c.Choices != tc.choices {
			t.Errorf("%s %s: bound %d, want %d; %d choices; unbounded for %s", tc.path, tc.body, c.Bound, want, c.Choices, c.Unbounded)
		}
		if c.Input > c.Bound {
			t.Errorf("%s %s: estimate %d, bound %d", tc.path, tc.body, c.Input, c.Bound)
		}
	}
	if c, _ := Read(post("/v1/chat/completions", `{"messages":[]}`), Options{}); c.Bound != 0 || c.Unbounded != "" || c.Choices != 0 {
		t.Errorf("without strict: %+v", c)
	}
}

func TestUnbounded(t *testing.T) {
	const chat, image = "/v1/chat/completions", `data:image/png;base64,AAAA`
	for _, tc := range []struct{ path, body, why string }{
		{"/v1/responses", `{"input":"x","previous_response_id":"resp_1"}`, "previous_response_id"},
		{"/v1/responses", `{"input":"x","Previous_Response_ID":"resp_1"}`, "Previous_Response_ID"},
		{"/v1/responses", `{"input":"x","previous\u005fresponse_id":"resp_1"}`, "previous_response_id"},
		{"/v1/responses", `{"input":"x","conversation":{"id":"c"}}`, "conversation"},
		{"/v1/responses", `{"input":"x","prompt":{"id":"p"}}`, "stored prompt"},
		{"/v1/responses", `{"input":"x","background":true}`, "background"},
		{"/v1/responses", `{"input":[{"type":"item_reference","id":"i"}]}`, "item_reference"},
		{"/v1/responses", `{"input":[{"type":"reasoning","id":"rs_1","summary":[]}]}`, "stored reasoning"},
		{"/v1/responses", `{"input":[{"role":"user","content":[{"type":"input_file","file_id":"f"}]}]}`, "input_file"},
		{"/v1/responses", `{"input":"x","tools":[{"type":"web_search"}]}`, "web_search"},
		{"/v1/responses", `{"input":"x","tools":[{"type":"file_search","vector_store_ids":[]}]}`, "file_search"},
		{"/v1/responses", `{"input":"x","tools":[{"type":"code_interpreter"}]}`, "code_interpreter"},
		{"/v1/responses", `{"input":"x","tools":[{"type":"computer_use_preview"}]}`, "computer_use_preview"},
		{"/v1/responses", `{"input":"x","tools":[{"type":"mcp"}]}`, "mcp"},
		{"/v1/responses", `{"input":"x","reasoning":{"mode":"pro"}}`, "reasoning.mode"},
		{"/v1/responses/compact", `{"input":"x"}`, "maximum cannot be set"},
		{chat, `{"messages":[{"content":[{"type":"image_url","image_url":{"url":"` + image + `"}}]}]}`, "image_url"},
		{chat, `{"messages":[{"content":[{"image_url":{"url":"https://x"}}]}]}`, "image_url"},
		{chat, `{"messages":[{"content":[{"type":"input_audio","input_audio":{"data":"x"}}]}]}`, "input_audio"},
		{chat, `{"messages":[{"content":[{"type":"file","file":{"file_id":"x"}}]}]}`, "file"},
		{chat, `{"messages":[{"content":"x","audio":{"id":"a"}}]}`, "audio"},
		{chat, `{"messages":[],"messages":[{"content":[{"type":"image_url"}]}]}`, "image_url"},
		{chat, `{"messages":[],"modalities":["text","audio"]}`, "modalities"},
		{chat, `{"messages":[],"web_search_options":{}}`, "web_search_options"},
		{chat, `{"messages":[],"prediction":{"type":"content","content":"x"}}`, "prediction"},
		{chat, `{"messages":[],"plugins":[{"id":"web"}]}`, "plugins"},
		{chat, `{"messages":[],"chat_template":"{{ m }}{{ m }}"}`, "chat_template"},
		{chat, `{"messages":[],"extra_body":{"google":{"cached_content":"c"}}}`, "cached_content"},
		{chat, `{"model":"gpt-4o-search-preview","messages":[]}`, "model that searches"},
		{chat, `{"model":"x","models":["perplexity/sonar"],"messages":[]}`, "model that searches"},
		{chat, `{"question":"x"}`, "unknown shape"},
		{chat, `{"messages":[],`, "no JSON"},
		{chat, `[]`, "no JSON"},
		{chat, "{\"messages\":[{\"content\":\"\xff\"}]}", "not UTF-8"},
		{chat, ``, "no JSON"},
		{chat, `{"messages":` + strings.Repeat("[", 2000) + strings.Repeat("]", 2000) + `}`, "deep nesting"},
		{chat, strings.Repeat(`{"options":`, 100) + "1" + strings.Repeat("}", 100), "deep nesting"},
		{"/who/knows", `{"messages":[]}`, "unknown kind"},
		{"/v1/files", `{}`, "unknown kind"},
		{"/v1/batches", `{}`, "not metered"},
		{"/v1/images/generations", `{"prompt":"x"}`, "images or sound"},
		{"/v1/audio/speech", `{"input":"x"}`, "images or sound"},
		{"/v1/embeddings", `{"input":[{"image":"https://x"}]}`, "image"},
		{"/v1/embeddings", `{"input":["` + image + `"]}`, "data URL"},
		{"/v1/messages", `{"messages":[{"content":[{"type":"image","source":{"type":"url"}}]}]}`, "image"},
		{"/v1/messages", `{"messages":[{"content":[{"type":"document","source":{"type":"text","data":"x"}}]}]}`, "source"},
		{"/v1/messages", `{"messages":[{"content":[{"type":"tool_result","content":[{"type":"image"}]}]}]}`, "image"},
		{"/v1/messages", `{"messages":[],"tools":[{"type":"web_search_20250305","name":"web_search"}]}`, "web_search_20250305"},
		{"/v1/messages", `{"messages":[],"tools":[{"type":"code_execution_20250825","name":"x"}]}`, "code_execution"},
		{"/v1/messages", `{"messages":[],"container":"c"}`, "container"},
		{"/v1/messages", `{"messages":[],"context_management":{"edits":[]}}`, "context_management"},
		{"/v1/messages", `{"messages":[],"mcp_servers":[{}]}`, "mcp_servers"},
		{"/v1beta/models/g:generateContent", `{"contents":[],"tools":[{"googleSearch":{}}]}`, "googleSearch"},
		{"/v1beta/models/g:generateContent", `{"contents":[],"tools":[{"functionDeclarations":[],"code_execution":{}}]}`, "code_execution"},
		{"/v1beta/models/g:generateContent", `{"contents":[],"tools":{"urlContext":{}}}`, "urlContext"},
		{"/v1beta/models/g:generateContent", `{"contents":[],"cachedContent":"c"}`, "cachedContent"},
		{"/v1beta/models/g:generateContent", `{"contents":[{"parts":[{"fileData":{"fileUri":"x"}}]}]}`, "fileData"},
		{"/v1beta/models/g:generateContent", `{"contents":[{"parts":[{"inline_data":{"data":"x"}}]}]}`, "inline_data"},
		{"/v1beta/models/g:generateContent", `{"contents":[],"generationConfig":{"responseModalities":["IMAGE"]}}`, "responseModalities"},
		{"/v1beta/interactions", `{"input":"x","previous_interaction_id":"i"}`, "previous_interaction_id"},
		{"/model/anthropic.c/converse", `{"messages":[{"content":[{"image":{"format":"png"}}]}]}`, "image"},
		{"/model/anthropic.c/converse", `{"messages":[{"content":[{"document":{"name":"x","source":{}}}]}]}`, "source"},
		{"/model/anthropic.c/converse", `{"messages":[],"promptVariables":{"x":{"text":"y"}}}`, "promptVariables"},
		{"/model/anthropic.c/converse", `{"messages":[],"toolConfig":{"tools":[{"systemTool":{"name":"x"}}]}}`, "systemTool"},
		{"/model/anthropic.c/converse", `{"messages":[],"additionalModelRequestFields":{"tools":[{"type":"computer_20250124"}]}}`, "computer_20250124"},
		{"/model/arn:aws:bedrock:us-east-1:1:prompt%2FP/converse", `{"messages":[]}`, "searches"},
		{"/model/unheard.of/invoke", `{"messages":[]}`, "maximum cannot be set"},
		{"/api/chat", `{"messages":[{"images":["x"]}]}`, "images"},
		{"/api/generate", `{"prompt":"x","template":"{{.Prompt}}{{.Prompt}}"}`, "template"},
		{"/v1/chat", `{"message":"x","connectors":[{"id":"web-search"}]}`, "connectors"},
		{"/v1/chat", `{"message":"x","conversation_id":"c"}`, "conversation_id"},
	} {
		c := readStrict(t, tc.path, tc.body)
		if !strings.Contains(c.Unbounded, tc.why) || c.Unbounded == "" || c.Bound != 0 || c.Choices < 1 {
			t.Errorf("%s %s: bound %d, unbounded for %q", tc.path, tc.body, c.Bound, c.Unbounded)
		}
	}
	r := httptest.NewRequest("GET", "/v1/realtime?model=m", nil)
	r.Header.Set("Upgrade", "websocket")
	if c, _ := Read(r, Options{Strict: true}); c.Unbounded == "" {
		t.Error("a realtime session is bounded")
	}
	for _, path := range []string{"/v1/models", "/v1/responses/resp_1"} {
		if c, _ := Read(httptest.NewRequest("GET", path, nil), Options{Strict: true}); c.Unbounded != "" || c.Bound != 0 {
			t.Errorf("%s: %q", path, c.Unbounded)
		}
	}
}

// TestDeepBodies says that no nesting makes reading a body take long.
func TestDeepBodies(t *testing.T) {
	long := `"` + strings.Repeat("x", 1<<20) + `"`
	for _, open := range []string{`{"messages":[`, `{"options":{"options":`, `{"input":{"content":`, `{"tools":[`} {
		shut := ""
		for _, c := range open {
			switch c {
			case '{':
				shut = "}" + shut
			case '[':
				shut = "]" + shut
			}
		}
		n := 9000 / len(shut)
		body := strings.Repeat(open, n) + long + strings.Repeat(shut, n)
		began := time.Now()
		c, _ := Read(post("/v1/chat/completions", body), Options{Strict: true})
		c.LimitOutput(100)
		if took := time.Since(began); took > 5*time.Second || !json.Valid([]byte(body)) {
			t.Errorf("%s…: %v", open, took)
		} else {
			t.Logf("%s…: %v", open, took)
		}
	}
}

func BenchmarkReadStrict(b *testing.B) {
	benchRead(b, benchRequest, Options{MaxBody: 1 << 20, Strict: true})
}

// FuzzStrict says that each call has a bound, no lower than its body, or a
// reason why it has none, not both.
func FuzzStrict(f *testing.F) {
	for i, body := range []string{
		`{"messages":[{"role":"user","content":[{"type":"text","text":"x"}]}],"tools":[{"type":"function"}]}`,
		`{"input":[{"type":"reasoning","id":"x"}],"previous_response_id":"y"}`, `{"prompt":["a",1],"n":"7"}`, `{"contents":{"parts":{"text":"x"}}}`,
	} {
		f.Add(uint8(i), []byte(body))
	}
	f.Fuzz(func(t *testing.T, path uint8, body []byte) {
		c, ref := Read(post(limitPaths[int(path)%len(limitPaths)], string(body)), Options{Strict: true, InjectUsage: true})
		if ref != nil {
			return
		}
		if (c.Bound > 0) == (c.Unbounded != "") || c.Choices < 1 || c.Bound > 0 && c.Bound < int64(len(body)) {
			t.Errorf("%s: bound %d, unbounded %q, choices %d", body, c.Bound, c.Unbounded, c.Choices)
		}
	})
}

// TestPlainName says that the quick way and the thorough one agree.
func TestPlainName(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.StringOfN(rapid.SampledFrom([]rune("aZ_kKsS\u212aſ1é")), 0, 8, -1).Draw(t, "name")
		if got, want := plainName(s), foldName.Replace(strings.ToLower(s)); got != want {
			t.Fatalf("%q: %q, %q", s, got, want)
		}
	})
}
