package e2e

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/packages/ssestream"
	"github.com/openai/openai-go/v3/responses"
	"github.com/tidwall/gjson"
)

const text = "Two gates and a ledger." // what every fixture says

var weather = openai.ChatCompletionFunctionTool(openai.FunctionDefinitionParam{
	Name: "weather",
	Parameters: openai.FunctionParameters{
		"type": "object", "properties": map[string]any{"city": map[string]any{"type": "string"}}, "required": []string{"city"},
	},
})

func chatParams() openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model: "gpt-4o-mini", MaxCompletionTokens: openai.Int(400),
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("What do I see?")},
	}
}

// TestOpenAI runs OpenAI's own SDK against the gate.
func TestOpenAI(t *testing.T) {
	s := newStage(t, "")
	run := func(name, answered string, test func(t *testing.T, c *caller)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, s.caller(t, ample(), answer(answered)))
		})
	}
	run("chat", "chat.json", func(t *testing.T, c *caller) {
		client := c.openai()
		got, err := client.Chat.Completions.New(t.Context(), chatParams())
		if err != nil {
			t.Fatal(err)
		}
		if got.Choices[0].Message.Content != text || got.Usage.TotalTokens != 1529 {
			t.Errorf("the SDK read %q and usage %+v", got.Choices[0].Message.Content, got.Usage)
		}
		sameBody(t, c)
		rateHeaders(t, c.wire.last().header, 600, 500_000)
		c.charged("gpt-4o-mini", totals{Requests: 1, Input: 1219, Cached: 1024, Output: 310, Reasoning: 192})
	})
	run("stream without usage", "chat.sse", func(t *testing.T, c *caller) {
		client := c.openai()
		acc, asked := accumulate(t, client.Chat.Completions.NewStreaming(t.Context(), chatParams()))
		if asked {
			t.Error("the SDK saw usage that it had not asked for")
		}
		if got := acc.Choices[0].Message.Content; got != text {
			t.Errorf("the SDK read %q", got)
		}
		sent := c.script.requests(t)[0].body
		if !gjson.GetBytes(sent, "stream_options.include_usage").Bool() {
			t.Errorf("the provider was not asked for usage: %s", sent)
		}
		if got, want := c.wire.last().received.String(), string(withoutUsage(fixture("chat.sse"))); got != want {
			t.Errorf("the stream is not the provider's without its usage:\n%s", got)
		}
		rateHeaders(t, c.wire.last().header, 600, 500_000)
		c.charged("gpt-4o-mini", totals{Requests: 1, Input: 21, Output: 7})
	})
	run("stream with usage", "chat.sse", func(t *testing.T, c *caller) {
		client, params := c.openai(), chatParams()
		params.StreamOptions.IncludeUsage = openai.Bool(true)
		acc, asked := accumulate(t, client.Chat.Completions.NewStreaming(t.Context(), params))
		if !asked || acc.Usage.TotalTokens != 28 {
			t.Errorf("the SDK asked for usage and saw %+v", acc.Usage)
		}
		sameBody(t, c)
		c.charged("gpt-4o-mini", totals{Requests: 1, Input: 21, Output: 7})
	})
	run("tools", "tools.json", func(t *testing.T, c *caller) {
		client, params := c.openai(), chatParams()
		params.Tools = []openai.ChatCompletionToolUnionParam{weather}
		got, err := client.Chat.Completions.New(t.Context(), params)
		if err != nil {
			t.Fatal(err)
		}
		wantWeather(t, got.Choices[0].Message.ToolCalls)
		sameBody(t, c)
		c.charged("gpt-4o-mini", totals{Requests: 1, Input: 68, Output: 17})
	})
	run("tools in a stream", "tools.sse", func(t *testing.T, c *caller) {
		client, params := c.openai(), chatParams()
		params.Tools = []openai.ChatCompletionToolUnionParam{weather}
		acc, asked := accumulate(t, client.Chat.Completions.NewStreaming(t.Context(), params))
		if asked {
			t.Error("the SDK saw usage that it had not asked for")
		}
		wantWeather(t, acc.Choices[0].Message.ToolCalls)
		c.charged("gpt-4o-mini", totals{Requests: 1, Input: 71, Output: 19})
	})
	ask := responses.ResponseNewParams{
		Model: "gpt-5-mini", Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("What do I see?")},
	}
	run("response", "response.json", func(t *testing.T, c *caller) {
		client := c.openai()
		got, err := client.Responses.New(t.Context(), ask)
		if err != nil {
			t.Fatal(err)
		}
		if got.OutputText() != text || got.Usage.TotalTokens != 240 {
			t.Errorf("the SDK read %q and usage %+v", got.OutputText(), got.Usage)
		}
		sameBody(t, c)
		c.charged("gpt-5-mini", totals{Requests: 1, Input: 40, Cached: 8, Output: 200, Reasoning: 192})
	})
	run("response in a stream", "response.sse", func(t *testing.T, c *caller) {
		client := c.openai()
		stream := client.Responses.NewStreaming(t.Context(), ask)
		var deltas string
		var completed responses.Response
		for stream.Next() {
			switch event := stream.Current(); event.Type {
			case "response.output_text.delta":
				deltas += event.Delta
			case "response.completed":
				completed = event.Response
			}
		}
		if err := stream.Err(); err != nil {
			t.Fatal(err)
		}
		if deltas != text || completed.OutputText() != text || completed.Usage.TotalTokens != 50 {
			t.Errorf("the SDK read %q, then %q and usage %+v", deltas, completed.OutputText(), completed.Usage)
		}
		sameBody(t, c)
		c.charged("gpt-5-mini", totals{Requests: 1, Input: 41, Output: 9})
	})
	run("embeddings", "embedding.json", func(t *testing.T, c *caller) {
		client := c.openai()
		got, err := client.Embeddings.New(t.Context(), openai.EmbeddingNewParams{
			Model: "text-embedding-3-small", Input: openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: []string{"a gate", "a ledger"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Data) != 2 || got.Data[1].Embedding[0] != 0.5 {
			t.Errorf("the SDK read %+v", got.Data)
		}
		sameBody(t, c)
		c.charged("text-embedding-3-small", totals{Requests: 1, Input: 11})
	})
	run("models are free", "models.json", func(t *testing.T, c *caller) {
		client := c.openai()
		got, err := client.Models.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Data) != 1 || got.Data[0].ID != "gpt-4o-mini" {
			t.Errorf("the SDK read %+v", got.Data)
		}
		c.charged("", totals{Requests: 1})
	})
	t.Run("the provider fails, the SDK tries again", func(t *testing.T) {
		t.Parallel()
		c := s.caller(t, ample(), failing(http.StatusServiceUnavailable, "overloaded.json"), answer("chat.json"))
		client := c.openai()
		if _, err := client.Chat.Completions.New(t.Context(), chatParams()); err != nil {
			t.Fatal(err)
		}
		c.charged("gpt-4o-mini", totals{Requests: 2, Failed: 1, Input: 1219, Cached: 1024, Output: 310, Reasoning: 192})
	})
	t.Run("the caller goes in the middle of a stream", func(t *testing.T) {
		t.Parallel()
		c := s.caller(t, ample(), func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			sent := withoutUsage(fixture("chat.sse"))
			w.Write(sent[:len(sent)/2])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		})
		client := c.openai()
		ctx, cancel := context.WithCancel(t.Context())
		stream := client.Chat.Completions.NewStreaming(ctx, chatParams())
		if !stream.Next() {
			t.Fatal(stream.Err())
		}
		cancel()
		stream.Close()
		var u usage
		for start := time.Now(); time.Since(start) < 2*time.Second && u.Totals.Failed == 0; time.Sleep(10 * time.Millisecond) {
			u = s.usage(c.key.ID)
		}
		got := u.Totals
		if got.Requests != 1 || got.Failed != 1 || got.Total == 0 || got.Estimated != got.Total || got.Total >= 400 {
			t.Errorf("the ledger has %+v, want one failed call with an estimate of what was delivered", got)
		}
		if q := s.key(c.key.ID).State.Quota; q.Used != got.Total || q.Reserved != 0 {
			t.Errorf("the quota has %d used and %d reserved, want %d and 0", q.Used, q.Reserved, got.Total)
		}
	})
}

// accumulate reads a chat's stream to its end, and tells whether a chunk
// reported usage.
func accumulate(t *testing.T, stream *ssestream.Stream[openai.ChatCompletionChunk]) (acc openai.ChatCompletionAccumulator, usage bool) {
	t.Helper()
	for stream.Next() {
		chunk := stream.Current()
		usage = usage || len(chunk.Choices) == 0 || chunk.Usage.TotalTokens > 0
		if !acc.AddChunk(chunk) {
			t.Fatalf("the SDK cannot add the chunk %s", chunk.RawJSON())
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if len(acc.Choices) == 0 {
		t.Fatal("the stream was empty")
	}
	return acc, usage
}

func wantWeather(t *testing.T, calls []openai.ChatCompletionMessageToolCallUnion) {
	t.Helper()
	if len(calls) != 1 || calls[0].Function.Name != "weather" || calls[0].Function.Arguments != `{"city":"Reykjavík"}` {
		t.Errorf("the SDK read the tool calls %+v", calls)
	}
}

// sameBody checks that what the SDK sent reached the provider byte for byte,
// and what the provider sent the SDK.
func sameBody(t *testing.T, c *caller) {
	t.Helper()
	x := c.wire.last()
	if sent := c.script.requests(t)[0].body; string(sent) != string(x.sent) {
		t.Errorf("the SDK sent\n%s\nthe provider got\n%s", x.sent, sent)
	}
	direct := httptest.NewRecorder()
	c.script.answers[0](direct, httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(x.sent)))
	if got, want := x.received.String(), direct.Body.String(); got != want {
		t.Errorf("the provider sent\n%s\nthe SDK got\n%s", want, got)
	}
}

// rateHeaders checks OpenAI's rate-limit headers after one request of a key
// with these limits.
func rateHeaders(t *testing.T, h http.Header, requests, tokens int64) {
	t.Helper()
	number := func(name string) int64 {
		n, err := strconv.ParseInt(h.Get(name), 10, 64)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		return n
	}
	if n := number("x-ratelimit-limit-requests"); n != requests {
		t.Errorf("limit of requests is %d, want %d", n, requests)
	}
	if n := number("x-ratelimit-remaining-requests"); n != requests-1 {
		t.Errorf("remaining requests are %d, want %d", n, requests-1)
	}
	if n := number("x-ratelimit-limit-tokens"); n != tokens {
		t.Errorf("limit of tokens is %d, want %d", n, tokens)
	}
	if n := number("x-ratelimit-remaining-tokens"); n >= tokens-400 || n < tokens-500 {
		t.Errorf("remaining tokens are %d, want %d less what 400 of output and the input need", n, tokens)
	}
	for _, name := range []string{"x-ratelimit-reset-requests", "x-ratelimit-reset-tokens"} {
		if d, err := time.ParseDuration(h.Get(name)); err != nil || d <= 0 || d > 65*time.Second {
			t.Errorf("%s is %q, want a duration of up to 65 s", name, h.Get(name))
		}
	}
	if n := number("X-LLM-Quota-Remaining"); n >= 1_000_000-400 || n < 1_000_000-500 {
		t.Errorf("X-LLM-Quota-Remaining is %d", n)
	}
}
