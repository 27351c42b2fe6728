package dialect

import (
	"bufio"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Realtime sessions: one WebSocket on which many responses are generated, each
// of which reports at its end what it used.

// upgraded says what is known of a call that asks for another protocol. What
// is said on most connections cannot be read; on a realtime session's, what the
// server says can.
func upgraded(e endpoint, t *target) endpoint {
	e.kind, e.inject, e.unmetered = Other, false, true
	if !asksWebSocket(t.request) || !strings.HasSuffix(t.low, "/realtime") || strings.ContainsAny(t.path, oddInPath) {
		return e
	}
	e = endpoint{dialect: openai, kind: Generate, wire: &openaiWire, realtime: true}
	if q := t.request.URL.RawQuery; strings.Contains(q, "api-version=") || strings.Contains(q, "deployment=") {
		e.dialect = azure
	}
	e.model = realtimeModel(t.request.URL.RawQuery)
	return e
}

// asksWebSocket tells whether the request asks for a WebSocket, as HTTP/1.1
// does or as HTTP/2 and 3 do (RFC 8441, RFC 9220).
func asksWebSocket(r *http.Request) bool {
	if r.Method != http.MethodConnect {
		return strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
	}
	protocol := r.Header[":protocol"]
	return len(protocol) == 1 && protocol[0] == "websocket" || r.Proto == "websocket"
}

// realtimeModel returns the model that a query names; "" if it names none, or
// more than one.
func realtimeModel(query string) (model string) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return ""
	}
	for _, m := range append(values["model"], values["deployment"]...) {
		if model != "" && m != model {
			return ""
		}
		model = m
	}
	return model
}

// realtimeSpec reads the events of a session. In some the details of tokens
// are spelled as nowhere else.
var realtimeSpec = newSpec(
	usageRules("response.usage"), usageRules("usage"),
	[]rule{
		at("response.usage.input_token_details.cached_tokens", num(nCached)),
		at("response.usage.output_token_details.reasoning_tokens", num(nReasoning)),
		at("type", str(strType)),
		at("delta", text(textDelta)),
	},
)

// session meters what a server says on one WebSocket. Its methods may be called
// from several goroutines, as those of a connection may.
type session struct {
	mu     sync.Mutex
	frames socketReader
	sc     scanner
	sum    quota.Tokens // of the responses that have ended
	input  int64        // of the last of them
	guess  bool         // part of the sum is estimated
	lost   bool         // what comes is not read
	ended  bool

	// Delivered of the response under way, and what was not read.
	text, tools, chunks, unread int64
}

func newSession() *session {
	s := &session{}
	s.frames.to = s
	s.sc.sp = realtimeSpec
	s.sc.reset()
	return s
}

// feed reads the next piece of what goes to the client.
func (s *session) feed(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() {
		if recover() != nil {
			s.lost = true
		}
	}()
	switch {
	case s.ended:
	case s.lost:
		s.unread += int64(len(p))
	default:
		if n, ok := s.frames.feed(p); !ok {
			s.lost = true
			s.unread += int64(len(p) - n)
		}
	}
}

// data implements sink.
func (s *session) data(p []byte) { s.sc.feed(p) }

// end implements sink.
func (s *session) end([]byte) {
	s.sc.end()
	if s.sc.done() {
		s.event()
	}
	s.sc.reset()
}

// event takes up one event of the server.
func (s *session) event() {
	sc := &s.sc
	switch typ := string(sc.strs[strType].bytes()); typ {
	case "response.done":
		s.add()
	case "conversation.item.input_audio_transcription.completed":
		if t, ok := s.reported(); ok {
			s.sum = plus(s.sum, t)
		}
	case "response.audio.delta", "response.output_audio.delta":
		s.chunks++
		s.text += sc.text[textDelta] / audioRatio
	default:
		if !strings.HasSuffix(typ, ".delta") || !strings.HasPrefix(typ, "response.") {
			return
		}
		s.chunks++
		if strings.Contains(typ, "arguments") {
			s.tools += sc.text[textDelta]
		} else {
			s.text += sc.text[textDelta]
		}
	}
}

// audioRatio is how many bytes of sound in base64 are as much as one of text:
// a token is 50 ms of it, 3,200 bytes at 24 kHz.
const audioRatio = 900

// reported returns the usage that the event at hand reports.
func (s *session) reported() (t quota.Tokens, ok bool) {
	u := numbers{s.sc.nums, s.sc.has, s.sc.absurd}
	for i := range u.n {
		if u.has&(1<<i) == 0 {
			u.n[i] = 0
		}
	}
	if !u.any(nInput, nOutput, nTotal) {
		return t, false
	}
	return openaiTokens(&u, Generate)
}

// add ends the response under way: with what it reports, or an estimate of
// what was delivered.
func (s *session) add() {
	if t, ok := s.reported(); ok {
		s.sum, s.input = plus(s.sum, t), t.Input
		s.text, s.tools, s.chunks = 0, 0, 0
		return
	}
	s.estimate()
}

// estimate adds what the response under way has delivered. Its input was at
// least that of the one before, for a conversation only grows.
func (s *session) estimate() {
	m := meter{text: s.text, tools: s.tools, chunks: s.chunks}
	if n := estimateOutput(&m); n > 0 {
		s.sum = plus(s.sum, quota.Tokens{Input: max(s.input, 1), Output: n})
		s.guess = true
	}
	s.text, s.tools, s.chunks = 0, 0, 0
}

// close ends the session and returns what it used; a response that has not
// ended is estimated, and so is what could not be read.
func (s *session) close() (t quota.Tokens, estimated bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.ended = true
		s.estimate()
		if s.lost {
			s.sum = plus(s.sum, quota.Tokens{Output: ceilDiv(s.unread, bytesPerEvent)})
			s.guess = true
		}
	}
	return s.sum, s.guess
}

// plus adds within what one call may be charged.
func plus(a, b quota.Tokens) quota.Tokens {
	t, _ := believable(quota.Tokens{
		Input: min(a.Input+b.Input, quota.MaxUsage), Output: min(a.Output+b.Output, quota.MaxUsage),
		Cached: a.Cached + b.Cached, CacheWrite: a.CacheWrite + b.CacheWrite, Reasoning: a.Reasoning + b.Reasoning,
	})
	return t
}

// Hijack implements http.Hijacker. What is written to the connection of a
// realtime session is metered; others are handed over as they are.
func (w *Writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, brw, err := http.NewResponseController(w.rw).Hijack()
	if err != nil || w.session == nil {
		return conn, brw, err
	}
	tap := &tap{conn, w.session}
	brw.Writer.Reset(tap) // nothing is in it after hijacking
	if _, ok := conn.(writeCloser); ok {
		return tapWriteCloser{tap}, brw, nil
	}
	return tap, brw, nil
}

// tap is a client's connection that shows what is written to it. It has
// neither ReadFrom nor WriteTo, so that nothing goes round it.
type tap struct {
	net.Conn
	s *session
}

// Write implements net.Conn.
func (t *tap) Write(p []byte) (int, error) {
	n, err := t.Conn.Write(p)
	t.s.feed(p) // all of it: it was generated, whoever got it
	return n, err
}

// tapWriteCloser is a tap of which one direction can be closed, as proxies do
// when a server has said all.
type tapWriteCloser struct{ *tap }

type writeCloser interface{ CloseWrite() error }

// CloseWrite implements what proxies look for.
func (t tapWriteCloser) CloseWrite() error { return t.Conn.(writeCloser).CloseWrite() }

var (
	_ http.Hijacker = (*Writer)(nil)
	_ net.Conn      = (*tap)(nil)
	_ writeCloser   = tapWriteCloser{}
	_ sink          = (*session)(nil)
)
