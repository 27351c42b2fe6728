package client

import (
	"bufio"
	"context"
	"io"
	"net/url"
	"strings"
)

// maxLine is the longest line of the stream of events that is read: an entry of
// the audit log with all metadata before and after has its place in it.
const maxLine = 4 << 20

// Event is an event of the stream.
type Event struct {
	ID, Type string
	Data     []byte // JSON
}

// Events reads the stream of events that the query asks for, and calls fn with
// each, until the stream ends, the context does or fn returns an error. last is
// the ID of the event after which to go on, as far as the gate still has them;
// "": with what comes from now on. open is called once the stream is there. The
// error is nil when the gate has ended the stream.
func (c *Client) Events(ctx context.Context, query url.Values, last string, open func(), fn func(*Event) error) error {
	resp, err := c.Open(ctx, Request{Path: "/events", Query: query, LastEvent: last})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	open()
	return readEvents(resp.Body, fn)
}

// readEvents splits a stream as the specification of server-sent events says.
// An event without its empty line at the end is none.
func readEvents(r io.Reader, fn func(*Event) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	var e Event
	for lines.Scan() {
		line := strings.TrimSuffix(lines.Text(), "\r")
		if line == "" {
			if e.Data != nil {
				if err := fn(&e); err != nil {
					return err
				}
			}
			e = Event{ID: e.ID}
			continue
		}
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch name { // "" is a comment
		case "id":
			e.ID = value
		case "event":
			e.Type = value
		case "data":
			if e.Data != nil {
				e.Data = append(e.Data, '\n')
			}
			e.Data = append(e.Data, value...)
		}
	}
	return lines.Err()
}
