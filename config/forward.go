package config

import (
	"vipd/lb"
)

// guePort is the port that IANA has assigned to GUE.
const guePort = 6080

func readForward(n node) (lb.Forward, bool) {
	w, ok := n.word(lb.ForwardNAT.String(), lb.ForwardDR.String(), lb.ForwardTunnel.String())
	if !ok {
		return 0, false
	}
	f, err := lb.ParseForward(w)
	return f, err == nil
}

func readTunnel(n node) (lb.TunnelType, bool) {
	w, ok := n.word(lb.TunnelIPIP.String(), lb.TunnelGUE.String())
	if !ok {
		return 0, false
	}
	t, err := lb.ParseTunnelType(w)
	return t, err == nil
}

// forward reads how packets get to the backends of a service.
func (p *parser) forward(e *entry) {
	e.forward = p.config.Defaults.Forward
	if n, found := e.at.field("forward"); found {
		f, ok := readForward(n)
		if !ok {
			return // what belongs to it cannot be judged
		}
		e.forward = f
	}
	if n, found := e.at.field("tunnel"); found && e.forward != lb.ForwardTunnel {
		n.failKey(`tunnel goes with forward = "tunnel", not with %s; remove it, or change forward`, e.forward)
		return
	}
	if optional(e.at, "tunnel", readTunnel, &e.tunnel.Type); e.tunnel.Type == lb.TunnelGUE {
		e.tunnel.Port = guePort
	}
	if n, found := e.at.field("tunnel_port"); found && e.tunnel.Type != lb.TunnelGUE {
		n.failKey(`tunnel_port goes with tunnel = "gue" only; remove it`)
		return
	}
	optional(e.at, "tunnel_port", readPort, &e.tunnel.Port)
}

// masquerade reads whose address the backends see. Where they answer the client
// themselves there is nothing to choose.
func (p *parser) masquerade(e *entry) {
	e.masquerade = p.config.Defaults.Masquerade
	own := optional(e.at, "masquerade", readMasquerade, &e.masquerade)
	if e.forward == lb.ForwardNAT {
		return
	}
	if n, _ := e.at.field("masquerade"); own && e.masquerade != lb.MasqueradeNever {
		n.fail(`with forward %s backends answer the client themselves and nothing can be masqueraded; write "never" or remove it`, e.forward)
	}
	e.masquerade = lb.MasqueradeNever
}

// checkForward reports a way of forwarding that no mode in question knows.
func (p *parser) checkForward(n node, m lb.Mode, f lb.Forward) bool {
	return f == lb.ForwardNAT || p.checkWord(n, m, "forward", f.String(), func(c Capability) []string {
		words := make([]string, len(c.Forwards))
		for i, can := range c.Forwards {
			words[i] = can.String()
		}
		return words
	})
}

// checkForwardPorts reports the backends whose port is not that of the service,
// where a packet gets to them as the client sent it.
func (e *entry) checkForwardPorts() {
	if e.forward == lb.ForwardNAT {
		return
	}
	for _, b := range e.backends {
		for _, port := range e.ports {
			if b.v.port != 0 && b.v.port != port.v {
				b.at.fail("forward %s does not change the port: backend %s gets packets for port %d, not %d; name the backend without a port",
					e.forward, b.v.addr, port.v, b.v.port)
				break
			}
		}
	}
}
