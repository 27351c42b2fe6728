package quota

import (
	"encoding/json"
	"errors"
	"math"
	"math/big"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBoundJSON(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want Bound
		out  string
	}{
		{`null`, Bound{}, `null`},
		{`"unlimited"`, Unlimited, `"unlimited"`},
		{`"\u0075nlimited"`, Unlimited, `"unlimited"`},
		{`0`, At(0), `0`},
		{`-0`, At(0), `0`},
		{`0.0`, At(0), `0`},
		{`0e99`, At(0), `0`},
		{`1`, At(1), `1`},
		{`2`, At(2), `2`},
		{`1e3`, At(1000), `1000`},
		{`1E+3`, At(1000), `1000`},
		{`1.5e1`, At(15), `15`},
		{`1000e-3`, At(1), `1`},
		{`100.000`, At(100), `100`},
		{` 7 `, At(7), `7`},
		{`9007199254740991`, At(1<<53 - 1), `9007199254740991`},
		{`9007199254740992`, At(1 << 53), `9007199254740992`},
		{`9007199254740992.0`, At(1 << 53), `9007199254740992`},
		{`9.007199254740992e15`, At(1 << 53), `9007199254740992`},
	} {
		var b Bound
		if err := b.UnmarshalJSON([]byte(tt.in)); err != nil || b != tt.want {
			t.Errorf("%s is read as %v (%v), want %v", tt.in, b, err, tt.want)
		}
		if out, err := json.Marshal(b); err != nil || string(out) != tt.out {
			t.Errorf("%v is written as %s (%v), want %s", b, out, err, tt.out)
		}
	}
}

func TestBoundErrorsShowTheValue(t *testing.T) {
	for _, tt := range []struct{ in, shown string }{
		{`-1`, `-1 `},
		{`-1e3`, `-1e3 `},
		{`1.5`, `1.5 `},
		{`1e-1`, `1e-1 `},
		{`15e-1`, `15e-1 `},
		{`1e-400`, `1e-400 `},
		{`1e-99999999999999999999`, `1e-99999999999999999999 `},
		{`9007199254740993`, `9007199254740993 `},
		{`9007199254740993.0`, `9007199254740993.0 `},
		{`9007199254740992.5`, `9007199254740992.5 `},
		{`1.0000000000000000000001`, `1.0000000000000000000001 `},
		{`1e16`, `1e16 `},
		{`1e400`, `1e400 `},
		{`1e99999999999999999999`, `1e99999999999999999999 `},
		{`18446744073709551617`, `18446744073709551617 `},
		{`"5"`, `"5" `},
		{`""`, `"" `},
		{`"Unlimited"`, `"Unlimited" `},
		{`"null"`, `"null" `},
		{`true`, `true `},
		{`[1]`, `[1] `},
		{`{}`, `{} `},
		{``, ` `},
		{`1 2`, `1 2 `},
		{`+1`, `+1 `},
		{`01`, `01 `},
		{`.5`, `.5 `},
		{`0x10`, `0x10 `},
		{`NaN`, `NaN `},
		{"\"\u202e5\"", `\u202e`},
		{"\"\n\"", `\n`},
		{`"` + strings.Repeat("9", 5000) + `"`, `9999...`},
		{strings.Repeat("9", 5000), `9999...`},
	} {
		b := At(77)
		err := b.UnmarshalJSON([]byte(tt.in))
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.shown) || len(err.Error()) > 200 {
			t.Errorf("%.50s: the error is %v, want one that shows %s", tt.in, err, tt.shown)
		}
		if b != At(77) {
			t.Errorf("%.50s is an error and yet read as %v", tt.in, b)
		}
	}
}

func FuzzBound(f *testing.F) {
	for _, seed := range []string{
		`null`, `"unlimited"`, `0`, `-0`, `-1`, `1e3`, `1.5`, `9007199254740992`, `9007199254740993.0`, `1e-400`, `1e999999999`,
		`"5"`, `{"a":[]}`, `00`, `1.50e1`, `1e+15`, "\xff",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var b Bound
		err := json.Unmarshal(in, &b)
		text := strings.Trim(string(in), " \t\r\n")
		if err != nil {
			if len(err.Error()) > 300 {
				t.Errorf("the error is %d bytes long", len(err.Error()))
			}
			if n, ok := exactly(text); ok && n.IsInt() && n.Sign() >= 0 && n.Cmp(big.NewRat(MaxAmount, 1)) <= 0 {
				t.Errorf("%q is refused: %v", text, err)
			}
			return
		}
		if n, ok := exactly(text); ok {
			if max, has := b.Max(); !has || n.Cmp(big.NewRat(max, 1)) != 0 || max < 0 || max > MaxAmount {
				t.Errorf("%q is read as %v", text, b)
			}
		}
		out, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		var again Bound
		if err := json.Unmarshal(out, &again); err != nil || again != b {
			t.Errorf("%v is written as %s, which is read as %v (%v)", b, out, again, err)
		}
	})
}

// exactly reads a JSON number of a size that can be written out.
func exactly(text string) (*big.Rat, bool) {
	if _, exponent, ok := strings.Cut(strings.ToLower(text), "e"); !json.Valid([]byte(text)) ||
		strings.ContainsAny(text, `"[{nft`) || len(text) > 100 || ok && len(strings.TrimLeft(exponent, "+-0")) > 3 {
		return nil, false
	}
	return new(big.Rat).SetString(text)
}

func TestBoundSaysWhatWasSet(t *testing.T) {
	for _, tt := range []struct {
		b      Bound
		set    bool
		max    int64
		hasMax bool
		text   string
	}{
		{Bound{}, false, 0, false, "unset"},
		{Unlimited, true, 0, false, "unlimited"},
		{At(0), true, 0, true, "0"},
		{At(1), true, 1, true, "1"},
		{At(MaxAmount), true, MaxAmount, true, "9007199254740992"},
		{At(-1), true, 0, true, "0"},
		{At(-2), true, 0, true, "0"},
		{At(math.MinInt64), true, 0, true, "0"},
		{At(math.MaxInt64), true, MaxAmount, true, "9007199254740992"},
	} {
		if tt.b.IsSet() != tt.set || tt.b.IsZero() == tt.set {
			t.Errorf("%v: IsSet is %v, IsZero is %v", tt.b, tt.b.IsSet(), tt.b.IsZero())
		}
		if max, ok := tt.b.Max(); ok != tt.hasMax || ok && max != tt.max {
			t.Errorf("%v: Max is %d, %v, want %d, %v", tt.b, max, ok, tt.max, tt.hasMax)
		}
		if got := tt.b.String(); got != tt.text {
			t.Errorf("String is %q, want %q", got, tt.text)
		}
	}
}

func TestWhatIsNotSetIsInherited(t *testing.T) {
	own := Limits{RequestsPerMinute: At(0), TokensPerDay: Unlimited}
	group := Limits{RequestsPerMinute: At(5), TokensPerMinute: At(6), TokensPerDay: At(7), ConcurrentRequests: Unlimited}
	want := Limits{RequestsPerMinute: At(0), TokensPerMinute: At(6), TokensPerDay: Unlimited, ConcurrentRequests: Unlimited}
	if diff := cmp.Diff(want, own.Or(group), cmp.AllowUnexported(Bound{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Each limit must be inherited, and be found by the name it has in JSON.
func TestEveryLimitIsFoundByItsName(t *testing.T) {
	var fields map[string]Bound
	out, err := json.Marshal(Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &fields); err != nil {
		t.Fatal(err)
	}
	if len(fields) != len(LimitNames)-1 {
		t.Errorf("there are %d limits beside the quota, but %d names", len(fields), len(LimitNames)-1)
	}
	for _, name := range LimitNames {
		var l Limits
		b := l.Bound(name)
		if name == TokenQuota {
			if b != nil {
				t.Error("the quota is not among Limits")
			}
			continue
		}
		*b = At(3)
		out, err := json.Marshal(Limits{}.Or(l))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(out), `"`+string(name)+`":3`) {
			t.Errorf("%s is not in %s", name, out)
		}
	}
	if new(Limits).Bound("requests_per_hour") != nil {
		t.Error("an unknown name has a limit")
	}
}
