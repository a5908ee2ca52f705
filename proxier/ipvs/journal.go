package ipvs

import (
	"iter"

	"vipd/lb"
)

// Journal remembers, beyond the life of the process, which virtual servers are ours.
//
// A key is in it from before its virtual server is made until after it was deleted.
// So it may hold keys without a virtual server, but there is none of ours without a
// key. An error does not stop a pass, as everything goes on when the disk is full; it
// is logged, and the set of open VIP:ports is a second witness (Options.Witness).
type Journal interface {
	// Owned yields the keys in it, each once.
	Owned() iter.Seq[lb.Key]
	// Own puts keys in, of which some may be in it.
	Own(keys []lb.Key) error
	// Disown takes keys out, of which some may not be in it.
	Disown(keys []lb.Key) error
}

// own notes that virtual servers of jobs are going to be made.
func (p *pass) own(jobs []*job) {
	var keys []lb.Key
	for _, j := range jobs {
		if j.err == nil && j.now == nil && j.goal != nil {
			j.noted = true
			keys = append(keys, j.key)
		}
	}
	p.note("noted", p.journal.Own, keys)
}

// disown notes that of jobs no virtual server stands that did, or was to.
func (p *pass) disown(jobs []*job) {
	var keys []lb.Key
	for _, j := range jobs {
		if j.now == nil && (j.was != nil || j.noted) {
			keys = append(keys, j.key)
		}
	}
	p.note("taken out", p.journal.Disown, keys)
}

// note writes to the journal, unless the pass is a dry one.
func (p *pass) note(what string, write func([]lb.Key) error, keys []lb.Key) {
	if len(keys) == 0 || p.dry {
		return
	}
	if err := write(keys); err != nil {
		p.log.Warn("virtual servers of ours could not be "+what+" in the journal; after a restart they may be taken for a stranger's, or a stranger's for ours",
			"count", len(keys), "first", keys[0], "error", err)
	}
}
