package dialect

import (
	"net/http"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// End is how the handler behind a [Writer] ended.
type End struct {
	Panicked   bool  // it panicked, as a proxy does when a stream breaks
	Err        error // what it returned
	ClientGone bool  // the client had gone by then
}

// statusClientGone is what proxies note when the client went before the answer.
const statusClientGone = 499

// Outcome returns what the call is charged, and whether it ended in a whole,
// good answer:
//
//	answer with usage                       what it reports
//	generation without usage                an estimate
//	embedding, image, sound without usage   the estimate of the input
//	nothing but an error, also under 200    0
//	response in the background, unfinished  left to the ledger: Later names it
//	broken off                              usage if seen, else an estimate
//	error status, unreachable, cancelled    0, unless it reports usage
//	realtime sessions                       the sum of what their responses report
//	free calls, unknown ones without usage  0
//
// It is called once, at the end; with a stream that did not break, after
// [Writer.Finish].
func (w *Writer) Outcome(end End) quota.Outcome {
	if w.active || w.plain != nil {
		w.finishMeter()
	}
	c, m := w.call, &w.meter
	if later := w.later(); later != "" {
		return quota.Outcome{Estimated: true, Later: later}
	}
	out := quota.Outcome{Failed: w.broken(end)}
	if c.Kind == Free || w.status == 0 || w.status == statusClientGone {
		return out
	}
	if w.session != nil {
		out.Tokens, out.Estimated = w.session.close()
		return out
	}
	good := w.status >= 200 && w.status < 300
	if m.seen {
		t, ok := c.wire.tokens(&m.usage, c.Kind)
		switch {
		case ok && (m.final || m.soFar && !out.Failed):
			out.Tokens = t
			return out
		case ok: // the beginning of the answer told the input, its end never came
			t.Output = max(t.Output, estimateOutput(m))
			out.Tokens, out.Estimated = t, true
			return out
		case !good:
			return out
		}
	} else if !good || m.failed && m.chunks == 0 {
		return out
	}
	switch c.Kind {
	case Generate:
		out.Tokens = quota.Tokens{Input: c.Input, Output: estimateOutput(m)}
		out.Estimated = true
	case Embed, Media:
		out.Tokens = quota.Tokens{Input: c.Input}
		out.Estimated = true
	}
	return out
}

// broken tells whether the call ended in anything but a whole, good answer.
func (w *Writer) broken(end End) bool {
	c, m := w.call, &w.meter
	switch {
	case w.status == http.StatusSwitchingProtocols, w.session != nil:
		return end.Panicked || end.Err != nil
	case w.status == 0, w.status >= 400, (m.failed || m.cut) && c.Kind != Free:
		return true
	}
	if m.complete && (!end.Panicked || end.ClientGone) {
		return false // what happened after the last byte that matters
	}
	return end.Panicked || end.Err != nil || end.ClientGone
}
