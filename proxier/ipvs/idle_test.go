package ipvs

import (
	"context"
	"errors"
	"testing"

	vs "vipd/internal/ipvs"
	"vipd/lb"
	"vipd/proxier"
)

// goneKernel is a kernel whose IPVS may go away.
type goneKernel struct {
	*vs.Fake
	gone bool
	asks int // to list the virtual servers
}

func (k *goneKernel) Servers(ctx context.Context, each func(vs.Server) error) error {
	if k.asks++; k.gone {
		return vs.ErrUnsupported
	}
	return k.Fake.Servers(ctx, each)
}

func (k *goneKernel) Server(ctx context.Context, key lb.Key) (vs.Server, bool, error) {
	if k.gone {
		return vs.Server{}, false, vs.ErrUnsupported
	}
	return k.Fake.Server(ctx, key)
}

func (k *goneKernel) Do(ctx context.Context, commands []vs.Command) []error {
	if !k.gone {
		return k.Fake.Do(ctx, commands)
	}
	errs := make([]error, len(commands))
	for i := range errs {
		errs[i] = vs.ErrUnsupported
	}
	return errs
}

// An IPVS that goes away is an error of every pass that needs it, and of none that does
// not; when it is back, empty, all is made again.
func TestF92_IPVSThatGoesAwayIsToldAndFilledAgain(t *testing.T) {
	k := &goneKernel{Fake: vs.NewFake()}
	h := newHarness(k)
	p := h.proxier()
	fresh := proxier.How{Fresh: true, Prune: true}
	sync := func(want lb.Snapshot, how proxier.How, wrong bool) {
		t.Helper()
		err := p.Sync(t.Context(), want, how)
		if _, partial := proxier.FailedServices(err); errors.Is(err, vs.ErrUnsupported) != wrong || err == nil == wrong || partial {
			t.Fatalf("gone: %t, error: %v", k.gone, err)
		}
	}
	sync(many(3), fresh, false)
	full := h.State(t)
	k.gone = true
	sync(many(4), prune, true)
	sync(many(3), fresh, true)
	k.gone, k.Fake = false, vs.NewFake()
	sync(many(3), prune, false)
	if got := h.State(t); got != full {
		t.Errorf("back again there is\n%s\nwant\n%s", got, full)
	}
	sync(lb.Snapshot{}, fresh, false)
	k.gone, k.asks = true, 0
	if sync(lb.Snapshot{}, fresh, false); k.asks != 0 {
		t.Errorf("asked %d times for virtual servers, of which nobody wants any", k.asks)
	}
	sync(many(1), prune, true)
}
