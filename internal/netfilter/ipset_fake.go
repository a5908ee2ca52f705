package netfilter

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
)

// FakeSets is a Sets in memory, for tests. It is strict: an entry that its set
// type cannot hold, a set that is not there, or a set whose type differs is
// refused, as by the kernel. Its methods may be used at the same time; InUse and
// what Entries calls must not use it.
type FakeSets struct {
	InUse func(name string) bool            // whether a rule names the set; nil: none does
	Odd   map[string]int                    // by set: maxelem, if somebody else made it
	Full  map[string]int                    // by set: how many entries it takes, in place of maxElements
	Fail  func(op string, set string) error // injects a failure before op ("add", "entries"...); may be nil

	mu      sync.Mutex
	sets    map[string]Set
	buckets map[string]int
	holds   map[string]map[Entry]struct{}
}

var _ Sets = (*FakeSets)(nil)

// NewFakeSets returns a fake kernel without sets.
func NewFakeSets() *FakeSets {
	return &FakeSets{Odd: map[string]int{}, Full: map[string]int{}, sets: map[string]Set{}, buckets: map[string]int{}, holds: map[string]map[Entry]struct{}{}}
}

// SetFull says how many entries a set takes from now on; 0: as many as a real one.
func (f *FakeSets) SetFull(name string, entries int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.Full[name] = entries; entries == 0 {
		delete(f.Full, name)
	}
}

// Dump returns every set of the fake with its entries, sorted, one a line.
func (f *FakeSets) Dump() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(f.sets)) {
		lines = append(lines, fmt.Sprintf("set %s %s %s", name, f.sets[name].Type, f.sets[name].Family))
		for _, e := range slices.SortedFunc(maps.Keys(f.holds[name]), Entry.Compare) {
			lines = append(lines, fmt.Sprintf("%s %s", name, e))
		}
	}
	return lines
}

// List returns all sets.
func (f *FakeSets) List(ctx context.Context) ([]SetInfo, error) {
	if err := f.begin(ctx, "list", ""); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var sets []SetInfo
	for _, name := range slices.Sorted(maps.Keys(f.sets)) {
		info := SetInfo{Set: f.sets[name], Entries: len(f.holds[name]), Max: f.limit(name), Buckets: f.buckets[name]}
		if n, odd := f.Odd[name]; odd {
			info.Odd = fmt.Sprintf("maxelem %d", n)
		}
		sets = append(sets, info)
	}
	return sets, nil
}

// Create makes the set unless it is there.
func (f *FakeSets) Create(ctx context.Context, set Set) error {
	if err := f.begin(ctx, "create", set.Name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if old, found := f.sets[set.Name]; found {
		if old != set {
			return fmt.Errorf("create ipset %s: %w", set.Name, ErrSetType)
		}
		return nil
	}
	f.sets[set.Name] = set
	f.buckets[set.Name] = fakeBuckets
	f.holds[set.Name] = map[Entry]struct{}{}
	return nil
}

// Replace puts a new set in the place of an odd one.
func (f *FakeSets) Replace(ctx context.Context, set Set, entries []Entry) error {
	if err := f.begin(ctx, "replace", set.Name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.same(set); err != nil {
		return err
	}
	holds := map[Entry]struct{}{}
	for _, e := range entries {
		if err := set.check(e); err != nil {
			return err
		}
		holds[e] = struct{}{}
	}
	f.holds[set.Name] = holds
	delete(f.Odd, set.Name)
	return nil
}

// Entries calls each for what the set holds.
func (f *FakeSets) Entries(ctx context.Context, set Set, each func(Entry)) error {
	if err := f.begin(ctx, "entries", set.Name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.same(set); err != nil {
		return err
	}
	for e := range f.holds[set.Name] {
		each(e)
	}
	return nil
}

// Size returns how many entries the set holds.
func (f *FakeSets) Size(ctx context.Context, set Set) (int, error) {
	if err := f.begin(ctx, "size", set.Name); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.holds[set.Name]), f.same(set)
}

// Add adds the entries that the set does not hold.
func (f *FakeSets) Add(ctx context.Context, set Set, entries []Entry) error {
	if err := f.begin(ctx, "add", set.Name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.same(set); err != nil {
		return err
	}
	for _, e := range entries {
		if err := set.check(e); err != nil {
			return err
		}
		if _, found := f.holds[set.Name][e]; found {
			continue
		}
		if len(f.holds[set.Name]) >= f.limit(set.Name) {
			return fmt.Errorf("add to ipset %s: %w", set.Name, ErrSetFull)
		}
		f.holds[set.Name][e] = struct{}{}
	}
	return nil
}

// Delete removes the entries that the set holds.
func (f *FakeSets) Delete(ctx context.Context, set Set, entries []Entry) error {
	if err := f.begin(ctx, "delete", set.Name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.same(set); err != nil {
		return err
	}
	for _, e := range entries {
		if err := set.check(e); err != nil {
			return err
		}
		delete(f.holds[set.Name], e)
	}
	return nil
}

// Destroy removes the set if it is there.
func (f *FakeSets) Destroy(ctx context.Context, name string) error {
	if err := f.begin(ctx, "destroy", name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, found := f.sets[name]; !found {
		return nil
	}
	if f.InUse != nil && f.InUse(name) {
		return fmt.Errorf("destroy ipset %s: %w", name, ErrSetInUse)
	}
	delete(f.sets, name)
	delete(f.holds, name)
	delete(f.Odd, name)
	return nil
}

// fakeBuckets is how many buckets a set of the fake has, but one of clients.
const fakeBuckets = 1024

// limit returns how many entries a set takes.
func (f *FakeSets) limit(name string) int {
	for _, limits := range []map[string]int{f.Odd, f.Full} {
		if n, found := limits[name]; found {
			return n
		}
	}
	return maxElements
}

func (f *FakeSets) begin(ctx context.Context, op, set string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if f.Fail != nil {
		return f.Fail(op, set)
	}
	return nil
}

func (f *FakeSets) same(set Set) error {
	old, found := f.sets[set.Name]
	if !found {
		return fmt.Errorf("ipset %s: %w", set.Name, ErrNoSet)
	}
	if old != set {
		return fmt.Errorf("ipset %s: %w", set.Name, ErrSetType)
	}
	return nil
}
