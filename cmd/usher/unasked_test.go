package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// TestUnaskedAnswers: net/http logs by itself what a server sends unasked. That may be an
// echo of the signed request, and must not get into the log.
func TestUnaskedAnswers(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn // guarded by mu
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	talk := func(c net.Conn) {
		defer c.Close()
		for r := bufio.NewReader(c); ; {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			const empty = "<Error><Code>MessageNotExist</Code></Error>"
			fmt.Fprintf(c, "HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%s", len(empty), empty)
			fmt.Fprintf(c, "%s HTTP/1.1 200 OK\r\n\r\n", req.Header.Get("Authorization"))
		}
	}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() { talk(c) })
		}
	})
	w := startWorker(t, &cloud{url: "http://" + l.Addr().String()}, keys, "- wait: {for: 10ms}", "")
	w.await(t, &w.stderr, "that net/http has logged", func(text string) bool {
		return strings.Contains(text, "a library says something") && strings.Contains(text, "Unsolicited response")
	})
	// The cleanup of the process looks for the keys.
}
