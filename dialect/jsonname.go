package dialect

import (
	"bytes"
	"encoding/json"
)

// How a scanner reads the names of members.

// beginKey starts the member name whose first byte is p[i], and goes on over
// the members after it as long as they are simple: in one piece, without
// escapes or white space, of no interest. That is most of what comes.
func (s *scanner) beginKey(p []byte, i int) int {
	at := s.here()
	for {
		s.state, s.keyN, s.keyE, s.bs = scanKey, 0, false, false
		j := i
		for j < len(p) && p[j] != '"' && p[j] != '\\' {
			j++
		}
		if j == len(p) || p[j] != '"' {
			return s.inKey(p, i)
		}
		s.name(at, p[i:j])
		if j++; j+1 >= len(p) || p[j] != ':' {
			return j
		}
		j++
		s.state = scanValue
		if s.node >= 0 {
			return j
		}
		if j = plainEnd(p, j); j < 0 {
			return -j
		}
		if s.state = scanAfter; j+1 >= len(p) || p[j] != ',' || p[j+1] != '"' {
			return j
		}
		i = j + 2
	}
}

// plainEnd returns the end of the string, number or literal that begins at
// p[i], or -i if it is something else, has escapes, or may not end in p.
func plainEnd(p []byte, i int) int {
	if p[i] == '"' {
		n := bytes.IndexByte(p[i+1:], '"')
		if n < 0 || n > 0 && p[i+n] == '\\' {
			return -i
		}
		return i + n + 2
	}
	j := i
	for j < len(p) && classes[p[j]] == isScalar {
		j++
	}
	if j == i || j == len(p) || p[j] != ',' && p[j] != '}' {
		return -i
	}
	return j
}

// inKey reads on in a member name from p[i] and returns where it stopped.
func (s *scanner) inKey(p []byte, i int) int {
	at := s.here()
	for j := i; j < len(p); j++ {
		switch c := p[j]; {
		case s.bs:
			s.bs = false
		case c == '\\':
			s.bs, s.keyE = true, true
		case c == '"':
			key := p[i:j]
			if s.keyN > 0 {
				s.putKey(key)
				key = s.key[:min(s.keyN, keyCap)]
			}
			if s.keyN > keyCap {
				key = nil
			}
			s.name(at, key)
			return j + 1
		}
	}
	s.putKey(p[i:])
	return len(p)
}

// name takes up the member name key, as it stands, of an object at node at.
func (s *scanner) name(at int16, key []byte) {
	s.state = scanColon
	if s.keyE {
		var plain string
		quoted := append(append([]byte{'"'}, key...), '"')
		if json.Unmarshal(quoted, &plain) == nil {
			key = []byte(plain)
		}
	}
	s.node = nowhere
	if at >= 0 {
		s.node = s.sp.child(at, key)
	}
	if s.depth == 1 && s.other != nil && s.node < 0 {
		s.other(key)
	}
}

func (s *scanner) putKey(b []byte) {
	if int(s.keyN)+len(b) > keyCap {
		s.keyN = keyCap + 1
		return
	}
	s.keyN += uint8(copy(s.key[s.keyN:], b))
}
