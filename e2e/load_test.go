package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The load of the benchmarks: requests of 2 KiB, answered by 1.5 KiB of JSON
// or by 53 events.
const (
	requestSize = 2 << 10
	answerSize  = 1536
	events      = 53
)

// pauseHeader asks the upstream to wait a little after each event, so that
// each is passed on by itself.
const pauseHeader = "X-Pause"

// newLoadUpstream returns a provider that answers as quickly as it can.
func newLoadUpstream() *httptest.Server {
	const head = `{"id":"chatcmpl-load","object":"chat.completion","created":1764000000,"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,"message":{"role":"assistant","content":"`
	const foot = `"},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":480,"completion_tokens":310,"total_tokens":790,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}}`
	whole := []byte(head + prose(answerSize-len(head)-len(foot)) + foot)
	var stream [][]byte
	for range events - 3 {
		stream = append(stream, []byte(`data: {"id":"chatcmpl-load","object":"chat.completion.chunk","created":1764000000,"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,"delta":{"content":" gates"},"logprobs":null,"finish_reason":null}]}`+"\n\n"))
	}
	stream = append(stream,
		[]byte(`data: {"id":"chatcmpl-load","object":"chat.completion.chunk","created":1764000000,"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}`+"\n\n"),
		[]byte(`data: {"id":"chatcmpl-load","object":"chat.completion.chunk","created":1764000000,"model":"gpt-4o-mini-2024-07-18","choices":[],"usage":{"prompt_tokens":480,"completion_tokens":50,"total_tokens":530}}`+"\n\n"),
		[]byte("data: [DONE]\n\n"))
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if !bytes.Contains(body, []byte(`"stream":true`)) {
			w.Header().Set("Content-Type", "application/json")
			w.Write(whole)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		pause := r.Header.Get(pauseHeader) != ""
		for _, event := range stream {
			w.Write(event)
			w.(http.Flusher).Flush()
			if pause {
				time.Sleep(time.Millisecond)
			}
		}
	}))
}

// prose returns n bytes of text.
func prose(n int) string {
	const words = "a gate and a ledger stand before the model and count what passes through, "
	return strings.Repeat(words, n/len(words)+1)[:n]
}

// loadRequests returns a request for each secret, as it goes over the wire.
func loadRequests(secrets []string, stream, pause bool) [][]byte {
	head := `{"model":"gpt-4o-mini","max_tokens":512,"temperature":0.7,`
	if stream {
		head += `"stream":true,`
	}
	head += `"messages":[{"role":"system","content":"You answer briefly."},{"role":"user","content":"`
	body := head + prose(requestSize-len(head)-len(`"}]}`)) + `"}]}`
	more := ""
	if pause {
		more = pauseHeader + ": 1\r\n"
	}
	all := make([][]byte, len(secrets))
	for i, secret := range secrets {
		all[i] = fmt.Appendf(nil, "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: load\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s",
			secret, len(body), more, body)
	}
	return all
}

// A target is a server under load.
type loadTarget struct {
	name    string
	address string
	process *process

	next     atomic.Int64 // which request to send next
	requests atomic.Int64 // answered in full
	failed   atomic.Int64

	mu   sync.Mutex
	idle []*loadConn // the last one used is used first
}

type loadConn struct {
	net.Conn
	r *bufio.Reader
}

func newLoadTarget(name, address string, p *process) *loadTarget {
	return &loadTarget{name: name, address: address, process: p}
}

// send makes one request and reads its answer to the end.
func (l *loadTarget) send(requests [][]byte) {
	if err := l.try(requests[int(l.next.Add(1))%len(requests)]); err != nil {
		l.failed.Add(1)
		return
	}
	l.requests.Add(1)
}

func (l *loadTarget) try(request []byte) (err error) {
	c, err := l.conn()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			c.Close()
			return
		}
		l.mu.Lock()
		l.idle = append(l.idle, c)
		l.mu.Unlock()
	}()
	if _, err := c.Write(request); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || n < answerSize) {
		return fmt.Errorf("answered %s, %d bytes", resp.Status, n)
	}
	return err
}

func (l *loadTarget) conn() (*loadConn, error) {
	l.mu.Lock()
	if last := len(l.idle) - 1; last >= 0 {
		c := l.idle[last]
		l.idle = l.idle[:last]
		l.mu.Unlock()
		return c, nil
	}
	l.mu.Unlock()
	c, err := net.DialTimeout("tcp", l.address, 10*time.Second)
	if err != nil {
		return nil, err
	}
	return &loadConn{c, bufio.NewReader(c)}, nil
}

// openLoop sends to all targets at the same time, perSecond to each, for a
// while, whatever the answers take, and returns when all are there.
func openLoop(targets []*loadTarget, requests [][]byte, perSecond int, during time.Duration) {
	var under sync.WaitGroup
	gap := time.Second / time.Duration(perSecond*len(targets))
	n := int(during / gap)
	start := time.Now()
	for i := range n {
		if wait := time.Until(start.Add(time.Duration(i) * gap)); wait > 0 {
			time.Sleep(wait)
		}
		// Each in turn goes first, so that none always follows the same other.
		l := targets[(i+i/len(targets))%len(targets)]
		under.Go(func() { l.send(requests) })
	}
	under.Wait()
}

// closedLoop sends to one target, so many at a time, for a while, and returns
// how many it answered in a second and how long half and 99 % of them took.
func closedLoop(l *loadTarget, requests [][]byte, workers int, during time.Duration) (perSecond float64, p50, p99 time.Duration) {
	var mu sync.Mutex
	var took []time.Duration
	var under sync.WaitGroup
	start := time.Now()
	for range workers {
		under.Go(func() {
			var mine []time.Duration
			for time.Since(start) < during {
				sent := time.Now()
				l.send(requests)
				mine = append(mine, time.Since(sent))
			}
			mu.Lock()
			took = append(took, mine...)
			mu.Unlock()
		})
	}
	under.Wait()
	perSecond = float64(len(took)) / time.Since(start).Seconds()
	slices.Sort(took)
	return perSecond, took[len(took)/2], took[len(took)*99/100]
}

// TestLoadGenerator checks that the load is what it is said to be.
func TestLoadGenerator(t *testing.T) {
	u := newLoadUpstream()
	defer u.Close()
	secrets := []string{"one", "two"}
	for _, stream := range []bool{false, true} {
		requests := loadRequests(secrets, stream, false)
		sent, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(requests[1])))
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(sent.Body); len(body) != requestSize {
			t.Errorf("a request has %d bytes, want %d", len(body), requestSize)
		}
		resp, err := http.Post(u.URL, "", bytes.NewReader(requests[0]))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if n := bytes.Count(body, []byte("\n\n")); stream && n != events || !stream && len(body) != answerSize {
			t.Errorf("an answer has %d bytes and %d events", len(body), n)
		}
		a, b := newLoadTarget("a", u.Listener.Addr().String(), nil), newLoadTarget("b", u.Listener.Addr().String(), nil)
		openLoop([]*loadTarget{a, b}, requests, 100, 300*time.Millisecond)
		if a.requests.Load() != 30 || b.requests.Load() != 30 || a.failed.Load()+b.failed.Load() != 0 {
			t.Errorf("%d and %d requests were answered, want 30 each", a.requests.Load(), b.requests.Load())
		}
	}
}
