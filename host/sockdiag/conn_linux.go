package sockdiag

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// answerTimeout is how long the kernel may keep a listing waiting.
const answerTimeout = 10 * time.Second

// Conn is a way to ask. It stays in the network namespace in which it was opened, and is
// for one goroutine at a time.
type Conn struct {
	fd       int
	sequence uint32
	buffer   []byte
	socket   Socket
}

// Open opens a way to ask. The error matches ErrUnsupported where the kernel has none.
func Open() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	} else if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	limit := unix.NsecToTimeval(answerTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setsockopt", err)
	}
	return &Conn{fd: fd, buffer: make([]byte, 64<<10)}, nil
}

// Close ends it.
func (c *Conn) Close() error { return os.NewSyscallError("close", unix.Close(c.fd)) }

// List calls each for every socket that q asks for. The Socket is used again for the next
// one. The error matches ErrUnsupported where the kernel cannot list such sockets.
func (c *Conn) List(q Query, each func(*Socket)) error {
	c.sequence++
	ask, err := request(q, c.sequence)
	if err != nil {
		return err
	}
	kernel := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	if err := again(func() error { return unix.Sendto(c.fd, ask, 0, kernel) }); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	for {
		var n int
		var from unix.Sockaddr
		err := again(func() error {
			var err error
			n, from, err = unix.Recvfrom(c.fd, c.buffer, unix.MSG_TRUNC)
			return err
		})
		if errors.Is(err, unix.EAGAIN) {
			return fmt.Errorf("list sockets: no answer within %v", answerTimeout)
		} else if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
			continue // not the kernel
		}
		if n > len(c.buffer) {
			return fmt.Errorf("list sockets: %w", errShort)
		}
		done, err := decode(c.buffer[:n], c.sequence, &c.socket, each)
		// A family whose module is missing is not found.
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("%w: %w", ErrUnsupported, err)
		} else if err != nil {
			return fmt.Errorf("list sockets: %w", err)
		}
		if done {
			return nil
		}
	}
}

// again repeats a call that a signal has cut short.
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
