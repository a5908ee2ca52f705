// Package ipvs serves services by virtual servers of IPVS, the kernel's own load
// balancer: a hash lookup finds the service of a packet, however many there are.
//
// A service is one virtual server, a backend one destination of it. All else that a
// service is (its address, masquerade, client ranges, the refusal of what nobody
// takes) belongs to package vip: the packet filter sees a packet before IPVS does,
// and the set vipd-open4 (vipd-open6) tells which VIP:ports it lets through to it.
// What IPVS needs of the host (net.ipv4.vs.conntrack=1, expire_nodest_conn=1,
// expire_quiescent_template=1) is seen to by Options.Settings, whenever the kernel is
// read.
//
// Invariants:
//   - What is to change is changed in place: a scheduler, a flag, a timeout, a weight
//     never costs a delete and an add. One netlink message a changed object, none for
//     what stays; a pass costs the change, not the services.
//   - Of each service: the virtual server, then destinations that come or change,
//     then those that go. Destinations are written only once the virtual server is
//     known to be ours.
//   - A virtual server carries no mark of its owner. Ours are those in the Journal,
//     which is written before a virtual server is made. Any other is a stranger's: it
//     is never changed, and a service that wants its place is quarantined.
//   - A service the kernel refuses goes back to what stood before the pass.
//   - A service without a destination has no virtual server.
//   - The memory holds no copy of the kernel. It is the snapshot that was put in place
//     and, for the few services that do not stand just so, what stands (memory.odd).
//
// Traps:
//   - UDP and SCTP know no drain: a backend of theirs that may not be used is no
//     destination. IPVS would send a flow on to a destination of weight 0 until it has
//     been silent for minutes; once the destination is gone, and its conntrack entry,
//     the next packet goes elsewhere (expire_nodest_conn).
//   - With a destination the kernel forgets its connections and their conntrack entries
//     (expire_nodest_conn), so they are noted before: idle ends would never hear of it.
//   - Who deletes a virtual server deletes its destinations: one message.
//   - An AddDestination does not ask whose virtual server it is that it finds.
//   - The kernel does not tell of changes. Watch asks.
package ipvs
