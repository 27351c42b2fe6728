package e2e

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	anthropicopt "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/openai/openai-go/v3"
	openaiopt "github.com/openai/openai-go/v3/option"
)

// A refusal as the SDKs' typed errors show it.
type refusal struct {
	status    int
	typ, code string // of OpenAI's error
	name      string // the type of Anthropic's
}

// TestRefusals checks that official SDKs read each refusal as what it is, that
// it costs them one request, and that it charges nothing.
func TestRefusals(t *testing.T) {
	s := newStage(t, "max_request_body 1MB")
	limits := func(name string, n any) map[string]any { return map[string]any{"limits": map[string]any{name: n}} }
	long := strings.Repeat("gates and ledgers ", 400) // some 1,800 tokens
	for _, test := range []struct {
		name     string
		settings map[string]any
		secret   string // instead of the key's
		prompt   string // instead of a short one
		spend    int    // calls before the one that is refused
		want     refusal
		passing  bool // the SDK is told to come again
		unknown  bool // to nobody's account
	}{
		{
			name: "wrong key", secret: "lq_00000000_" + strings.Repeat("0", 38), unknown: true,
			want: refusal{401, "invalid_request_error", "invalid_api_key", "authentication_error"},
		}, {
			name: "disabled key", settings: map[string]any{"disabled": true},
			want: refusal{401, "invalid_request_error", "api_key_disabled", "authentication_error"},
		}, {
			name: "expired key", settings: map[string]any{"expires_at": "2020-01-01T00:00:00Z"},
			want: refusal{401, "invalid_request_error", "api_key_expired", "authentication_error"},
		}, {
			name: "model not allowed", settings: map[string]any{"models": []string{"gpt-3*", "claude-haiku-*"}},
			want: refusal{403, "invalid_request_error", "model_not_allowed", "permission_error"},
		}, {
			name: "address not allowed", settings: map[string]any{"allowed_ips": []string{"192.0.2.0/24"}},
			want: refusal{403, "invalid_request_error", "ip_not_allowed", "permission_error"},
		}, {
			name: "body too large", prompt: strings.Repeat("x", 1_000_001),
			want: refusal{413, "invalid_request_error", "request_too_large", "request_too_large"},
		}, {
			name: "quota spent", settings: map[string]any{"quota": map[string]any{"tokens": 100, "reset": "monthly"}}, spend: 1,
			want: refusal{429, "insufficient_quota", "insufficient_quota", "rate_limit_error"},
		}, {
			name: "quota spent for good", settings: map[string]any{"quota": map[string]any{"tokens": 100, "reset": "manual"}}, spend: 1,
			want: refusal{429, "insufficient_quota", "insufficient_quota", "rate_limit_error"},
		}, {
			name: "input above the quota", settings: map[string]any{"quota": map[string]any{"tokens": 1000, "reset": "daily"}}, prompt: long,
			want: refusal{429, "tokens", "request_too_large", "rate_limit_error"},
		}, {
			name: "input above tokens per minute", settings: limits("tokens_per_minute", 1000), prompt: long,
			want: refusal{429, "tokens", "request_too_large", "rate_limit_error"},
		}, {
			name: "tokens per day", settings: limits("tokens_per_day", 100), spend: 1,
			want: refusal{429, "tokens", "rate_limit_exceeded", "rate_limit_error"},
		}, {
			name: "requests per day", settings: limits("requests_per_day", 2), spend: 2,
			want: refusal{429, "requests", "rate_limit_exceeded", "rate_limit_error"},
		}, {
			name: "requests per minute", settings: limits("requests_per_minute", 2), spend: 2, passing: true,
			want: refusal{429, "requests", "rate_limit_exceeded", "rate_limit_error"},
		}, {
			name: "tokens per minute", settings: limits("tokens_per_minute", 100), spend: 1, passing: true,
			want: refusal{429, "tokens", "rate_limit_exceeded", "rate_limit_error"},
		},
	} {
		for _, sdk := range []string{"OpenAI", "Anthropic"} {
			t.Run(test.name+"/"+sdk, func(t *testing.T) {
				t.Parallel()
				c := s.caller(t, test.settings, answer(map[string]string{"OpenAI": "chat.json", "Anthropic": "message.json"}[sdk]))
				if test.secret != "" {
					c.secret = test.secret
				}
				call := func(prompt string) error {
					if sdk == "OpenAI" {
						return c.askOpenAI(prompt, test.passing)
					}
					return c.askAnthropic(prompt, test.passing)
				}
				for range test.spend {
					if err := call("What do I see?"); err != nil {
						t.Fatal(err)
					}
				}
				prompt := test.prompt
				if prompt == "" {
					prompt = "What do I see?"
				}
				wantRefusal(t, call(prompt), test.want)
				if n := len(c.wire.statuses()) - test.spend; n != 1 {
					t.Errorf("the refusal cost %d requests: %v", n, c.wire.statuses())
				}
				retryHeaders(t, c.wire.last(), test.passing)
				if n := len(c.script.requests(t)); n != test.spend {
					t.Errorf("%d requests reached the provider, want %d", n, test.spend)
				}
				want := totals{Requests: int64(test.spend), Refused: 1}
				if test.unknown {
					want.Refused = 0
				}
				one := totals{Input: 1219, Cached: 1024, Output: 310, Reasoning: 192}
				if sdk == "Anthropic" {
					one = totals{Input: 2360, Cached: 2048, CacheWrite: 300, Output: 9}
				}
				n := int64(test.spend)
				want.Input, want.Cached, want.CacheWrite = n*one.Input, n*one.Cached, n*one.CacheWrite
				want.Output, want.Reasoning = n*one.Output, n*one.Reasoning
				c.charged("", want)
			})
		}
	}
}

// askOpenAI makes a call with OpenAI's SDK as it comes; once only if it would
// wait a minute for the next try.
func (c *caller) askOpenAI(prompt string, once bool) error {
	client, params := c.openai(), chatParams()
	params.Messages = []openai.ChatCompletionMessageParamUnion{openai.UserMessage(prompt)}
	var opts []openaiopt.RequestOption
	if once {
		opts = append(opts, openaiopt.WithMaxRetries(0))
	}
	_, err := client.Chat.Completions.New(c.t.Context(), params, opts...)
	return err
}

// askAnthropic does the same with Anthropic's.
func (c *caller) askAnthropic(prompt string, once bool) error {
	client, params := c.anthropic(), messageParams()
	params.Messages = []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock(prompt))}
	var opts []anthropicopt.RequestOption
	if once {
		opts = append(opts, anthropicopt.WithMaxRetries(0))
	}
	_, err := client.Messages.New(c.t.Context(), params, opts...)
	return err
}

// wantRefusal checks what an SDK's typed error holds.
func wantRefusal(t *testing.T, err error, want refusal) {
	t.Helper()
	var ofOpenAI *openai.Error
	var ofAnthropic *anthropic.Error
	switch {
	case errors.As(err, &ofOpenAI):
		if ofOpenAI.StatusCode != want.status || ofOpenAI.Type != want.typ || ofOpenAI.Code != want.code {
			t.Errorf("the SDK read %d, type %q, code %q, want %+v", ofOpenAI.StatusCode, ofOpenAI.Type, ofOpenAI.Code, want)
		}
		if ofOpenAI.Message == "" || ofOpenAI.Response.Header.Get("X-Request-Id") == "" {
			t.Errorf("the error has the message %q and the request ID %q", ofOpenAI.Message, ofOpenAI.Response.Header.Get("X-Request-Id"))
		}
	case errors.As(err, &ofAnthropic):
		if ofAnthropic.StatusCode != want.status || string(ofAnthropic.Type()) != want.name {
			t.Errorf("the SDK read %d, type %q, want %+v", ofAnthropic.StatusCode, ofAnthropic.Type(), want)
		}
		if ofAnthropic.RequestID == "" || !strings.Contains(ofAnthropic.RawJSON(), `"message":"`) {
			t.Errorf("the error has the request ID %q and the body %s", ofAnthropic.RequestID, ofAnthropic.RawJSON())
		}
	default:
		t.Errorf("the SDK returned %v, want its typed error", err)
	}
}

// retryHeaders checks that the caller is told to come again, and when, or not
// to come again.
func retryHeaders(t *testing.T, x *exchange, passing bool) {
	t.Helper()
	seconds := x.header.Get("Retry-After")
	n, err := strconv.Atoi(seconds)
	if seconds != "" && (err != nil || n < 1) {
		t.Errorf("Retry-After is %q, want whole seconds of at least 1", seconds)
	}
	if passing && n <= 60 {
		if ms, err := strconv.Atoi(x.header.Get("Retry-After-Ms")); err != nil || ms > n*1000 || ms <= (n-1)*1000 {
			t.Errorf("Retry-After is %s, Retry-After-Ms %q", seconds, x.header.Get("Retry-After-Ms"))
		}
		return
	}
	if got := x.header.Get("X-Should-Retry"); got != "false" {
		t.Errorf("X-Should-Retry is %q with Retry-After %q", got, seconds)
	}
}

// TestThrottle holds the one place of a key by a slow call: another one is
// refused, and the SDK's own second try, a second later, succeeds.
func TestThrottle(t *testing.T) {
	s := newStage(t, "")
	for _, sdk := range []string{"OpenAI", "Anthropic"} {
		t.Run(sdk, func(t *testing.T) {
			t.Parallel()
			one := map[string]any{"limits": map[string]any{"concurrent_requests": 1}}
			file, model, want := "chat.json", "gpt-4o-mini", totals{Input: 2 * 1219, Cached: 2 * 1024, Output: 2 * 310, Reasoning: 2 * 192}
			if sdk == "Anthropic" {
				file, model, want = "message.json", "claude-sonnet-4-5", totals{Input: 2 * 2360, Cached: 2 * 2048, CacheWrite: 2 * 300, Output: 2 * 9}
			}
			arrived, release := make(chan struct{}), make(chan struct{})
			slow := s.caller(t, one, func(w http.ResponseWriter, r *http.Request) {
				close(arrived)
				<-release
				answer(file)(w, r)
			}, answer(file))
			second := *slow
			second.wire = new(wire)
			results := make(chan error, 2)
			call := func(c *caller) {
				if sdk == "OpenAI" {
					results <- c.askOpenAI("What do I see?", false)
				} else {
					results <- c.askAnthropic("What do I see?", false)
				}
			}
			go call(slow)
			<-arrived
			go call(&second)
			for start := time.Now(); ; time.Sleep(time.Millisecond) {
				if got := second.wire.statuses(); len(got) > 0 && got[0] != 0 {
					break
				}
				if time.Since(start) > 30*time.Second {
					t.Error("the second call got no answer")
					break
				}
			}
			close(release)
			for range 2 {
				if err := <-results; err != nil {
					t.Error(err)
				}
			}
			first := second.wire.exchanges[0]
			if got := second.wire.statuses(); len(got) != 2 || got[0] != 429 || got[1] != 200 {
				t.Errorf("the SDK's tries had the statuses %v, want 429, 200", got)
			}
			if first.header.Get("Retry-After") != "1" || first.header.Get("X-Should-Retry") == "false" {
				t.Errorf("Retry-After is %q, X-Should-Retry %q", first.header.Get("Retry-After"), first.header.Get("X-Should-Retry"))
			}
			want.Requests, want.Refused = 2, 1
			slow.charged(model, want)
		})
	}
}
