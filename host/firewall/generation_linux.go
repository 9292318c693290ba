package firewall

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// generation numbers the rulesets of a network namespace: each change of anything in one,
// by anybody, makes the next.
type generation uint32

func readGeneration() (generation, error) {
	conn, err := dial()
	if err != nil {
		return 0, err
	}
	g, err := askGeneration(conn)
	return g, errors.Join(err, conn.Close())
}

func askGeneration(conn *netlink.Conn) (generation, error) {
	answers, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
		Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0},
	})
	if err != nil {
		return 0, err
	}
	for _, a := range answers {
		if len(a.Data) < 4 {
			continue
		}
		attributes, err := netlink.UnmarshalAttributes(a.Data[4:])
		if err != nil {
			return 0, fmt.Errorf("the ruleset's generation: %w", err)
		}
		for _, at := range attributes {
			if at.Type == unix.NFTA_GEN_ID && len(at.Data) == 4 {
				return generation(binaryutil.BigEndian.Uint32(at.Data)), nil
			}
		}
	}
	return 0, errors.New("the kernel does not say the ruleset's generation")
}

// open makes a connection whose batches are refused with ERESTART when the ruleset is of
// another generation (NFNL_BATCH_GENID, linux/netfilter/nfnetlink.h, Linux 4.10). The socket
// is the caller's to close. The package has no word for that attribute, and one place alone
// where what it sends can be changed: the one that its tests use.
func (g generation) open() (*nftables.Conn, *netlink.Conn, error) {
	attribute, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFNL_BATCH_GENID, Data: binaryutil.BigEndian.PutUint32(uint32(g))},
	})
	if err != nil {
		return nil, nil, err
	}
	socket, err := dial()
	if err != nil {
		return nil, nil, err
	}
	var refused error
	conn, err := nftables.New(nftables.WithTestDial(func(batch []netlink.Message) ([]netlink.Message, error) {
		if len(batch) > 0 {
			batch[0].Data = append(batch[0].Data, attribute...)
			batch[0].Header.Length = 0 // to be counted anew
			_, err := socket.SendMessages(batch)
			return nil, err
		}
		// An answer to each message is waited for, but to a refused batch there is one.
		if refused != nil {
			return nil, refused
		}
		answer, err := socket.Receive()
		if is(err, unix.ERESTART) {
			refused = err
		}
		return answer, err
	}))
	if err != nil {
		return nil, nil, errors.Join(err, socket.Close())
	}
	return conn, socket, nil
}

func dial() (*netlink.Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}
