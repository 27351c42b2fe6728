package badger

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"
)

// The mark is a file beside Badger with the number of the tables' last change
// and that of the last record which surely is on the disk. Badger passes over
// the end of a damaged log in silence, and a damaged last record of the journal
// looks like one that a crash has torn; by the mark they are seen.
//
//	number of the change (8), number of the record (8), CRC-32C of them (4)
//
// The first version had no number of a record.
const (
	markName    = "tables.mark"
	markSize    = 20
	oldMarkSize = 12
)

type mark struct {
	fault Fault
	log   func(format string, args ...any)

	mu      sync.Mutex
	f       *os.File
	commit  uint64
	durable uint64
}

// readMark returns what the mark in dir says, zeros if there is none or it is
// damaged.
func readMark(dir string) (commit, durable uint64) {
	b, err := os.ReadFile(filepath.Join(dir, markName))
	if err != nil || (len(b) != markSize && len(b) != oldMarkSize) {
		return 0, 0
	}
	n := len(b) - 4
	if crc32.Checksum(b[:n], castagnoli) != binary.BigEndian.Uint32(b[n:]) {
		return 0, 0
	}
	if commit = binary.BigEndian.Uint64(b); len(b) == markSize {
		durable = binary.BigEndian.Uint64(b[8:])
	}
	return commit, durable
}

func encodeMark(commit, durable uint64) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, markSize), commit)
	b = binary.BigEndian.AppendUint64(b, durable)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// openMark opens the mark in dir, or makes it.
func openMark(dir string, log func(string, ...any), fault Fault) (*mark, error) {
	m := &mark{fault: fault, log: log}
	m.commit, m.durable = readMark(dir)
	var err error
	m.f, err = os.OpenFile(filepath.Join(dir, markName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the tables' mark: %w", err)
	}
	return m, nil
}

// changed notes the number of a change.
func (m *mark) changed(commit uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.commit = commit
	m.write()
}

// synced notes that the records up to that one are on the disk.
func (m *mark) synced(durable uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if durable > m.durable {
		m.durable = durable
		m.write()
	}
}

func (m *mark) write() {
	if err := m.fault.step(StepMark, m.f.Name(), func() error {
		_, err := m.f.WriteAt(encodeMark(m.commit, m.durable), 0)
		return err
	}); err != nil {
		m.log("writing the tables' mark: %v", err) // what it tells of is safe
	}
}

// last returns the number of the last change.
func (m *mark) last() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.commit
}
