package quota

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"hash/crc32"
	"math/big"
	"strings"
	"sync"
)

// SecretHash is what is kept of a secret: HMAC-SHA-256, under a key that each
// store makes for itself, of the secret's SHA-256.
type SecretHash [sha256.Size]byte

// MarshalText writes the hash in hexadecimal digits.
func (h SecretHash) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h[:])), nil }

// UnmarshalText reads hexadecimal digits.
func (h *SecretHash) UnmarshalText(b []byte) error {
	if len(b) != hex.EncodedLen(len(h)) { // more would make Decode panic
		return fmt.Errorf("secret hash is not %d hexadecimal digits: %w", hex.EncodedLen(len(h)), ErrInvalid)
	}
	if _, err := hex.Decode(h[:], b); err != nil {
		return fmt.Errorf("secret hash is not hexadecimal: %w", ErrInvalid)
	}
	return nil
}

// HashSecret returns the keyed hash of a secret.
func HashSecret(key []byte, secret string) SecretHash {
	return HashDigest(key, sha256.Sum256([]byte(secret)))
}

// HashDigest returns the keyed hash of the secret whose SHA-256 is digest.
func HashDigest(key []byte, digest [sha256.Size]byte) SecretHash {
	m := hmac.New(sha256.New, key)
	m.Write(digest[:])
	var h SecretHash
	m.Sum(h[:0])
	return h
}

// Hasher computes what HashSecret does under one key, again and again, without
// allocating. Its methods may be called from several goroutines.
type Hasher struct{ macs sync.Pool }

// mac is the state of one computation.
type mac struct {
	hash.Hash
	secret [maxSecret]byte
	digest [sha256.Size]byte
	sum    SecretHash
}

// NewHasher returns the Hasher of a key.
func NewHasher(key []byte) *Hasher {
	h := new(Hasher)
	h.macs.New = func() any { return &mac{Hash: hmac.New(sha256.New, key)} }
	return h
}

// Hash returns the keyed hash of a secret.
func (h *Hasher) Hash(secret string) SecretHash {
	m := h.macs.Get().(*mac)
	defer h.macs.Put(m)
	if n := copy(m.secret[:], secret); n == len(secret) {
		m.digest = sha256.Sum256(m.secret[:n])
		clear(m.secret[:n])
	} else { // no secret is so long
		m.digest = sha256.Sum256([]byte(secret))
	}
	m.Reset()
	m.Write(m.digest[:])
	m.Sum(m.sum[:0])
	return m.sum
}

// A secret made here is "lq_", 8 characters that may be shown, "_", 32 random
// characters and 6 of checksum (CRC-32 of all before it): the form that GitHub
// made known, by which a scanner finds a leaked key and a typing error is seen
// without a look into the store.
const (
	secretTag      = "lq_"
	secretShown    = 8
	secretRandom   = 32
	secretChecksum = 6
	secretLen      = len(secretTag) + secretShown + 1 + secretRandom + secretChecksum
	maxSecret      = 512 // of one that is imported
	base62         = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// NewSecret returns a new secret and the prefix of it that may be shown.
func NewSecret() (secret, prefix string) {
	b := make([]byte, 0, secretLen)
	b = append(b, secretTag...)
	b = appendRandom(b, secretShown)
	prefix = string(b)
	b = append(b, '_')
	b = appendRandom(b, secretRandom)
	return string(appendChecksum(b)), prefix
}

func appendRandom(b []byte, n int) []byte {
	for range n {
		d, err := rand.Int(rand.Reader, big.NewInt(int64(len(base62))))
		if err != nil { // crypto/rand never fails on the systems Go runs on
			panic(err)
		}
		b = append(b, base62[d.Int64()])
	}
	return b
}

func appendChecksum(b []byte) []byte {
	sum := crc32.ChecksumIEEE(b)
	var digits [secretChecksum]byte
	for i := len(digits) - 1; i >= 0; i-- {
		digits[i] = base62[sum%62]
		sum /= 62
	}
	return append(b, digits[:]...)
}

// ourForm tells whether s looks like a secret made here.
func ourForm(s string) bool {
	return len(s) == secretLen && strings.HasPrefix(s, secretTag) && s[len(secretTag)+secretShown] == '_'
}

// Mistyped tells whether s has the form of our own secrets but not their
// checksum, so that no store need be asked.
func Mistyped(s string) bool {
	return ourForm(s) && string(appendChecksum([]byte(s[:secretLen-secretChecksum]))) != s
}

// ImportedPrefix returns what may be shown of a secret that was brought along
// (4 characters, or the prefix of one in our own form), or an error unless it
// is 20 to 512 visible ASCII characters. A mistyped one is refused, since it
// would be refused at every call too.
func ImportedPrefix(secret string) (string, error) {
	if len(secret) < 20 || len(secret) > maxSecret {
		return "", fmt.Errorf("secret is not 20 to 512 visible ASCII characters: %w", ErrInvalid)
	}
	for i := range len(secret) {
		if secret[i] <= ' ' || secret[i] > '~' {
			return "", fmt.Errorf("secret is not 20 to 512 visible ASCII characters: %w", ErrInvalid)
		}
	}
	if Mistyped(secret) {
		return "", fmt.Errorf("secret has the form of one made here, but not its checksum: %w", ErrInvalid)
	}
	if ourForm(secret) {
		return secret[:len(secretTag)+secretShown], nil
	}
	return secret[:4], nil
}
