package e2e

import (
	"bytes"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/genai"
)

// genai returns Google's SDK for the Gemini API. It tries again only where it
// is told to, and then by its own schedule: it reads no header.
func (c *caller) genai(retry *genai.HTTPRetryOptions) *genai.Client {
	c.t.Helper()
	client, err := genai.NewClient(c.t.Context(), &genai.ClientConfig{
		APIKey: c.secret, Backend: genai.BackendGeminiAPI, HTTPClient: &http.Client{Transport: c.wire},
		HTTPOptions: genai.HTTPOptions{
			BaseURL: c.stage.url, Headers: http.Header{scriptHeader: {c.script.name}}, RetryOptions: retry,
		},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return client
}

const geminiModel = "gemini-2.5-flash"

// crlf answers with a fixture whose lines end as Google's streams do.
func crlf(name string) http.HandlerFunc {
	body := bytes.ReplaceAll(fixture(name), []byte("\n"), []byte("\r\n"))
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for event := range bytes.SplitAfterSeq(body, []byte("\r\n\r\n")) {
			w.Write(event)
			w.(http.Flusher).Flush()
			time.Sleep(time.Millisecond)
		}
	}
}

// TestGemini runs Google's own SDK against the gate.
func TestGemini(t *testing.T) {
	s := newStage(t, "")
	run := func(name string, answered http.HandlerFunc, test func(t *testing.T, c *caller, models *genai.Models)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := s.caller(t, ample(), answered)
			test(t, c, c.genai(nil).Models)
		})
	}
	atMost := &genai.GenerateContentConfig{MaxOutputTokens: 400}
	run("content", answer("gemini.json"), func(t *testing.T, c *caller, models *genai.Models) {
		got, err := models.GenerateContent(t.Context(), geminiModel, genai.Text("What do I see?"), atMost)
		if err != nil {
			t.Fatal(err)
		}
		if got.Text() != text || got.UsageMetadata.TotalTokenCount != 1420 {
			t.Errorf("the SDK read %q and usage %+v", got.Text(), got.UsageMetadata)
		}
		if uri := c.script.requests(t)[0].uri; uri != "/v1beta/models/gemini-2.5-flash:generateContent" {
			t.Errorf("the provider was asked for %s", uri)
		}
		sameBody(t, c)
		c.charged(geminiModel, totals{Requests: 1, Input: 1219, Cached: 1024, Output: 201, Reasoning: 192})
	})
	run("content in a stream", crlf("gemini.sse"), func(t *testing.T, c *caller, models *genai.Models) {
		var deltas string
		var last *genai.GenerateContentResponse
		for chunk, err := range models.GenerateContentStream(t.Context(), geminiModel, genai.Text("What do I see?"), atMost) {
			if err != nil {
				t.Fatal(err)
			}
			deltas, last = deltas+chunk.Text(), chunk
		}
		if deltas != text || last == nil || last.UsageMetadata.TotalTokenCount != 67 {
			t.Errorf("the SDK read %q and last %+v", deltas, last)
		}
		sameBody(t, c)
		c.charged(geminiModel, totals{Requests: 1, Input: 20, Output: 47, Reasoning: 40}) // of the last chunk
	})
	run("function call", answer("gemini_call.json"), func(t *testing.T, c *caller, models *genai.Models) {
		got, err := models.GenerateContent(t.Context(), geminiModel, genai.Text("What do I see?"), &genai.GenerateContentConfig{
			Tools: []*genai.Tool{{FunctionDeclarations: []*genai.FunctionDeclaration{{
				Name: "weather",
				Parameters: &genai.Schema{
					Type: genai.TypeObject, Properties: map[string]*genai.Schema{"city": {Type: genai.TypeString}}, Required: []string{"city"},
				},
			}}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if calls := got.FunctionCalls(); len(calls) != 1 || calls[0].Name != "weather" || calls[0].Args["city"] != "Reykjavík" {
			t.Errorf("the SDK read the calls %+v", calls)
		}
		sameBody(t, c)
		c.charged(geminiModel, totals{Requests: 1, Input: 68, Output: 17})
	})
	run("embeddings", answer("gemini_embeddings.json"), func(t *testing.T, c *caller, models *genai.Models) {
		got, err := models.EmbedContent(t.Context(), "gemini-embedding-2", append(genai.Text("a gate"), genai.Text("a ledger")...), nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Embeddings) != 2 || got.Embeddings[1].Values[0] != 0.5 {
			t.Errorf("the SDK read %+v", got.Embeddings)
		}
		sameBody(t, c)
		c.charged("gemini-embedding-2", totals{Requests: 1, Input: 11})
	})
	run("counting tokens is free", answer("gemini_count.json"), func(t *testing.T, c *caller, models *genai.Models) {
		got, err := models.CountTokens(t.Context(), geminiModel, genai.Text("What do I see?"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got.TotalTokens != 2095 {
			t.Errorf("the SDK read %+v", got)
		}
		sameBody(t, c)
		c.charged(geminiModel, totals{Requests: 1})
	})
}

// A geminiRefusal is a refusal as Google's SDK shows it.
type geminiRefusal struct {
	code    int
	status  string
	reason  string // of the ErrorInfo
	quotaID string // of the QuotaFailure
	retry   bool   // has a RetryInfo
}

// TestGeminiRefusals checks that Google's SDK reads each refusal as what it
// is, that it costs one request, and that it charges nothing.
func TestGeminiRefusals(t *testing.T) {
	s := newStage(t, "max_request_body 1MB")
	limits := func(name string, n any) map[string]any { return map[string]any{"limits": map[string]any{name: n}} }
	long := strings.Repeat("gates and ledgers ", 400)
	once := func(ask func(*caller, *genai.Models) error) func(*caller) error {
		return func(c *caller) error { return ask(c, c.genai(nil).Models) }
	}
	spent := map[string]any{"quota": map[string]any{"tokens": 100, "reset": "monthly"}}
	wrong := geminiRefusal{code: 400, status: "INVALID_ARGUMENT", reason: "API_KEY_INVALID"}
	for _, test := range []struct {
		name     string
		settings map[string]any
		secret   string // instead of the key's
		prompt   string // instead of a short one
		spend    int    // calls before the one that is refused
		want     geminiRefusal
		ask      func(*caller) error // instead of one call for content
		requests int                 // that the refusal costs, if not 1
		unknown  bool                // to nobody's account
	}{
		{name: "wrong key", secret: "lq_00000000_" + strings.Repeat("0", 38), want: wrong, unknown: true},
		{name: "disabled key", settings: map[string]any{"disabled": true}, want: wrong},
		{name: "expired key", settings: map[string]any{"expires_at": "2020-01-01T00:00:00Z"}, want: wrong},
		{
			name: "model not allowed", settings: map[string]any{"models": []string{"gemini-1*"}},
			want: geminiRefusal{code: 403, status: "PERMISSION_DENIED"},
		}, {
			name: "address not allowed", settings: map[string]any{"allowed_ips": []string{"192.0.2.0/24"}},
			want: geminiRefusal{code: 403, status: "PERMISSION_DENIED"},
		}, {
			name: "body too large", prompt: strings.Repeat("x", 1_000_001),
			want: geminiRefusal{code: 413, status: "INVALID_ARGUMENT"},
		}, {
			name: "quota spent", settings: spent, spend: 1,
			want: geminiRefusal{code: 429, status: "RESOURCE_EXHAUSTED", quotaID: "TokenQuotaPerKey", retry: true},
		}, {
			name: "quota spent for good", settings: map[string]any{"quota": map[string]any{"tokens": 100, "reset": "manual"}}, spend: 1,
			want: geminiRefusal{code: 429, status: "RESOURCE_EXHAUSTED", quotaID: "TokenQuotaPerKey"},
		}, {
			name: "quota spent, asked for a stream", settings: spent, spend: 1,
			want: geminiRefusal{code: 429, status: "RESOURCE_EXHAUSTED", quotaID: "TokenQuotaPerKey", retry: true},
			ask: once(func(c *caller, models *genai.Models) error {
				for _, err := range models.GenerateContentStream(c.t.Context(), geminiModel, genai.Text("What do I see?"), nil) {
					return err
				}
				return errors.New("the stream was empty")
			}),
		}, {
			// Who switches the SDK's retries on gets each of them refused: nothing
			// in an answer keeps it from them but the status.
			name: "quota spent, retries switched on", settings: spent, spend: 1, requests: 3,
			want: geminiRefusal{code: 429, status: "RESOURCE_EXHAUSTED", quotaID: "TokenQuotaPerKey", retry: true},
			ask: func(c *caller) error {
				retry := &genai.HTTPRetryOptions{Attempts: genai.Ptr[int32](3), InitialDelay: genai.Ptr(0.01), Jitter: genai.Ptr(0.01)}
				return askGemini(c, c.genai(retry).Models, "What do I see?")
			},
		}, {
			name: "input above tokens per minute", settings: limits("tokens_per_minute", 1000), prompt: long,
			want: geminiRefusal{code: 429, status: "RESOURCE_EXHAUSTED", quotaID: "TokensPerMinutePerKey"},
		}, {
			name: "requests per minute", settings: limits("requests_per_minute", 2), spend: 2,
			want: geminiRefusal{code: 429, status: "RESOURCE_EXHAUSTED", quotaID: "RequestsPerMinutePerKey", retry: true},
		}, {
			name: "tokens per day", settings: limits("tokens_per_day", 100), spend: 1,
			want: geminiRefusal{code: 429, status: "RESOURCE_EXHAUSTED", quotaID: "TokensPerDayPerKey", retry: true},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := s.caller(t, test.settings, answer("gemini.json"))
			if test.secret != "" {
				c.secret = test.secret
			}
			for range test.spend {
				if err := askGemini(c, c.genai(nil).Models, "What do I see?"); err != nil {
					t.Fatal(err)
				}
			}
			prompt, requests := test.prompt, max(test.requests, 1)
			if prompt == "" {
				prompt = "What do I see?"
			}
			if test.ask == nil {
				test.ask = once(func(c *caller, models *genai.Models) error { return askGemini(c, models, prompt) })
			}
			wantGeminiRefusal(t, test.ask(c), test.want)
			if n := len(c.wire.statuses()) - test.spend; n != requests {
				t.Errorf("the refusal cost %d requests, want %d: %v", n, requests, c.wire.statuses())
			}
			if n := len(c.script.requests(t)); n != test.spend {
				t.Errorf("%d requests reached the provider, want %d", n, test.spend)
			}
			n := int64(test.spend)
			want := totals{Requests: n, Refused: int64(requests), Input: n * 1219, Cached: n * 1024, Output: n * 201, Reasoning: n * 192}
			if test.unknown {
				want.Refused = 0
			}
			c.charged("", want)
		})
	}
}

func askGemini(c *caller, models *genai.Models, prompt string) error {
	_, err := models.GenerateContent(c.t.Context(), geminiModel, genai.Text(prompt), nil)
	return err
}

// wantGeminiRefusal checks what the SDK's typed error holds.
func wantGeminiRefusal(t *testing.T, err error, want geminiRefusal) {
	t.Helper()
	var failed genai.APIError
	if !errors.As(err, &failed) {
		t.Fatalf("the SDK returned %v, want its typed error", err)
	}
	got := geminiRefusal{code: failed.Code, status: failed.Status}
	for _, detail := range failed.Details {
		switch detail["@type"] {
		case "type.googleapis.com/google.rpc.ErrorInfo":
			got.reason, _ = detail["reason"].(string)
		case "type.googleapis.com/google.rpc.QuotaFailure":
			violations, _ := detail["violations"].([]any)
			for _, v := range violations {
				v, _ := v.(map[string]any)
				got.quotaID, _ = v["quotaId"].(string)
			}
		case "type.googleapis.com/google.rpc.RetryInfo":
			got.retry = true
			delay, _ := detail["retryDelay"].(string)
			if d, err := time.ParseDuration(delay); err != nil || d <= 0 || !strings.HasSuffix(delay, "s") || d > 32*24*time.Hour {
				t.Errorf("the SDK is told to wait %q", delay)
			}
			if !strings.Contains(failed.Message, "Please retry in "+delay) {
				t.Errorf("the message tells no wait of %s: %s", delay, failed.Message)
			}
		}
	}
	if got != want || failed.Message == "" {
		t.Errorf("the SDK read %+v, want %+v: %v", got, want, failed)
	}
}
