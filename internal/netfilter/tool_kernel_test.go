//go:build kernel

package netfilter

import (
	"context"
	"errors"
	"os/exec"
	"slices"
	"testing"

	"vipd/internal/kerneltest"
)

func kernelTool(t *testing.T, f Family) *Tool {
	t.Helper()
	tools, err := FindTools(t.Context(), ToolOptions{Backend: NFT})
	if err != nil {
		t.Fatal(err)
	}
	tool, err := tools.Tool(f)
	if err != nil {
		t.Fatal(err)
	}
	return tool
}

func TestToolReadsWhatItWrote(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	for _, f := range Families {
		tool := kernelTool(t, f)
		if err := tool.Restore(t.Context(), []byte("*nat\n:VIPD-X - [0:0]\n:OTHER - [0:0]\n-A VIPD-X -j RETURN\n-A OTHER -j RETURN\n-A PREROUTING -j VIPD-X\nCOMMIT\n")); err != nil {
			t.Fatal(err)
		}
		table, err := tool.Read(t.Context(), "nat")
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(table.Own["VIPD-X"], []string{"-j RETURN"}) || !slices.Equal(table.Base["PREROUTING"], []string{"-j VIPD-X"}) || len(table.Own) != 1 {
			t.Errorf("%s: read %+v", f, table)
		}
		some, err := tool.ReadChains(t.Context(), "nat", "PREROUTING", "VIPD-X", "VIPD-NONE")
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(some.Own["VIPD-X"], []string{"-j RETURN"}) || !slices.Equal(some.Base["PREROUTING"], []string{"-j VIPD-X"}) || len(some.Own) != 1 {
			t.Errorf("%s: read by name %+v", f, some)
		}
		base, err := tool.ReadBase(t.Context(), "nat")
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(base.Base["PREROUTING"], []string{"-j VIPD-X"}) || len(base.Own) != 0 {
			t.Errorf("%s: base chains read %+v", f, base)
		}
		var refused *RestoreError
		err = tool.Restore(t.Context(), []byte("*nat\n:VIPD-Y - [0:0]\n-A VIPD-Y -p tcp -m tcp --dport 99999\nCOMMIT\n"))
		if !errors.As(err, &refused) || refused.Text != "-A VIPD-Y -p tcp -m tcp --dport 99999" {
			t.Errorf("%s: error %v", f, err)
		}
	}
}

// ensure makes a Skeleton stand, and returns what that took.
func (t *Tool) ensure(ctx context.Context, s Skeleton, seen *Baseline) (Repair, error) {
	r, err := t.PlanSkeleton(ctx, s, seen)
	return r, errors.Join(err, t.commit(ctx, r, seen))
}

// takeAway removes a Skeleton, and returns what that took.
func (t *Tool) takeAway(ctx context.Context, s Skeleton, seen *Baseline) (Repair, error) {
	r, err := t.PlanRemoval(ctx, s)
	return r, errors.Join(err, t.commit(ctx, r, seen))
}

func (t *Tool) commit(ctx context.Context, r Repair, seen *Baseline) error {
	if r.Empty() {
		return nil
	}
	err := t.Apply(ctx, r)
	if err == nil {
		r.Made(seen)
	}
	return err
}

func TestB61_SkeletonIsRepairedInTheKernel(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	for _, f := range Families {
		tool, seen, want := kernelTool(t, f), NewBaseline(), testSkeleton()
		ensure := func(step string, wantWrite bool) {
			t.Helper()
			for i := range 2 {
				r, err := tool.ensure(t.Context(), want, seen)
				if err != nil {
					t.Fatalf("%s, %s: %v", f, step, err)
				}
				if wrote := !r.Empty(); wrote != (wantWrite && i == 0) {
					t.Errorf("%s, %s, pass %d: wrote %v\n%s", f, step, i, wrote, r.Script)
				}
			}
		}
		harm := func(lines string) {
			t.Helper()
			if err := tool.Restore(t.Context(), []byte("*nat\n"+lines+"COMMIT\n")); err != nil {
				t.Fatal(err)
			}
		}
		ensure("first", true)
		seen = NewBaseline() // a restart
		ensure("adopted", false)
		harm("-I PREROUTING 1 -j ACCEPT\n")
		ensure("foreign jump in front", true)
		harm("-F OUTPUT\n")
		ensure("output flushed", true)
		harm("-R VIPD-A 1 -p udp -j RETURN\n")
		ensure("rule replaced", true)
		harm("-F VIPD-B\n")
		ensure("chain flushed", true)
		if _, err := tool.takeAway(t.Context(), want, seen); err != nil {
			t.Fatal(err)
		}
		table, err := tool.Read(t.Context(), "nat")
		if err != nil || len(table.Own) != 0 || len(table.Base["PREROUTING"]) != 1 {
			t.Errorf("%s: after removal %+v, %v", f, table, err)
		}
		if r, err := tool.takeAway(t.Context(), want, seen); err != nil || !r.Empty() {
			t.Errorf("%s: second removal %s, %v", f, r.Script, err)
		}
	}
}

func TestGenerationGrowsWithEveryCommitOfAnybody(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	tool := kernelTool(t, IPv4)
	generation := func() uint32 {
		t.Helper()
		g, err := tool.Generation(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	last := generation()
	for name, write := range map[string]func() error{
		"ours":       func() error { return tool.Restore(t.Context(), []byte("*nat\n:VIPD-X - [0:0]\nCOMMIT\n")) },
		"iptables":   func() error { return exec.Command("iptables-nft", "-t", "nat", "-A", "OUTPUT", "-j", "ACCEPT").Run() },
		"nft":        func() error { return exec.Command("nft", "add", "table", "inet", "other").Run() },
		"other rule": func() error { return exec.Command("ip6tables-nft", "-A", "INPUT", "-j", "ACCEPT").Run() },
	} {
		if err := write(); err != nil {
			t.Fatal(err)
		}
		now := generation()
		if now == last {
			t.Errorf("%s: the generation stays %d", name, now)
		}
		if again := generation(); again != now {
			t.Errorf("%s: the generation goes from %d to %d though nothing is written", name, now, again)
		}
		last = now
	}
}

func FuzzParseGeneration(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 8, 0, 1, 0, 0, 0, 0, 7})
	f.Fuzz(func(_ *testing.T, msg []byte) { parseGeneration(msg) })
}
