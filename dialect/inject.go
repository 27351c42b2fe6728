package dialect

// injectUsage returns the body with stream_options.include_usage true, all the
// rest byte for byte, and whether that needed a change.
func injectUsage(body []byte, rd *reading) ([]byte, bool) {
	const (
		member = `"include_usage":true`
		option = `,"stream_options":{` + member + `}`
	)
	switch options := &rd.sc.slots[reqStreamOptions]; options.kind {
	case 0:
		at := rd.sc.slots[reqStream].end
		return splice(body, at, at, option), true
	case 'n':
		return splice(body, options.start, options.end, "{"+member+"}"), true
	case '{':
		if rd.true(reqIncludeUsage) {
			return body, false
		}
		if v := &rd.sc.slots[reqIncludeUsage]; v.kind != 0 {
			return splice(body, v.start, v.end, "true"), true
		}
		at := options.start + 1
		if empty(body[at:]) {
			return splice(body, at, at, member), true
		}
		return splice(body, at, at, member+","), true
	}
	return body, false // no options that a provider would take: let it say so
}

// empty tells whether an object ends here.
func empty(b []byte) bool {
	for _, c := range b {
		switch c {
		case ' ', '\t', '\r', '\n':
			continue
		}
		return c == '}'
	}
	return false
}

// splice returns a copy of b with b[from:to] replaced.
func splice(b []byte, from, to int, by string) []byte {
	out := make([]byte, 0, len(b)-(to-from)+len(by))
	out = append(out, b[:from]...)
	out = append(out, by...)
	return append(out, b[to:]...)
}
