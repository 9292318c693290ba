package firewall

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ownerFlag has the kernel delete a table when the socket that made it is closed, and
// keep everybody else out of it (Linux 5.12).
const ownerFlag = 2

// own is a table for one purpose of this process.
type own struct {
	conn  *nftables.Conn
	raw   *netlink.Conn
	table *nftables.Table
	chain *nftables.Chain
}

// newOwn makes a table with a chain that sees the packets that come in. With ownerFlag it
// lives as long as its connection, however the process ends. The package sends no flags of
// a table, so the table itself is made by a message of ours, on the same socket.
func newOwn(name string, flags uint32, at nftables.ChainPriority) (*own, error) {
	o := &own{}
	var err error
	o.conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		o.raw = c
		return nil
	}))
	if err != nil {
		return nil, err
	}
	o.table = &nftables.Table{Name: fmt.Sprintf("usher_%s_%d_%x", name, os.Getpid(), rand.Uint32()), Family: nftables.TableFamilyINet}
	if err := o.make(flags); err != nil {
		return nil, errors.Join(err, o.Close())
	}
	o.chain = &nftables.Chain{
		Table: o.table, Name: chainName, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityRef(at), Policy: new(nftables.ChainPolicyAccept),
	}
	return o, nil
}

func (o *own) make(flags uint32) error {
	attributes, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte(o.table.Name + "\x00")},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binaryutil.BigEndian.PutUint32(flags)},
	})
	if err != nil {
		return err
	}
	// In front of the attributes: family, version, and of a batch its subsystem.
	batch := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}
	if err := o.soon(); err != nil {
		return err
	}
	if _, err := o.raw.SendMessages([]netlink.Message{
		{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: netlink.Request}, Data: batch},
		{
			Header: netlink.Header{
				Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE,
				Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Excl,
			},
			Data: append([]byte{byte(o.table.Family), unix.NFNETLINK_V0, 0, 0}, attributes...),
		},
		{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_END, Flags: netlink.Request}, Data: batch},
	}); err != nil {
		return err
	}
	_, err = o.raw.Receive()
	return err
}

// soon bounds what is asked next.
func (o *own) soon() error { return o.raw.SetDeadline(time.Now().Add(answerTimeout)) }

func (o *own) flush() error {
	if err := o.soon(); err != nil {
		return err
	}
	return o.conn.Flush()
}

// Close ends the connection.
func (o *own) Close() error { return o.conn.CloseLasting() }

// prefixSets are two sets of the networks, of IPv4 and of IPv6.
func (o *own) prefixSets(name string, prefixes []netip.Prefix) (v4, v6 *nftables.Set, err error) {
	var wanted []Span
	for _, p := range prefixes {
		wanted = append(wanted, spanOf(p, 0))
	}
	spans4, spans6 := split(addSpans(nil, wanted))
	v4 = networks(o.table, 1, name+"4", nftables.TypeIPAddr)
	v6 = networks(o.table, 2, name+"6", nftables.TypeIP6Addr)
	return v4, v6, errors.Join(o.conn.AddSet(v4, spanElements(spans4)), o.conn.AddSet(v6, spanElements(spans6)))
}

func (o *own) portSet(numbers []uint16) (*nftables.Set, error) {
	s := ports(o.table, 3, "ports")
	return s, o.conn.AddSet(s, portElements(addPorts(nil, numbers, 0)))
}

// afterFilters is behind the chains of all firewalls: what comes here becomes a connection.
const afterFilters = 300

// SYNs counts the first packets of connections.
type SYNs struct{ own *own }

// CountSYNs begins to count those to the ports that no firewall has dropped or refused,
// without those from the excluded networks, and with a valid local only those to that
// address. A first packet that is sent again counts again.
func CountSYNs(numbers []uint16, exclude []netip.Prefix, local netip.Addr) (*SYNs, error) {
	o, err := newOwn("wait", ownerFlag, afterFilters)
	if err != nil {
		return nil, fmt.Errorf("count connections: %w", unsupported(err))
	}
	if err := o.countSYNs(numbers, exclude, local); err != nil {
		return nil, fmt.Errorf("count connections: %w", errors.Join(unsupported(err), o.Close()))
	}
	return &SYNs{o}, nil
}

func (o *own) countSYNs(numbers []uint16, exclude []netip.Prefix, local netip.Addr) error {
	exclude4, exclude6, err := o.prefixSets("exclude", exclude)
	if err != nil {
		return err
	}
	ports, err := o.portSet(numbers)
	if err != nil {
		return err
	}
	o.conn.AddObj(&nftables.CounterObj{Table: o.table, Name: arrivals})
	o.conn.AddChain(o.chain)
	for _, excluded := range []*nftables.Set{exclude4, exclude6} {
		var to []expr.Any
		if local.IsValid() {
			if local.Is4() != (excluded == exclude4) {
				continue
			}
			to = toAddress(local)
		}
		o.conn.AddRule(rule(o.chain, to, fromSet(excluded, true), opens(ports), []expr.Any{count(arrivals)}))
	}
	return o.flush()
}

// Count is how many there were so far.
func (s *SYNs) Count() (uint64, error) {
	if err := s.own.soon(); err != nil {
		return 0, err
	}
	return countOf(s.own.conn, s.own.table, arrivals)
}

// Close ends the counting.
func (s *SYNs) Close() error { return s.own.Close() }

// Of a watch: its counters, its table's name before the number of its process, and its
// place before the table of usher's own, and so before what that drops. They are those of
// the script.
const (
	seen          = "seen"
	begun         = "begun"
	watchPrefix   = "usher_watch_"
	beforeFilters = -160
)

// Watch counts what comes from some networks before they are shut out. Undo ends it: who
// watches finds its table gone, and shuts nobody out.
type Watch struct{ own *own }

// StartWatch begins to count what comes from the networks to the ports.
func StartWatch(numbers []uint16, from []netip.Prefix) (*Watch, error) {
	o, err := newOwn("watch", 0, beforeFilters)
	if err != nil {
		return nil, fmt.Errorf("watch the probes: %w", unsupported(err))
	}
	w := &Watch{o}
	if err := o.watch(numbers, from); err != nil {
		return nil, fmt.Errorf("watch the probes: %w", errors.Join(unsupported(err), w.Close()))
	}
	return w, nil
}

func (o *own) watch(numbers []uint16, from []netip.Prefix) error {
	from4, from6, err := o.prefixSets("from", from)
	if err != nil {
		return err
	}
	ports, err := o.portSet(numbers)
	if err != nil {
		return err
	}
	for _, name := range []string{seen, begun} {
		o.conn.AddObj(&nftables.CounterObj{Table: o.table, Name: name})
	}
	o.conn.AddChain(o.chain)
	for _, set := range []*nftables.Set{from4, from6} {
		o.conn.AddRule(rule(o.chain, fromSet(set, false), toPorts(ports), []expr.Any{count(seen)}, opening(), []expr.Any{count(begun)}))
	}
	return o.flush()
}

// Counts is how many packets came so far, and how many of them open a connection. The
// error matches ErrUndone when the watch was ended.
func (w *Watch) Counts() (packets, opened uint64, err error) {
	for name, to := range map[string]*uint64{seen: &packets, begun: &opened} {
		if err := w.own.soon(); err != nil {
			return 0, 0, err
		}
		if *to, err = countOf(w.own.conn, w.own.table, name); is(err, unix.ENOENT) {
			return 0, 0, ErrUndone
		} else if err != nil {
			return 0, 0, fmt.Errorf("watch the probes: %w", unsupported(err))
		}
	}
	return packets, opened, nil
}

// Close ends the watch, if nothing has ended it yet.
func (w *Watch) Close() error {
	w.own.conn.DelTable(w.own.table)
	err := w.own.flush()
	if is(err, unix.ENOENT) {
		err = nil
	}
	return errors.Join(err, w.own.Close())
}
