package client

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

func TestReadEvents(t *testing.T) {
	const stream = ": hello\n\nid: 7\nevent: admission\ndata: {\"a\":1}\n\n: still here\n\nevent:refusal\r\ndata:{\r\ndata: }\r\nretry: 5\r\n\r\n" +
		"id: 8\n\nid: 9\nevent: change\ndata: cut off"
	want := []Event{{"7", "admission", []byte(`{"a":1}`)}, {"7", "refusal", []byte("{\n}")}}
	for name, r := range map[string]io.Reader{
		"whole": strings.NewReader(stream), "bytes": iotest.OneByteReader(strings.NewReader(stream)),
		"halves": iotest.HalfReader(strings.NewReader(stream)), "with its end": iotest.DataErrReader(strings.NewReader(stream)),
	} {
		var got []Event
		if err := readEvents(r, func(e *Event) error { got = append(got, *e); return nil }); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	stop := errors.New("enough")
	if err := readEvents(strings.NewReader(stream), func(*Event) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
	if err := readEvents(strings.NewReader("data: "+strings.Repeat("x", maxLine)), func(*Event) error { return nil }); err == nil {
		t.Error("a line without end is read")
	}
	broken := errors.New("broken")
	if err := readEvents(iotest.ErrReader(broken), nil); !errors.Is(err, broken) {
		t.Error(err)
	}
}
