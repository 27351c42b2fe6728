package quota

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"hash/crc32"
	"regexp"
	"strings"
	"sync"
	"testing"
)

func TestNewSecretsHaveTheirForm(t *testing.T) {
	form := regexp.MustCompile(`^lq_[0-9A-Za-z]{8}_[0-9A-Za-z]{38}$`)
	secrets, prefixes := make(map[string]bool), make(map[string]bool)
	used := make(map[rune]bool)
	const n = 2000
	for range n {
		secret, prefix := NewSecret()
		if !form.MatchString(secret) {
			t.Fatalf("a secret is %q", secret)
		}
		if prefix != secret[:len("lq_")+8] {
			t.Fatalf("the prefix of %q is %q", secret, prefix)
		}
		if Mistyped(secret) {
			t.Fatalf("%q is called mistyped", secret)
		}
		secrets[secret], prefixes[prefix] = true, true
		for _, r := range secret[12:44] {
			used[r] = true
		}
	}
	if len(secrets) != n || len(prefixes) != n {
		t.Errorf("of %d secrets %d differ, of their prefixes %d", n, len(secrets), len(prefixes))
	}
	if len(used) != 62 {
		t.Errorf("only %d characters are used", len(used))
	}
}

// Scanners know the checksum, so that it must stay what it is.
func TestTheChecksumIsCRC32InBase62(t *testing.T) {
	const body = "lq_ab12CD34_0123456789ABCDEFGHIJKLMNOPQRSTUV"
	sum, digits := crc32.ChecksumIEEE([]byte(body)), ""
	for range 6 {
		digits = string("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[sum%62]) + digits
		sum /= 62
	}
	if Mistyped(body + digits) {
		t.Errorf("%s is called mistyped", body+digits)
	}
}

func TestEveryTypingErrorIsSeen(t *testing.T) {
	secret, _ := NewSecret()
	for i := range secret {
		if i < 3 || i == 11 {
			continue // another form
		}
		for _, c := range base62 {
			typed := secret[:i] + string(c) + secret[i+1:]
			if Mistyped(typed) != (typed != secret) {
				t.Fatalf("%q for %q: Mistyped is %v", typed, secret, typed == secret)
			}
		}
		if j := i + 1; j < len(secret) && j != 11 && secret[i] != secret[j] {
			if typed := secret[:i] + secret[j:j+1] + secret[i:i+1] + secret[j+1:]; !Mistyped(typed) {
				t.Fatalf("%q for %q is not seen", typed, secret)
			}
		}
	}
}

func TestOtherFormsAreNotCalledMistyped(t *testing.T) {
	secret, _ := NewSecret()
	for _, s := range []string{
		"", "lq_", "sk-proj-0123456789", secret[:49], secret + "x", "LQ_" + secret[3:], "lk_" + secret[3:],
		secret[:11] + "-" + secret[12:], strings.Repeat("x", 50), strings.Repeat("\xff", 50),
	} {
		if Mistyped(s) {
			t.Errorf("%q is called mistyped", s)
		}
	}
}

func TestImportedPrefix(t *testing.T) {
	own, _ := NewSecret()
	wrong := []byte(own)
	wrong[20] ^= 1
	for _, tt := range []struct {
		name, secret, want string
	}{
		{"of another maker", "sk-proj-0123456789abcd", "sk-p"},
		{"made by another gate", own, own[:11]},
		{"of our length, but not our form", "lq_" + strings.Repeat("x", 47), "lq_x"},
		{"20 characters", strings.Repeat("a", 20), "aaaa"},
		{"512 characters", strings.Repeat("b", 512), "bbbb"},
		{"every visible character", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", `!"#$`},
		{"19 characters", strings.Repeat("a", 19), ""},
		{"513 characters", strings.Repeat("a", 513), ""},
		{"empty", "", ""},
		{"a space", "0123456789 0123456789", ""},
		{"a line end", "01234567890123456789\n", ""},
		{"a control character", "01234567890123456789\x7f", ""},
		{"not ASCII", "0123456789012345678é", ""},
		{"mistyped", string(wrong), ""},
	} {
		got, err := ImportedPrefix(tt.secret)
		if got != tt.want || (err == nil) != (tt.want != "") || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %q, %v, want %q", tt.name, got, err, tt.want)
		}
		if err != nil && tt.secret != "" && strings.Contains(err.Error(), tt.secret[:min(8, len(tt.secret))]) {
			t.Errorf("%s: the error shows the secret: %v", tt.name, err)
		}
	}
}

func TestHashesDependOnKeyAndSecret(t *testing.T) {
	a := HashSecret([]byte("key"), "secret")
	for name, b := range map[string]SecretHash{
		"another secret": HashSecret([]byte("key"), "Secret"),
		"another key":    HashSecret([]byte("Key"), "secret"),
		"no key":         HashSecret(nil, "secret"),
	} {
		if a == b {
			t.Errorf("%s has the same hash", name)
		}
	}
	if b := HashDigest([]byte("key"), sha256.Sum256([]byte("secret"))); a != b {
		t.Error("a secret and its digest have different hashes")
	}
	if a == SecretHash(sha256.Sum256([]byte("secret"))) {
		t.Error("the hash is without key")
	}
}

// TestHasher hashes as HashSecret does, whatever came before, from several
// goroutines.
func TestHasher(t *testing.T) {
	key := []byte("0123456789abcdef0123456789abcdef")
	h := NewHasher(key)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 200 {
				secret := strings.Repeat(string(rune('a'+i)), n*i)
				if h.Hash(secret) != HashSecret(key, secret) {
					t.Errorf("the hash of %d characters differs", len(secret))
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkHasher(b *testing.B) {
	h := NewHasher([]byte("0123456789abcdef0123456789abcdef"))
	secret, _ := NewSecret()
	b.ReportAllocs()
	for b.Loop() {
		h.Hash(secret)
	}
}

func BenchmarkHashSecret(b *testing.B) {
	key := []byte("0123456789abcdef0123456789abcdef")
	secret, _ := NewSecret()
	b.ReportAllocs()
	for b.Loop() {
		HashSecret(key, secret)
	}
}

func TestSecretHashJSON(t *testing.T) {
	h := HashSecret([]byte("key"), "secret")
	out, err := json.Marshal(h)
	if err != nil || len(out) != 66 {
		t.Fatalf("written as %s (%v)", out, err)
	}
	var back SecretHash
	if err := json.Unmarshal(out, &back); err != nil || back != h {
		t.Errorf("%s is read as %x (%v)", out, back, err)
	}
	for _, in := range []string{``, `ab`, strings.Repeat("a", 63), strings.Repeat("a", 65), strings.Repeat("a", 66), strings.Repeat("g", 64), strings.Repeat("a", 10_000)} {
		if err := back.UnmarshalText([]byte(in)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%d digits: the error is %v", len(in), err)
		}
	}
}

func BenchmarkMistyped(b *testing.B) {
	secret, _ := NewSecret()
	b.ReportAllocs()
	for b.Loop() {
		Mistyped(secret)
	}
}
