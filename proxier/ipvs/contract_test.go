package ipvs

import (
	"testing"

	vs "vipd/internal/ipvs"
	"vipd/proxier/proxiertest"
)

func TestContract(t *testing.T) {
	proxiertest.Run(t, func(*testing.T) proxiertest.Harness { return newHarness(vs.NewFake()) })
}
