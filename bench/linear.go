package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"fmt"

	"vipd/lb"
)

// The rules beside which vipd is measured have the shape that kube-proxy 1.36 gives
// them in iptables mode: one list of all services (KUBE-SERVICES), a chain a
// service that chooses by chance (KUBE-SVC-..), a chain an endpoint that translates
// (KUBE-SEP-..). Names, comments, matches and the order of the lines are those that
// kube-proxy writes for a ClusterIP service with masquerade for all clients.

// kubeBase is what kube-proxy makes once, with its jumps.
const kubeBase = `*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
COMMIT
`

// kubeJumps leads traffic to the services. It comes last where these are loaded in
// pieces, so that the kernel does not check all of them at every piece.
const kubeJumps = `*nat
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
COMMIT
`

// kubeWhole writes all services in one transaction, as kube-proxy does at its start.
func kubeWhole(services []*lb.Spec) []byte {
	var b bytes.Buffer
	b.WriteString("*nat\n:KUBE-SERVICES - [0:0]\n")
	for _, s := range services {
		kubeChains(&b, s)
	}
	for _, s := range services {
		kubeService(&b, s)
		kubeEndpoints(&b, s)
	}
	b.WriteString("COMMIT\n")
	return b.Bytes()
}

// kubeChange writes what kube-proxy does when one service changed: the list, whole,
// and the chains of that service; of none, if changed is nil.
func kubeChange(services []*lb.Spec, changed *lb.Spec) []byte {
	var b bytes.Buffer
	b.WriteString("*nat\n:KUBE-SERVICES - [0:0]\n")
	if changed != nil {
		kubeChains(&b, changed)
	}
	for _, s := range services {
		kubeService(&b, s)
	}
	if changed != nil {
		kubeEndpoints(&b, changed)
	}
	b.WriteString("COMMIT\n")
	return b.Bytes()
}

// kubePieces gives the same rules as kubeWhole in transactions of so many services:
// not as kube-proxy loads them, but in a time that one can wait for. A packet's way
// is the same.
func kubePieces(services []*lb.Spec, size int) [][]byte {
	var pieces [][]byte
	for len(services) > 0 {
		n := min(size, len(services))
		var b bytes.Buffer
		b.WriteString("*nat\n")
		for _, s := range services[:n] {
			kubeChains(&b, s)
		}
		for _, s := range services[:n] {
			kubeService(&b, s)
			kubeEndpoints(&b, s)
		}
		b.WriteString("COMMIT\n")
		pieces = append(pieces, b.Bytes())
		services = services[n:]
	}
	return pieces
}

// kubeChains declares, and so empties, the chains of a service.
func kubeChains(b *bytes.Buffer, s *lb.Spec) {
	fmt.Fprintf(b, ":%s - [0:0]\n", kubeSVC(s))
	for _, e := range s.Backends {
		fmt.Fprintf(b, ":%s - [0:0]\n", kubeSEP(s, e))
	}
}

// kubeService writes the line of a service in the list of all.
func kubeService(b *bytes.Buffer, s *lb.Spec) {
	fmt.Fprintf(b, "-A KUBE-SERVICES -m comment --comment \"%s:http cluster IP\" -m %s -p %[2]s -d %s --dport %d -j %s\n",
		s.Name, s.Key.Protocol, s.Key.Addr, s.Key.Port, kubeSVC(s))
}

// kubeEndpoints writes the chain of a service and those of its endpoints.
func kubeEndpoints(b *bytes.Buffer, s *lb.Spec) {
	svc := kubeSVC(s)
	fmt.Fprintf(b, "-A %s -m comment --comment \"%s:http cluster IP\" -m %s -p %[3]s -d %s --dport %d -j KUBE-MARK-MASQ\n",
		svc, s.Name, s.Key.Protocol, s.Key.Addr, s.Key.Port)
	for i, e := range s.Backends {
		fmt.Fprintf(b, "-A %s -m comment --comment \"%s:http -> %s\"", svc, s.Name, e.Addr)
		if left := len(s.Backends) - i; left > 1 {
			fmt.Fprintf(b, " -m statistic --mode random --probability %0.10f", 1/float64(left))
		}
		fmt.Fprintf(b, " -j %s\n", kubeSEP(s, e))
	}
	for _, e := range s.Backends {
		sep := kubeSEP(s, e)
		fmt.Fprintf(b, "-A %s -m comment --comment %s:http -s %s -j KUBE-MARK-MASQ\n", sep, s.Name, e.Addr.Addr())
		fmt.Fprintf(b, "-A %s -m comment --comment %s:http -m %s -p %[3]s -j DNAT --to-destination %s\n", sep, s.Name, s.Key.Protocol, e.Addr)
	}
}

func kubeSVC(s *lb.Spec) string {
	return kubeName("KUBE-SVC-", s.Name+":http"+s.Key.Protocol.String())
}

func kubeSEP(s *lb.Spec, e lb.BackendSpec) string {
	return kubeName("KUBE-SEP-", s.Name+":http"+s.Key.Protocol.String()+e.Addr.String())
}

func kubeName(prefix, what string) string {
	sum := sha256.Sum256([]byte(what))
	return prefix + base32.StdEncoding.EncodeToString(sum[:])[:16]
}
