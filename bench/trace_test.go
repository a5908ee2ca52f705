package main

import (
	"strings"
	"testing"
)

// What strace writes, from runs on Linux 6.18.
const straced = `7 sendto(3, [{nlmsg_len=20, nlmsg_type=NFNL_SUBSYS_NFTABLES<<8|NFT_MSG_GETGEN, nlmsg_flags=NLM_F_REQUEST|NLM_F_ACK}], 20, 0, {sa_family=AF_NETLINK, nl_pid=0, nl_groups=00000000}, 12) = 20
9 execve("/usr/sbin/iptables-nft-restore", ["iptables-nft-restore", "--noflush"], 0xc0001 /* 2 vars */ <unfinished ...>
7 sendto(4, [{nlmsg_len=44, nlmsg_type=NFNL_SUBSYS_IPSET<<8|IPSET_CMD_ADD, nlmsg_flags=NLM_F_REQUEST}], 44, 0, {sa_family=AF_NETLINK, nl_pid=0}, 12 <unfinished ...>
9 <... execve resumed>) = 0
7 <... sendto resumed>) = 44
9 sendmsg(3, {msg_name={sa_family=AF_NETLINK, nl_pid=0}, msg_namelen=12, msg_iov=[{iov_base=[{nlmsg_len=20}], iov_len=3000}], msg_iovlen=1, msg_controllen=0, msg_flags=0}, 0) = 3000
7 sendto(8, ""..., 44, MSG_NOSIGNAL, NULL, 0) = 44
9 setsockopt(4, SOL_IP, IPT_SO_SET_REPLACE, "nat\0"..., 65432) = 0
9 setsockopt(4, SOL_SOCKET, SO_RCVBUF, [16384], 4) = 0
9 +++ exited with 0 +++
`

func TestCountCalls(t *testing.T) {
	got, err := countCalls(strings.NewReader(straced))
	if err != nil {
		t.Fatal(err)
	}
	want := calls{execs: 1, own: 2, writes: 1, tool: 2, toolSent: 3000 + 65432}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
