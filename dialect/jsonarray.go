package dialect

// The streamed JSON array: one array whose elements come over time, as Google
// streams where server-sent events are not asked for. Each element is a
// document, read when it is whole; none is kept.

type arrayState uint8

const (
	arrayAhead arrayState = iota // its bracket has not come
	arrayOpen
	arrayEnded // what comes now does not matter
)

// feedArray reads the next piece of such an answer.
func (m *meter) feedArray(p []byte) {
	for len(p) > 0 && m.array != arrayEnded && !m.sc.bad() {
		if m.sc.started() {
			p = p[m.sc.feed(p):]
			if m.sc.done() {
				m.endDocument(nil)
			}
			continue
		}
		switch c := p[0]; {
		case classes[c] == isSpace, c == ',':
			p = p[1:]
		case c == '[' && m.array == arrayAhead:
			m.array = arrayOpen
			p = p[1:]
		case c == ']':
			m.array, m.complete = arrayEnded, true
		default:
			m.sc.feed(p[:1])
			p = p[1:]
		}
	}
}
