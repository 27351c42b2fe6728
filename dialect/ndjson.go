package dialect

import (
	"bytes"
	"strings"
)

// Newline-delimited JSON: each line is a document. An answer is taken for such
// when a second document follows the first, whatever it was declared to be.
// Nothing of a line is kept, so that its length does not matter.

// declaresLines tells whether a media type below application says so.
func declaresLines(sub string) bool {
	sub = strings.ToLower(sub)
	return strings.HasPrefix(sub, "x-ndjson") || strings.HasPrefix(sub, "ndjson") ||
		strings.HasPrefix(sub, "stream+json") || strings.HasPrefix(sub, "jsonl") || strings.HasPrefix(sub, "x-jsonl")
}

// feedLines reads the next piece of such an answer. A line that is no JSON, or
// that was broken off, spoils none of those after it: JSON has no line feed
// but between its tokens. Several documents in one line are taken as they come.
func (m *meter) feedLines(p []byte) {
	for len(p) > 0 {
		line, rest, ended := bytes.Cut(p, lineFeed)
		for len(line) > 0 && !m.sc.bad() {
			line = line[m.sc.feed(line):]
			if m.sc.done() {
				m.complete = true // unless the document says otherwise
				m.endDocument(nil)
			} else if m.sc.started() {
				m.complete = false
			}
		}
		if ended && m.sc.started() {
			m.endDocument(nil)
		}
		p = rest
	}
}
