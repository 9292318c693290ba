package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"example.org/usher/host/firewall"
	"example.org/usher/host/sockdiag"
)

// What the firewall is asked for, in the words of the script.
const (
	ActionFailHealthCheck  = "fail_health_check"
	ActionBlockConnections = "block_connections"
	ActionUndo             = "undo"
	ActionStatus           = "status"
	// ActionWait is Wait's, for Able.
	ActionWait = "wait"
)

// ErrTraffic: clients come from the networks that only probes should come from.
var ErrTraffic = errors.New("clients come from these networks")

// DrainSettings are what Drain shuts out.
type DrainSettings struct {
	Ports []uint16
	// Probes are networks whose new connections are dropped, if nothing but probes comes
	// from there. None, only with Block: nothing is watched.
	Probes []netip.Prefix
	// Block has all other new connections refused.
	Block bool
	// Expires is when that ends by itself.
	Expires time.Duration
	// Watch is how long the probes' networks are watched before; ProbeRate, how many new
	// connections a second from there, all together, are probes.
	Watch     time.Duration
	ProbeRate int
}

// DrainReport is what Drain came to, as the script reports it.
type DrainReport struct {
	Method  string `json:"method"` // "native"
	Action  string `json:"action"`
	Error   string `json:"error,omitempty"`
	Expires int    `json:"expires"` // seconds
	// Seen are the counts of the watch, when there was one.
	*Seen
}

// Seen is what came from the probes' networks while they were watched.
type Seen struct {
	Watched     int    `json:"watched"` // seconds
	SYNs        uint64 `json:"syns"`    // packets that open a connection
	Packets     uint64 `json:"packets"`
	Connections int    `json:"connections"` // established in the end
	Lasting     int    `json:"lasting"`     // and in the beginning too
}

// traffic says whether that is more than probes explain. A probe is one connection of a
// few packets, and over soon. Two that last may be probes that got no answer.
func (s Seen) traffic(probeRate int) bool {
	return s.SYNs > uint64(probeRate*(s.Watched+1)) || s.Packets > 20*s.SYNs+5*uint64(s.Watched) ||
		s.Connections > 10*probeRate || s.Lasting > 2
}

// Drain lets the probes fail, or refuses new connections, or both, until that expires or
// is undone. It may be called again, and at the same time. The error matches ErrTraffic,
// firewall.ErrUndone when an undo came in between, and ErrLacking; nothing is changed then.
func Drain(ctx context.Context, s DrainSettings) (DrainReport, error) {
	r := DrainReport{Method: "native", Action: ActionBlockConnections, Expires: int(s.Expires.Seconds())}
	var w *firewall.Watch
	if len(s.Probes) > 0 {
		r.Action = ActionFailHealthCheck
		var err error
		if w, err = firewall.StartWatch(s.Ports, s.Probes); err != nil {
			return r, lacking("drain", err)
		}
		defer w.Close()
		seen, err := watch(ctx, s, w)
		if err != nil {
			return r, lacking("drain", err)
		}
		r.Seen = &seen
		if seen.traffic(s.ProbeRate) {
			return r, fmt.Errorf("%w: %d new connections and %d packets in %d s, %d connections open, %d of them all the time; "+
				"name only addresses that nothing but probes comes from, or raise the probe rate if these are probes",
				ErrTraffic, seen.SYNs, seen.Packets, seen.Watched, seen.Connections, seen.Lasting)
		}
	}
	change := firewall.Change{Ports: s.Ports, Probes: s.Probes, Block: s.Block, Expires: s.Expires}
	if err := firewall.Apply(ctx, change, w); err != nil {
		return r, lacking("drain", err)
	}
	return r, nil
}

// lookEvery is how soon a watch that an undo has ended is over.
const lookEvery = 250 * time.Millisecond

// watch counts what comes from the probes' networks for as long as the settings say.
func watch(ctx context.Context, s DrainSettings, w *firewall.Watch) (Seen, error) {
	conn, err := sockdiag.Open()
	if err != nil {
		return Seen{}, err
	}
	defer conn.Close()
	first, err := connectionsFrom(conn, s)
	if err != nil {
		return Seen{}, err
	}
	over, look := time.NewTimer(s.Watch), time.NewTicker(lookEvery)
	defer over.Stop()
	defer look.Stop()
	for watching := true; watching; {
		select {
		case <-over.C:
			watching = false
		case <-look.C:
			if _, _, err := w.Counts(); err != nil {
				return Seen{}, err
			}
		case <-ctx.Done():
			return Seen{}, context.Cause(ctx)
		}
	}
	last, err := connectionsFrom(conn, s)
	if err != nil {
		return Seen{}, err
	}
	seen := Seen{Watched: int(s.Watch.Seconds()), Connections: len(last)}
	for cookie := range last {
		if first[cookie] {
			seen.Lasting++
		}
	}
	seen.Packets, seen.SYNs, err = w.Counts()
	return seen, err
}

// connectionsFrom are the cookies of established connections from the probes' networks.
func connectionsFrom(conn *sockdiag.Conn, s DrainSettings) (map[uint64]bool, error) {
	cookies := map[uint64]bool{}
	err := list(conn, s.Ports, []sockdiag.State{sockdiag.Established}, func(c *sockdiag.Socket) {
		if slices.ContainsFunc(s.Probes, func(p netip.Prefix) bool { return p.Contains(c.Peer.Addr()) }) {
			cookies[c.Cookie] = true
		}
	})
	return cookies, err
}

// UndoReport is what Undo came to.
type UndoReport struct {
	Method  string `json:"method"`
	Action  string `json:"action"`
	Error   string `json:"error,omitempty"`
	Removed int    `json:"removed"` // tables
}

// Undo takes back all that Drain has done, and ends one that watches. Nothing to undo is
// fine.
func Undo() (UndoReport, error) {
	r := UndoReport{Method: "native", Action: ActionUndo}
	removed, err := firewall.Undo()
	if err != nil {
		return r, lacking("undo", err)
	}
	if removed {
		r.Removed = 1
	}
	return r, nil
}

// StatusReport is what is in force on the host. Lists have spaces between, as the
// script's have.
type StatusReport struct {
	Method       string `json:"method"`
	Action       string `json:"action"`
	Error        string `json:"error,omitempty"`
	Probes       string `json:"probes"`
	ProbePorts   string `json:"probe_ports"`
	BlockedPorts string `json:"blocked_ports"`
	Expires      int    `json:"expires"` // seconds until all of it has ended
	// Arrivals is how many packets have come since Drain that open a connection to its
	// ports, without those of the probes.
	Arrivals uint64 `json:"arrivals"`
}

// Status says what is in force. The error matches ErrLacking.
func Status() (StatusReport, error) {
	r := StatusReport{Method: "native", Action: ActionStatus}
	s, err := firewall.Read()
	if err != nil {
		return r, lacking("look at the firewall", err)
	}
	var longest time.Duration
	var probes []string
	for _, p := range s.Probes {
		probes = append(probes, p.String())
		longest = max(longest, p.Expires)
	}
	numbers := func(ports []firewall.Port) string {
		var list []string
		for _, p := range ports {
			list = append(list, strconv.Itoa(int(p.Number)))
			longest = max(longest, p.Expires)
		}
		return strings.Join(list, " ")
	}
	r.Probes, r.ProbePorts, r.BlockedPorts = strings.Join(probes, " "), numbers(s.ProbePorts), numbers(s.BlockedPorts)
	r.Expires, r.Arrivals = int(longest.Round(time.Second).Seconds()), s.Arrivals
	return r, nil
}

// Able says why this host, or this process, cannot do an action; nil: it can.
func Able(action string) error {
	if action == ActionWait {
		conn, err := sockdiag.Open()
		if err != nil {
			return lacking("watch connections", err)
		}
		defer conn.Close()
		if err := list(conn, []uint16{1}, []sockdiag.State{sockdiag.Listen}, func(*sockdiag.Socket) {}); err != nil {
			return lacking("watch connections", err)
		}
		// Before Linux 5.12 no table ends with its owner, and without that count a host that
		// probes never leave alone is never quiet. The script has another way there; who may
		// not count at all has none.
		counter, err := firewall.CountSYNs([]uint16{1}, nil, netip.Addr{})
		if errors.Is(err, fs.ErrPermission) {
			return nil
		}
		if err != nil {
			return lacking("count what arrives", err)
		}
		return counter.Close()
	}
	_, err := firewall.Read()
	return lacking("use the firewall", err)
}
