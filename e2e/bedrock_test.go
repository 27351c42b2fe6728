package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/protocol/eventstream"
	"github.com/aws/aws-sdk-go-v2/service/bedrockruntime"
	"github.com/aws/aws-sdk-go-v2/service/bedrockruntime/document"
	"github.com/aws/aws-sdk-go-v2/service/bedrockruntime/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/auth/bearer"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

const (
	converseModel = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
	invokeModel   = "mistral.mistral-7b-instruct-v0:2"
)

// bedrock returns AWS's SDK with the key as a Bedrock API key.
func (c *caller) bedrock() *bedrockruntime.Client {
	return bedrockruntime.New(bedrockruntime.Options{
		Region: "us-east-1", BaseEndpoint: aws.String(c.stage.url), HTTPClient: &http.Client{Transport: c.wire},
		BearerAuthTokenProvider: bearer.StaticTokenProvider{Token: bearer.Token{Value: c.secret}},
		BearerAuthSigner:        plainBearer{}, AuthSchemePreference: []string{"httpBearerAuth"},
		APIOptions: []func(*middleware.Stack) error{smithyhttp.AddHeaderValue(scriptHeader, c.script.name)},
	})
}

// plainBearer signs also what goes over plain HTTP, as to a gate on the same
// machine, which the SDK's own signer refuses to.
type plainBearer struct{}

// SignWithBearerToken implements bearer.Signer.
func (plainBearer) SignWithBearerToken(_ context.Context, token bearer.Token, m bearer.Message) (bearer.Message, error) {
	r := m.(*smithyhttp.Request).Clone()
	r.Header.Set("Authorization", "Bearer "+token.Value)
	return r, nil
}

// frames answers with a fixture of one event a line, its type before its JSON,
// as AWS's event stream. Chunks of InvokeModel carry their JSON as base64.
func frames(name string) http.HandlerFunc {
	lines := bytes.Split(bytes.TrimSpace(fixture(name)), []byte("\n"))
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.amazon.eventstream")
		enc := eventstream.NewEncoder()
		for _, line := range lines {
			typ, payload, _ := bytes.Cut(line, []byte(" "))
			if string(typ) == "chunk" {
				payload, _ = json.Marshal(map[string]string{"bytes": base64.StdEncoding.EncodeToString(payload), "p": "abcdefgh"})
			}
			if err := enc.Encode(w, frame("event", string(typ), payload)); err != nil {
				panic(err)
			}
			w.(http.Flusher).Flush()
			time.Sleep(time.Millisecond)
		}
	}
}

func frame(message, typ string, payload []byte) (m eventstream.Message) {
	m.Headers.Set(":"+message+"-type", eventstream.StringValue(typ))
	m.Headers.Set(":content-type", eventstream.StringValue("application/json"))
	m.Headers.Set(":message-type", eventstream.StringValue(message))
	m.Payload = payload
	return m
}

func converseInput(prompt string) *bedrockruntime.ConverseInput {
	return &bedrockruntime.ConverseInput{
		ModelId: aws.String(converseModel), InferenceConfig: &types.InferenceConfiguration{MaxTokens: aws.Int32(400)},
		Messages: []types.Message{{Role: types.ConversationRoleUser, Content: []types.ContentBlock{
			&types.ContentBlockMemberText{Value: prompt},
		}}},
	}
}

func converseStreamInput() *bedrockruntime.ConverseStreamInput {
	in := converseInput("What do I see?")
	return &bedrockruntime.ConverseStreamInput{ModelId: in.ModelId, InferenceConfig: in.InferenceConfig, Messages: in.Messages}
}

// TestBedrock runs AWS's own SDK against the gate.
func TestBedrock(t *testing.T) {
	s := newStage(t, "")
	t.Run("key from the environment", func(t *testing.T) { // first, as no other client may see it
		c := s.caller(t, ample(), answer("converse.json"))
		t.Setenv("AWS_BEARER_TOKEN_BEDROCK", c.secret)
		client := bedrockruntime.New(bedrockruntime.Options{
			Region: "us-east-1", BaseEndpoint: aws.String(s.url), BearerAuthSigner: plainBearer{},
			HTTPClient: &http.Client{Transport: c.wire},
			APIOptions: []func(*middleware.Stack) error{smithyhttp.AddHeaderValue(scriptHeader, c.script.name)},
		})
		if _, err := client.Converse(t.Context(), converseInput("What do I see?")); err != nil {
			t.Fatal(err)
		}
		c.charged(converseModel, totals{Requests: 1, Input: 2360, Cached: 2048, CacheWrite: 300, Output: 9})
	})
	run := func(name string, answered http.HandlerFunc, test func(t *testing.T, c *caller, client *bedrockruntime.Client)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := s.caller(t, ample(), answered)
			test(t, c, c.bedrock())
		})
	}
	run("converse", answer("converse.json"), func(t *testing.T, c *caller, client *bedrockruntime.Client) {
		got, err := client.Converse(t.Context(), converseInput("What do I see?"))
		if err != nil {
			t.Fatal(err)
		}
		if said := saidIn(got.Output); said != text || aws.ToInt32(got.Usage.TotalTokens) != 2369 {
			t.Errorf("the SDK read %q and usage %+v", said, got.Usage)
		}
		if uri := c.script.requests(t)[0].uri; uri != "/model/us.anthropic.claude-sonnet-4-5-20250929-v1%3A0/converse" {
			t.Errorf("the provider was asked for %s", uri)
		}
		sameBody(t, c)
		// Bedrock's input leaves the cache out; what is charged does not.
		c.charged(converseModel, totals{Requests: 1, Input: 2360, Cached: 2048, CacheWrite: 300, Output: 9})
	})
	run("converse in a stream", frames("converse.frames"), func(t *testing.T, c *caller, client *bedrockruntime.Client) {
		said, last, err := readConverse(t, client)
		if err != nil {
			t.Fatal(err)
		}
		if said != text || last == nil || aws.ToInt32(last.Usage.TotalTokens) != 25 {
			t.Errorf("the SDK read %q and last %+v", said, last)
		}
		sameBody(t, c)
		c.charged(converseModel, totals{Requests: 1, Input: 14, Output: 11})
	})
	run("tools", answer("converse_tool.json"), func(t *testing.T, c *caller, client *bedrockruntime.Client) {
		in := converseInput("What do I see?")
		in.ToolConfig = &types.ToolConfiguration{Tools: []types.Tool{&types.ToolMemberToolSpec{Value: types.ToolSpecification{
			Name: aws.String("weather"),
			InputSchema: &types.ToolInputSchemaMemberJson{Value: document.NewLazyDocument(map[string]any{
				"type": "object", "properties": map[string]any{"city": map[string]any{"type": "string"}}, "required": []string{"city"},
			})},
		}}}}
		got, err := client.Converse(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		call, ok := got.Output.(*types.ConverseOutputMemberMessage).Value.Content[1].(*types.ContentBlockMemberToolUse)
		var args map[string]string
		if !ok || call.Value.Input.UnmarshalSmithyDocument(&args) != nil || aws.ToString(call.Value.Name) != "weather" || args["city"] != "Reykjavík" {
			t.Errorf("the SDK read the call %+v with %v", call, args)
		}
		sameBody(t, c)
		c.charged(converseModel, totals{Requests: 1, Input: 390, Output: 61})
	})
	run("invoke", counted("invoke.json"), func(t *testing.T, c *caller, client *bedrockruntime.Client) {
		got, err := client.InvokeModel(t.Context(), &bedrockruntime.InvokeModelInput{
			ModelId: aws.String(invokeModel), ContentType: aws.String("application/json"),
			Body: []byte(`{"prompt":"<s>[INST] What do I see? [/INST]","max_tokens":400}`),
		})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Body, fixture("invoke.json")) {
			t.Errorf("the SDK read %s", got.Body)
		}
		sameBody(t, c)
		c.charged(invokeModel, totals{Requests: 1, Input: 2360, Cached: 2048, CacheWrite: 300, Output: 9})
	})
	run("invoke with a stream", frames("invoke.frames"), func(t *testing.T, c *caller, client *bedrockruntime.Client) {
		got, err := client.InvokeModelWithResponseStream(t.Context(), &bedrockruntime.InvokeModelWithResponseStreamInput{
			ModelId: aws.String(converseModel), ContentType: aws.String("application/json"),
			Body: []byte(`{"anthropic_version":"bedrock-2023-05-31","max_tokens":400,"messages":[{"role":"user","content":"What do I see?"}]}`),
		})
		if err != nil {
			t.Fatal(err)
		}
		stream := got.GetStream()
		defer stream.Close()
		var said string
		for event := range stream.Events() {
			chunk, ok := event.(*types.ResponseStreamMemberChunk)
			var of struct{ Delta struct{ Text string } }
			if !ok || json.Unmarshal(chunk.Value.Bytes, &of) != nil {
				t.Fatalf("the SDK read %T", event)
			}
			said += of.Delta.Text
		}
		if err := stream.Err(); err != nil || said != text {
			t.Errorf("the SDK read %q, then %v", said, err)
		}
		sameBody(t, c)
		c.charged(converseModel, totals{Requests: 1, Input: 2362, Cached: 2048, CacheWrite: 300, Output: 11})
	})
	run("counting tokens is free", countedTokens, func(t *testing.T, c *caller, client *bedrockruntime.Client) {
		got, err := client.CountTokens(t.Context(), &bedrockruntime.CountTokensInput{
			ModelId: aws.String(converseModel),
			Input: &types.CountTokensInputMemberConverse{Value: types.ConverseTokensRequest{
				Messages: converseInput("What do I see?").Messages,
			}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if aws.ToInt32(got.InputTokens) != 2095 {
			t.Errorf("the SDK read %+v", got)
		}
		sameBody(t, c)
		c.charged(converseModel, totals{Requests: 1})
	})
	run("an exception ends a stream", broken, func(t *testing.T, c *caller, client *bedrockruntime.Client) {
		said, _, err := readConverse(t, client)
		if failed := new(types.ModelStreamErrorException); said != "Two gates" || !errors.As(err, &failed) {
			t.Errorf("the SDK read %q, then %v", said, err)
		}
		var u usage
		for start := time.Now(); time.Since(start) < 2*time.Second && u.Totals.Failed == 0; time.Sleep(10 * time.Millisecond) {
			u = s.usage(c.key.ID)
		}
		if got := u.Totals; got.Requests != 1 || got.Failed != 1 || got.Output == 0 || got.Estimated != got.Total || got.Total >= 400 {
			t.Errorf("the ledger has %+v, want one failed call with an estimate of what was delivered", got)
		}
	})
}

// counted answers as InvokeModel does, with the counts in the header.
func counted(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for k, v := range map[string]string{"Input": "12", "Output": "9", "Cache-Read-Input": "2048", "Cache-Write-Input": "300"} {
			w.Header().Set("X-Amzn-Bedrock-"+k+"-Token-Count", v)
		}
		answer(name)(w, r)
	}
}

func countedTokens(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Write([]byte(`{"inputTokens":2095}`))
}

// broken answers with a stream that an exception ends.
func broken(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/vnd.amazon.eventstream")
	enc := eventstream.NewEncoder()
	for _, m := range []eventstream.Message{
		frame("event", "messageStart", []byte(`{"role":"assistant"}`)),
		frame("event", "contentBlockDelta", []byte(`{"contentBlockIndex":0,"delta":{"text":"Two gates"}}`)),
		frame("exception", "modelStreamErrorException", []byte(`{"message":"the model has failed","originalStatusCode":500}`)),
	} {
		if err := enc.Encode(w, m); err != nil {
			panic(err)
		}
		w.(http.Flusher).Flush()
	}
}

func saidIn(out types.ConverseOutput) (said string) {
	if m, ok := out.(*types.ConverseOutputMemberMessage); ok {
		for _, block := range m.Value.Content {
			if block, ok := block.(*types.ContentBlockMemberText); ok {
				said += block.Value
			}
		}
	}
	return said
}

// readConverse asks for a stream and reads it to its end.
func readConverse(t *testing.T, client *bedrockruntime.Client) (said string, last *types.ConverseStreamMetadataEvent, err error) {
	t.Helper()
	got, err := client.ConverseStream(t.Context(), converseStreamInput())
	if err != nil {
		return "", nil, err
	}
	stream := got.GetStream()
	defer stream.Close()
	for event := range stream.Events() {
		switch event := event.(type) {
		case *types.ConverseStreamOutputMemberContentBlockDelta:
			if delta, ok := event.Value.Delta.(*types.ContentBlockDeltaMemberText); ok {
				said += delta.Value
			}
		case *types.ConverseStreamOutputMemberMetadata:
			last = &event.Value
		}
	}
	return said, last, stream.Err()
}

// TestBedrockRefusals checks that AWS's SDK reads each refusal as the exception
// it is, what it costs, and that it charges nothing.
//
// The SDK reads neither Retry-After nor X-Should-Retry: it tries three times in
// all, with up to 1 s and then up to 2 s between, whatever is named a throttling
// or an unavailable service, and nothing else that has a status below 500. So
// only where waiting a little helps is a refusal a ThrottlingException.
func TestBedrockRefusals(t *testing.T) {
	s := newStage(t, "max_request_body 1MB")
	limits := func(name string, n any) map[string]any { return map[string]any{"limits": map[string]any{name: n}} }
	long := strings.Repeat("gates and ledgers ", 400)
	spent := map[string]any{"quota": map[string]any{"tokens": 100, "reset": "monthly"}}
	const quotaExceeded = "ServiceQuotaExceededException"
	for _, test := range []struct {
		name     string
		settings map[string]any
		secret   string // instead of the key's
		prompt   string // instead of a short one
		spend    int    // calls before the one that is refused
		stream   bool   // ask for one
		status   int
		code     string
		requests int  // that the refusal costs, if not 1
		unknown  bool // to nobody's account
	}{
		{
			name: "wrong key", secret: "lq_00000000_" + strings.Repeat("0", 38), unknown: true,
			status: 401, code: "UnrecognizedClientException",
		},
		{name: "disabled key", settings: map[string]any{"disabled": true}, status: 401, code: "UnrecognizedClientException"},
		{name: "expired key", settings: map[string]any{"expires_at": "2020-01-01T00:00:00Z"}, status: 401, code: "ExpiredTokenException"},
		{name: "model not allowed", settings: map[string]any{"models": []string{"amazon.*"}}, status: 403, code: "AccessDeniedException"},
		{name: "address not allowed", settings: map[string]any{"allowed_ips": []string{"192.0.2.0/24"}}, status: 403, code: "AccessDeniedException"},
		{name: "body too large", prompt: strings.Repeat("x", 1_000_001), status: 413, code: "ValidationException"},
		{name: "quota spent", settings: spent, spend: 1, status: 429, code: quotaExceeded},
		{name: "quota spent, asked for a stream", settings: spent, spend: 1, stream: true, status: 429, code: quotaExceeded},
		{name: "tokens per day", settings: limits("tokens_per_day", 100), spend: 1, status: 429, code: quotaExceeded},
		{name: "input above tokens per minute", settings: limits("tokens_per_minute", 1000), prompt: long, status: 429, code: "ValidationException"},
		{name: "requests per minute", settings: limits("requests_per_minute", 2), spend: 2, status: 429, code: "ThrottlingException", requests: 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := s.caller(t, test.settings, answer("converse.json"))
			if test.secret != "" {
				c.secret = test.secret
			}
			client := c.bedrock()
			for range test.spend {
				if _, err := client.Converse(t.Context(), converseInput("What do I see?")); err != nil {
					t.Fatal(err)
				}
			}
			prompt, requests := test.prompt, max(test.requests, 1)
			if prompt == "" {
				prompt = "What do I see?"
			}
			var err error
			if test.stream {
				_, err = client.ConverseStream(t.Context(), converseStreamInput())
			} else {
				_, err = client.Converse(t.Context(), converseInput(prompt))
			}
			if test.requests > 0 { // unless it just happens to be more than a minute
				if wait, _ := strconv.Atoi(c.wire.exchanges[test.spend].header.Get("Retry-After")); wait > 60 {
					test.code, requests = quotaExceeded, 1
				}
			}
			wantException(t, err, test.status, test.code)
			if n := len(c.wire.statuses()) - test.spend; n != requests {
				t.Errorf("the refusal cost %d requests, want %d: %v", n, requests, c.wire.statuses())
			}
			if n := len(c.script.requests(t)); n != test.spend {
				t.Errorf("%d requests reached the provider, want %d", n, test.spend)
			}
			n := int64(test.spend)
			want := totals{Requests: n, Refused: int64(requests), Input: n * 2360, Cached: n * 2048, CacheWrite: n * 300, Output: n * 9}
			if test.unknown {
				want.Refused = 0
			}
			c.charged("", want)
		})
	}
}

// TestBedrockThrottle holds the one place of a key by a slow call: of another
// one, each of the SDK's tries is refused.
func TestBedrockThrottle(t *testing.T) {
	s := newStage(t, "")
	arrived, release := make(chan struct{}), make(chan struct{})
	slow := s.caller(t, map[string]any{"limits": map[string]any{"concurrent_requests": 1}}, func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-release
		answer("converse.json")(w, r)
	})
	second := *slow
	second.wire = new(wire)
	result := make(chan error, 1)
	client := slow.bedrock()
	go func() {
		_, err := client.Converse(t.Context(), converseInput("What do I see?"))
		result <- err
	}()
	<-arrived
	start := time.Now()
	_, err := second.bedrock().Converse(t.Context(), converseInput("What do I see?"))
	wantException(t, err, 429, "ThrottlingException")
	if got := second.wire.statuses(); len(got) != 3 || time.Since(start) > 10*time.Second {
		t.Errorf("in %s the SDK's tries had the statuses %v, want three times 429 within 3 s", time.Since(start), got)
	}
	if got := second.wire.last().header.Get("Retry-After"); got != "1" {
		t.Errorf("Retry-After is %q", got)
	}
	close(release)
	if err := <-result; err != nil {
		t.Error(err)
	}
	slow.charged(converseModel, totals{Requests: 1, Refused: 3, Input: 2360, Cached: 2048, CacheWrite: 300, Output: 9})
}

// wantException checks what the SDK's error holds: one of its types where it
// has one of that name.
func wantException(t *testing.T, err error, status int, code string) {
	t.Helper()
	var api smithy.APIError
	var response *smithyhttp.ResponseError
	if !errors.As(err, &api) || !errors.As(err, &response) {
		t.Fatalf("the SDK returned %v, want its typed error", err)
	}
	if api.ErrorCode() != code || response.HTTPStatusCode() != status || api.ErrorMessage() == "" {
		t.Errorf("the SDK read %d, %s %q, want %d, %s", response.HTTPStatusCode(), api.ErrorCode(), api.ErrorMessage(), status, code)
	}
	if response.Response.Header.Get("X-Amzn-Requestid") == "" {
		t.Error("the error has no request ID")
	}
	var typed bool
	switch code {
	case "AccessDeniedException":
		typed = errors.As(err, new(*types.AccessDeniedException))
	case "ServiceQuotaExceededException":
		typed = errors.As(err, new(*types.ServiceQuotaExceededException))
	case "ThrottlingException":
		typed = errors.As(err, new(*types.ThrottlingException))
	case "ValidationException":
		typed = errors.As(err, new(*types.ValidationException))
	default: // of those the SDK has no type
		typed = errors.As(err, new(*smithy.GenericAPIError))
	}
	if !typed {
		t.Errorf("the SDK returned a %T", api)
	}
}
