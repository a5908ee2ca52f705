#!/usr/bin/env bash
# Shows a person what vipd does, with real packets, in network namespaces that it
# makes and removes: a client, a load balancer, two backends. Exit status 0 only
# if all of it held.
#
#   client 10.1.0.10 ---- lb ---- b1 10.2.0.11
#          fd00:1::10          \- b2 10.2.0.12
#
# usage: [MODE=ipvs] hack/demo.sh DIR-WITH-THE-BINARIES
#
# Mode ipvs needs a kernel that has it; `make demo MODE=ipvs` runs this in the virtual
# machine (hack/vm), which is slower: RATE is how many connections a second there are.
set -euo pipefail
mode=${MODE:-iptables}
rate=${RATE:-200}

bin=$(cd "$1" && pwd)
dir=$(mktemp -d)
tag=vipd-demo-$$
pids=()

stop() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  for ns in client lb b1 b2; do ip netns del "$tag-$ns" 2>/dev/null || true; done
  rm -rf "$dir"
}
trap stop EXIT

step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
show() { printf '\033[2m$ %s\033[0m\n' "$*"; }
fail() { printf '\nDEMO FAILED: %s\n' "$*" >&2; sed 's/^/vipd: /' "$dir/vipd.log" >&2 || true; exit 1; }
# In a background job use "ip netns exec" itself, so that $! is the program.
in_ns() { local ns=$1; shift; ip netns exec "$tag-$ns" "$@"; }

# link NS ADDRESS/LEN...: one veth from NS to the load balancer, addresses on both ends.
link() {
  local ns=$1 four=$2 six=$3
  ip netns add "$tag-$ns"
  in_ns "$ns" ip link set lo up
  ip -n "$tag-lb" link add "to-$ns" type veth peer name eth0 netns "$tag-$ns"
  ip -n "$tag-lb" link set "to-$ns" up
  ip -n "$tag-$ns" link set eth0 up
  ip -n "$tag-lb" addr add "$four.1/24" dev "to-$ns"
  ip -n "$tag-lb" addr add "$six::1/64" dev "to-$ns" nodad
  ip -n "$tag-$ns" addr add "$four.$4/24" dev eth0
  ip -n "$tag-$ns" addr add "$six::$4/64" dev eth0 nodad
  ip -n "$tag-$ns" route add default via "$four.1"
  ip -n "$tag-$ns" route add default via "$six::1"
}

ip netns add "$tag-lb"
in_ns lb ip link set lo up
in_ns lb sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
link client 10.1.0 fd00:1 10
link b1 10.2.1 fd00:21 11
link b2 10.2.2 fd00:22 12

for b in 1 2; do
  ip netns exec "$tag-b$b" "$bin/lossgen" serve -name "b$b" -listen "10.2.$b.1$b:8080,[fd00:2$b::1$b]:8080" >"$dir/b$b.log" 2>&1 &
  pids+=($!)
done

# config WEIGHT-OF-B2 STATE-OF-B1: the file, as an operator would write it.
config() {
  cat >"$dir/vipd.toml" <<EOF
[daemon]
state_dir = "$dir/state"
admin_socket = "$dir/vipd.sock"

[sync]
min_sync_period = "200ms"

[proxy]
mode = "$mode"

[vip]
allowed = ["192.0.2.0/24", "2001:db8::/64"]

[[service]]
name = "web"
vips = ["192.0.2.10", "2001:db8::10"]
port = 80

  [[service.backend]]
  address = "10.2.1.11:8080"
  state = "$2"
  [[service.backend]]
  address = "[fd00:21::11]:8080"
  state = "$2"
  [[service.backend]]
  address = "10.2.2.12:8080"
  weight = $1
  [[service.backend]]
  address = "[fd00:22::12]:8080"
  weight = $1

[[service]]
name = "dns"
vips = ["192.0.2.10", "2001:db8::10"]
port = 53
protocol = "udp"
backends = ["10.2.1.11:8080", "10.2.2.12:8080", "[fd00:21::11]:8080", "[fd00:22::12]:8080"]
EOF
}

vipd() { in_ns lb "$bin/vipd" "$1" -c "$dir/vipd.toml" "${@:2}"; }
rules() { in_ns lb iptables-save; in_ns lb ip6tables-save; in_ns lb ipset list -n; in_ns lb ip -br addr show scope host; virtual_servers; }
# virtual_servers lists those of IPVS.
virtual_servers() { if [ "$mode" = ipvs ]; then in_ns lb ipvsadm -S -n; fi; }
rules >"$dir/rules.before" 2>/dev/null
# load ARGS...: traffic from the client; the report stays in $dir/report.
load() { show "lossgen run $*"; in_ns client "$bin/lossgen" run "$@" | tee "$dir/report" || fail "traffic was lost"; }
# count KIND BACKEND: how many of them that backend answered in the last report.
count() { awk -v kind="$1" -v b="$2" 'index($0, kind) == 1 { hit = 1; next } hit { for (i = 1; i < NF; i++) if ($i == b) print $(i + 1) + 0; exit }' "$dir/report"; }

step "1. A service in a TOML file"
config 2 active
sed -n '/name = "web"/,$p' "$dir/vipd.toml"
show "vipd check"; vipd check || fail "check"

step "2. vipd run: VIPs on this host, rules in the kernel"
ip netns exec "$tag-lb" "$bin/vipd" run -c "$dir/vipd.toml" >"$dir/vipd.log" 2>&1 &
daemon=$!; pids+=("$daemon")
for _ in $(seq 300); do
  if vipd status -o json 2>/dev/null | grep -q '"ready": true'; then break; fi
  sleep 0.1
done
show "vipd status"; vipd status || fail "vipd did not become ready"

step "3. Requests spread by weight: b2 has twice the weight of b1; TCP and UDP, IPv4 and IPv6"
load -target 192.0.2.10:80 -rate "$rate" -for 3s
[ "$(count connections b2)" -gt "$(count connections b1)" ] || fail "not spread by weight"
load -target '[2001:db8::10]:80' -rate "$rate" -for 3s
[ "$(count connections b2)" -gt "$(count connections b1)" ] || fail "not spread by weight"
load -target '192.0.2.10:53,[2001:db8::10]:53' -flows 30 -for 2s
if [ "$(count datagrams b1)" -eq 0 ] || [ "$(count datagrams b2)" -eq 0 ]; then fail "UDP was not spread"; fi
show "nc 192.0.2.10 22        (no service there: refused at once, whatever listens on the host)"
in_ns client "$bin/lossgen" ask -target 192.0.2.10:22 && fail "an unused port of a VIP answered"

step "4. An edit of the file: first the plan, then the reload"
config 5 active
show "vipd plan"
status=0; vipd plan >"$dir/plan" || status=$?
sed -n '1,24p' "$dir/plan"
[ "$status" = 2 ] || fail "plan said $status, not 2 (changes)"
show "vipd reload"; vipd reload || fail "reload"
status=0; vipd plan >/dev/null || status=$?
[ "$status" = 0 ] || fail "after the reload the plan is not empty"
echo "plan after the reload: nothing to do"

step "5. A typo changes nothing"
sed -i 's/weight = 5/wieght = 5/' "$dir/vipd.toml"
show "vipd reload"
vipd reload 2>&1 && fail "a broken file was accepted"
vipd status | grep -q 'reload refused' || fail "status does not tell of the refused reload"
config 5 active

step "6. Draining b1 while a client keeps asking: $rate new connections a second, 20 long-lived ones"
(sleep 2; config 5 draining; vipd reload >/dev/null) &
reload=$!; pids+=("$reload")
load -target '192.0.2.10:80' -rate "$rate" -hold 20 -for 8s
wait "$reload" || fail "reload"
lost=$(awk '$1 == "lost" { print $2 }' "$dir/report")
echo "failed requests: $lost"
[ "$lost" = 0 ] || fail "requests were lost"
show "vipd status web"; vipd status web
load -target '192.0.2.10:80' -rate "$rate" -for 1s
[ "$(count connections b1)" = "" ] || fail "a draining backend got a new connection"

if [ "$mode" = ipvs ]; then
  step "7. The virtual servers of it, and the sets of the door"
  show "ipvsadm -L -n"; in_ns lb ipvsadm -L -n
  show "ipset list vipd-open4"; in_ns lb ipset list vipd-open4
else
  step "7. The rules of it (nat, IPv4)"
  show "iptables-save -t nat"; in_ns lb iptables-save -t nat | grep -E 'VIPD-' | cut -c1-150
fi

step "8. vipd stops: what it put in place goes on serving"
kill "$daemon"; wait "$daemon" || fail "vipd did not end well"
load -target '192.0.2.10:80' -rate "$rate" -for 1s

step "9. vipd cleanup: as if it had never been there"
show "vipd cleanup"; vipd cleanup || fail "cleanup"
rules >"$dir/rules.after" 2>/dev/null
if grep -E 'VIPD-|vipd|192\.0\.2\.' "$dir/rules.after"; then fail "something of vipd is left"; fi

step "All of it held."
