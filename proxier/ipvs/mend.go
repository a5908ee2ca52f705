package ipvs

import (
	"context"
	"errors"
	"fmt"

	vs "vipd/internal/ipvs"
)

// mend deals with a job of which a command failed. Somebody else may have changed what
// is ours, or the line broken off: so it is tried once more, from what stands by now. If
// the service is guilty, what stood before the pass is put back. To read one service
// costs two messages. The error is one after which nothing is known.
func (p *pass) mend(ctx context.Context, j *job) error {
	if j.err == nil || j.todo.empty() { // nothing was done
		return nil
	}
	if !errors.Is(j.err, vs.ErrNoScheduler) {
		if err := p.readOne(ctx, j); err != nil {
			return err
		}
		if j.stranger {
			return nil
		}
		j.err = nil
		j.aim(p.how.Prune)
		if err := p.walk(ctx, []*job{j}); err != nil {
			return err
		}
	}
	if j.err == nil || j.stranger {
		return nil
	}
	return p.goBack(ctx, j)
}

// goBack puts back what stood before the pass.
func (p *pass) goBack(ctx context.Context, j *job) error {
	if err := p.readOne(ctx, j); err != nil || j.stranger {
		return err
	}
	why := j.err
	j.err, j.goal, j.todo = nil, j.was, stepsTo(j.now, j.was)
	if err := p.walk(ctx, []*job{j}); err != nil {
		return err
	}
	if j.err == nil {
		j.err = why
		return nil
	}
	j.err = fmt.Errorf("%w; and what stood before cannot be put back: %w", why, j.err)
	return p.readOne(ctx, j)
}

func (s steps) empty() bool { return len(s.server)+len(s.to)+len(s.leave) == 0 }

// readOne reads what stands of one service. If nobody knows whether its virtual server
// was made, one that is as it was to be, without destinations, is it.
func (p *pass) readOne(ctx context.Context, j *job) error {
	stands, err := p.readServer(ctx, j.key)
	if err != nil {
		return fmt.Errorf("read virtual server %s: %w", j.key, err)
	}
	if stands != nil && !j.ours && !stands.equal(&standing{server: j.goal.server}) {
		j.taken()
		return nil
	}
	j.now, j.ours = stands, j.ours || stands != nil
	return nil
}
