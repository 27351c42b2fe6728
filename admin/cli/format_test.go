package cli

import (
	"bytes"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

func TestAmount(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0", 999: "999", 99_999: "99,999", -1234: "-1,234", 100_000: "100k", 123_456: "123k", 999_999: "999k",
		1_000_000: "1M", 1_234_567: "1.23M", 12_345_678: "12.3M", -5_000_000: "-5M", 1 << 53: "9P", 2_000_000_000: "2G",
	} {
		if got := amount(n); got != want {
			t.Errorf("amount(%d) = %s, want %s", n, got, want)
		}
	}
}

// What exactly writes is read back as the same.
func TestExactly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(0, 1<<33).Draw(t, "n") * rapid.SampledFrom([]int64{1, 10, 1000, 1_000_000}).Draw(t, "unit")
		if got, err := parseAmount(exactly(n)); err != nil || got != n {
			t.Fatalf("%d is written %s, and read as %d (%v)", n, exactly(n), got, err)
		}
	})
}

func TestParseAmount(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "5000": 5000, "1.1k": 1100, "5M": 5_000_000, "-50k": -50_000, "2G": 2_000_000_000, "9007199254740992": 1 << 53,
	} {
		if got, err := parseAmount(s); err != nil || got != want {
			t.Errorf("%s is read as %d (%v)", s, got, err)
		}
	}
	for _, s := range []string{"", "k", "-", "5m", "0.5", "1.0001k", "1e3", "0x10", "1/2", "9007199254740993", "9999999G", "5 M", "+5", "--5", "."} {
		if got, err := parseAmount(s); err == nil {
			t.Errorf("%q is read as %d", s, got)
		}
	}
}

func TestParseQuota(t *testing.T) {
	for s, want := range map[string]string{
		"5M monthly": "5M monthly", "unlimited": "unlimited", "none": "-", " 100k   daily ": "100k daily", "0 manual": "0 manual", "5M": "5M",
	} {
		tokens, reset, err := parseQuota(s)
		q := &quota.Quota{Tokens: tokens, Reset: quota.Reset(reset)}
		if !tokens.IsSet() {
			q = nil
		}
		if err != nil || quotaText(q) != want {
			t.Errorf("%q is read as %s (%v)", s, quotaText(q), err)
		}
	}
	for _, s := range []string{"", "5M yearly", "5M monthly now", "none daily", "-5 daily", "x"} {
		if _, _, err := parseQuota(s); err == nil {
			t.Errorf("%q is read", s)
		}
	}
}

func TestSince(t *testing.T) {
	now := time.Date(2026, 5, 15, 10, 0, 0, 0, time.UTC)
	for d, want := range map[time.Duration]string{
		0: "now", 400 * time.Millisecond: "now", time.Second: "in 1s", 119 * time.Second: "in 119s", 2 * time.Minute: "in 2m",
		3*time.Hour + 59*time.Minute: "in 3h", -48 * time.Hour: "2d ago", -5 * time.Second: "5s ago",
	} {
		at := now.Add(d)
		if got := since(now, &at); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
	if since(now, nil) != "never" {
		t.Error(since(now, nil))
	}
}

func TestBar(t *testing.T) {
	for share, want := range map[float64]string{
		0: "····", 1: "████", 7: "████", -1: "····", 0.5: "██··", 0.0001: "▏···", 0.9: "███▋",
	} {
		if got := bar(share, 4); got != want {
			t.Errorf("%v: %s, want %s", share, got, want)
		}
	}
}

func TestSparkline(t *testing.T) {
	for _, tt := range []struct {
		values []int64
		width  int
		want   string
	}{
		{nil, 5, ""},
		{[]int64{0, 0}, 5, "▁▁"},
		{[]int64{0, 1, 1_000_000, 500_000}, 5, "▁▂█▅"},
		{[]int64{1, 1, 2, 2, 0, 0}, 3, "▅█▁"},
	} {
		if got := sparkline(tt.values, tt.width); got != tt.want {
			t.Errorf("%v: %s, want %s", tt.values, got, tt.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOf(rapid.Int64Range(0, 1<<50)).Draw(t, "values")
		if n := utf8.RuneCountInString(sparkline(values, 60)); n != min(len(values), 60) {
			t.Fatalf("%d columns for %d values", n, len(values))
		}
	})
}

// What a caller has named a model cannot steer the terminal.
func TestTableIsClean(t *testing.T) {
	var b bytes.Buffer
	table := table{head: []string{"MODEL", ">N"}}
	table.row("\x1b[31mred\nline", 5)
	table.row("é", 12)
	table.print(&env{out: &output{w: &b}})
	const want = "MODEL                    N\n\"\\x1b[31mred\"\n"
	if b.String()[:8] != want[:8] || bytes.ContainsRune(b.Bytes(), '\x1b') {
		t.Errorf("printed %q", b.String())
	}
}

func TestColour(t *testing.T) {
	var b bytes.Buffer
	table := table{head: []string{"A", "B"}}
	table.row(cell{"x", red}, "y")
	table.print(&env{out: &output{w: &b}, colour: true})
	if want := "\x1b[1mA\x1b[0m  \x1b[1mB\x1b[0m\n\x1b[31mx\x1b[0m  y\n"; b.String() != want {
		t.Errorf("printed %q, want %q", b.String(), want)
	}
}

func TestNoColour(t *testing.T) {
	for _, tt := range []struct {
		env  map[string]string
		want bool
	}{
		{nil, true}, {map[string]string{"NO_COLOR": "1"}, false}, {map[string]string{"NO_COLOR": "", "TERM": "xterm"}, true},
		{map[string]string{"TERM": "dumb"}, false},
	} {
		if got := coloured(func(name string) string { return tt.env[name] }); got != tt.want {
			t.Errorf("%v: %v", tt.env, got)
		}
	}
}
