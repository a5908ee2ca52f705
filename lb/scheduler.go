package lb

import (
	"encoding/json"
	"fmt"
	"slices"
)

// Scheduler names how a new connection chooses its backend, in the words of
// ipvsadm(8). Which of them a mode has is for the mode to say; every mode has RR
// and WRR.
type Scheduler string

// The schedulers. RR, LC and DH ignore weights except 0.
const (
	RR    Scheduler = "rr"    // in turn
	WRR   Scheduler = "wrr"   // by weight
	LC    Scheduler = "lc"    // the least connections
	WLC   Scheduler = "wlc"   // the least connections for its weight
	LBLC  Scheduler = "lblc"  // the same backend for a destination, unless it is overloaded
	LBLCR Scheduler = "lblcr" // the same set of backends for a destination
	DH    Scheduler = "dh"    // hash of the destination
	SH    Scheduler = "sh"    // hash of the source
	SED   Scheduler = "sed"   // the shortest expected delay
	NQ    Scheduler = "nq"    // an idle one, else the shortest expected delay
	FO    Scheduler = "fo"    // the greatest weight
	OVF   Scheduler = "ovf"   // the greatest weight, until it has so many connections
	MH    Scheduler = "mh"    // Maglev's consistent hash of the source
	Twos  Scheduler = "twos"  // the better one of two at random
)

// longNames has the long name of each scheduler, in the words of ipvsadm(8), and
// the order in which they are listed.
var longNames = [...]struct {
	scheduler Scheduler
	long      string
}{
	{RR, "round-robin"},
	{WRR, "weighted-round-robin"},
	{LC, "least-connection"},
	{WLC, "weighted-least-connection"},
	{LBLC, "locality-based-least-connection"},
	{LBLCR, "locality-based-least-connection-with-replication"},
	{DH, "destination-hashing"},
	{SH, "source-hashing"},
	{SED, "shortest-expected-delay"},
	{NQ, "never-queue"},
	{FO, "weighted-failover"},
	{OVF, "weighted-overflow"},
	{MH, "maglev-hashing"},
	{Twos, "twos-choice"},
}

// Schedulers returns every Scheduler.
func Schedulers() []Scheduler {
	all := make([]Scheduler, 0, len(longNames))
	for _, n := range longNames {
		all = append(all, n.scheduler)
	}
	return all
}

// ParseScheduler reads the short or the long name of a scheduler.
func ParseScheduler(s string) (Scheduler, error) {
	for _, n := range longNames {
		if s == string(n.scheduler) || s == n.long {
			return n.scheduler, nil
		}
	}
	return "", fmt.Errorf("unknown scheduler %q; see ipvsadm(8)", s)
}

// LongName returns the long name, or nothing for what is no scheduler.
func (s Scheduler) LongName() string {
	for _, n := range longNames {
		if s == n.scheduler {
			return n.long
		}
	}
	return ""
}

// Hashes reports whether the scheduler hashes the client's address, in a way that
// SchedulerFlags change.
func (s Scheduler) Hashes() bool { return s == SH || s == MH }

// SchedulerFlags change how SH and MH choose. For other schedulers they have no
// meaning and are 0.
type SchedulerFlags uint8

// The flags. They are IP_VS_SVC_F_SCHED_SH_FALLBACK and _MH_FALLBACK (the same bit,
// "flag-1" of ipvsadm), and IP_VS_SVC_F_SCHED_SH_PORT and _MH_PORT ("flag-2"), of
// include/uapi/linux/ip_vs.h.
const (
	FlagFallback SchedulerFlags = 1 << iota // where the chosen backend may get nothing new, another one does
	FlagPort                                // the client's port counts as well
)

// flagNames are the words of the flags, each at the place of its bit.
var flagNames = [...]string{"fallback", "port"}

// Words returns the names of the flags that are set, in their order, each with
// prefix before it: "mh-" gives them as ipvsadm spells them for MH.
func (f SchedulerFlags) Words(prefix string) []string {
	words := []string{}
	for bit, name := range flagNames {
		if f&(1<<bit) != 0 {
			words = append(words, prefix+name)
		}
	}
	return words
}

// MarshalJSON writes the list of the names: ["fallback","port"].
func (f SchedulerFlags) MarshalJSON() ([]byte, error) { return json.Marshal(f.Words("")) }

// UnmarshalJSON reads what MarshalJSON wrote.
func (f *SchedulerFlags) UnmarshalJSON(text []byte) error {
	var words []string
	if err := json.Unmarshal(text, &words); err != nil {
		return err
	}
	*f = 0
	for _, w := range words {
		bit := slices.Index(flagNames[:], w)
		if bit < 0 {
			return fmt.Errorf("unknown scheduler flag %q; use fallback or port", w)
		}
		*f |= 1 << bit
	}
	return nil
}
