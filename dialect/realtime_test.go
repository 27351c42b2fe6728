package dialect

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// wsFrame builds a frame as a server sends it; first is its first byte.
func wsFrame(first byte, payload string) string {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(n))
	}
	return string(b) + payload
}

func wsText(payload string) string { return wsFrame(0x81, payload) }

const (
	doneFirst  = `{"type":"response.done","response":{"status":"completed","usage":{"total_tokens":30,"input_tokens":10,"output_tokens":20,"input_token_details":{"cached_tokens":4,"text_tokens":6,"audio_tokens":4},"output_token_details":{"text_tokens":5,"audio_tokens":15}}}}`
	doneSecond = `{"type":"response.done","response":{"status":"cancelled","usage":{"total_tokens":70,"input_tokens":50,"output_tokens":20,"input_token_details":{"cached_tokens":30}}}}`
	heard      = `{"type":"conversation.item.input_audio_transcription.completed","transcript":"hi","usage":{"type":"tokens","total_tokens":22,"input_tokens":13,"output_tokens":9,"input_token_details":{"text_tokens":0,"audio_tokens":13}}}`
	spoken     = `{"type":"response.output_audio_transcript.delta","delta":"1234567"}`
)

// said is a session of two responses and a transcription, with what lies
// between them on real connections.
func said() string {
	return wsText(`{"type":"session.created","session":{"usage":{"input_tokens":1000}}}`) +
		wsFrame(0x89, "ping") + wsText(spoken) + wsText(heard) +
		wsFrame(0x01, doneFirst[:9]) + wsFrame(0x8a, "") + wsFrame(0x00, "") + wsFrame(0x00, doneFirst[9:200]) + wsFrame(0x80, doneFirst[200:]) +
		wsText(`{"type":"response.output_audio.delta","delta":"`+strings.Repeat("A", 70000)+`"}`) +
		wsText(`{"type":"response.output_text.done","text":"{\"type\":\"response.done\",\"response\":{\"usage\":{\"input_tokens\":5}}}","usage":{"input_tokens":7}}`) +
		wsText(doneSecond) + wsText(`not json`) + wsFrame(0x88, "\x03\xe8")
}

var saidCharge = quota.Tokens{Input: 10 + 50 + 13, Cached: 34, Output: 20 + 20 + 9}

func TestSessionAtEverySplit(t *testing.T) {
	body := []byte(said())
	for size := 1; size < len(body); size = size*3/2 + 1 {
		s := newSession()
		for p := range chunksOf(body, size) {
			s.feed(p)
		}
		if got, estimated := s.close(); got != saidCharge || estimated {
			t.Fatalf("in pieces of %d: %+v, estimated %t", size, got, estimated)
		}
	}
	for i := range 1000 { // the heads of frames lie here
		s := newSession()
		s.feed(body[:i])
		s.feed(body[i:])
		if got, estimated := s.close(); got != saidCharge || estimated {
			t.Fatalf("cut at %d: %+v, estimated %t", i, got, estimated)
		}
	}
}

func TestSessionEnds(t *testing.T) {
	tok := func(in, out int64) quota.Tokens { return quota.Tokens{Input: in, Output: out} }
	first := quota.Tokens{Input: 10, Cached: 4, Output: 20}
	then := func(in, out int64) quota.Tokens { return plus(first, tok(in, out)) }
	lost := strings.Repeat("x", 1500)
	for _, tc := range []struct {
		name, body string
		want       quota.Tokens
		estimated  bool
	}{
		{"nothing", "", tok(0, 0), false},
		{"a greeting", wsText(`{"type":"session.created"}`), tok(0, 0), false},
		{"a response that does not end", wsText(doneFirst) + wsText(spoken), then(10, 2), true},
		{"a first response that does not end", wsText(spoken), tok(1, 2), true},
		{"a response without usage", wsText(doneFirst) + wsText(spoken) + wsText(`{"type":"response.done","response":{"status":"failed","usage":null}}`), then(10, 2), true},
		{"a response without anything", wsText(doneFirst) + wsText(`{"type":"response.done","response":{"status":"cancelled","usage":null}}`), first, false},
		{"absurd usage", wsText(doneFirst) + wsText(spoken) + wsText(`{"type":"response.done","response":{"usage":{"input_tokens":1e400,"output_tokens":1}}}`), then(10, 2), true},
		{"a duration", wsText(`{"type":"conversation.item.input_audio_transcription.completed","usage":{"type":"duration","seconds":3}}`), tok(0, 0), false},
		{"bytes", wsFrame(0x82, doneFirst), first, false},
		{"sound", wsText(`{"type":"response.audio.delta","delta":"` + strings.Repeat("A", 9000) + `"}`), tok(1, 3), true},
		{"arguments", wsText(`{"type":"response.function_call_arguments.delta","delta":"1234567"}`), tok(1, 6), true},
		{"compressed", wsText(doneFirst) + wsFrame(0xc1, lost), then(0, 10), true},
		{"masked", wsText(doneFirst) + "\x81\x81" + lost, then(0, 10), true},
		{"a continuation of nothing", wsText(doneFirst) + wsFrame(0x80, lost), then(0, 10), true},
		{"a message within a message", wsText(doneFirst) + wsFrame(0x01, "{") + wsFrame(0x81, lost), then(0, 10), true},
		{"an opcode that is none", wsText(doneFirst) + wsFrame(0x83, lost), then(0, 10), true},
		{"a long ping", wsText(doneFirst) + wsFrame(0x89, lost), then(0, 10), true},
		{"a length beyond all", wsText(doneFirst) + "\x81\x7f\xff\xff\xff\xff\xff\xff\xff\xff" + lost, then(0, 10), true},
		{"a lying length", wsText(doneFirst) + "\x81\x7f\x7f\xff\xff\xff\xff\xff\xff\xff" + lost, first, false},
	} {
		s := newSession()
		s.feed([]byte(tc.body))
		got, estimated := s.close()
		if got != tc.want || estimated != tc.estimated {
			t.Errorf("%s: %+v, estimated %t; want %+v", tc.name, got, estimated, tc.want)
		}
		s.feed([]byte(wsText(doneFirst)))
		if again, _ := s.close(); again != got {
			t.Errorf("%s: %+v after its end", tc.name, again)
		}
	}
}

func FuzzSession(f *testing.F) {
	f.Add([]byte(said()[:2000]), uint16(7))
	f.Add([]byte(wsText(doneFirst)+wsFrame(0x01, doneSecond[:50])+wsFrame(0x80, doneSecond[50:])), uint16(1))
	f.Add([]byte("\x81\x7e\x00\x05hello\x82\x00\xc1\x01x"), uint16(2))
	f.Fuzz(func(t *testing.T, body []byte, size uint16) {
		whole, parts := newSession(), newSession()
		whole.feed(body)
		for p := range chunksOf(body, int(size)%64+1) {
			parts.feed(p)
		}
		want, guess := whole.close()
		got, guessed := parts.close()
		if got != want || guess != guessed || whole.lost != parts.lost {
			t.Fatalf("%+v %t, not %+v %t", got, guessed, want, guess)
		}
		if want.Input < 0 || want.Output < 0 || want.Input > quota.MaxUsage || want.Output > quota.MaxUsage {
			t.Fatalf("%+v", want)
		}
	})
}

func TestRealtimeCalls(t *testing.T) {
	for _, tc := range []struct {
		method, path, upgrade string
		realtime              bool
		dialect, model        string
	}{
		{"GET", "/v1/realtime?model=gpt-realtime", "websocket", true, "openai", "gpt-realtime"},
		{"GET", "/v1/realtime?model=gpt-realtime", "WebSocket", true, "openai", "gpt-realtime"},
		{"GET", "/openai/realtime?api-version=2025-04-01-preview&deployment=mine", "websocket", true, "azure", "mine"},
		{"GET", "/openai/v1/realtime?model=mine", "websocket", true, "openai", "mine"},
		{"GET", "/v1/realtime?intent=transcription", "websocket", true, "openai", ""},
		{"GET", "/v1/realtime?model=cheap&model=dear", "websocket", true, "openai", ""},
		{"GET", "/v1/realtime?model=cheap&deployment=dear", "websocket", true, "azure", ""},
		{"GET", "/v1/realtime?model=cheap;model=dear", "websocket", true, "openai", ""},
		{"GET", "/v1/realtime", "h2c", false, "openai", ""},
		{"GET", "/v1/responses", "websocket", false, "openai", ""},
		{"GET", "/v1/x;/realtime", "websocket", false, "unknown", ""},
		{"CONNECT", "/v1/realtime?model=m", ":protocol", true, "openai", "m"},
		{"CONNECT", "/v1/realtime?model=m", "", false, "openai", ""},
		{"CONNECT", "/v1/other", ":protocol", false, "unknown", ""},
	} {
		r := httptest.NewRequest("GET", tc.path, nil)
		r.Method = tc.method
		r.Body = io.NopCloser(neverEnding{t}) // a tunnel: it must not be read
		if tc.method == "GET" {
			r.Body = http.NoBody
		}
		if tc.upgrade == ":protocol" {
			r.Header[":protocol"] = []string{"websocket"}
		} else if tc.upgrade != "" {
			r.Header.Set("Upgrade", tc.upgrade)
		}
		r.Header.Set("Sec-WebSocket-Extensions", "permessage-deflate")
		c, ref := Read(r, Options{MaxBody: 1 << 20})
		kind := Other
		if tc.realtime {
			kind = Generate
		}
		if ref != nil || c.realtime != tc.realtime || c.Unmetered == tc.realtime || c.Kind != kind || c.Dialect.Name() != tc.dialect || c.Model != tc.model || c.Input != 1 || c.MaxOutput != -1 {
			t.Errorf("%s %s: %+v %v", tc.method, tc.path, c, ref)
		}
		c.Forward(r)
		if (r.Header.Get("Sec-WebSocket-Extensions") == "") != tc.realtime {
			t.Errorf("%s %s: extensions %q", tc.method, tc.path, r.Header.Get("Sec-WebSocket-Extensions"))
		}
	}
	for _, path := range []string{"/v1/realtime/client_secrets", "/v1/realtime/sessions", "/v1/realtime/calls"} {
		if c, _ := Read(post(path, `{}`), Options{}); !c.Unmetered {
			t.Errorf("%s: %+v", path, c)
		}
	}
}

type neverEnding struct{ t *testing.T }

func (n neverEnding) Read([]byte) (int, error) {
	n.t.Error("the tunnel was read")
	return 0, io.EOF
}

// gate is a proxy before a server, as it is used, without limits.
func gate(t *testing.T, upstream http.Handler, tunnel bool) (*httptest.Server, func() quota.Outcome) {
	up := httptest.NewServer(upstream)
	t.Cleanup(up.Close)
	to, _ := url.Parse(up.URL)
	proxy := http.Handler(httputil.NewSingleHostReverseProxy(to))
	if tunnel {
		proxy = caddyTunnel(to.Host)
	}
	outcomes := make(chan quota.Outcome, 1)
	front := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		c, _ := Read(r, Options{MaxBody: 1 << 20})
		c.Forward(r)
		w := NewWriter(rw, c, nil)
		end := End{Panicked: true}
		defer func() { outcomes <- w.Outcome(end) }()
		proxy.ServeHTTP(w, r)
		w.Finish()
		end.Panicked = false
	}))
	t.Cleanup(front.Close)
	return front, func() quota.Outcome {
		select {
		case out := <-outcomes:
			return out
		case <-time.After(10 * time.Second):
			t.Fatal("the call did not end")
			return quota.Outcome{}
		}
	}
}

// caddyTunnel upgrades a call as Caddy's reverse_proxy does: the header is
// written, then the connection hijacked, flushed, what is buffered of it sent
// on, and both directions copied until either ends in more than a half-close.
func caddyTunnel(upstream string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		back, err := net.Dial("tcp", upstream)
		if err != nil {
			panic(err)
		}
		defer back.Close()
		r.Write(back)
		from := bufio.NewReader(back)
		res, err := http.ReadResponse(from, r)
		if err != nil {
			panic(err)
		}
		maps.Copy(w.Header(), res.Header)
		w.WriteHeader(res.StatusCode)
		user, brw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer user.Close()
		brw.Flush()
		early, _ := brw.Peek(brw.Reader.Buffered())
		back.Write(early)
		errs := make(chan error, 2)
		pipe := func(to io.Writer, from io.Reader) {
			_, err := io.Copy(to, from)
			if half, ok := to.(writeCloser); ok && err == nil {
				errs <- half.CloseWrite()
			} else {
				errs <- io.EOF
			}
		}
		go pipe(back, user)
		go pipe(user, from)
		if <-errs == nil {
			<-errs
		}
	}
}

// TestSessionThroughProxy: a real upgrade, of which the client's first bytes
// come with its request, and lie in the reader that hijacking hands over.
func TestSessionThroughProxy(t *testing.T) {
	asked := make(chan string, 1)
	front, outcome := gate(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("Connection", "Upgrade")
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, brw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		line, _ := brw.ReadString('\n')
		asked <- line
		io.WriteString(conn, said())
	}), true)
	conn, err := net.Dial("tcp", front.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(conn, "GET /v1/realtime?model=m HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello\n")
	br := bufio.NewReader(conn)
	res, err := http.ReadResponse(br, nil)
	if err != nil || res.StatusCode != 101 {
		t.Fatal(res, err)
	}
	got := make([]byte, len(said()))
	io.ReadFull(br, got)
	if string(got) != said() {
		t.Errorf("the client got %q…", got[:100])
	}
	if line := <-asked; line != "hello\n" {
		t.Errorf("the server got %q", line)
	}
	if n, err := io.Copy(io.Discard, br); n != 0 || err != nil { // the server's half-close comes through
		t.Errorf("%d bytes more, %v", n, err)
	}
	conn.Close()
	if out := outcome(); out.Tokens != saidCharge || out.Estimated {
		t.Errorf("%+v", out)
	}
}

func TestRefusedUpgradeIsAnAnswer(t *testing.T) {
	front, outcome := gate(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, `{"error":{"message":"no"}}`, http.StatusUnauthorized)
	}), false)
	r, _ := http.NewRequest("GET", front.URL+"/v1/realtime?model=m", nil)
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", "websocket")
	res, err := http.DefaultClient.Do(r)
	if err != nil || res.StatusCode != 401 {
		t.Fatal(res, err)
	}
	res.Body.Close()
	if out := outcome(); out != (quota.Outcome{Failed: true}) {
		t.Errorf("%+v", out)
	}
}

// TestSessionInBody: over HTTP/2 the session is the body of a 200.
func TestSessionInBody(t *testing.T) {
	c := generate(&openaiWire)
	c.realtime, c.tunnel = true, true
	out, _, got := answer(c, 200, nil, said(), End{ClientGone: true}, 5, 1000)
	if got != said() || out != (quota.Outcome{Tokens: saidCharge}) {
		t.Errorf("%+v", out)
	}
}

type hijackable struct {
	*httptest.ResponseRecorder
	conn net.Conn
}

func (h hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.conn, bufio.NewReadWriter(bufio.NewReader(h.conn), bufio.NewWriter(h.conn)), nil
}

func TestHijackedConnection(t *testing.T) {
	here, there := net.Pipe()
	defer there.Close()
	go io.Copy(io.Discard, there)
	other := NewWriter(hijackable{httptest.NewRecorder(), here}, &Call{Kind: Other, wire: &openaiWire, Unmetered: true}, nil)
	other.WriteHeader(101)
	if conn, _, _ := http.NewResponseController(other).Hijack(); conn != here {
		t.Error("the connection of an upgrade that is not metered is not handed over as it is")
	}
	c := generate(&openaiWire)
	c.realtime = true
	w := NewWriter(hijackable{httptest.NewRecorder(), here}, c, nil)
	w.WriteHeader(101)
	conn, brw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := conn.(io.ReaderFrom); ok {
		t.Error("a metered connection has ReadFrom")
	}
	if _, ok := conn.(writeCloser); ok {
		t.Error("a pipe has CloseWrite")
	}
	brw.WriteString(wsText(doneFirst))
	brw.Flush()
	var wg sync.WaitGroup // a proxy may still write when its handler has returned
	wg.Go(func() {
		for range 100 {
			conn.Write([]byte(wsText(doneSecond)))
		}
	})
	out := w.Outcome(End{})
	wg.Wait()
	if out.Tokens.Input < 10 || out.Estimated || w.Outcome(End{}) != out {
		t.Errorf("%+v", out)
	}
	if out := w.Outcome(End{Err: errors.New("broke")}); !out.Failed {
		t.Errorf("%+v", out)
	}
}
