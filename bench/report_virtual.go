package main

// virtualSections are the tables of mode ipvs.
func virtualSections() []section {
	list := []section{{"Mode ipvs, cold load: vipd, kube-proxy's way, and mode iptables with the legacy backend", []column{
		of("vipd: virtual servers", partVirtualLoad, armTree, "sync", "s"), of("messages", partVirtualLoad, armTree, "messages", ""),
		of("kube-proxy", partVirtualLoad, armKube, "sync", "s"), of("messages", partVirtualLoad, armKube, "messages", ""),
		ratio("kube-proxy / vipd", partVirtualLoad, "sync", armKube), of("legacy: rules", partVirtualLoad, armRules, "sync", "s"),
		of("vipd: VIPs and guard", partVirtualLoad, armTree, "door", "s")}}}
	for _, kind := range []struct{ kind, title string }{
		{kindGrow, "Mode ipvs, one change: a backend more"}, {kindWeigh, "Mode ipvs, one change: another weight"},
		{kindReplace, "Mode ipvs, one change: a backend replaced"}, {kindAdd, "Mode ipvs, one change: a service more"},
		{kindRemove, "Mode ipvs, one change: a service less (until it is refused)"},
	} {
		part := partVirtualChange + kind.kind
		columns := []column{
			of("vipd: virtual servers", part, armTree, "sync", "s"), of("messages", part, armTree, "messages", ""), of("vipd: all", part, armTree, "total", "s"),
			of("legacy: rules", part, armRules, "sync", "s"), of("legacy: all", part, armRules, "total", "s"),
			ratio("rules / virtual servers", part, "sync", armRules), ratio("all / all", part, "total", armRules)}
		if kind.kind == kindGrow {
			columns = append(columns, of("kube-proxy", part, armKube, "sync", "s"), of("messages", part, armKube, "messages", ""))
		}
		list = append(list, section{kind.title, columns})
	}
	part := partVirtualChange + kindNone
	return append(list, section{"Mode ipvs, no-op: the source answers again; resync: all of the kernel is compared", []column{
		of("no-op", part, armTree, "total", "s"), of("messages", part, armTree, "messages", ""),
		of("resync", partVirtualResync, armTree, "total", "s"), of("messages", partVirtualResync, armTree, "messages", "")}})
}

// virtualGoals are the goals of mode ipvs, for ten backends a service. All of them hold
// in a virtual machine as well, since they are counts and ratios.
func virtualGoals() []goal {
	c := cell{virtual, 10000}
	return []goal{
		{"messages for a backend more", c, partVirtualChange + kindGrow, armTree, "messages", "", 1, most, ""},
		{"messages for another weight", c, partVirtualChange + kindWeigh, armTree, "messages", "", 1, most, ""},
		{"messages for a service more", c, partVirtualChange + kindAdd, armTree, "messages", "", 1 + backendsPerService, most, ""},
		{"messages for a no-op", c, partVirtualChange + kindNone, armTree, "messages", "", 0, most, ""},
		{"messages of a resync", c, partVirtualResync, armTree, "messages", "", 1 + 10000, most, ""},
		{"a backend more, against legacy", c, partVirtualChange + kindGrow, armTree, "sync", "x", 0.01, nil, armRules},
		{"another weight, against legacy", c, partVirtualChange + kindWeigh, armTree, "sync", "x", 0.01, nil, armRules},
		{"load, against kube-proxy's way", c, partVirtualLoad, armTree, "sync", "x", 0.1, nil, armKube},
	}
}
