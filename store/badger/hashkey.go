package badger

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

const (
	hashKeyName = "hash.key"
	// hashKeySize is the length of the key of the secrets' hashes.
	hashKeySize = 32
)

// errHashKey says that no key's secret can be recognised. The tables are sound,
// so somebody must decide.
var errHashKey = errors.New("restore it, or no key's secret can be recognised")

// hashKey returns the key of the secrets' hashes. known says that the tables
// were made with one, of which check is what they keep of it: then another one
// is replaced by what a snapshot has. Else a key is made if there is none.
func (h *healer) hashKey(known bool, check uint32) ([]byte, error) {
	path := filepath.Join(h.dir, hashKeyName)
	key, err := readHashKey(path)
	if err == nil && known && hashKeyCheck(key) != check {
		err = fmt.Errorf("%s is not the one that this store was made with: %w", hashKeyName, errHashKey)
	}
	switch {
	case err == nil:
		return key, nil
	case !errors.Is(err, errHashKey):
		return nil, err
	case known:
		if key = h.keyFromSnapshot(check); key == nil {
			return nil, err
		}
		return key, h.replaceHashKey(key, err)
	}
	key = make([]byte, hashKeySize)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("making %s: %w", hashKeyName, err)
	}
	if exists(path) {
		err = h.replaceHashKey(key, err)
	} else {
		err = writeFile(path, key)
	}
	if err != nil {
		return nil, fmt.Errorf("making %s: %w", hashKeyName, err)
	}
	return key, nil
}

func readHashKey(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("%s is missing: %w", hashKeyName, errHashKey)
	case err == nil && len(b) != hashKeySize:
		return nil, fmt.Errorf("%s has %d bytes, not %d: %w", hashKeyName, len(b), hashKeySize, errHashKey)
	}
	return b, err
}

// replaceHashKey puts a key in the place of one that is not the right one.
func (h *healer) replaceHashKey(key []byte, cause error) error {
	h.losses.tell(&note{
		found: cause.Error(),
		did:   "What was there was put beside a note like this one, and in its place the one of a snapshot, or, for tables that are empty, a new one.",
		lost:  "Nothing but what other notes tell of.",
		to:    "Find out who changed the file.",
	})
	path := filepath.Join(h.dir, hashKeyName)
	if exists(path) {
		place, err := newPlace(h.dir, h.losses.now())
		if err == nil {
			err = putAway(path, place, h.fault)
		}
		if err != nil {
			return err
		}
	}
	return writeFile(path, key)
}
