package lb

import "slices"

// Editor builds a Snapshot from another one. It copies a chunk when it first
// touches it, and only then; the Snapshot it began with stays as it is. An
// Editor belongs to one goroutine.
type Editor struct {
	s      Snapshot
	own    map[*chunk]bool // chunks made by this Editor, free to change in place
	copied bool            // whether s.chunks is this Editor's
}

// Edit returns an Editor that begins with s.
func (s Snapshot) Edit() *Editor { return &Editor{s: s, own: map[*chunk]bool{}} }

// Snapshot returns the result. The Editor can go on; what it returned stays.
func (e *Editor) Snapshot() Snapshot {
	clear(e.own)
	e.copied = false
	return e.s
}

// Put adds svc, in place of the service of the same Key if there is one. An
// equal service stays, pointer and all, so that putting it again is no change.
func (e *Editor) Put(svc *Service) {
	if len(e.s.chunks) == 0 {
		e.insertChunk(0, &chunk{services: []*Service{svc}})
		e.s.size++
		return
	}
	ci := max(e.s.find(svc.Key), 0)
	i, found := e.s.chunks[ci].find(svc.Key)
	if found {
		if !e.s.chunks[ci].services[i].Equal(svc) {
			e.writable(ci).services[i] = svc
		}
		return
	}
	c := e.writable(ci)
	c.services = slices.Insert(c.services, i, svc)
	e.s.size++
	if len(c.services) > chunkSize {
		e.split(ci, i)
	}
}

// split divides chunk ci in two. A service that was appended at the end of the
// last chunk starts a new one, so that sorted input fills chunks to the brim.
func (e *Editor) split(ci, inserted int) {
	c := e.s.chunks[ci]
	at := len(c.services) / 2
	if ci == len(e.s.chunks)-1 && inserted == len(c.services)-1 {
		at = inserted
	}
	tail := &chunk{services: slices.Clone(c.services[at:])}
	clear(c.services[at:])
	c.services = c.services[:at]
	e.insertChunk(ci+1, tail)
}

// Delete removes the service of that Key; it is no error if there is none.
func (e *Editor) Delete(k Key) {
	ci := e.s.find(k)
	if ci < 0 {
		return
	}
	i, found := e.s.chunks[ci].find(k)
	if !found {
		return
	}
	e.s.size--
	if len(e.s.chunks[ci].services) == 1 {
		e.ownChunks()
		e.s.chunks = slices.Delete(e.s.chunks, ci, ci+1)
		return
	}
	c := e.writable(ci)
	c.services = slices.Delete(c.services, i, i+1)
}

// writable returns chunk ci as one that this Editor may change.
func (e *Editor) writable(ci int) *chunk {
	c := e.s.chunks[ci]
	if e.own[c] {
		return c
	}
	c = &chunk{services: append(make([]*Service, 0, len(c.services)+1), c.services...)}
	e.ownChunks()
	e.s.chunks[ci] = c
	e.own[c] = true
	return c
}

func (e *Editor) insertChunk(at int, c *chunk) {
	e.ownChunks()
	e.s.chunks = slices.Insert(e.s.chunks, at, c)
	e.own[c] = true
}

func (e *Editor) ownChunks() {
	if !e.copied {
		e.s.chunks = slices.Clone(e.s.chunks)
		e.copied = true
	}
}
