package badger

// How many tables Badger may have written from memory until they are merged
// into the others: a few, if they are not small beside those, which are written
// anew then; never more than many, for each is looked into by every read.
const (
	compactFew  = 3
	compactMany = 12
)

// compact merges tables, beside all else, when it is time and the disk has room
// for all of them once more. Badger's own compactors would do so at any moment,
// also on a full disk, where the system kills the process that writes to a map.
func (s *Store) compact() {
	var fresh, size uint64
	count := 0
	for _, level := range s.tables.db.Levels() {
		size += uint64(level.Size)
		if level.Level == 0 {
			fresh, count = uint64(level.Size), level.NumTables
		}
	}
	due := count >= compactFew && 4*fresh >= size-fresh || count >= compactMany
	if !due || s.tables.room.require(minFree+size) != nil || s.enter() != nil {
		return
	}
	if !s.compacting.CompareAndSwap(false, true) {
		s.leave()
		return
	}
	go func() {
		defer s.leave()
		defer s.compacting.Store(false)
		if err := s.tables.db.Flatten(1); err != nil {
			s.options.Logger("merging tables: %v", err)
		}
	}()
}
