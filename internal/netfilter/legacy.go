package netfilter

import (
	"fmt"
	"os"
	"strings"
)

// legacyTables returns the legacy tables that there are for a family in the network
// namespace of the calling thread. The kernel makes one as soon as it is asked for
// it, so this comes first. The error is fs.ErrPermission for a vipd that is not
// root, and no table if the kernel has no x_tables at all.
func legacyTables(f Family) ([]string, error) {
	name := "ip_tables_names"
	if f == IPv6 {
		name = "ip6_tables_names"
	}
	text, err := os.ReadFile("/proc/thread-self/net/" + name)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s legacy tables: %w", f, err)
	}
	return strings.Fields(string(text)), nil
}
