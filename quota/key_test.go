package quota

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// slowMatch is MatchModel as its definition reads.
func slowMatch(pattern, model string) bool {
	switch {
	case pattern == "":
		return model == ""
	case pattern[0] == '*':
		return slowMatch(pattern[1:], model) || model != "" && slowMatch(pattern, model[1:])
	}
	return model != "" && pattern[0] == model[0] && slowMatch(pattern[1:], model[1:])
}

func TestMatchModel(t *testing.T) {
	for _, tt := range []struct {
		pattern, model string
		want           bool
	}{
		{"gpt-4o", "gpt-4o", true},
		{"gpt-4o", "gpt-4o-mini", false},
		{"gpt-4o", "GPT-4o", false},
		{"gpt-4o*", "gpt-4o", true},
		{"gpt-4o*", "gpt-4o-mini", true},
		{"gpt-4o*", "gpt-4", false},
		{"*", "", true},
		{"*", "any/thing", true},
		{"**", "", true},
		{"**", "x", true},
		{"", "", true},
		{"", "x", false},
		{"meta/*", "meta/llama/3", true},
		{"*/llama*", "meta/x/llama-3", true},
		{"*-mini", "gpt-4o-mini", true},
		{"*-mini", "gpt-4o-mini-2", false},
		{"a*a", "a", false},
		{"a*a", "aa", true},
		{"ab*ba", "aba", false},
		{"ab*ba", "abba", true},
		{"a*b*c", "abc", true},
		{"a*b*c", "acb", false},
		{"a**c", "ac", true},
		{"*aab", "aaab", true},
		{"*ab*ab", "ab", false},
		{"*ab*ab", "abab", true},
		{"*?[a]", "x?[a]", true}, // only * is special
		{"a?c", "abc", false},
		{"モデル*", "モデル-大", true},
	} {
		if got := MatchModel(tt.pattern, tt.model); got != tt.want {
			t.Errorf("MatchModel(%q, %q) is %v", tt.pattern, tt.model, got)
		}
	}
}

func TestMatchModelAgreesWithItsDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pattern := rapid.StringMatching(`[ab*]{0,8}`).Draw(t, "pattern")
		model := rapid.StringMatching(`[ab]{0,12}`).Draw(t, "model")
		if got, want := MatchModel(pattern, model), slowMatch(pattern, model); got != want {
			t.Fatalf("MatchModel(%q, %q) is %v", pattern, model, got)
		}
		// A model made to fit: each * replaced by something.
		var fits strings.Builder
		for _, r := range pattern {
			if r == '*' {
				fits.WriteString(rapid.StringMatching(`[ab]{0,3}`).Draw(t, "filling"))
			} else {
				fits.WriteRune(r)
			}
		}
		if !MatchModel(pattern, fits.String()) {
			t.Fatalf("MatchModel(%q, %q) is false", pattern, fits.String())
		}
	})
}

func FuzzMatchModel(f *testing.F) {
	for _, seed := range [][2]string{{"a*a", "a"}, {"**", ""}, {"", ""}, {"gpt-*", "gpt-4o"}, {"*ab*ab", "abab"}, {"*\xff", "\xff"}, {"é*", "é"}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, model string) {
		if strings.Count(pattern, "*") > 3 || len(model) > 50 || len(pattern) > 50 {
			return // the slow twin takes a time of model^stars
		}
		if got, want := MatchModel(pattern, model), slowMatch(pattern, model); got != want {
			t.Errorf("MatchModel(%q, %q) is %v", pattern, model, got)
		}
	})
}

func TestMatchModelDoesNotAllocate(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { MatchModel("a*b*c*d", "axxbxxcxxd") }); n != 0 {
		t.Errorf("it allocates %v times", n)
	}
}

func TestMatchModelIsQuickOnEvilPatterns(t *testing.T) {
	pattern, model := strings.Repeat("*a", 128), strings.Repeat("a", 100_000)+"b"
	start := time.Now()
	if MatchModel(pattern, model) {
		t.Error("it matches")
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("it took %v", d)
	}
}

func TestNames(t *testing.T) {
	for _, tt := range []struct {
		name string
		ok   bool
	}{
		{"a", true},
		{"Production key #1 (EU)", true},
		{"Ключ", true},
		{"クォータ", true},
		{"café", true},
		{"cafe\u0301", true}, // a combining mark
		{"👍", true},
		{strings.Repeat("a", 128), true},
		{strings.Repeat("ü", 128), true},
		{"", false},
		{strings.Repeat("a", 129), false},
		{strings.Repeat("ü", 129), false},
		{"a/b", false},
		{"/", false},
		{"a\x00b", false},
		{"a\nb", false},
		{"a\tb", false},
		{"\x1b[31m", false},
		{"a\x7fb", false},
		{"a\u0085b", false},       // next line
		{"a\u2028b", false},       // line separator
		{"a\u2029b", false},       // paragraph separator
		{"a\u202eb", false},       // right-to-left override
		{"a\u2066b", false},       // isolate
		{"a\u200bb", false},       // zero-width space
		{"a\ufeffb", false},       // byte order mark
		{"a\u00a0b", false},       // a space that looks like another
		{"a\U000e0041b", false},   // tag
		{"a\ue000b", false},       // private use
		{"a\xffb", false},         // not UTF-8
		{"\xed\xa0\x80", false},   // a surrogate
		{"a\U0010ffffb", false},   // no character
		{"a\ufffdb", true},        // the replacement character, written as itself
		{"lq_\u043e\u0440", true}, // look-alikes are not forbidden
	} {
		err := ValidName(tt.name)
		if (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%.40q: the error is %v", tt.name, err)
		}
		if err != nil && (!Printable(err.Error()) || len(err.Error()) > 300) {
			t.Errorf("%.40q: the error %q cannot be shown", tt.name, err)
		}
	}
}

func TestPrintable(t *testing.T) {
	for _, s := range []string{"", " ", "a/b", "é", "日本"} {
		if !Printable(s) {
			t.Errorf("%q is printable", s)
		}
	}
	for r := range rune(0x20) {
		if Printable("a" + string(r)) {
			t.Errorf("%q is a control character", r)
		}
	}
}

func quotaOf(q Quota) *Quota { return &q }

func TestRulesNameTheFieldThatIsWrong(t *testing.T) {
	good := Quota{Tokens: At(5), Reset: ResetDaily}
	many := make(map[string]string)
	for i := range 65 {
		many[fmt.Sprint(i)] = ""
	}
	for _, tt := range []struct {
		name  string
		rules KeyRules
		want  string // what the error begins with; empty: none
	}{
		{"nothing", KeyRules{}, ""},
		{"all", KeyRules{
			Models: []string{"gpt-*", strings.Repeat("x", 256)}, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
			AlertAt: []float64{0.5, 100, 1000}, Metadata: map[string]string{strings.Repeat("k", 128): strings.Repeat("v", 1024)}, Quota: &good,
		}, ""},
		{"empty pattern", KeyRules{Models: []string{"a", ""}}, "models"},
		{"long pattern", KeyRules{Models: []string{strings.Repeat("x", 257)}}, "models"},
		{"unprintable pattern", KeyRules{Models: []string{"a\u202e"}}, "models"},
		{"no range", KeyRules{AllowedIPs: []netip.Prefix{{}}}, "allowed_ips"},
		{"alert at zero", KeyRules{AlertAt: []float64{0}}, "alert_at"},
		{"alert below zero", KeyRules{AlertAt: []float64{50, -1}}, "alert_at"},
		{"alert above 1000", KeyRules{AlertAt: []float64{1000.1}}, "alert_at"},
		{"alert at no number", KeyRules{AlertAt: []float64{math.NaN()}}, "alert_at"},
		{"alert at infinity", KeyRules{AlertAt: []float64{math.Inf(1)}}, "alert_at"},
		{"much metadata", KeyRules{Metadata: many}, "metadata"},
		{"metadata without name", KeyRules{Metadata: map[string]string{"": "x"}}, "metadata"},
		{"long metadata name", KeyRules{Metadata: map[string]string{strings.Repeat("k", 129): ""}}, "metadata"},
		{"long metadata value", KeyRules{Metadata: map[string]string{"k": strings.Repeat("v", 1025)}}, `metadata "k"`},
		{"unprintable metadata", KeyRules{Metadata: map[string]string{"k": "a\x00"}}, `metadata "k"`},
		{"quota without tokens", KeyRules{Quota: &Quota{Reset: ResetDaily}}, "quota.tokens"},
		{"quota without reset", KeyRules{Quota: &Quota{Tokens: At(5)}}, "quota: reset"},
		{"quota in no zone", KeyRules{Quota: &Quota{Tokens: At(5), Reset: ResetDaily, TimeZone: "x"}}, "quota: time_zone"},
		{"unlimited quota", KeyRules{Quota: &Quota{Tokens: Unlimited}}, ""},
	} {
		err := tt.rules.Validate("UTC")
		if tt.want == "" && err != nil || tt.want != "" && (!errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), tt.want)) {
			t.Errorf("%s: the error is %v, want one about %q", tt.name, err, tt.want)
		}
	}
	for _, tt := range []struct {
		name  string
		rules GroupRules
		want  string
	}{
		{"nothing", GroupRules{}, ""},
		{"all", GroupRules{Quota: &good, Member: Member{Quota: &good}, AlertAt: []float64{1}}, ""},
		{"quota", GroupRules{Quota: quotaOf(Quota{Tokens: At(1), Reset: "x"})}, "quota: reset"},
		{"member", GroupRules{Member: Member{Quota: quotaOf(Quota{Tokens: At(1), Reset: ResetDaily, At: "x"})}}, "member: quota: at"},
		{"alert", GroupRules{AlertAt: []float64{-1}}, "alert_at"},
	} {
		err := tt.rules.Validate("UTC")
		if tt.want == "" && err != nil || tt.want != "" && (!errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), tt.want)) {
			t.Errorf("group, %s: the error is %v, want one about %q", tt.name, err, tt.want)
		}
	}
}

func TestParseExpiry(t *testing.T) {
	for _, tt := range []struct{ in, zone, want string }{
		{"2027-01-01", "UTC", "2027-01-01T00:00:00Z"},
		{"2027-01-01", "", "2027-01-01T00:00:00Z"},
		{"2027-01-01", "America/New_York", "2027-01-01T05:00:00Z"},
		{"2026-09-06", "America/Santiago", "2026-09-06T04:00:00Z"}, // a day without midnight
		{"2026-11-01", "America/Havana", "2026-11-01T04:00:00Z"},   // a day with two
		{"2027-01-01T12:00:00+02:00", "America/New_York", "2027-01-01T10:00:00Z"},
		{"2027-01-01T12:00:00.5Z", "UTC", "2027-01-01T12:00:00.5Z"},
	} {
		got, err := ParseExpiry(tt.in, tt.zone)
		if err != nil || got.Format(time.RFC3339Nano) != tt.want {
			t.Errorf("%s in %q is %s (%v), want %s", tt.in, tt.zone, got.Format(time.RFC3339Nano), err, tt.want)
		}
	}
	for _, in := range []string{"", "tomorrow", "2027-02-30", "2027-1-1", "2027-01-01T12:00:00", "01/02/2027", strings.Repeat("9", 5000)} {
		if got, err := ParseExpiry(in, "UTC"); !errors.Is(err, ErrInvalid) || len(err.Error()) > 300 {
			t.Errorf("%.40q is %v, %v", in, got, err)
		}
	}
	if got, err := ParseExpiry("2027-01-01", "nowhere"); !errors.Is(err, ErrInvalid) {
		t.Errorf("in no zone it is %v, %v", got, err)
	}
}

func TestParseRange(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.0/8":    "10.0.0.0/8",
		"10.1.2.3/8":    "10.0.0.0/8",
		"192.0.2.1":     "192.0.2.1/32",
		"2001:db8::1":   "2001:db8::1/128",
		"2001:db8::/32": "2001:db8::/32",
		"0.0.0.0/0":     "0.0.0.0/0",
	} {
		if got, err := ParseRange(in); err != nil || got.String() != want {
			t.Errorf("%s is %v (%v), want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"", "10.0.0.0/33", "10.0.0", "10.0.0.0/8/8", "fe80::1%eth0", "fe80::%eth0/64", "localhost", "10.0.0.0-10.0.0.9"} {
		if got, err := ParseRange(in); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q is %v, %v", in, got, err)
		}
	}
}

func TestADeletedAccountIsNotLiving(t *testing.T) {
	k, g := Key{}, Group{}
	if !k.Living() || !g.Living() {
		t.Error("what was not deleted is living")
	}
	k.DeletedAt, g.DeletedAt = time.Unix(0, 0), time.Unix(0, 0)
	if k.Living() || g.Living() {
		t.Error("what was deleted is not living")
	}
}
