package quota

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func kinds() *rapid.Generator[Kind] { return rapid.SampledFrom([]Kind{KindKey, KindGroup}) }

func TestIDsGrowWhateverTheClockDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.UnixMilli(rapid.Int64Range(-1e12, 4e12).Draw(t, "start"))
		var last ID
		var lastText [2]string // by kind: the prefixes differ
		for _, step := range rapid.SliceOfN(rapid.OneOf(
			rapid.Just(0), rapid.IntRange(0, 5), rapid.IntRange(-1e9, 1e9),
		), 1, 50).Draw(t, "steps") {
			now = now.Add(time.Duration(step) * time.Millisecond)
			kind := kinds().Draw(t, "kind")
			id := NextID(kind, last, now)
			if id <= last {
				t.Fatalf("after %d comes %d", last, id)
			}
			if id.Kind() != kind {
				t.Fatalf("%s is a %v, want a %v", id, id.Kind(), kind)
			}
			if id.String() <= lastText[kind] {
				t.Fatalf("after %q comes %q", lastText[kind], id)
			}
			a, b := last.Bytes(), id.Bytes()
			if bytes.Compare(a[:], b[:]) >= 0 {
				t.Fatalf("after bytes %x come %x", a, b)
			}
			if back, err := ParseID(id.String()); err != nil || back != id {
				t.Fatalf("%s is read as %d (%v), want %d", id, back, err, id)
			}
			last, lastText[kind] = id, id.String()
		}
	})
}

func TestAMillionIDsOfOneMillisecondDiffer(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	last := NextID(KindGroup, 0, now)
	for range 1_000_000 {
		id := NextID(KindKey, last, now)
		if id <= last {
			t.Fatalf("after %d comes %d", last, id)
		}
		last = id
	}
}

func TestEveryIDIsReadBack(t *testing.T) {
	for _, id := range []ID{1, 2, 3, 31, 32, math.MaxUint64, math.MaxUint64 - 1, 1 << 63} {
		text := id.String()
		if len(text) != 17 {
			t.Errorf("%d is written as %q", uint64(id), text)
		}
		if back, err := ParseID(text); err != nil || back != id {
			t.Errorf("%q is read as %d (%v), want %d", text, uint64(back), err, uint64(id))
		}
	}
}

func TestIDJSON(t *testing.T) {
	type object struct {
		ID    ID `json:"id"`
		Group ID `json:"group"`
	}
	in := object{ID: NextID(KindKey, 0, time.UnixMilli(1_800_000_000_000))}
	out, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"id":"key_` + in.ID.String()[4:] + `","group":""}`; string(out) != want {
		t.Errorf("written as %s, want %s", out, want)
	}
	var back object
	if err := json.Unmarshal(out, &back); err != nil || back != in {
		t.Errorf("read as %+v (%v), want %+v", back, err, in)
	}
	if err := json.Unmarshal([]byte(`{"id":"key_1"}`), &back); !errors.Is(err, ErrInvalid) {
		t.Errorf("a short id: the error is %v", err)
	}
}

func TestBadIDs(t *testing.T) {
	good := NextID(KindKey, 0, time.UnixMilli(1_800_000_000_000)).String()
	for _, in := range []string{
		"key_", "grp_", "k", good[4:], "Key_" + good[4:], "grp_" + good[4:], "key-" + good[4:], " " + good, good + " ", good + "0",
		good[:16], "key_" + strings.ToUpper(good[4:]),
		"key_0000000000000", "grp_0000000000000", // the zero ID
		"key_g000000000002", // 65 bits
		"key_zzzzzzzzzzzzz", "key_000000000000i", "key_000000000000l", "key_000000000000o", "key_000000000000u",
		"key_00000000000\u00e9", "key_000000000000\x00", "key_0000000000001", "grp_0000000000002", strings.Repeat("x", 10_000),
	} {
		id, err := ParseID(in)
		if !errors.Is(err, ErrInvalid) || id != 0 {
			t.Errorf("%.40q is read as %d, %v", in, id, err)
		} else if len(err.Error()) > 300 {
			t.Errorf("the error is %d bytes long", len(err.Error()))
		}
	}
}

func FuzzParseID(f *testing.F) {
	for _, seed := range []string{"", "key_", "key_0000000000002", "grp_0000000000003", "grp_fzzzzzzzzzzzz", "key_gzzzzzzzzzzzz", "key_00000000000\xc3\xa9"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		id, err := ParseID(in)
		if err != nil {
			if id != 0 || !errors.Is(err, ErrInvalid) {
				t.Errorf("%q is read as %d, %v", in, id, err)
			}
			return
		}
		if id.String() != in {
			t.Errorf("%q is read as %q", in, id)
		}
	})
}

func TestKindsHaveNames(t *testing.T) {
	if KindKey.String() != "key" || KindGroup.String() != "group" {
		t.Errorf("the kinds are %v and %v", KindKey, KindGroup)
	}
}
