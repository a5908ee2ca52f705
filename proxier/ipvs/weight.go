package ipvs

import "vipd/lb"

// placesSH is how many places the table of scheduler sh has (CONFIG_IP_VS_SH_TAB_BITS
// is 8 unless somebody chose otherwise).
const placesSH = 256

// weights returns what the weights of a service are in the kernel: for most schedulers
// what they are. SH hands out the places of its table in turn, to each destination as
// many as its weight says, until there are no more (ip_vs_sh_reassign in the kernel's
// net/netfilter/ipvs/ip_vs_sh.c): of four with a weight of 100 the third would get half
// of its share and the fourth nothing. MH scales for itself, the others count on.
func weights(s *lb.Service) func(weight uint16) uint32 {
	var sum, divisor uint64
	for _, b := range s.Backends {
		if b.Usable() {
			sum += uint64(b.Weight)
			divisor = gcd(divisor, uint64(b.Weight))
		}
	}
	return func(weight uint16) uint32 {
		switch w := uint64(weight); {
		case s.Scheduler != lb.SH:
			return uint32(weight)
		case sum/divisor <= placesSH:
			return uint32(w / divisor)
		default:
			return uint32(max(1, w*placesSH/sum))
		}
	}
}

// gcd returns the greatest common divisor; that of 0 and b is b.
func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
