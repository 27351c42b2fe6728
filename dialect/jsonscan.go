package dialect

import "github.com/llm-quota/caddy-llm-quota/quota"

// Bounds of a scanner. It holds nothing of a document but what lies in these.
const (
	maxDepth   = 512                // containers open at once; beyond it the scanner gives up
	trackDepth = 24                 // containers of which the path is known
	keyCap     = 192                // bytes of a member name in the document, escapes and all
	scalarCap  = 40                 // bytes of a number or literal
	strCap     = 56                 // bytes of a kept string
	nameCap    = 2 * quota.MaxLater // bytes of a kept name, escapes and all
)

// Sizes of a scanner's results.
const (
	numSlots   = 24
	numStrings = 4
	numNumbers = 20
	numText    = 4
	numElems   = 4
)

// slotVal is where a value stands in the document, and what it is.
type slotVal struct {
	start, end int
	kind       byte  // its first byte: one of {["tfn or of a number; 0: not there
	count      uint8 // how often the member occurred; the last one is kept
}

// short is a kept string, as it stands in the document, without its quotes.
type short struct {
	b    [strCap]byte
	n    uint8
	over bool
}

func (s *short) bytes() []byte {
	if s.over {
		return nil
	}
	return s.b[:s.n]
}

// results are what a scanner found.
type results struct {
	slots  [numSlots]slotVal
	strs   [numStrings]short
	nums   [numNumbers]int64
	has    uint32 // bit i: nums[i] was there
	absurd uint32 // bit i: nums[i] was no number, or too great a one
	text   [numText]int64
	elems  [numElems]int64
	kept   []byte // a name, as it stands in the document
}

// scanner reads one JSON document, given in pieces of any length, and takes up
// what its spec names. It keeps no piece. It checks the grammar but for the
// form of numbers and the content of strings; what is not JSON makes it bad.
type scanner struct {
	sp    *spec
	state scanState
	bs    bool  // in a string: an odd number of backslashes came last
	prev  byte  // in a string: the last byte of the piece before
	keyN  uint8 // bytes in key; keyCap+1: too many
	keyE  bool  // the key has an escape
	obj   bool  // the innermost open container is an object
	inStr bool  // in a skipped container: within a string
	skips int   // depth of the container that is skipped
	scN   uint8 // bytes in sc; scalarCap+1: too many
	depth int
	node  int16 // of the value that is expected or read
	base  int   // bytes of the document in the pieces before
	open  [maxDepth / 64]uint64
	path  [trackDepth]int16
	key   [keyCap]byte
	sc    [scalarCap]byte
	results

	// visit, when set, is called with each string value that counts as text
	// and lies in one piece, and returns what it counts for.
	visit func(class int8, s []byte) int64
	// part, when set, is called with each part of a string that counts as text,
	// as it stands in the document, instead of counting it.
	part func(seg []byte)
	// other, when set, is called with each name of the outermost object that
	// the spec does not have.
	other func(name []byte)
}

type scanState uint8

const (
	scanValue  scanState = iota // a value must come
	scanFirst                   // a value or the end of the array
	scanMember                  // a name or the end of the object
	scanName                    // a name
	scanColon
	scanAfter // a comma or the end of the container
	scanKey   // within a name; in the states before, white space is skipped
	scanString
	scanScalar
	scanSkip // within a container that does not matter
	scanDone
	scanBad
)

// reset makes s ready for the next document of the same spec.
func (s *scanner) reset() {
	s.state, s.depth, s.node, s.base, s.obj = scanValue, 0, 0, 0, false
	s.slots = [numSlots]slotVal{}
	s.text = [numText]int64{}
	s.elems = [numElems]int64{}
	for i := range s.strs {
		s.strs[i].n, s.strs[i].over = 0, false
	}
	s.has, s.absurd = 0, 0
	s.kept = s.kept[:0]
}

// done tells whether the document is whole.
func (s *scanner) done() bool { return s.state == scanDone }

// bad tells whether what came is not JSON.
func (s *scanner) bad() bool { return s.state == scanBad }

// started tells whether anything but white space came.
func (s *scanner) started() bool { return s.state != scanValue || s.depth > 0 }

// Classes of bytes.
const (
	isSpace  = 1 << iota // white space
	isScalar             // may stand in a number or literal
	isStruct             // a quote or a bracket
)

var classes = func() (t [256]uint8) {
	for _, c := range " \t\r\n" {
		t[c] = isSpace
	}
	for c := range 256 {
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '+' || c == '.' {
			t[c] = isScalar
		}
	}
	for _, c := range `"{}[]` {
		t[c] = isStruct
	}
	return t
}()

// feed reads the next piece and returns how much of it belongs to the document.
func (s *scanner) feed(p []byte) int {
	i := 0
	for i < len(p) {
		c := p[i]
		if classes[c]&isSpace != 0 && s.state < scanKey {
			i++
			continue
		}
		switch s.state {
		case scanValue, scanFirst:
			if c == ']' && s.state == scanFirst {
				s.pop(i)
			} else {
				s.begin(c, i)
			}
			i++
		case scanMember, scanName:
			switch {
			case c == '"':
				i = s.beginKey(p, i+1)
				continue
			case c == '}' && s.state == scanMember:
				s.pop(i)
			default:
				s.state = scanBad
			}
			i++
		case scanColon:
			s.state = scanValue
			if c != ':' {
				s.state = scanBad
			}
			i++
		case scanAfter:
			s.after(c, i)
			i++
		case scanKey:
			i = s.inKey(p, i)
		case scanString:
			i = s.inString(p, i)
		case scanScalar:
			i = s.inScalar(p, i)
		case scanSkip:
			i = s.inSkip(p, i)
		default:
			s.base += i
			return i
		}
	}
	s.base += i
	return i
}

// end tells the scanner that nothing more comes: a number or literal that is
// the whole document ends only here.
func (s *scanner) end() {
	if s.state == scanScalar && s.depth == 0 {
		s.scalarEnd(0)
	}
}

// here returns the node of the innermost open container.
func (s *scanner) here() int16 {
	if d := s.depth - 1; d >= 0 && d < trackDepth {
		return s.path[d]
	}
	return nowhere
}

// element tells whether the value at hand is an element of an array.
func (s *scanner) element() bool { return s.depth > 0 && !s.obj }

// begin starts the value of which c is the first byte.
func (s *scanner) begin(c byte, i int) {
	var n *node
	if s.element() {
		s.node = s.here()
		if s.node >= 0 {
			n = &s.sp.nodes[s.node]
			if n.elems >= 0 && c == '{' {
				s.elems[n.elems]++
			}
		}
	} else if s.node >= 0 {
		n = &s.sp.nodes[s.node]
		if n.slot >= 0 {
			v := &s.slots[n.slot]
			v.start, v.kind = s.base+i, c
			v.count = min(v.count, 250) + 1
		}
	}
	switch c {
	case '"':
		s.state, s.bs, s.prev = scanString, false, 0
		if n != nil && n.str >= 0 {
			s.strs[n.str].n, s.strs[n.str].over = 0, false
		}
		if n != nil && n.keep {
			s.kept = s.kept[:0]
		}
		if n != nil && n.num >= 0 {
			s.absurd |= 1 << n.num
		}
	case '{':
		if n != nil && n.fresh {
			s.has, s.absurd = 0, 0
		}
		s.push(true)
	case '[':
		s.push(false)
	default:
		s.state, s.scN = scanScalar, 1
		s.sc[0] = c
		if classes[c] != isScalar {
			s.state = scanBad
		}
	}
}

func (s *scanner) push(object bool) {
	if s.depth == maxDepth {
		s.state = scanBad
		return
	}
	d := s.depth
	if d < trackDepth {
		s.path[d] = s.node
	}
	s.depth++
	s.mark(object)
	switch {
	case s.node < 0:
		s.state, s.skips = scanSkip, s.depth
	case object:
		s.state = scanMember
	default:
		s.state = scanFirst
	}
}

// mark notes what the innermost open container is.
func (s *scanner) mark(object bool) {
	d := s.depth - 1
	s.obj = object
	if object {
		s.open[d>>6] |= 1 << (d & 63)
	} else {
		s.open[d>>6] &^= 1 << (d & 63)
	}
}

// unmark closes the innermost container.
func (s *scanner) unmark() {
	s.depth--
	d := s.depth - 1
	s.obj = d >= 0 && s.open[d>>6]&(1<<(d&63)) != 0
}

// pop ends the innermost container, whose last byte is at i.
func (s *scanner) pop(i int) {
	s.node = s.here()
	s.unmark()
	s.valueEnd(i + 1)
}

// inSkip reads on in a container that does not matter: brackets have to
// match, nothing else is looked at.
func (s *scanner) inSkip(p []byte, i int) int {
	if s.inStr {
		j, ended := s.skip(p, i)
		s.inStr = !ended
		return j
	}
	for ; i < len(p); i++ {
		c := p[i]
		if classes[c] != isStruct {
			continue
		}
		switch c {
		case '"':
			s.bs = false
			j, ended := s.skip(p, i+1)
			if !ended {
				s.inStr = true
				return j
			}
			i = j - 1
		case '{', '[':
			if s.depth == maxDepth {
				s.state = scanBad
				return i
			}
			s.depth++
			s.mark(c == '{')
		default:
			if s.obj != (c == '}') {
				s.state = scanBad
				return i
			}
			if s.depth == s.skips {
				s.node = nowhere
				s.unmark()
				s.valueEnd(i + 1)
				return i + 1
			}
			s.unmark()
		}
	}
	return i
}

// valueEnd ends the value at s.node before position i.
func (s *scanner) valueEnd(i int) {
	if s.node >= 0 && !s.element() {
		if sl := s.sp.nodes[s.node].slot; sl >= 0 {
			s.slots[sl].end = s.base + i
		}
	}
	s.state = scanAfter
	if s.depth == 0 {
		s.state = scanDone
	}
}

func (s *scanner) after(c byte, i int) {
	switch {
	case c == ',' && s.obj:
		s.state = scanName
	case c == ',':
		s.state = scanValue
	case c == '}' && s.obj, c == ']' && !s.obj:
		s.pop(i)
	default:
		s.state = scanBad
	}
}
