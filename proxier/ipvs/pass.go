package ipvs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	vs "vipd/internal/ipvs"
	"vipd/lb"
	"vipd/proxier"
)

// chunkSize is how many services are worked on at a time. It bounds what a pass over
// all of them has in memory.
const chunkSize = 256

// pass makes the kernel equal to a snapshot. It is used once.
type pass struct {
	kernel  Kernel
	journal Journal
	witness func(context.Context) (map[lb.Key]bool, error)
	evict   Evictor
	log     *slog.Logger
	noGUE   bool // see Options
	memory  *memory
	want    lb.Snapshot
	how     proxier.How
	dry     bool // the kernel does nothing and says yes, and so is the journal left alone

	fresh    bool            // the kernel was read
	owned    map[lb.Key]bool // what the journal had then
	failed   map[lb.Key]error
	commands int
}

// job is the work on one service.
type job struct {
	key  lb.Key
	svc  *lb.Service // what is wanted
	was  *standing   // what stood before the pass
	now  *standing   // what stands by now
	goal *standing   // what is to stand
	todo steps       // from now to goal
	err  error       // why svc is not in place

	ours     bool // the virtual server that stands is known to be ours
	stranger bool // the err is that the place is taken
	noted    bool // in the journal, for this pass
}

// run makes the pass. After an error nothing is known of the kernel.
func (p *pass) run(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	switch {
	case p.memory.known && !p.how.Fresh:
	case p.idle():
		p.fresh = true
	default:
		if err := p.read(ctx); err != nil {
			return fmt.Errorf("read the virtual servers: %w", err)
		}
	}
	for keys := range slices.Chunk(p.changed(), chunkSize) {
		if err := p.put(ctx, keys); err != nil {
			return err
		}
	}
	p.memory.applied = p.want
	return nil
}

// idle reports whether nothing of ours stands nor is wanted. A host that has no use for
// IPVS is not asked for it again and again.
func (p *pass) idle() bool {
	for range p.journal.Owned() {
		return false
	}
	return p.memory.known && p.want.Len() == 0 && p.memory.applied.Len() == 0 && len(p.memory.odd) == 0
}

// changed returns the keys under which something else may have to stand, in order.
func (p *pass) changed() (keys []lb.Key) {
	for before, after := range p.want.Diff(p.memory.applied) {
		if after == nil {
			after = before
		}
		keys = append(keys, after.Key)
	}
	if len(p.memory.odd) == 0 {
		return keys
	}
	keys = slices.AppendSeq(keys, maps.Keys(p.memory.odd))
	slices.SortFunc(keys, lb.Key.Compare)
	return slices.Compact(keys)
}

// put brings services into place.
func (p *pass) put(ctx context.Context, keys []lb.Key) error {
	jobs := make([]*job, 0, len(keys))
	for _, k := range keys {
		j, err := p.job(ctx, k)
		if err != nil {
			return err
		}
		jobs = append(jobs, j)
	}
	p.own(jobs)
	if err := p.walk(ctx, jobs); err != nil {
		return err
	}
	for _, j := range jobs {
		if err := p.mend(ctx, j); err != nil {
			return err
		}
		p.settle(j)
	}
	p.disown(jobs)
	return nil
}

// job works out what is to be done for a service. Its error is one of the line to
// the kernel.
func (p *pass) job(ctx context.Context, k lb.Key) (*job, error) {
	stands := p.memory.stands(k)
	j := &job{key: k, svc: p.want.Get(k), was: stands, now: stands, ours: stands != nil}
	if j.svc != nil {
		j.err = p.validate(j.svc)
	}
	if j.err != nil {
		j.goal = stands
		return j, nil
	}
	j.aim(p.how.Prune)
	if j.goal == nil || j.now != nil || !p.memory.strangers[k] {
		return j, nil
	}
	there := true
	if !p.fresh { // else that was seen just now
		var err error
		if _, there, err = p.kernel.Server(ctx, k); err != nil {
			return nil, err
		}
	}
	if there {
		j.taken()
	} else {
		delete(p.memory.strangers, k) // it went
	}
	return j, nil
}

// aim sets what is to stand, and what is to be done for it.
func (j *job) aim(prune bool) {
	j.goal = goalOf(j.now, j.svc, prune)
	j.todo = stepsTo(j.now, j.goal)
}

// taken notes that a virtual server stands there that is not ours.
func (j *job) taken() {
	j.stranger, j.err, j.goal, j.todo = true, strangerError(j.key), j.now, steps{}
}

// walk does the steps of jobs. One that fails is not gone on with.
func (p *pass) walk(ctx context.Context, jobs []*job) error {
	if err := p.do(ctx, jobs, func(j *job) []vs.Command { return j.todo.server }); err != nil {
		return err
	}
	for _, j := range jobs {
		j.ours = j.ours || j.err == nil
	}
	if err := p.do(ctx, jobs, func(j *job) []vs.Command { return j.todo.to }); err != nil {
		return err
	}
	if err := p.noteFlows(ctx, jobs); err != nil {
		return err
	}
	if err := p.do(ctx, jobs, func(j *job) []vs.Command { return j.todo.leave }); err != nil {
		return err
	}
	for _, j := range jobs {
		if j.err == nil {
			j.now = j.goal
		}
	}
	return nil
}

// do carries out one part of the steps of jobs. What the kernel refuses is an error
// of its job; the error of do is one after which nothing is known.
func (p *pass) do(ctx context.Context, jobs []*job, part func(*job) []vs.Command) error {
	var commands []vs.Command
	var whose []*job
	for _, j := range jobs {
		if j.err != nil {
			continue
		}
		for _, c := range part(j) {
			commands, whose = append(commands, c), append(whose, j)
		}
	}
	if len(commands) == 0 {
		return nil
	}
	p.commands += len(commands)
	errs := p.kernel.Do(ctx, commands)
	if err := ctx.Err(); err != nil {
		return err
	}
	for i, err := range errs {
		if j := whose[i]; err != nil && j.err == nil {
			p.refused(j, commands[i], err) // which says what the command was
		}
	}
	return nil
}

// refused notes that the kernel refused a command of a job. A virtual server that stands
// already is a stranger's, unless the journal knows it: then the dump missed it.
func (p *pass) refused(j *job, c vs.Command, err error) {
	switch j.err = err; {
	case c.Op != vs.AddServer || !errors.Is(err, vs.ErrExists):
	case p.owned[j.key]:
		j.ours = true
	default:
		j.taken()
	}
}

// settle notes what came of a job.
func (p *pass) settle(j *job) {
	m := p.memory
	if j.err != nil {
		p.failed[j.key] = j.err
	}
	if j.stranger {
		if m.strangers == nil {
			m.strangers = map[lb.Key]bool{}
		}
		m.strangers[j.key] = true
	}
	if j.err == nil && j.now.equal(render(j.svc)) {
		delete(m.odd, j.key)
	} else {
		if m.odd == nil {
			m.odd = map[lb.Key]*standing{}
		}
		m.odd[j.key] = j.now
	}
	p.endFlows(j)
}
