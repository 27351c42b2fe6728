package dialect

import (
	"bytes"
	"math"
	"strconv"
)

// What a scanner does with the strings and numbers that its spec names.

// skip looks for the end of the string that goes on at p[i] and returns the
// position after its quote, or len(p).
func (s *scanner) skip(p []byte, i int) (end int, ended bool) {
	from := i
	for {
		j := bytes.IndexByte(p[i:], '"')
		if j < 0 {
			s.bs = oddBackslashes(p[from:], s.bs)
			return len(p), false
		}
		j += i
		if !oddBackslashes(p[from:j], s.bs) {
			s.bs = false
			return j + 1, true
		}
		i, from, s.bs = j+1, j+1, false
	}
}

// oddBackslashes tells whether an odd number of backslashes ends b; before
// says it of what came ahead of b.
func oddBackslashes(b []byte, before bool) bool {
	n := len(b)
	for n > 0 && b[n-1] == '\\' {
		n--
	}
	odd := (len(b)-n)&1 == 1
	if n == 0 {
		return odd != before
	}
	return odd
}

// inString reads on in a string value from p[i] and returns where it stopped.
func (s *scanner) inString(p []byte, i int) int {
	j, ended := s.skip(p, i)
	if s.node >= 0 {
		seg := p[i:j]
		if ended {
			seg = seg[:len(seg)-1]
		}
		s.take(seg, i > 0 && s.prev == 0 && ended)
	}
	if ended {
		s.valueEnd(j)
	}
	return j
}

// take takes up part of a string; whole says that it is all of it.
func (s *scanner) take(seg []byte, whole bool) {
	n := &s.sp.nodes[s.node]
	if n.str >= 0 {
		d := &s.strs[n.str]
		if int(d.n)+len(seg) > strCap {
			d.over = true
		} else {
			d.n += uint8(copy(d.b[d.n:], seg))
		}
	}
	if n.keep && len(s.kept) <= nameCap { // one byte more says that it is too long
		s.kept = append(s.kept, seg[:min(len(seg), nameCap+1-len(s.kept))]...)
	}
	switch {
	case n.text < 0:
	case s.part != nil:
		s.part(seg)
	default:
		if whole && s.visit != nil {
			s.text[n.text] += s.visit(n.text, seg)
		} else {
			s.text[n.text] += textLen(seg, s.prev)
		}
	}
	if len(seg) > 0 {
		s.prev = seg[len(seg)-1]
	}
}

// textLen is about the number of bytes that the string part seg stands for; an
// escape counts one, and two if it is \u. prev is the byte before seg, so that
// the sum does not depend on where a string is parted.
func textLen(seg []byte, prev byte) int64 {
	n := int64(len(seg))
	if prev == '\\' && len(seg) > 0 && seg[0] == 'u' {
		n -= 3
	}
	for {
		j := bytes.IndexByte(seg, '\\')
		if j < 0 {
			return n
		}
		n--
		if j+1 < len(seg) && seg[j+1] == 'u' {
			n -= 3
		}
		seg = seg[j+1:]
	}
}

// inScalar reads on in a number or literal.
func (s *scanner) inScalar(p []byte, i int) int {
	j := i
	for j < len(p) && classes[p[j]] == isScalar {
		j++
	}
	if s.node >= 0 {
		s.putScalar(p[i:j])
	}
	if j == len(p) {
		return j
	}
	switch c := p[j]; {
	case c == ',' || c == '}' || c == ']' || classes[c] == isSpace:
		s.scalarEnd(j)
	default:
		s.state = scanBad
	}
	return j
}

func (s *scanner) putScalar(b []byte) {
	if int(s.scN)+len(b) > scalarCap {
		s.scN = scalarCap + 1
		return
	}
	s.scN += uint8(copy(s.sc[s.scN:], b))
}

func (s *scanner) scalarEnd(i int) {
	if s.node >= 0 {
		n := &s.sp.nodes[s.node]
		if n.num >= 0 {
			s.number(n)
		}
		if n.text >= 0 && (s.sc[0] <= '9') {
			s.text[n.text] += numberBytes
		}
	}
	s.valueEnd(i)
}

// numberBytes is what a bare number in text counts for: in a prompt made of
// token numbers each is one token.
const numberBytes = 4

// number takes up the scalar at hand as a count. Of several for one place
// within one object the greatest is kept; null is none.
func (s *scanner) number(n *node) {
	if s.sc[0] == 'n' && s.scN == 4 {
		return
	}
	bit := uint32(1) << n.num
	v, ok := count(s.sc[:min(s.scN, scalarCap)])
	if !ok || s.scN > scalarCap {
		s.absurd |= bit
		return
	}
	switch {
	case s.has&bit == 0:
		s.nums[n.num] = v
	case n.add:
		s.nums[n.num] = min(s.nums[n.num]+v, 1<<53)
	default:
		s.nums[n.num] = max(s.nums[n.num], v)
	}
	s.has |= bit
}

// count reads a number; below 0 it is 0. ok is false when b is no number, or
// not a finite one below 2^53.
func count(b []byte) (n int64, ok bool) {
	if len(b) > 0 && len(b) <= 15 {
		for i, c := range b {
			if c < '0' || c > '9' {
				break
			}
			n = n*10 + int64(c-'0')
			if i == len(b)-1 {
				return n, true
			}
		}
	}
	if len(b) == 0 || b[0] > '9' {
		return 0, false
	}
	f, err := strconv.ParseFloat(string(b), 64)
	if err != nil || f >= 1<<53 {
		return 0, false
	}
	return int64(math.Round(max(f, 0))), true
}
