package cli

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dustin/go-humanize"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// The styles of text, as terminals know them.
const (
	bold   = "1"
	faint  = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
)

func (e *env) styled(style, s string) string {
	if !e.colour || style == "" || s == "" {
		return s
	}
	return "\x1b[" + style + "m" + s + "\x1b[0m"
}

// cell is text in a table with a style.
type cell struct{ text, style string }

// table is text in columns. A head that begins with ">" is of numbers.
type table struct {
	head []string
	rows [][]cell
}

// row adds a line of strings and cells.
func (t *table) row(values ...any) {
	line := make([]cell, len(values))
	for i, v := range values {
		switch v := v.(type) {
		case cell:
			line[i] = cell{clean(v.text), v.style}
		default:
			line[i].text = clean(fmt.Sprint(v))
		}
	}
	t.rows = append(t.rows, line)
}

// print writes the table; nothing if it has no rows.
func (t *table) print(e *env) {
	if len(t.rows) == 0 {
		return
	}
	head := make([]cell, len(t.head))
	right := make([]bool, len(t.head))
	for i, h := range t.head {
		h, right[i] = strings.CutPrefix(h, ">")
		head[i] = cell{h, bold}
	}
	lines := t.rows
	if strings.Join(t.head, "") != "" {
		lines = append([][]cell{head}, t.rows...)
	}
	widths := make([]int, len(t.head))
	for _, line := range lines {
		for i, c := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	for _, line := range lines {
		var b strings.Builder
		for i, c := range line {
			if i > 0 {
				b.WriteString("  ")
			}
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text))
			if right[i] {
				b.WriteString(pad + e.styled(c.style, c.text))
			} else {
				b.WriteString(e.styled(c.style, c.text) + pad)
			}
		}
		e.out.printf("%s\n", strings.TrimRight(b.String(), " "))
	}
}

// clean returns text as a terminal may be given it: names of models come from
// callers, who could send it commands.
func clean(s string) string {
	if strings.Contains(s, "\n") {
		lines := strings.Split(s, "\n")
		for i, l := range lines {
			lines[i] = clean(l)
		}
		return strings.Join(lines, "\n")
	}
	if quota.Printable(s) {
		return s
	}
	return strconv.QuoteToGraphic(s)
}

// amount writes a number for people: whole up to 99,999, else with three
// digits, rounded down.
func amount(n int64) string {
	if n > -100_000 && n < 100_000 {
		return humanize.Comma(n)
	}
	x, sign := math.Abs(float64(n)), ""
	if n < 0 {
		sign = "-"
	}
	unit := 0
	for ; x >= 1000 && unit < len(units)-1; unit++ {
		x /= 1000
	}
	decimals := 2
	switch {
	case x >= 100:
		decimals = 0
	case x >= 10:
		decimals = 1
	}
	scale := math.Pow10(decimals)
	s := strconv.FormatFloat(math.Floor(x*scale)/scale, 'f', -1, 64)
	return sign + s + units[unit]
}

var units = []string{"", "k", "M", "G", "T", "P"}

// exactly writes a limit so that it can be read back: with k, M or G where
// nothing is lost.
func exactly(n int64) string {
	for unit := 3; unit > 0; unit-- {
		if whole := int64(math.Pow10(3 * unit)); n != 0 && n%whole == 0 {
			return strconv.FormatInt(n/whole, 10) + units[unit]
		}
	}
	return strconv.FormatInt(n, 10)
}

func bound(b quota.Bound) string {
	if n, ok := b.Max(); ok {
		return exactly(n)
	}
	if b.IsSet() {
		return "unlimited"
	}
	return "-"
}

// since writes how far t is from now: "in 3h", "2d ago", "now", or never when
// it is nil.
func since(now time.Time, t *time.Time) string {
	if t == nil {
		return "never"
	}
	d := t.Sub(now)
	switch text := span(d.Abs()); {
	case text == "":
		return "now"
	case d > 0:
		return "in " + text
	default:
		return text + " ago"
	}
}

func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return ""
	case d < 2*time.Minute:
		return strconv.Itoa(int(d/time.Second)) + "s"
	case d < 2*time.Hour:
		return strconv.Itoa(int(d/time.Minute)) + "m"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d/time.Hour)) + "h"
	}
	return strconv.Itoa(int(d/(24*time.Hour))) + "d"
}

// clock writes a time in the zone of the person.
func (e *env) clock(t time.Time) string {
	return t.In(e.now().Location()).Format(time.DateTime)
}

// bar draws a share from 0 to 1.
func bar(share float64, width int) string {
	eighths := int(math.Round(min(max(share, 0), 1) * float64(width*8)))
	if share > 0 && eighths == 0 {
		eighths = 1
	}
	s := strings.Repeat("█", eighths/8)
	if part := eighths % 8; part > 0 {
		s += string([]rune("▏▎▍▌▋▊▉")[part-1])
	}
	return s + strings.Repeat("·", width-utf8.RuneCountInString(s))
}

// sparkline draws values, none of them negative; what is not zero stands out
// from it.
func sparkline(values []int64, width int) string {
	values = resample(values, width)
	blocks := []rune("▁▂▃▄▅▆▇█")
	if len(values) == 0 {
		return ""
	}
	most := slices.Max(values)
	line := make([]rune, len(values))
	for i, v := range values {
		line[i] = blocks[0]
		if v > 0 {
			line[i] = blocks[max(1, int(math.Round(float64(v)/float64(most)*float64(len(blocks)-1))))]
		}
	}
	return string(line)
}

// resample sums values up, so that there are no more than width.
func resample(values []int64, width int) []int64 {
	if len(values) <= width {
		return values
	}
	sums := make([]int64, width)
	for i, v := range values {
		sums[i*width/len(values)] += v
	}
	return sums
}

// plural returns n with its noun.
func plural(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return amount(n) + " " + noun + "s"
}
