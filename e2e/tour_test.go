//go:build kernel

package e2e

import (
	"os"
	"regexp"
	"testing"

	"vipd/internal/kerneltest"
)

// tour are tests that share a world: each changes what vipd serves to what it is about,
// whatever was before. A world and a start of vipd take longer than most of them do.
var tour = []struct {
	name string
	part func(w *world)
}{
	{"B1_TCPReachesTheBackendsFromAClientAndFromTheHostItself", reachesTCP},
	{"B2_UDPReachesTheBackendsFromAClientAndFromTheHostItself", reachesUDP},
	{"B3_PortsOfOneVIPHaveBackendsOfTheirOwn", portsOfOneVIP},
	{"B4_TCPAndUDPOnOnePortHaveBackendsOfTheirOwn", protocolsOfOnePort},
	{"B6_PortOfTheBackendDiffersFromThatOfTheService", otherPort},
	{"B8_APortThatComesOrGoesDoesNotDisturbTheOthers", portsComeAndGo},
	{"B9_ServicesUpAndDownAndUpAgain", upAndDown},
	{"B10_DeletedAndMadeAgainWithTheSameVIP", madeAgain},
	{"B11_ManyVIPsOnTheSameBackends", manyVIPs},
	{"B12_BackendIsTheLoadBalancerItself", backendIsTheHost},
	{"B13_LargeRequestsAndFragmentedDatagrams", largeRequests},
	{"B14_ConnectionsSpreadByWeight", spread},
	{"B16_ABackendChangeIsInForceWhenTheReloadReturns", inForceWhenReloaded},
	{"B17_WithoutBackendsTCPIsRefusedAtOnce", deniesTCP},
	{"B18_WithoutBackendsUDPIsRefusedAtOnce", deniesUDP},
	{"B19_APortOfAVIPWithoutServiceDoesNotReachTheHost", guardsUnusedPorts},
	{"B20_APingToAVIPIsAnswered", answersPings},
	{"B21_B22_RangesChangeByReloads", rangesChange},
	{"B25_MasqueradeAlwaysNeverAuto", masquerades},
	{"B26_ABackendReachesItselfThroughItsVIP", hairpin},
	{"B27_TheHostIsAClientOfItsOwnVIPWithASourceThatCanBeAnswered", hostIsClient},
	{"B29_MasqueradeTakesAnyPort", takesAnyPort},
	{"B32_B37_AClientStaysWithItsBackendOverRestarts", affinityStays},
	{"B33_AffinityExpires", affinityExpires},
	{"B34_AffinityIsSwitchedByReloads", affinityIsSwitched},
	{"B35_ClientsOfARemovedBackendMoveAtOnce", affinityMoves},
	{"B36_TenThousandClientsStayAtTheSameTime", crowdStays},
	{"B38_ARemovedBackendDrainsAndIsThenReset", busyIsReset},
	{"B38_IdleConnectionsOfARemovedBackendAreReset", idleIsReset},
	{"B38_F88_ABackendDrainsUnderAffinity", drainsUnderAffinity},
	{"B39_F87_ADrainEndsWithTheLastConnection", drainsUntilIdle},
	{"B39_FlowsLeaveABackendThatDrainsAtOnce", flowsLeave},
	{"B40_B41_ABackendThatComesBackHasItsWeightAndItsConnections", returns},
	{"B43_F94_AClientThatReusesItsPortsSeesNoFault", reusesPorts},
	{"B44_F83_AFlowMovesWhenItsBackendIsReplaced", flowMoves},
	{"B45_AFlowRecoversWhenBackendsCome", flowRecovers},
	{"B46_WithoutBackendsAFlowIsRefusedAndNothingComesToTheOldOne", flowIsRefused},
	{"B47_ADeletedServiceLeavesNoEntries", noEntriesAreLeft},
	{"B48_AFlowMovesWhenTheTargetPortChanges", flowFollowsThePort},
	{"B49_TwoUDPServicesOnOneVIPDoNotDisturbEachOther", twoUDPServices},
	{"B50_ARestartRemovesNoLiveEntry", restartKeepsEntries},
	{"B64_ARestartAdoptsWhatIsThereAndWritesNothing", restartWritesNothing},
}

// TestTour goes through them all, or those alone whose names match $VIPD_TOUR.
//
//lane:vm ipvs
func TestTour(t *testing.T) {
	if !kerneltest.Isolate(t) {
		return
	}
	only, err := regexp.Compile(os.Getenv("VIPD_TOUR"))
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, 3)
	for _, p := range tour {
		if only.MatchString(p.name) {
			w.part(p.name, p.part)
		}
	}
}

// part runs a part of a test as a subtest. What it starts ends with it, but for vipd.
func (w *world) part(name string, do func(w *world)) {
	whole := w.t
	whole.Run(name, func(t *testing.T) {
		w.t = t
		defer func() { w.t = whole }()
		do(w)
	})
}
