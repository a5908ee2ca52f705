//go:build kernel

package ipvs

import (
	"errors"
	"strings"
	"testing"

	moby "github.com/moby/ipvs"

	"vipd/internal/kerneltest"
)

// A kernel without IPVS is found to have none, and what to do is said, though it
// answers the list of another reader with success and nothing in it.
//
//lane:vm
func TestAKernelWithoutIPVSIsFoundToHaveNone(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	kerneltest.Without(t, kerneltest.IPVS())
	support, err := Probe(t.Context())
	if err != nil || support.Yes || !strings.Contains(support.Reason, "modprobe ip_vs") {
		t.Errorf("%+v, %v", support, err)
	}
	if h, err := Open(t.Context()); !errors.Is(err, ErrUnsupported) {
		t.Errorf("opened: %v, %v", h, err)
	}
	m, err := moby.New("")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if all, err := m.GetServices(); err != nil || len(all) > 0 {
		t.Logf("the other reader is not fooled any more: %v, %v", all, err)
	}
}
