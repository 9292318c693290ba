#!/bin/sh
# Lays the network of one proof, or takes it away with all that runs in it:
#
#   sh topology.sh up NAME      sh topology.sh down NAME
#
# Namespaces NAME-fab (the wires), NAME-cli (clients, 198.18.0.2), NAME-lb (the balancer:
# 198.18.0.1 towards the clients; 198.18.1.1, and 198.18.1.253 for probes, towards the
# backends) and NAME-b1 to NAME-b3 (backends, 198.18.1.11 to .13). None has a default
# route and both bridges are inside NAME-fab, so the host's own network is not touched.
# Needs root, ip.
set -eu
P=$2

wire() { # wire BRIDGE HOST DEVICE: a cable from a bridge to a host
	ip link add name "$1-$2" netns "$P-fab" type veth peer name "$3" netns "$P-$2"
	ip -n "$P-fab" link set "$1-$2" master "$1"
	ip -n "$P-fab" link set "$1-$2" up
}

case $1 in
up)
	for n in fab cli lb b1 b2 b3; do
		ip netns add "$P-$n"
		ip -n "$P-$n" link set lo up
	done
	for b in brf brb; do
		ip -n "$P-fab" link add "$b" type bridge
		ip -n "$P-fab" link set "$b" up
	done
	wire brf cli eth0
	ip -n "$P-cli" addr add 198.18.0.2/24 dev eth0
	ip -n "$P-cli" link set eth0 up
	wire brf lb eth0
	wire brb lb eth1
	ip -n "$P-lb" addr add 198.18.0.1/24 dev eth0
	ip -n "$P-lb" addr add 198.18.1.1/24 dev eth1
	ip -n "$P-lb" addr add 198.18.1.253/24 dev eth1
	ip -n "$P-lb" link set eth0 up
	ip -n "$P-lb" link set eth1 up
	ip netns exec "$P-lb" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet'
	for i in 1 2 3; do
		wire brb "b$i" eth0
		ip -n "$P-b$i" addr add "198.18.1.1$i/24" dev eth0
		ip -n "$P-b$i" link set eth0 up
		ip -n "$P-b$i" route add 198.18.0.0/24 via 198.18.1.1
	done
	;;
down)
	for n in cli lb b1 b2 b3 fab; do
		[ -e "/run/netns/$P-$n" ] || continue
		for pid in $(ip netns pids "$P-$n"); do
			kill -9 "$pid" 2>/dev/null || true
		done
		ip netns del "$P-$n"
	done
	;;
*)
	exit 64
	;;
esac
