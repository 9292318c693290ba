package zerodrop

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"time"
)

// vip is where the clients connect to.
var vip = netip.MustParseAddrPort("198.18.0.1:80")

// probeSource is where health checks come from, and nothing else.
const probeSource = "198.18.1.253"

// How the probes of the switch and of HAProxy go: one every second, for a second at most,
// three failures take a backend out, two successes put it back.
const (
	probeEvery   = time.Second
	probeTimeout = time.Second
	probeFall    = 3
	probeRise    = 2
)

// switchRole is an L4 switch: it gives each new connection to the next backend that its
// probes find well, by destination NAT, and forwards the packets of open ones to where
// they went before. Nobody can tell it anything.
type switchRole struct{}

// run probes the backends until ctx ends, each at its own pace.
func (*switchRole) run(ctx context.Context) error {
	type news struct {
		backend int
		well    bool
	}
	changes := make(chan news)
	for i := range machines {
		go func() {
			watch(ctx, netip.AddrPortFrom(backendAddress(i+1), servicePort), func(well bool) {
				select {
				case changes <- news{i, well}:
				case <-ctx.Done():
				}
			})
		}()
	}
	var well [machines]bool
	for i := range well {
		well[i] = true
	}
	if err := nft("", switchRules(well)); err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		select {
		case <-ctx.Done():
			return nil
		case n := <-changes:
			well[n.backend] = n.well
			if err := nft("", switchRules(well)); err != nil {
				return err
			}
			fmt.Printf("backend %d well=%t\n", n.backend+1, n.well)
		}
	}
}

// watch probes one backend, which is taken for well at first, and tells when that changes.
func watch(ctx context.Context, backend netip.AddrPort, tell func(well bool)) {
	dialer := net.Dialer{Timeout: probeTimeout, LocalAddr: &net.TCPAddr{IP: net.ParseIP(probeSource)}}
	well, streak := true, 0
	for rest(ctx, probeEvery) {
		conn, err := dialer.DialContext(ctx, "tcp", backend.String())
		if err == nil {
			conn.Close()
		}
		if (err == nil) == well {
			streak = 0
			continue
		}
		if streak++; well && streak == probeFall || !well && streak == probeRise {
			well, streak = !well, 0
			tell(well)
		}
	}
}

// switchRules share new connections out among the backends that are well, in turns. Loaded
// again they replace themselves in one transaction. Open connections stay where they are:
// their packets meet no rule again.
func switchRules(well [machines]bool) string {
	var targets []string
	for i, ok := range well {
		if ok {
			targets = append(targets, fmt.Sprintf("%d : %s", len(targets), backendAddress(i+1)))
		}
	}
	rule := "" // nobody answers
	if len(targets) > 0 {
		rule = fmt.Sprintf("ip daddr %s tcp dport %d dnat to numgen inc mod %d map { %s } : %d",
			vip.Addr(), vip.Port(), len(targets), strings.Join(targets, ", "), servicePort)
	}
	return `table ip switch
delete table ip switch
table ip switch {
	chain prerouting {
		type nat hook prerouting priority -100
		` + rule + `
	}
}
`
}

// nft loads rules, in this process's namespace or another.
func nft(namespace, rules string) error {
	cmd := exec.Command("nft", "-f", "-")
	if namespace != "" {
		cmd = inside(namespace, "nft", "-f", "-")
	}
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s\n%s", err, out, rules)
	}
	return nil
}

// clbRules lead the clients to the cloud's own balancer, which listens on loopback as all
// of the simulator does.
func clbRules() string {
	port := netip.MustParseAddrPort(clbAddress).Port()
	return fmt.Sprintf("table ip clb { chain prerouting { type nat hook prerouting priority -100; ip daddr %s tcp dport %d dnat to 127.0.0.1:%d; }; }\n",
		vip.Addr(), vip.Port(), port)
}

// haproxyConfig is HAProxy as it ships: three tries at the same server, no redispatch.
// Probes come from an address of their own; check, if not empty, makes them HTTP ones.
func haproxyConfig(socket, check string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `global
    stats socket %s mode 600 level admin
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend service
    bind %s
    default_backend instances
backend instances
    balance roundrobin
`, socket, vip)
	for i := range machines {
		fmt.Fprintf(&b, "    server b%d %s:%d track probes/b%[1]d\n", i+1, backendAddress(i+1), servicePort)
	}
	b.WriteString("backend probes\n")
	if check != "" {
		fmt.Fprintf(&b, "    option httpchk GET %s\n", check)
	}
	for i := range machines {
		fmt.Fprintf(&b, "    server b%d %s:%d check inter %d fall %d rise %d source %s\n",
			i+1, backendAddress(i+1), servicePort, probeEvery.Milliseconds(), probeFall, probeRise, probeSource)
	}
	return b.String()
}
