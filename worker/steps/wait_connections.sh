#!/bin/sh
# Waits until the TCP connections to some local ports are drained. It only looks:
# it writes no file, and may run any number of times at once. It changes nothing but for
# one case: where nothing but the counter of all new connections of the host still speaks
# against the end, it counts those to the ports with nft (nftables), in a table of its own
# that it removes at the end.
# Needs sh, awk, sleep, /proc; uses ss (iproute2) and nft when there. Where usher is on the
# host, on the PATH or in /usr/local/bin, all is left to "usher host wait".
#
#   USHER_PORTS='80 443' USHER_TIMEOUT=60 sh wait_connections.sh
#
# USHER_PORTS       local ports
# USHER_EXCLUDE     networks that do not count, such as '10.0.0.252/31 fd00::/64'
# USHER_LOCAL       one local address: only connections to it count
# USHER_UNTIL       quiet: nothing new and nothing busy; zero: nothing live
# USHER_CHECKS      so many polls in a row must be clear
# USHER_EVERY       seconds between polls
# USHER_QUIET_FOR   seconds without a new connection (quiet)
# USHER_GAP         wait at least so many seconds
# USHER_LONGEST     seconds of silence after which a connection whose last bytes came
#                   and went in one clock tick is idle
# USHER_BACKGROUND  new connections a second that are no traffic: on the whole host, but for
#                   those seen from USHER_EXCLUDE (PassiveOpens; not used with
#                   USHER_LOCAL), or to the ports from elsewhere than that (nft)
# USHER_TIMEOUT     give up after so many seconds
# USHER_TRIES       give up after so many polls, counted once the gap is over; 0: any number
# USHER_METHOD      ss or proc; empty: usher, else ss, or proc when there is no ss
#
# The last line it prints is a JSON object. Exit codes: 0 drained, 75 not drained in
# time, 69 the host lacks something, 64 a setting is wrong.

fail() {
	printf '{"error":"%s"}\n' "$2"
	exit "$1"
}
number() {
	case $2 in
	'' | . | *[!0-9.]* | *.*.*) fail 64 "$1 is not a number" ;;
	esac
}
# A service may have a PATH without sbin, where some distributions keep ss.
PATH=${PATH:-/usr/bin:/bin}:/usr/sbin:/sbin
LC_ALL=C
export PATH LC_ALL
: "${USHER_UNTIL:=quiet}" "${USHER_CHECKS:=3}" "${USHER_EVERY:=1}" "${USHER_QUIET_FOR:=3}"
: "${USHER_GAP:=0}" "${USHER_LONGEST:=10}" "${USHER_BACKGROUND:=0}" "${USHER_TIMEOUT:=60}"
: "${USHER_TRIES:=0}"
# The number is that of what both have agreed on. What asks for it must not read on in this
# script, which may come by standard input.
if [ -z "$USHER_METHOD" ]; then
	export USHER_PORTS USHER_EXCLUDE USHER_LOCAL USHER_UNTIL USHER_CHECKS USHER_EVERY USHER_QUIET_FOR
	export USHER_GAP USHER_LONGEST USHER_BACKGROUND USHER_TIMEOUT USHER_TRIES
	for usher in usher /usr/local/bin/usher; do
		if [ "$("$usher" host protocol wait </dev/null 2>/dev/null)" = 1 ]; then
			exec "$usher" host wait --output json
		fi
	done
fi
number checks "$USHER_CHECKS"
number every "$USHER_EVERY"
number quiet_for "$USHER_QUIET_FOR"
number gap "$USHER_GAP"
number longest "$USHER_LONGEST"
number background "$USHER_BACKGROUND"
number timeout "$USHER_TIMEOUT"
number tries "$USHER_TRIES"
case $USHER_UNTIL in
quiet | zero) ;;
*) fail 64 'until is neither quiet nor zero' ;;
esac
case $USHER_PORTS in
'' | *[!0-9\ ]*) fail 64 'ports are numbers with spaces between' ;;
esac
case $USHER_EXCLUDE$USHER_LOCAL in
*[!0-9A-Fa-f:./\ ]*) fail 64 'exclude and local are addresses' ;;
esac
command -v awk >/dev/null 2>&1 || fail 69 'there is no awk'
command -v sleep >/dev/null 2>&1 || fail 69 'there is no sleep'
case $USHER_METHOD in
'') if command -v ss >/dev/null 2>&1; then USHER_METHOD=ss; else USHER_METHOD=proc; fi ;;
ss | proc) ;;
*) fail 64 'method is neither ss nor proc' ;;
esac

# shellcheck disable=SC2016 # the dollars are for awk
exec awk -v ports="$USHER_PORTS" -v exclude="$USHER_EXCLUDE" -v localtext="$USHER_LOCAL" \
	-v until="$USHER_UNTIL" -v need="$USHER_CHECKS" -v every="$USHER_EVERY" \
	-v quietfor="$USHER_QUIET_FOR" -v gap="$USHER_GAP" -v longest="$USHER_LONGEST" \
	-v background="$USHER_BACKGROUND" -v timeout="$USHER_TIMEOUT" -v tries="$USHER_TRIES" \
	-v method="$USHER_METHOD" -v pid=$$ '
# --- addresses: hex digits, 8 of them for IPv4 and mapped IPv4, 32 for IPv6
function v4(s,   p, i) {
	if (split(s, p, ".") != 4) return ""
	for (i = 1; i <= 4; i++) if (p[i] !~ /^[0-9]+$/ || p[i] + 0 > 255) return ""
	return sprintf("%02x%02x%02x%02x", p[1], p[2], p[3], p[4])
}
function groups(s,   p, i, n, h, out) {
	if (s == "") return ""
	n = split(s, p, ":")
	out = ""
	for (i = 1; i <= n; i++) {
		if (i == n && index(p[i], ".")) {
			if ((h = v4(p[i])) == "") return "bad"
			out = out h
		} else {
			if (p[i] !~ /^[0-9A-Fa-f]+$/ || length(p[i]) > 4) return "bad"
			out = out substr("000" tolower(p[i]), length(p[i]))
		}
	}
	return out
}
function hexof(s,   i, a, b) {
	gsub(/\[/, "", s)
	gsub(/\]/, "", s)
	sub(/%.*/, "", s)
	if (!index(s, ":")) return v4(s)
	if (i = index(s, "::")) {
		a = groups(substr(s, 1, i - 1)); b = groups(substr(s, i + 2))
		if (a == "bad" || b == "bad" || length(a b) > 28) return ""
		return a substr("00000000000000000000000000000000", 1, 32 - length(a b)) b
	}
	a = groups(s)
	return length(a) == 32 ? a : ""
}
function unmap(h) {
	return substr(h, 1, 24) == "00000000000000000000ffff" ? substr(h, 25) : h
}
function addprefix(s,   i, h, bits) {
	i = index(s, "/")
	h = hexof(i ? substr(s, 1, i - 1) : s)
	bits = i ? substr(s, i + 1) : length(h) * 4
	if (h == "" || bits !~ /^[0-9]+$/ || bits + 0 > length(h) * 4) return 0
	if (length(unmap(h)) != length(h)) { h = unmap(h); bits -= 96 }
	if (bits < 0) return 0
	xn++
	xrule[xn] = source(h, "saddr") "/" bits
	xlen[xn] = length(h); xwhole[xn] = int(bits / 4); xhead[xn] = substr(h, 1, xwhole[xn])
	# No power operator: busybox can be built without it.
	xdiv[xn] = bits % 4 == 1 ? 8 : bits % 4 == 2 ? 4 : 2
	xpart[xn] = bits % 4 ? int(nibble[substr(h, xwhole[xn] + 1, 1)] / xdiv[xn]) : -1
	return 1
}
function inprefix(h, i) {
	if (length(h) != xlen[i] || substr(h, 1, xwhole[i]) != xhead[i]) return 0
	return xpart[i] < 0 || int(nibble[substr(h, xwhole[i] + 1, 1)] / xdiv[i]) == xpart[i]
}
function excluded(h,   i) {
	for (i = 1; i <= xn; i++) if (inprefix(h, i)) return 1
	return 0
}
function tables(   i) {
	for (i = 0; i < 16; i++) {
		nibble[sprintf("%x", i)] = i
		for (j = 0; j < 16; j++) byte[sprintf("%x%x", i, j)] = i * 16 + j
	}
}
function show(h,   i, out) {
	if (length(h) == 8) return byte[substr(h, 1, 2)] "." byte[substr(h, 3, 2)] "." byte[substr(h, 5, 2)] "." byte[substr(h, 7, 2)]
	out = substr(h, 1, 4)
	for (i = 5; i < 32; i += 4) out = out ":" substr(h, i, 4)
	return "[" out "]"
}
# source is an address as a rule of nft matches it
function source(h, field,   out) {
	out = show(h)
	gsub(/\[/, "", out)
	gsub(/\]/, "", out)
	return (length(h) == 8 ? "ip " : "ip6 ") field " " out
}
# --- the rest
function fail(code, why) {
	uncount()
	printf "{\"method\":\"%s\",\"error\":\"%s\"}\n", method, why
	exit code
}
function now(   line, p) {
	if ((getline line < "/proc/uptime") <= 0) fail(69, "/proc/uptime cannot be read")
	close("/proc/uptime")
	split(line, p, " ")
	return p[1] + 0
}
# PassiveOpens: connections accepted since boot, all ports and both families; -1: not told.
function opens(   line, n, p, i, col) {
	n = -1; col = 0
	while ((getline line < "/proc/net/snmp") > 0) {
		if (substr(line, 1, 5) != "Tcp: ") continue
		split(line, p, " ")
		if (col) { n = p[col] + 0; break }
		for (i in p) if (p[i] == "PassiveOpens") col = i + 0
	}
	close("/proc/net/snmp")
	return n
}
# value of a name:number of ss, -1 when it is missing
function val(rec, name,   i) {
	i = index(rec, " " name ":")
	return i ? substr(rec, i + length(name) + 2, 16) + 0 : -1
}
# text of an address of /proc/net/tcp: 32-bit words in the byte order of the host
function words(h,   i, out) {
	out = ""
	h = tolower(h)
	for (i = 1; i < length(h); i += 8)
		out = out substr(h, i + 6, 2) substr(h, i + 4, 2) substr(h, i + 2, 2) substr(h, i, 2)
	return unmap(out)
}
# why an established connection of ss is busy, or "" when it is idle
function busyness(rec, rq, sq,   snd, rcv, got, sent, quiet) {
	if (rq > 0 || sq > 0) return "queue"
	if (!index(rec, " cwnd:")) return "unknown"
	# ss leaves out what is 0: no age is an age of 0 ms, no count is none.
	if ((snd = val(rec, "lastsnd")) < 0) snd = 0
	if ((rcv = val(rec, "lastrcv")) < 0) rcv = 0
	got = val(rec, "bytes_received") > 0 || val(rec, "data_segs_in") > 0
	sent = val(rec, "bytes_acked") > 0 || val(rec, "data_segs_out") > 0
	if (got || sent) counters = 1
	quiet = snd < rcv ? snd : rcv
	if (quiet < 3000) return "recent"
	if (got && !sent || rcv < snd && (got || !counters)) return "unanswered"
	# Bytes in and out within one tick: an answer, or the next request behind it.
	if (rcv == snd && quiet < longest * 1000 && (got || !counters)) return "same-tick"
	return ""
}
# A connection from USHER_EXCLUDE is in the counter of the host, too. It is found by its
# pair and remembered for a while after, so that it is one however often it is seen; a
# pair that is used again is not counted, which only makes the wait longer.
function probed(key, state) {
	if (state == "03") return
	if (!(key in probe)) probes++
	probe[key] = t
}
# one socket: state as in /proc/net/tcp, identity (changes when the pair is used again)
function socket(state, lhex, lport, rhex, rport, id, rec, rq, sq,   key, why) {
	if (local != "" && lhex != local && (state != "0A" || lhex !~ /^0*$/)) return
	if (state == "0A") { listeners++; return }
	if (state == "02" || state == "07") return
	if (xn) {
		if (!(rhex in xcache)) { xcache[rhex] = excluded(rhex); nr++ }
		if (xcache[rhex]) { probed(lhex " " lport " " rhex " " rport, state); return }
	}
	key = lhex " " lport " " rhex " " rport " " id
	# A dump is no snapshot: a socket that moves may be seen twice.
	if ((key in last) && last[key] == polls) return
	# In /proc the pair is all there is: used again when it was over and is alive now.
	if (polls > 1 && (!(key in last) || method == "proc" && over[key] && state == "01")) fresh++
	last[key] = polls
	over[key] = (state == "05" || state == "06")
	why = ""
	if (state == "01") {
		established++; live++
		why = method == "ss" ? busyness(rec, rq, sq) : rq ? "queue" : "unknown"
	} else if (state == "03") { live++; why = "syn-recv"
	} else if (state == "08") { live++; why = "close-wait"
	} else if (state == "04" || state == "09" || state == "0B") {
		# Last bytes are on their way, to a slow client for long; peers that vanished keep it
		# so for minutes, but acknowledge nothing.
		if (!(key in closing) || sq < unsent[key]) closing[key] = t
		unsent[key] = sq
		if (t - closing[key] < 5) { live++; why = "closing" }
	}
	if (why != "") busy++
	if (why != "" || until == "zero" && state == "01")
		if (nleft < 10) left[++nleft] = show(rhex) ":" rport " " (why == "" ? "idle" : why)
}
function fromss(rec,   f, l, r, lp, rp, i, id) {
	split(rec, f, " ")
	i = match(f[4], /:[^:]*$/); l = substr(f[4], 1, i - 1); lp = substr(f[4], i + 1)
	if (!(lp in wanted)) return
	i = match(f[5], /:[^:]*$/); r = substr(f[5], 1, i - 1); rp = substr(f[5], i + 1)
	if (!(l in lcache)) lcache[l] = unmap(hexof(l))
	if (!(r in rcache)) { rcache[r] = unmap(hexof(r)); nr++ }
	id = ""
	if (i = index(rec, " sk:")) { id = substr(rec, i + 4, 20); sub(/[ \t].*/, "", id) }
	socket(code[f[1]], lcache[l], lp, rcache[r], rp, id, rec, f[2] + 0, f[3] + 0)
}
function pollss(   line, w, rec, status) {
	rec = ""; status = "none"
	while ((sscmd | getline line) > 0) {
		w = line
		sub(/[ \t].*/, "", w)
		if (w in code || w == "usher-exit") {
			if (rec != "") fromss(rec)
			rec = line
			if (w == "usher-exit") { status = substr(line, 12); rec = "" }
		} else if (rec != "") rec = rec " " line
	}
	close(sscmd)
	return status == "0"
}
function pollfile(file,   line, f, lp, n, i, r) {
	n = 0
	while ((getline line < file) > 0) {
		if (++n == 1) continue
		split(line, f, " ")
		i = index(f[2], ":"); lp = f[2]
		lp = substr(lp, i + 1, 4)
		if (!(lp in wantedhex)) continue
		r = f[3]
		socket(f[4], words(substr(f[2], 1, i - 1)), lp, words(substr(r, 1, i - 1)), port(substr(r, i + 1, 4)), "", "", f[5] !~ /^0+:0+$/, substr(f[5], 1, 8))
	}
	close(file)
	return n > 0
}
function port(h) { h = tolower(h); return byte[substr(h, 1, 2)] * 256 + byte[substr(h, 3, 2)] }
function poll(   k, ok) {
	polls++
	# Read before the sockets, and again after them: what arrives meanwhile may not be seen.
	ahead = opens()
	established = live = busy = fresh = listeners = nleft = 0
	if (nr > 50000) { split("", rcache); split("", xcache); nr = 0 }
	if (method == "ss" && !pollss()) {
		if (polls > 1) return 0
		method = "proc"
		established = live = busy = fresh = listeners = nleft = 0
		split("", last); split("", over); split("", closing); split("", unsent); split("", probe); probes = 0
	}
	if (method == "proc") {
		ok = pollfile("/proc/net/tcp")
		if (!pollfile("/proc/net/tcp6") && !ok) fail(69, "neither ss nor /proc/net/tcp can be read")
	}
	for (k in last) if (last[k] != polls) { delete last[k]; delete over[k]; delete closing[k]; delete unsent[k] }
	for (k in probe) if (probe[k] < t - 120) delete probe[k]
	return 1
}
# Counts the SYNs to the ports from elsewhere than USHER_EXCLUDE, if the host lets it. A
# table that a killed run has left goes first.
function count(   line, p, i, rules) {
	counted = 1
	while (("nft list tables inet 2>/dev/null" | getline line) > 0)
		if (split(line, p, " ") == 3 && p[3] ~ /^usher_wait_[0-9]+$/ && (getline rules < ("/proc/" substr(p[3], 12) "/stat")) < 0)
			system("nft delete table inet " p[3] " 2>/dev/null")
	close("nft list tables inet 2>/dev/null")
	rules = "add table inet " table "; add counter inet " table " arrivals; " \
		"add chain inet " table " input { type filter hook input priority -149; }; "
	for (i = 1; i <= xn; i++) rules = rules "add rule inet " table " input " xrule[i] " return; "
	rules = rules "add rule inet " table " input tcp dport { " nftports " } " \
		"tcp flags & (fin | syn | rst | ack) == syn counter name arrivals"
	return system("nft \"" rules "\" >/dev/null 2>&1") == 0
}
function uncount() {
	if (counter == "nft") system("nft delete table inet " table " 2>/dev/null")
}
# SYNs that count has counted; -1: not told.
function syns(   line, p, n, cmd) {
	n = -1
	cmd = "nft list counter inet " table " arrivals 2>/dev/null"
	while ((cmd | getline line) > 0) if (line ~ /packets/) { sub(/.*packets /, "", line); n = line + 0 }
	close(cmd)
	return n
}
# begins a count of arrivals: what came before is not known
function recount(by, from) {
	counter = by; lastnew = now()
	on = obase = 1
	otime[1] = lastnew; ocount[1] = from; oprobes[1] = by == "nft" ? 0 : probes
}
# more has arrived in the last quietfor seconds than background
function arriving(   n, first) {
	if (local != "") return 0
	n = counter == "nft" ? syns() : -1
	first = n
	if (n < 0) {
		n = opens(); first = ahead
		if (n < 0 || first < 0) fail(69, "/proc/net/snmp does not tell of new connections")
		if (counter == "nft") recount("passive_opens", first)
	}
	otime[++on] = t; ocount[on] = first; oprobes[on] = counter == "nft" ? 0 : probes
	if (on == 1) obase = 1
	while (obase < on - 1 && otime[obase + 1] <= t - quietfor) { delete otime[obase]; delete ocount[obase]; delete oprobes[obase]; obase++ }
	grown = n - ocount[obase] - oprobes[on] + oprobes[obase]
	return grown > background * (now() - otime[obase])
}
function finish(code,   i, s) {
	uncount()
	printf "{\"method\":\"%s\",\"drained\":%s,\"seconds\":%.1f,\"polls\":%d,\"checks\":%d,", method, code ? "false" : "true", t - start, polls, clear
	printf "\"established\":%d,\"live\":%d,\"busy\":%d,\"new\":%d,\"listeners\":%d,", established, live, busy, total, listeners
	printf "\"since_new\":%.1f,\"counter\":\"%s\",\"passive_opens\":%d,\"arriving\":%s,\"left\":[", t - lastnew, counter, grown, arrived ? "true" : "false"
	s = ""
	for (i = 1; i <= nleft; i++) { printf "%s\"%s\"", s, left[i]; s = "," }
	printf "]}\n"
	exit code
}
BEGIN {
	tables()
	split("", last); split("", over); split("", closing); split("", unsent); split("", wanted); split("", probe)
	table = "usher_wait_" pid
	counter = "passive_opens"
	if (every + 0 <= 0) fail(64, "every must be more than 0")
	n = split(ports, p, " ")
	filter = ""
	for (i = 1; i <= n; i++) {
		if (p[i] + 0 < 1 || p[i] + 0 > 65535) fail(64, "a port goes from 1 to 65535")
		wanted[p[i] + 0 ""] = 1
		wantedhex[sprintf("%04X", p[i])] = 1
		filter = filter (i > 1 ? " or " : "") "sport = :" (p[i] + 0)
		nftports = nftports (i > 1 ? ", " : "") (p[i] + 0)
	}
	if (!n) fail(64, "no ports")
	n = split(exclude, p, " ")
	for (i = 1; i <= n; i++) if (!addprefix(p[i])) fail(64, "not a network: " p[i])
	local = ""
	if (localtext != "" || until == "zero") counter = ""
	if (localtext != "" && (local = unmap(hexof(localtext))) == "") fail(64, "not an address: " localtext)
	# The names of ss for the states, as /proc/net/tcp numbers them.
	n = split("ESTAB 01 SYN-SENT 02 SYN-RECV 03 FIN-WAIT-1 04 FIN-WAIT-2 05 TIME-WAIT 06 UNCONN 07 CLOSE-WAIT 08 LAST-ACK 09 LISTEN 0A CLOSING 0B", p, " ")
	for (i = 1; i < n; i += 2) code[p[i]] = p[i + 1]
	# Old versions know no -H and no -O: the header is skipped, lines are joined.
	sscmd = "ss -atine \"( " filter " )\" 2>/dev/null; echo usher-exit $?"
	start = lastnew = t = now()
	while (1) {
		t = now()
		if (!poll()) fail(69, "ss stopped working")
		total += fresh
		if (fresh) lastnew = t
		arrived = until == "quiet" && arriving()
		if ((until == "zero" ? live : busy) == 0) clear++; else clear = 0
		if (t - start >= gap) tried++
		if (clear >= need && tried && (until == "zero" || t - lastnew >= quietfor && !arrived)) finish(0)
		# Are they probes, or for other ports?
		if (arrived && clear >= need && tried && !counted && count()) recount("nft", 0)
		# The next poll may take as long as this one: the report must be out by then.
		took = now() - t
		if (took > timeout / 10) took = timeout / 10
		if (tries > 0 && tried >= tries || now() - start + every + took > timeout) finish(75)
		if (system("sleep " every) != 0 && system("sleep 1") != 0) fail(69, "sleep does not work")
	}
}'
