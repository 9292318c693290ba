// Package host does on an instance itself, by system calls, what the worker's scripts do
// with the programs they find there: it watches the TCP connections to some ports until
// they are drained, and keeps a firewall table that lets a balancer's probes fail. It is
// for people who put the binary on their images; the scripts prefer it where it is.
//
// Settings, rules, reports and exit codes are those of the scripts.
package host

import (
	"errors"
	"net/netip"
	"time"
)

// Protocol is what the scripts ask for before they use the binary: it changes when
// settings, reports or exit codes no longer mean the same.
const Protocol = 1

// ErrLacking: the host, or the permissions there, lack what was asked for.
var ErrLacking = errors.New("the host lacks what this needs")

// When Wait takes the connections for drained.
const (
	// UntilQuiet: no connection has arrived for QuietFor and none is busy.
	UntilQuiet = "quiet"
	// UntilZero: there is no live connection.
	UntilZero = "zero"
)

// Settings are what Wait waits for. All must be set, but those that may be zero.
type Settings struct {
	Ports []uint16 // local ports
	// Exclude are networks whose connections do not count: the balancer's probes. They
	// hold no mapped IPv4 networks.
	Exclude []netip.Prefix
	// Local, when valid, is the only local address whose connections count.
	Local netip.Addr
	Until string // UntilQuiet or UntilZero
	// Checks is how many polls in a row must be clear, Every apart.
	Checks int
	Every  time.Duration
	// Tries is after how many polls, counted once the gap is over, the wait is given up; 0:
	// after any number.
	Tries int
	// QuietFor is how long no connection may have arrived; with UntilQuiet alone.
	QuietFor time.Duration
	// Gap is the least time to wait, whatever is seen.
	Gap time.Duration
	// Longest is the silence after which a connection whose last bytes came and went
	// within one tick of the kernel's clock is idle.
	Longest time.Duration
	// Background is how many new connections a second are no arrivals.
	Background float64
	Timeout    time.Duration
}

// Where Wait learns of connections that come and go between two polls.
const (
	// ArrivalsSYN: a counter of the first packets to the ports, in a firewall table that
	// lives as long as the wait. It needs CAP_NET_ADMIN.
	ArrivalsSYN = "syn"
	// ArrivalsPassiveOpens: the host's own count of accepted connections, of all ports
	// and clients together.
	ArrivalsPassiveOpens = "passive_opens"
	// ArrivalsSockets: nothing. Only connections that a poll sees are known.
	ArrivalsSockets = "sockets"
)

// Report is what a wait came to, as the script reports it, and where the arrivals were
// learnt.
type Report struct {
	Method       string   `json:"method"` // "native"
	Drained      bool     `json:"drained"`
	Seconds      float64  `json:"seconds"`
	Polls        int      `json:"polls"`
	Checks       int      `json:"checks"` // clear polls in a row
	Established  int      `json:"established"`
	Live         int      `json:"live"`
	Busy         int      `json:"busy"`
	New          int      `json:"new"` // connections that polls after the first one saw first
	Listeners    int      `json:"listeners"`
	SinceNew     float64  `json:"since_new"` // seconds since the last of them
	PassiveOpens int      `json:"passive_opens"`
	Arriving     bool     `json:"arriving"`
	Arrivals     string   `json:"arrivals"` // one of the Arrivals constants
	Left         []string `json:"left"`     // ten at most: peer, and why it is waited for
}
