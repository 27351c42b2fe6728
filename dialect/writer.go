package dialect

import (
	"net/http"
	"strings"
)

// Writer passes an answer on to the client and meters it on the way. What it
// cannot read it passes on all the same; a failing meter fails nothing.
//
// Flushing, hijacking and deadlines go to the writer below, as
// [http.ResponseController] finds it; the connection of a realtime session is
// metered after hijacking. It has no ReadFrom, so that nothing of the answer
// goes round it.
type Writer struct {
	rw      http.ResponseWriter
	call    *Call
	before  func(h http.Header, status int)
	status  int
	active  bool // the answer is metered
	filter  *filter
	plain   *inflow  // reads an answer that came coded
	session *session // meters a connection instead of an answer
	meter   meter
}

// NewWriter returns a writer for the answer to call c. before, if not nil, is
// called once, just before the final header is written.
func NewWriter(w http.ResponseWriter, c *Call, before func(h http.Header, status int)) *Writer {
	return &Writer{rw: w, call: c, before: before}
}

// Header implements http.ResponseWriter.
func (w *Writer) Header() http.Header { return w.rw.Header() }

// Status returns the status of the answer; 0 if no final header was written.
func (w *Writer) Status() int { return w.status }

// Unwrap returns the writer below, for [http.ResponseController].
func (w *Writer) Unwrap() http.ResponseWriter { return w.rw }

// WriteHeader implements http.ResponseWriter. Informational answers pass; what
// comes after them is final.
func (w *Writer) WriteHeader(status int) {
	if status >= 100 && status < 200 && status != http.StatusSwitchingProtocols {
		w.rw.WriteHeader(status)
		return
	}
	if w.status == 0 {
		w.status = status
		w.begin()
	}
	w.rw.WriteHeader(status)
}

// begin makes ready for the body when the final header is known.
func (w *Writer) begin() {
	h := w.rw.Header()
	if w.call.realtime && (w.status == http.StatusSwitchingProtocols || w.call.tunnel && w.status == http.StatusOK) {
		w.session = newSession()
	} else if w.call.wire != nil && (w.call.Kind != Free || w.call.Recall != "") && w.status != http.StatusSwitchingProtocols {
		contentType := h.Get("Content-Type")
		w.active = true
		w.meter.init(w.call.wire, contentType)
		if w.call.wire.head != nil {
			w.call.wire.head(&w.meter, h)
		}
		if coding := contentCoding(h); coding != "" {
			w.plain = newInflow(coding, &w.meter)
			if w.plain == nil {
				w.meter.framing = framingNone
				w.meter.gaveUp = true
				w.meter.inEvent = strings.HasPrefix(contentType, "text/event-stream")
			}
		} else if w.call.injected && w.status < 300 && !strings.Contains(contentType, "json") {
			w.filter = &filter{}
			h.Del("Content-Length")
		}
	}
	if w.before != nil {
		w.before(h, w.status)
	}
}

// Write implements http.ResponseWriter.
func (w *Writer) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.session != nil {
		n, err := w.rw.Write(p)
		w.session.feed(p)
		return n, err
	}
	if !w.active {
		return w.rw.Write(p)
	}
	if w.filter != nil {
		return w.writeFiltered(p)
	}
	n, err := w.rw.Write(p)
	w.observe(p) // all of it: it was generated, whoever got it
	return n, err
}

// observe shows p to the meter. A panic there is the end of the meter alone.
func (w *Writer) observe(p []byte) {
	defer w.giveUp()
	if w.plain != nil {
		w.plain.feed(p)
		return
	}
	w.meter.feed(p)
}

// giveUp, deferred, ends the metering if it panicked.
func (w *Writer) giveUp() {
	if recover() != nil {
		w.active = false
		w.meter.gaveUp = true
	}
}

// FlushError implements what [http.ResponseController] looks for first, so
// that a header which flushing sends is seen here too.
func (w *Writer) FlushError() error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	return http.NewResponseController(w.rw).Flush()
}

// Flush implements http.Flusher.
func (w *Writer) Flush() { w.FlushError() } //nolint:errcheck // a Flusher has nowhere to tell

// Finish writes what is held back of the answer, when the handler behind has
// returned, and returns the error of that write.
func (w *Writer) Finish() error {
	if !w.active {
		return nil
	}
	if w.filter != nil {
		return w.finishFiltered()
	}
	w.finishMeter()
	return nil
}

// finishMeter tells the meter once that nothing more comes.
func (w *Writer) finishMeter() {
	defer w.giveUp()
	if p := w.plain; p != nil {
		w.plain = nil
		p.close(&w.meter)
	}
	if !w.meter.ended {
		w.meter.ended = true
		w.meter.finish()
	}
}

var (
	_ http.ResponseWriter = (*Writer)(nil)
	_ http.Flusher        = (*Writer)(nil)
)
