package ipvs

import (
	"net/netip"

	"vipd/lb"
)

// memory is what is remembered of the kernel.
type memory struct {
	known   bool        // else the kernel has to be read
	applied lb.Snapshot // what was put in place last
	// odd is what stands where it is not what applied says, nil for nothing: services
	// that failed, or may not go yet, or that were read and are to be repaired. Every
	// pass works on them.
	odd map[lb.Key]*standing
	// strangers are keys where a virtual server was found that is not ours. Before the
	// next try somebody has to look.
	strangers map[lb.Key]bool
	witnessed bool // Options.Witness has been asked
}

// forget drops what is remembered of the kernel, because the outcome of a command is
// unknown.
func (m *memory) forget() { m.known = false }

// stands returns what stands of ours under a key.
func (m *memory) stands(k lb.Key) *standing {
	if s, odd := m.odd[k]; odd {
		return s
	}
	return render(m.applied.Get(k))
}

// keeps reports whether flows from a service to a backend may go on. Of a kernel that
// is not known all may.
func (m *memory) keeps(k lb.Key, backend netip.AddrPort) bool {
	if !m.known {
		return true
	}
	if s, odd := m.odd[k]; odd {
		if backend == k.AddrPort() {
			return !takesUp(k, s)
		}
		return s.has(backend)
	}
	s := m.applied.Get(k)
	if backend == k.AddrPort() {
		return !takesUp(k, render(s))
	}
	if s == nil {
		return false
	}
	b, found := s.Backend(backend)
	return found && listed(s, b)
}
