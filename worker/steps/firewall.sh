#!/bin/sh
# Keeps a balancer's probes, or all new connections, away from some local TCP ports for a
# while, and takes that back. Connections that are open go on. It writes no file, and may
# run any number of times at once: what it sets up is there once, as the last one said.
# Needs root, sh, id, date, tr, sleep, and nft or iptables (nft or legacy, with
# iptables-restore and the same for ip6tables); uses ss (iproute2) when there.
#
#   USHER_ACTION=fail_health_check USHER_PORTS='80 443' USHER_PROBES='10.0.0.252/31' USHER_EXPIRES=600 sh firewall.sh
#
# USHER_ACTION      fail_health_check: drops new connections from the probes' networks, if
#                   they carry nothing but probes; block_connections: refuses all new ones
#                   with a reset; undo: removes both; status: says what is in force
# USHER_PORTS       local ports
# USHER_PROBES      networks that the balancer probes from, such as '10.0.0.252/31 fd00::/64'
# USHER_EXPIRES     it ends by itself after so many seconds
# USHER_WATCH       so many seconds the probes' networks are watched before
# USHER_PROBE_RATE  so many new connections a second from there are probes
# USHER_TIMEOUT     wait at most so many seconds for the lock of iptables
# USHER_METHOD      of nft, iptables-nft and iptables-legacy those that may be used; empty: all,
#                   and usher before them where it is on the PATH or in /usr/local/bin
#
# With nft all is in the table inet usher, whose elements time out. A rule of iptables has
# no timeout: ours, in the chains USHER, USHER_PROBES and USHER_BLOCK, match until a point of
# time, and lie there without effect from then on. Nothing has to stay alive for that.
#
# The last line it prints is a JSON object. Exit codes: 0 done, 77 refused because clients
# come from the probes' networks, 75 undone meanwhile, 69 the host lacks something, 64 a
# setting is wrong.

fail() {
	printf '{"method":"%s","action":"%s","error":"%s"}\n' "$method" "$USHER_ACTION" "$2"
	exit "$1"
}
number() {
	case $2 in
	'' | *[!0-9]* | ??????????*) fail 64 "$1 is not a number of seconds or so" ;;
	esac
}
# A service may have a PATH without sbin, where these programs are.
PATH=${PATH:-/usr/bin:/bin}:/usr/sbin:/sbin
LC_ALL=C
export PATH LC_ALL
set -f
nl='
'
method=none watcher=usher_watch_$$ watching='' error='' reasons='' four='' six='' lock='' fields=$IFS
case $USHER_ACTION in
fail_health_check | block_connections | undo | status) ;;
*) USHER_ACTION='' && fail 64 'action is not fail_health_check, block_connections, undo or status' ;;
esac
# The number is that of what both have agreed on. What asks for it must not read on in this
# script, which may come by standard input.
native=''
if [ -z "$USHER_METHOD" ]; then
	case $USHER_ACTION in
	fail_health_check) set -- drain ;;
	block_connections) set -- drain --block --probes '' ;;
	status) set -- status ;;
	esac
	export USHER_PORTS USHER_PROBES USHER_EXPIRES USHER_WATCH USHER_PROBE_RATE
	for usher in usher /usr/local/bin/usher; do
		[ "$("$usher" host protocol "$USHER_ACTION" </dev/null 2>/dev/null)" = 1 ] || continue
		# What the script has set up with iptables only it takes back, too.
		if [ "$USHER_ACTION" != undo ]; then exec "$usher" host "$@" --output json; fi
		native=$usher
		break
	done
fi
: "${USHER_EXPIRES:=600}" "${USHER_WATCH:=5}" "${USHER_PROBE_RATE:=5}" "${USHER_TIMEOUT:=60}"
: "${USHER_METHOD:=nft iptables-nft iptables-legacy}"
number expires "$USHER_EXPIRES"
number watch "$USHER_WATCH"
number probe_rate "$USHER_PROBE_RATE"
number timeout "$USHER_TIMEOUT"
for method in $USHER_METHOD; do
	case $method in
	nft | iptables-nft | iptables-legacy) ;;
	*) method=none && fail 64 'method is not nft, iptables-nft or iptables-legacy' ;;
	esac
done
method=none
case $USHER_PORTS in
*[!0-9\ ]*) fail 64 'ports are numbers with spaces between' ;;
esac
case $USHER_PROBES in
*[!0-9A-Fa-f:./\ ]*) fail 64 'probes are networks' ;;
esac
for program in id date tr sleep; do
	command -v "$program" >/dev/null 2>&1 || fail 69 "there is no $program"
done
[ "$(id -u)" = 0 ] || fail 69 'only root may change the firewall'

# --- nft
nft_run() {
	for try in 1 2 3; do
		error=$(printf '%s\n' "$1" | nft -f - 2>&1) && return
	done
	return 1
}
# the table as it always is: applied again it stays, with what is in its sets
nft_table() {
	syn='tcp flags & (fin|syn|rst|ack) == syn'
	printf 'add %s\n' 'table inet usher' \
		'set inet usher probes4 { type ipv4_addr; flags interval,timeout; }' \
		'set inet usher probes6 { type ipv6_addr; flags interval,timeout; }' \
		'set inet usher probe_ports { type inet_service; flags timeout; }' \
		'set inet usher blocked_ports { type inet_service; flags timeout; }' \
		'set inet usher counted_ports { type inet_service; flags timeout; }' \
		'counter inet usher arrivals' \
		'chain inet usher input { type filter hook input priority -150; policy accept; }'
	printf 'flush chain inet usher input\n'
	printf 'add rule inet usher input %s\n' \
		"ip saddr @probes4 tcp dport @probe_ports $syn drop" \
		"ip6 saddr @probes6 tcp dport @probe_ports $syn drop" \
		"tcp dport @counted_ports $syn counter name arrivals" \
		"tcp dport @blocked_ports $syn reject with tcp reset"
}
# what replaces the members of a set
nft_set() {
	printf 'flush set inet usher %s\n' "$1"
	members=''
	for member in $2; do members="$members${members:+, }$member timeout ${USHER_EXPIRES}s"; done
	[ -z "$members" ] || printf 'add element inet usher %s { %s }\n' "$1" "$members"
}
# a table of this run alone, which counts what comes from the probes
nft_watch() {
	ports=$(commas "$USHER_PORTS")
	printf 'add %s\n' "table inet $watcher" "counter inet $watcher seen" "counter inet $watcher begun" \
		"chain inet $watcher input { type filter hook input priority -160; policy accept; }"
	for from in ${four:+"ip saddr { $(commas "$four") }"} ${six:+"ip6 saddr { $(commas "$six") }"}; do
		printf "add rule inet $watcher input $from tcp dport { $ports } %s\\n" \
			'counter name seen' 'tcp flags & (fin|syn|rst|ack) == syn counter name begun'
	done
}
commas() {
	members=''
	for member in $1; do members="$members${members:+, }$member"; done
	printf '%s' "$members"
}
# the packets of a counter of the watch
nft_counter() {
	before=''
	for word in $(nft list counter inet "$watcher" "$1" 2>/dev/null); do
		[ "$before" != packets ] || { printf '%s' "$word"; return; }
		before=$word
	done
	return 1
}
# the members of a set of ours
nft_members() {
	state='' members=''
	for word in $(nft list set inet usher "$1" 2>/dev/null); do
		case $state$word in
		elements) state=elements ;;
		'elements{') state=next ;;
		next*) members="$members${members:+ }${word%,}" && state=in ;;
		esac
		case $state$word in in*,) state=next ;; esac
	done
	printf '%s' "$members"
}

# --- iptables. Each batch is applied whole or not at all.
batch() {
	error=$(printf '*filter\n%sCOMMIT\n' "$2" | "$1-restore" ${lock:+-w "$lock"} -n 2>&1)
}
there() {
	"$1" ${lock:+-w "$lock"} -S "$2" >/dev/null 2>&1
}
# rules CHAIN FAMILY-PREFIXES MATCHES: one rule for each network and port
rules() {
	for port in $USHER_PORTS; do
		for from in $2; do printf -- '-A %s -s %s -p tcp -m tcp --dport %s %s\n' "$1" "$from" "$port" "$3"; done
	done
}
# count PATTERN: how many lines of lines are like it
count() {
	found=0
	IFS=$nl
	for line in $lines; do
		# shellcheck disable=SC2254 # a pattern
		case $line in $1) found=$((found + 1)) ;; esac
	done
	IFS=$fields
}
# put TOOL CHAIN RULES FIRST: the chain holds the rules, and there is one way into it. FIRST,
# with the end of the watch, is applied once.
#
# To iptables-nft a chain that another process makes at the same time is as good as its own,
# and what it appends comes twice. So after each batch it is counted what is there now, and
# all replaced if that is too much: who comes last sees it.
put() {
	first=$4 changed=''
	for try in 1 2 3 4 5 6 7 8 9 10 11 12; do
		lines=$("$1" ${lock:+-w "$lock"} -S 2>/dev/null)
		count '-A INPUT -j USHER' && ways=$found
		count '-A USHER *' && links=$found
		count "-A $2 *" && have=$found
		lines=$3
		count '-A *'
		[ "$changed.$ways.$links.$have" != "yes.1.2.$found" ] || return 0
		new=''
		for chain in USHER USHER_PROBES USHER_BLOCK; do
			if ! there "$1" "$chain"; then
				new="$new-N $chain$nl"
			elif [ "$chain" = USHER ] || [ "$chain" = "$2" ]; then
				new="$new:$chain - [0:0]$nl"
			fi
		done
		while [ "$ways" -gt 0 ]; do
			new="$new-D INPUT -j USHER$nl"
			ways=$((ways - 1))
		done
		if batch "$1" "$first$new$3-A USHER -j USHER_PROBES$nl-A USHER -j USHER_BLOCK$nl-I INPUT 1 -j USHER$nl"; then
			first='' changed=yes
		elif [ -n "$first" ] && ! there "$1" "$watcher"; then
			return 1
		fi
	done
	return 1
}
# sweep TOOL: removes chains that INPUT does not lead to
sweep() {
	for chain in USHER USHER_PROBES USHER_BLOCK; do batch "$1" "-F $chain$nl-X $chain$nl"; done
}
gone() { printf -- '-D INPUT -j %s\n-F %s\n-X %s\n' "$1" "$1" "$1"; }
# kind KIND: sets tool4 and tool6 to the iptables and ip6tables of that kind, nft or legacy
kind() {
	for tool4 in "iptables-$1" iptables; do
		command -v "$tool4-restore" >/dev/null 2>&1 || continue
		tool6=ip6${tool4#ip}
		case $1:$("$tool4" -V 2>/dev/null) in
		nft:*nf_tables* | legacy:*legacy* | legacy:*v1.[0-7].*) ;;
		*) continue ;;
		esac
		lock=''
		printf '*filter\nCOMMIT\n' | "$tool4-restore" -w 1 -n -t >/dev/null 2>&1 && lock=$USHER_TIMEOUT
		return 0
	done
	tool4='' tool6=''
	return 1
}
# each FUNCTION: calls it with each iptables and ip6tables there is. To ask iptables-legacy
# makes its tables: only where there are some.
each() {
	for which in nft legacy; do
		kind "$which" || continue
		methods="$methods${methods:+ }iptables-$which"
		for tool in "$tool4" "$tool6"; do
			command -v "$tool-restore" >/dev/null 2>&1 || continue
			names=ip_tables_names
			[ "$tool" = "$tool4" ] || names=ip6_tables_names
			if [ "$which" = nft ] || filtered "$names"; then "$1" "$tool"; fi
		done
	done
}
filtered() {
	while read -r name; do
		[ "$name" != filter ] || return 0
	done 2>/dev/null <"/proc/net/$1"
	return 1
}
# tables_watch TOOL NETWORKS: a chain of this run alone, in front of all others
tables_watch() {
	batch "$1" "-N $watcher$nl$(rules "$watcher" "$2" '' && rules "$watcher" "$2" --syn)$nl-I INPUT 1 -j $watcher$nl"
}
# tally TOOL: adds what the rules of the watch have counted
tally() {
	lines=$("$1" ${lock:+-w "$lock"} -nvxL "$watcher" 2>/dev/null) || return 1
	IFS=$nl
	for line in $lines; do
		IFS=$fields
		# shellcheck disable=SC2086 # into words
		set -- $line
		case $1 in *[!0-9]*) continue ;; esac
		case $line in
		*flags:*) syns=$((syns + $1)) ;;
		*) packets=$((packets + $1)) ;;
		esac
	done
	IFS=$fields
}
# in_force TOOL CHAIN: the networks, then the ports of its rules that have not run out
in_force() {
	now=$(date -u +%Y%m%d%H%M%S)
	lines=$("$1" ${lock:+-w "$lock"} -S "$2" 2>/dev/null) || return 0
	IFS=$nl
	for line in $lines; do
		source='' target='' until=''
		case $line in "-A $2 "*) ;; *) continue ;; esac
		IFS=$fields
		before=''
		for word in $line; do
			case $before in
			-s) source=$word ;;
			--dport) target=$word ;;
			--datestop) until=$word ;;
			esac
			before=$word
		done
		IFS=-T:
		# shellcheck disable=SC2086 # into year, month, day, hours, minutes, seconds
		set -- "$1" "$2" $until
		IFS=$fields
		[ "$3$4$5$6$7$8" -ge "$now" ] 2>/dev/null || continue
		case " $networks " in *" $source "*) ;; *) networks="$networks${networks:+ }$source" ;; esac
		case " $ports " in *" $target "*) ;; *) ports="$ports${ports:+ }$target" ;; esac
	done
	IFS=$fields
}

# --- both
# said TEXT: in text, what a program has complained of, fit for a JSON string
said() {
	# shellcheck disable=SC2086 # on one line
	set -- $1
	text=$(printf '%.300s' "$*" | tr -d '\000-\037\042\134')
}
# What a killed one leaves counts without an effect until the next undo.
unwatch() {
	[ -n "$watching" ] || return 0
	watching=''
	case $method in
	nft) nft_run "delete table inet $watcher" ;;
	*)
		for tool in "$tool4" "$tool6"; do
			batch "$tool" "$(gone "$watcher")$nl" || batch "$tool" "-F $watcher$nl-X $watcher$nl"
		done
		;;
	esac
}
# usable METHOD: whether the kernel takes what is to come
usable() {
	case $1 in
	nft)
		command -v nft >/dev/null 2>&1 || { error='not there'; return 1; }
		error=$(nft_table | nft -c -f - 2>&1)
		return
		;;
	esac
	kind "${1#iptables-}" || { error='not there'; return 1; }
	end=$(($(date -u +%s) + USHER_EXPIRES))
	end=$(date -u -d "@$end" +%Y-%m-%dT%H:%M:%S 2>&1) || { error="date: $end"; return 1; }
	match="--syn -m time --datestop $end"
	for tool in "$tool4" ${v6:+"$tool6"}; do
		command -v "$tool-restore" >/dev/null 2>&1 || { error="there is no $tool"; return 1; }
		watching=yes
		batch "$tool" "-N $watcher$nl-A $watcher -p tcp -m tcp --dport 1 $match -j REJECT --reject-with tcp-reset$nl" || return 1
		batch "$tool" "-F $watcher$nl-X $watcher$nl"
		watching=''
	done
}
choose() {
	v6=$six
	# shellcheck disable=SC2034
	if [ "$USHER_ACTION" = block_connections ] && read -r address 2>/dev/null </proc/net/if_inet6; then v6=yes; fi
	for method in $USHER_METHOD; do
		usable "$method" && return
		unwatch
		said "$error"
		reasons="$reasons${reasons:+; }$method: $text"
	done
	method=none
	fail 69 "no firewall to work with: $reasons"
}
# the peers of the established connections from the probes' networks
look() {
	sports='' from=''
	for port in $USHER_PORTS; do sports="$sports${sports:+ or }sport = :$port"; done
	for network in $four; do from="$from${from:+ or }dst $network"; done
	for network in $six; do from="$from${from:+ or }dst [$network]"; done
	ss -tn state established "( $sports ) and ( $from )" 2>/dev/null | while read -r received _ _ peer _; do
		case $received in '' | *[!0-9]*) ;; *) printf '%s\n' "$peer" ;; esac
	done
}
refused() {
	said "$error"
	fail 69 "$text"
}
undone() { fail 75 'undone meanwhile'; }
# Where the watch has gone, an undo has ended it.
unless_undone() {
	reason=$error
	case $method in
	nft) nft list table inet "$watcher" >/dev/null 2>&1 || undone ;;
	*) there "$1" "$watcher" || undone ;;
	esac
	error=$reason
	refused
}
numbers() { printf '"watched":%d,"syns":%d,"packets":%d,"connections":%d,"lasting":%d' "$USHER_WATCH" "$syns" "$packets" "$connections" "$lasting"; }

fail_health_check() {
	for network in $USHER_PROBES; do
		case $network in
		*:*) six="$six${six:+ }$network" ;;
		*) four="$four${four:+ }$network" ;;
		esac
	done
	[ -n "$four$six" ] || fail 64 'probes: no networks'
	[ "$USHER_WATCH" -gt 0 ] || fail 64 'watch must be more than 0'
	choose
	syns=0 packets=0 connections=-1 lasting=0 first='' last=''
	watching=yes
	case $method in
	nft) nft_run "$(nft_watch)" || refused ;;
	*)
		[ -z "$four" ] || tables_watch "$tool4" "$four" || refused
		[ -z "$six" ] || tables_watch "$tool6" "$six" || refused
		;;
	esac
	if command -v ss >/dev/null 2>&1; then connections=0 first=$(look); fi
	sleep "$USHER_WATCH" || fail 69 'sleep does not work'
	[ "$connections" -lt 0 ] || last=$(look)
	case $method in
	nft)
		syns=$(nft_counter begun) || undone
		packets=$(nft_counter seen) || undone
		;;
	*)
		[ -z "$four" ] || tally "$tool4" || undone
		[ -z "$six" ] || tally "$tool6" || undone
		;;
	esac
	# A probe is one connection of a few packets, and over soon. Two that last may be
	# probes that got no answer, or whose prober has gone.
	for peer in $last; do connections=$((connections + 1)); done
	if [ "$connections" -le $((10 * USHER_PROBE_RATE)) ]; then
		for peer in $last; do
			case "$nl$first$nl" in *"$nl$peer$nl"*) lasting=$((lasting + 1)) ;; esac
		done
	fi
	if [ "$syns" -gt $((USHER_PROBE_RATE * (USHER_WATCH + 1))) ] ||
		[ "$packets" -gt $((20 * syns + 5 * USHER_WATCH)) ] ||
		[ "$connections" -gt $((10 * USHER_PROBE_RATE)) ] || [ "$lasting" -gt 2 ]; then
		printf '{"method":"%s","action":"%s","error":"clients come from these networks",%s}\n' "$method" "$USHER_ACTION" "$(numbers)"
		exit 77
	fi
	# The watch ends in the same batch: where an undo has ended it before, nothing is set up.
	case $method in
	nft) nft_run "delete table inet $watcher$nl$(nft_table && nft_set probes4 "$four" && nft_set probes6 "$six" && nft_set probe_ports "$USHER_PORTS")" || unless_undone ;;
	*)
		for tool in "$tool4" "$tool6"; do
			networks=$four
			[ "$tool" = "$tool4" ] || networks=$six
			if [ -n "$networks" ]; then
				put "$tool" USHER_PROBES "$(rules USHER_PROBES "$networks" "$match -j DROP")$nl" "$(gone "$watcher")$nl" || unless_undone "$tool"
			elif there "$tool" USHER_PROBES; then
				put "$tool" USHER_PROBES '' '' || refused
			fi
		done
		;;
	esac
	watching=''
	printf '{"method":"%s","action":"%s","expires":%d,%s}\n' "$method" "$USHER_ACTION" "$USHER_EXPIRES" "$(numbers)"
}

block_connections() {
	choose
	case $method in
	nft) nft_run "$(nft_table && nft_set blocked_ports "$USHER_PORTS")" || refused ;;
	*)
		for tool in "$tool4" ${v6:+"$tool6"}; do
			any=0.0.0.0/0
			[ "$tool" = "$tool4" ] || any=::/0
			put "$tool" USHER_BLOCK "$(rules USHER_BLOCK "$any" "$match -j REJECT --reject-with tcp-reset")$nl" '' || refused
		done
		;;
	esac
	printf '{"method":"%s","action":"%s","expires":%d}\n' "$method" "$USHER_ACTION" "$USHER_EXPIRES"
}

undo_in() {
	for try in 1 2 3 4 5 6 7 8; do
		# 4: somebody else holds the lock, and nothing is known. Else there is no such firewall.
		lines=$("$1" ${lock:+-w "$lock"} -S 2>/dev/null) || [ $? != 4 ] || [ "$which" = nft ] || {
			error='somebody else holds the lock'
			[ -z "$lock" ] || break
			sleep 1 && continue
		}
		case "$nl$lines$nl" in
		*"$nl-N USHER$nl"* | *"$nl-N USHER_PROBES$nl"* | *"$nl-N USHER_BLOCK$nl"*) removed=$((removed + (try == 1))) ;;
		*"$nl-N usher_watch_"*) ;;
		*) return ;;
		esac
		for chain in $lines; do
			case $chain in usher_watch_*) batch "$1" "$(gone "$chain")$nl" || batch "$1" "-F $chain$nl-X $chain$nl" ;; esac
		done
		batch "$1" "-D INPUT -j USHER$nl"
		sweep "$1"
	done
	said "$error"
	fail 69 "the chains of $1 cannot be removed: $text"
}
# Those that watch are ended first: else one of them could set up again what is undone here.
# What counts for a wait that was killed goes, too; the table of a native one can't stay.
undo() {
	removed=0 methods='' text=''
	if [ -n "$native" ]; then
		methods=native
		error=$("$native" host undo --output json </dev/null 2>/dev/null) || said "$error"
		case $error in *'"removed":1'*) removed=1 ;; esac
	fi
	if command -v nft >/dev/null 2>&1; then
		methods="${methods:+$methods }nft" text=''
		tables=$(nft list tables 2>&1)
		case $tables in *permitted*) method=nft && fail 69 'the firewall may not be changed here, not even by root' ;; esac
		for name in $tables; do
			case $name in usher_wait_*_*) ;; usher_watch_* | usher_wait_*) nft_run "delete table inet $name" ;; esac
		done
		case "$nl$tables$nl" in
		*"${nl}table inet usher$nl"*)
			if nft_run 'delete table inet usher'; then
				removed=1
			elif nft list table inet usher >/dev/null 2>&1; then
				said "$error"
				method=nft && fail 69 "table inet usher cannot be removed: $text"
			fi
			;;
		esac
	fi
	each undo_in
	# Nobody else could have removed the table.
	[ -z "$text" ] || { method=native && fail 69 "usher host undo has failed: $text"; }
	printf '{"method":"%s","action":"undo","removed":%d}\n' "${methods:-none}" "$removed"
}

status_in() {
	in_force "$1" USHER_PROBES
	from=$networks port=$ports networks='' ports=$blocked
	in_force "$1" USHER_BLOCK
	blocked=$ports networks=$from ports=$port
}
status() {
	methods='' networks='' ports='' blocked=''
	if command -v nft >/dev/null 2>&1; then
		methods=nft
		networks=$(nft_members probes4)
		six=$(nft_members probes6)
		networks="$networks${networks:+${six:+ }}$six"
		ports=$(nft_members probe_ports)
		blocked=$(nft_members blocked_ports)
	fi
	each status_in
	printf '{"method":"%s","action":"status","probes":"%s","probe_ports":"%s","blocked_ports":"%s"}\n' "${methods:-none}" "$networks" "$ports" "$blocked"
}

trap unwatch EXIT
trap 'exit 70' HUP INT TERM
case $USHER_ACTION in
*_*)
	case $USHER_PORTS in
	*[0-9]*) ;;
	*) fail 64 'no ports' ;;
	esac
	for port in $USHER_PORTS; do
		case $port in ??????*) fail 64 'a port goes from 1 to 65535' ;; esac
		if [ "$port" -lt 1 ] || [ "$port" -gt 65535 ]; then fail 64 'a port goes from 1 to 65535'; fi
	done
	[ "$USHER_EXPIRES" -gt 0 ] || fail 64 'expires must be more than 0'
	;;
esac
"$USHER_ACTION"
