//go:build kernel

package netfilter

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"vipd/internal/kerneltest"
)

func kernelTools(t *testing.T, b Backend) *Tools {
	t.Helper()
	tools, err := FindTools(t.Context(), ToolOptions{Backend: b})
	if err != nil {
		t.Fatal(err)
	}
	return tools
}

// legacyThere are the legacy tables of both families.
func legacyThere(t *testing.T) (all []string) {
	t.Helper()
	for _, f := range Families {
		tables, err := legacyTables(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, tables...)
	}
	return all
}

func TestB68_F72_ChainsOfOursInTheOtherBackendAreFound(t *testing.T) {
	for _, f := range Families {
		for _, table := range []string{"nat", "filter", "mangle"} {
			for _, inForce := range []Backend{NFT, Legacy} {
				t.Run(f.String()+" "+table+" "+string(inForce), func(t *testing.T) {
					if kerneltest.Isolate(t) {
						findMix(t, f, table, inForce)
					}
				})
			}
		}
	}
}

func findMix(t *testing.T, f Family, table string, inForce Backend) {
	tools := kernelTools(t, inForce)
	look := func(step string, want bool, wantForeign string) {
		t.Helper()
		foreign, err := tools.CheckOther(t.Context())
		var mixed *MixedError
		if errors.As(err, &mixed) != want || err != nil && !want {
			t.Errorf("%s: error %v", step, err)
		}
		if want && (len(mixed.Tables) != 1 || mixed.Tables[0] != f.String()+" "+table || !strings.Contains(err.Error(), "vipd cleanup")) {
			t.Errorf("%s: error %v, want one that names %s %s", step, err, f, table)
		}
		if got := strings.Join(foreign, ","); got != wantForeign {
			t.Errorf("%s: foreign %q, want %q", step, got, wantForeign)
		}
	}
	look("nothing", false, "")
	if there := legacyThere(t); len(there) > 0 {
		t.Fatalf("to look has made the legacy tables %v", there)
	}
	own, err := tools.Tool(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := own.Restore(t.Context(), []byte("*"+table+"\n:VIPD-X - [0:0]\nCOMMIT\n")); err != nil {
		t.Fatal(err)
	}
	look("ours in the right one", false, "")
	program := map[Family]string{IPv4: "iptables-", IPv6: "ip6tables-"}[f] + string(inForce.other())
	do := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), program, append([]string{"-t", table}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", program, args, err, out)
		}
	}
	do("-S")
	look("an empty table", false, "")
	if table != "nat" { // which is not to filter
		do("-P", "OUTPUT", "DROP")
		look("a policy that drops", false, f.String()+" "+table)
		do("-P", "OUTPUT", "ACCEPT")
		look("the policy is as it was", false, "")
	}
	do("-A", "OUTPUT", "-m", "comment", "--comment", "VIPD-X", "-j", "ACCEPT")
	look("a foreign rule", false, f.String()+" "+table)
	do("-N", "VIPD-OLD")
	look("a chain of ours", true, "")
	do("-X", "VIPD-OLD")
	look("it went", false, f.String()+" "+table)
}
