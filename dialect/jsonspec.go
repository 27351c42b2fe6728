package dialect

import "strings"

// A spec says which paths of a JSON document matter and what is done with the
// values there. It is a tree of nodes, one per object member name; arrays are
// transparent: the elements of an array stand where the array stands.
type spec struct {
	nodes []node
}

const nowhere = -1 // the node of all that does not matter

// node is one place in a document.
type node struct {
	kids  []kid
	table [tableSize]uint8 // by a name's hash, one more than the first kid's index
	rest  int16            // the node of members not among kids; nowhere: they do not matter

	slot  int8 // where to note position and type of the value
	str   int8 // where to keep a short string
	num   int8 // where to keep a number
	text  int8 // which class the bytes of strings count for
	elems int8 // where to count the objects of an array
	add   bool // numbers are added up instead of kept as the greatest
	keep  bool // a string here is kept, of any usual length
	fresh bool // an object here makes the numbers of one before it void
}

type kid struct {
	name string
	node int16
	next uint8 // one more than the index of the next kid of the same hash
}

const tableSize = 64

func hash(first, last byte, n int) uint8 {
	return (first + last*5 + byte(n)*11) & (tableSize - 1)
}

// rule puts actions at a path: member names joined by dots. A path that ends
// in ".**" means the value and all below it; ".**.name" is an exception below.
type rule struct {
	path    string
	actions []action
}

type action func(*node)

func at(path string, actions ...action) rule { return rule{path, actions} }

func slot(i int8) action  { return func(n *node) { n.slot = i } }
func str(i int8) action   { return func(n *node) { n.str = i } }
func num(i int8) action   { return func(n *node) { n.num = i } }
func sum(i int8) action   { return func(n *node) { n.num, n.add = i, true } }
func text(c int8) action  { return func(n *node) { n.text = c } }
func elems(i int8) action { return func(n *node) { n.elems = i } }
func keep(n *node)        { n.keep = true }
func fresh(n *node)       { n.fresh = true }

// newSpec builds the tree. Rules with ".**" come before the exceptions below it.
func newSpec(lists ...[]rule) *spec {
	s := &spec{}
	s.add()
	for _, rules := range lists {
		for _, r := range rules {
			path, deep := strings.CutSuffix(r.path, ".**")
			at := int16(0)
			for name := range strings.SplitSeq(path, ".") {
				at = s.step(at, name)
			}
			if deep {
				below := s.add()
				s.nodes[below].rest = below
				s.nodes[at].rest = below
				s.apply(below, r.actions)
			}
			s.apply(at, r.actions)
		}
	}
	for i := range s.nodes { // exceptions hold at the top of ".**" too
		if n := &s.nodes[i]; n.rest >= 0 && n.rest != int16(i) {
			n.kids = append(n.kids, s.nodes[n.rest].kids...)
		}
	}
	for i := range s.nodes {
		s.nodes[i].index()
	}
	return s
}

func (s *spec) apply(at int16, actions []action) {
	for _, a := range actions {
		a(&s.nodes[at])
	}
}

func (s *spec) add() int16 {
	s.nodes = append(s.nodes, node{rest: nowhere, slot: -1, str: -1, num: -1, text: -1, elems: -1})
	return int16(len(s.nodes) - 1)
}

// step returns the node below at of that name, made if need be.
func (s *spec) step(at int16, name string) int16 {
	if name == "**" {
		return s.nodes[at].rest
	}
	for _, k := range s.nodes[at].kids {
		if k.name == name {
			return k.node
		}
	}
	n := s.add()
	s.nodes[at].kids = append(s.nodes[at].kids, kid{name: name, node: n})
	return n
}

// index fills the table of kids by hash. The first of one name wins.
func (n *node) index() {
	for i := len(n.kids) - 1; i >= 0; i-- {
		k := &n.kids[i]
		h := hash(k.name[0], k.name[len(k.name)-1], len(k.name))
		k.next, n.table[h] = n.table[h], uint8(i+1)
	}
}

// child returns the node of member key of an object at node at.
func (s *spec) child(at int16, key []byte) int16 {
	n := &s.nodes[at]
	if len(key) == 0 {
		return n.rest
	}
	for i := n.table[hash(key[0], key[len(key)-1], len(key))]; i > 0; {
		k := &n.kids[i-1]
		if k.name == string(key) {
			return k.node
		}
		i = k.next
	}
	return n.rest
}
