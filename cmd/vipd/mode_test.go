package main

import (
	"errors"
	"strings"
	"testing"

	"vipd/config"
	vs "vipd/internal/ipvs"
	"vipd/lb"
)

func TestB65_F91_TheModeInForceHasAReason(t *testing.T) {
	yes := vs.Support{Yes: true, Version: "1.2.1"}
	no := vs.Support{Reason: "the kernel has no IPVS; load its module"}
	for _, tt := range []struct {
		mode, fallback lb.Mode
		ipvs           vs.Support
		unknown        error
		want           lb.Mode // empty: refused
		lack           bool
		standIn        lb.Mode // for services of mode ipvs
		says           string
	}{
		{mode: lb.IPVS, fallback: lb.IPTables, ipvs: yes, want: lb.IPVS, says: "[proxy] mode"},
		{mode: lb.IPVS, fallback: config.None, ipvs: yes, want: lb.IPVS, says: "[proxy] mode"},
		{mode: lb.IPVS, fallback: lb.IPTables, ipvs: no, want: lb.IPTables, lack: true, standIn: lb.IPTables, says: "stands in for mode ipvs, which is not available on this host: the kernel has no IPVS"},
		{mode: lb.IPVS, fallback: config.None, ipvs: no, lack: true, says: "the kernel has no IPVS; load its module; or set [proxy] fallback"},
		{mode: lb.IPVS, fallback: lb.IPTables, unknown: errors.New("no memory"), want: lb.IPTables, lack: true, standIn: lb.IPTables, says: "no memory"},
		{mode: lb.IPVS, fallback: config.None, unknown: errors.New("no memory"), lack: true, says: "no memory"},
		{mode: config.Auto, fallback: lb.IPTables, ipvs: yes, want: lb.IPVS, says: "IPVS 1.2.1"},
		{mode: config.Auto, fallback: lb.IPTables, ipvs: no, want: lb.IPTables, lack: true, standIn: lb.IPTables, says: "mode auto takes the best that the kernel has: the kernel has no IPVS"},
		{mode: lb.IPTables, fallback: lb.IPTables, ipvs: yes, want: lb.IPTables, says: "[proxy] mode"},
		{mode: lb.IPTables, fallback: lb.IPTables, ipvs: no, want: lb.IPTables, lack: true, standIn: lb.IPTables, says: "[proxy] mode"},
		{mode: lb.IPTables, fallback: config.None, ipvs: no, want: lb.IPTables, lack: true, says: "[proxy] mode"},
	} {
		cfg := config.Default()
		cfg.Proxy.Mode, cfg.Proxy.Fallback = tt.mode, tt.fallback
		c, err := choose(cfg, tt.ipvs, tt.unknown)
		says := c.reason
		if err != nil {
			says, c.inForce = err.Error(), ""
		}
		lack, lacks := c.lacks[lb.IPVS]
		if c.inForce != tt.want || lacks != tt.lack || lack.Fallback != tt.standIn || !strings.Contains(says, tt.says) {
			t.Errorf("mode %s, fallback %s, %+v, %v:\n%+v, %v", tt.mode, tt.fallback, tt.ipvs, tt.unknown, c, err)
		}
	}
}
