package e2e

import (
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
)

func messageParams() anthropic.MessageNewParams {
	return anthropic.MessageNewParams{
		Model: "claude-sonnet-4-5", MaxTokens: 400,
		Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("What do I see?"))},
	}
}

var weatherTool = []anthropic.ToolUnionParam{{OfTool: &anthropic.ToolParam{
	Name: "weather",
	InputSchema: anthropic.ToolInputSchemaParam{
		Properties: map[string]any{"city": map[string]any{"type": "string"}}, Required: []string{"city"},
	},
}}}

// TestAnthropic runs Anthropic's own SDK against the gate.
func TestAnthropic(t *testing.T) {
	s := newStage(t, "")
	run := func(name, answered string, test func(t *testing.T, c *caller)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, s.caller(t, ample(), answer(answered)))
		})
	}
	run("message", "message.json", func(t *testing.T, c *caller) {
		client := c.anthropic()
		got, err := client.Messages.New(t.Context(), messageParams())
		if err != nil {
			t.Fatal(err)
		}
		if got.Content[0].Text != text || got.Usage.CacheReadInputTokens != 2048 {
			t.Errorf("the SDK read %+v and usage %+v", got.Content, got.Usage)
		}
		sameBody(t, c)
		anthropicRates(t, c.wire.last().header)
		// Anthropic's input leaves the cache out; what is charged does not.
		c.charged("claude-sonnet-4-5", totals{Requests: 1, Input: 2360, Cached: 2048, CacheWrite: 300, Output: 9})
	})
	stream := func(t *testing.T, c *caller, params anthropic.MessageNewParams) (got anthropic.Message) {
		t.Helper()
		client := c.anthropic()
		stream := client.Messages.NewStreaming(t.Context(), params)
		for stream.Next() {
			if err := got.Accumulate(stream.Current()); err != nil {
				t.Fatal(err)
			}
		}
		if err := stream.Err(); err != nil {
			t.Fatal(err)
		}
		sameBody(t, c)
		anthropicRates(t, c.wire.last().header)
		return got
	}
	run("message in a stream", "message.sse", func(t *testing.T, c *caller) {
		got := stream(t, c, messageParams())
		if got.Content[0].Text != text || got.Usage.OutputTokens != 11 {
			t.Errorf("the SDK read %+v and usage %+v", got.Content, got.Usage)
		}
		c.charged("claude-sonnet-4-5", totals{Requests: 1, Input: 14, Output: 11})
	})
	run("tools", "tool_use.json", func(t *testing.T, c *caller) {
		client, params := c.anthropic(), messageParams()
		params.Tools = weatherTool
		got, err := client.Messages.New(t.Context(), params)
		if err != nil {
			t.Fatal(err)
		}
		if call := got.Content[1].AsToolUse(); call.Name != "weather" || string(call.Input) != `{"city":"Reykjavík"}` {
			t.Errorf("the SDK read the tool call %+v", call)
		}
		sameBody(t, c)
		c.charged("claude-sonnet-4-5", totals{Requests: 1, Input: 390, Output: 61})
	})
	run("tools in a stream", "tool_use.sse", func(t *testing.T, c *caller) {
		params := messageParams()
		params.Tools = weatherTool
		got := stream(t, c, params)
		if call := got.Content[0].AsToolUse(); call.Name != "weather" || string(call.Input) != `{"city": "Reykjavík"}` {
			t.Errorf("the SDK read the tool call %+v", call)
		}
		c.charged("claude-sonnet-4-5", totals{Requests: 1, Input: 391, Output: 57})
	})
	run("counting tokens is free", "count_tokens.json", func(t *testing.T, c *caller) {
		client := c.anthropic()
		got, err := client.Messages.CountTokens(t.Context(), anthropic.MessageCountTokensParams{
			Model: "claude-sonnet-4-5", Messages: messageParams().Messages,
		})
		if err != nil {
			t.Fatal(err)
		}
		if got.InputTokens != 2095 {
			t.Errorf("the SDK read %+v", got)
		}
		sameBody(t, c)
		c.charged("claude-sonnet-4-5", totals{Requests: 1})
	})
}

// anthropicRates checks Anthropic's rate-limit headers after one request of a
// key with ample limits.
func anthropicRates(t *testing.T, h http.Header) {
	t.Helper()
	for _, limit := range []struct {
		name        string
		max         int64
		least, most int64 // remaining
	}{{"requests", 600, 599, 599}, {"tokens", 500_000, 498_900, 499_599}} {
		name := "anthropic-ratelimit-" + limit.name
		if n, err := strconv.ParseInt(h.Get(name+"-limit"), 10, 64); n != limit.max {
			t.Errorf("%s-limit is %d (%v), want %d", name, n, err, limit.max)
		}
		if n, err := strconv.ParseInt(h.Get(name+"-remaining"), 10, 64); n < limit.least || n > limit.most {
			t.Errorf("%s-remaining is %d (%v), want %d to %d", name, n, err, limit.least, limit.most)
		}
		at, err := time.Parse(time.RFC3339, h.Get(name+"-reset"))
		if wait := time.Until(at); err != nil || wait < -time.Second || wait > 66*time.Second {
			t.Errorf("%s-reset is %q (%v), want a time within the next 65 s", name, h.Get(name+"-reset"), err)
		}
	}
}
