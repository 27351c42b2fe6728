package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// readNodes reads a file of YAML or JSON as nodes, which know their lines.
func readNodes(data []byte) (*yaml.Node, error) {
	if json.Valid(data) {
		return jsonNode(data)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("line 1: the file is empty")
		}
		return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("line 1: the file holds more than one document")
	}
	return doc.Content[0], nil
}

// jsonNode reads JSON. It is not read as YAML, which knows neither its tabs nor
// all its escapes.
func jsonNode(data []byte) (*yaml.Node, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	line, counted := 1, 0
	at := func() int {
		end := int(dec.InputOffset())
		line += bytes.Count(data[counted:end], []byte("\n"))
		counted = end
		return line
	}
	var next func() (*yaml.Node, error)
	next = func() (*yaml.Node, error) {
		t, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", at(), err)
		}
		n := &yaml.Node{Line: at(), Kind: yaml.ScalarNode}
		switch v := t.(type) {
		case nil:
			n.Tag, n.Value = "!!null", "null"
		case bool:
			n.Tag, n.Value = "!!bool", fmt.Sprint(v)
		case json.Number:
			n.Value = v.String() // its tag is told by the text
		case string:
			n.Tag, n.Value = "!!str", v
		case json.Delim:
			n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
			if v == '{' {
				n.Kind, n.Tag = yaml.MappingNode, "!!map"
			}
			for dec.More() {
				item, err := next() // a name, or a value
				if err != nil {
					return nil, err
				}
				n.Content = append(n.Content, item)
			}
			if _, err := dec.Token(); err != nil {
				return nil, fmt.Errorf("line %d: %w", at(), err)
			}
		}
		return n, nil
	}
	return next()
}

// problems are what is wrong in a file.
type problems struct {
	file string
	all  []problem
}

type problem struct {
	line int
	text string
}

// maxProblems is how many are shown.
const maxProblems = 20

func (p *problems) add(line int, format string, args ...any) {
	p.all = append(p.all, problem{line, fmt.Sprintf(format, args...)})
}

// err returns all of them as one error, in the order of the lines; nil if there
// are none.
func (p *problems) err() error {
	if len(p.all) == 0 {
		return nil
	}
	slices.SortStableFunc(p.all, func(a, b problem) int { return a.line - b.line })
	var shown []string
	for _, one := range p.all[:min(len(p.all), maxProblems)] {
		shown = append(shown, fmt.Sprintf("%s: line %d: %s", p.file, one.line, one.text))
	}
	if more := len(p.all) - len(shown); more > 0 {
		shown = append(shown, fmt.Sprintf("and %d more", more))
	}
	return errors.New(strings.Join(shown, "\n"))
}

// pair is a field of a mapping.
type pair struct {
	name  string
	line  int
	value *yaml.Node
}

// mapping returns the fields of a mapping that stand for something: null is as
// if the field were not there.
func (p *problems) mapping(n *yaml.Node, what string) (all []pair) {
	n = resolved(n)
	if n.Kind != yaml.MappingNode {
		if n.ShortTag() != "!!null" {
			p.add(n.Line, "%s is not a mapping of names to values", what)
		}
		return nil
	}
	seen := map[string]int{}
	for i := 0; i < len(n.Content); i += 2 {
		name, value := resolved(n.Content[i]), resolved(n.Content[i+1])
		if first := seen[name.Value]; first > 0 {
			p.add(name.Line, "%s is already in line %d", name.Value, first)
			continue
		}
		seen[name.Value] = name.Line
		if value.ShortTag() != "!!null" {
			all = append(all, pair{name: name.Value, line: name.Line, value: value})
		}
	}
	return all
}

// items returns the items of a sequence.
func (p *problems) items(n *yaml.Node, what string) []*yaml.Node {
	n = resolved(n)
	if n.Kind != yaml.SequenceNode {
		if n.ShortTag() != "!!null" {
			p.add(n.Line, "%s is not a list", what)
		}
		return nil
	}
	return n.Content
}

// scalar returns the text of a value that is not a mapping or a list.
func scalar(n *yaml.Node) (string, error) {
	if n = resolved(n); n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" {
		return "", errors.New("is not a text or a number")
	}
	return n.Value, nil
}

func resolved(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}
