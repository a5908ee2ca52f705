// Package static is the source for services written in the configuration file.
// The file is read by config; this source only holds what was read and tells it
// again after each reload.
package static

import (
	"context"

	"vipd/discovery"
	"vipd/internal/latest"
	"vipd/lb"
)

// Name is the name of the source in the configuration and in Status.
const Name = "static"

// Source publishes a set that its owner changes with Update.
type Source struct {
	set *latest.Cell[discovery.Set]
}

// New returns a source of these services. revision tells this version of the
// file from others.
func New(services []*lb.Spec, revision string) *Source {
	return &Source{set: latest.New(Set(services, revision))}
}

// Update replaces the services. They must be normalized and not change after.
func (s *Source) Update(services []*lb.Spec, revision string) {
	s.set.Set(Set(services, revision))
}

// Set is what the source publishes for these services.
func Set(services []*lb.Spec, revision string) discovery.Set {
	return discovery.Set{Services: services, Verified: true, Revision: revision}
}

// Run implements discovery.Source.
func (s *Source) Run(ctx context.Context, to discovery.Sink) error {
	for {
		to.Publish(s.set.Get())
		select {
		case <-ctx.Done():
			return nil
		case <-s.set.Changed():
		}
	}
}

var _ discovery.Source = (*Source)(nil)
