package steps

import (
	"encoding/base64"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/providers"
)

// TestWaitConnectionsRuns: the whole step, script and all, on this host.
func TestWaitConnectionsRuns(t *testing.T) {
	t.Parallel()
	t.Run("drains", func(t *testing.T) {
		t.Parallel()
		addr := loopback(1)
		h := serve(t, at(addr, 0), answer(50*time.Millisecond))
		ask(t, connect(t, "", at(addr, h.port)))
		w := quick(h.port)
		w.LocalAddress, w.Commander = "{{.PrivateIP}}", newThisHost(t)
		if err := w.Validate(); err != nil {
			t.Fatal(err)
		}
		detail, err := w.Run(t.Context(), instance(addr.String()), 0)
		if err != nil || !strings.Contains(detail, "1 connections, 0 busy, method ss") {
			t.Errorf("got %q, %v", detail, err)
		}
	})
	t.Run("does not drain", func(t *testing.T) {
		t.Parallel()
		addr := loopback(1)
		h := serve(t, at(addr, 0), nil)
		c := connect(t, "", at(addr, h.port))
		send(t, c)
		w := quick(h.port)
		w.LocalAddress, w.Commander = "{{.PrivateIP}}", newThisHost(t)
		var err error
		// A machine on which a poll takes longer than the script keeps back is given more time.
		for w.Timeout = 5 * time.Second; w.Timeout < time.Minute; w.Timeout *= 2 {
			if _, err = w.Run(t.Context(), instance(addr.String()), 0); !errors.Is(err, providers.ErrCommandTimeout) {
				break
			}
		}
		if err == nil || !strings.Contains(err.Error(), "1 busy, 1 live") || !strings.Contains(err.Error(), c.LocalAddr().String()+" queue") {
			t.Errorf("got %v, want what was left", err)
		}
	})
}

// TestWaitConnectionsVerdict: what the instance sends back is judged, not trusted.
func TestWaitConnectionsVerdict(t *testing.T) {
	t.Parallel()
	const report = `{"method":"ss","drained":true,"seconds":12.3,"polls":9,"checks":3,"established":4,"live":4,"busy":0,"new":0,"listeners":1,"since_new":9.0,"passive_opens":0,"arriving":false,"left":[]}`
	tests := map[string]struct {
		r      reply
		detail string
		want   string
	}{
		"drained":         {ended(0, "motd\n"+report+"\n"), "drained after 12 s: 3 checks clear, 4 connections, 0 busy, method ss", ""},
		"counted by nft":  {ended(0, `{"method":"ss","drained":true,"counter":"nft","listeners":1}`), "drained after 0 s: 0 checks clear, 0 connections, 0 busy, method ss, arrivals counted by nft", ""},
		"no listener":     {ended(0, `{"method":"proc","drained":true,"checks":3}`), "drained after 0 s: 3 checks clear, 0 connections, 0 busy, method proc, nothing listens on the ports", ""},
		"native":          {ended(0, `{"method":"native","drained":true,"seconds":3,"checks":4,"listeners":1,"arrivals":"syn"}`), "drained after 3 s: 4 checks clear, 0 connections, 0 busy, method native", ""},
		"native, no end":  {ended(75, `{"method":"native","seconds":60,"polls":9,"arriving":true,"passive_opens":40,"arrivals":"syn"}`), "", `not drained after 60 s and 9 polls: 0 busy, 0 live, last new connection 0 s ago, method native, connections still arrive at the ports (40 lately)`},
		"0, no report":    {ended(0, "hello"), "", "exit code 0 without a report"},
		"0, no output":    {ended(0, ""), "", "exit code 0 without a report"},
		"0, garbage":      {ended(0, "\x00\xff{\n\x1b[2J"), "", "exit code 0 without a report"},
		"0, null":         {ended(0, "null"), "", "exit code 0 without a report"},
		"0, no verdict":   {ended(0, `{"method":"ss","checks":3}`), "", "does not say that it is drained"},
		"0, not drained":  {ended(0, strings.Replace(report, "true", "false", 1)), "", "does not say that it is drained"},
		"0, two reports":  {ended(0, strings.Replace(report, "true", "false", 1)+"\n"+report+"\n"), "", "there is more than one"},
		"0, cut off":      {ended(0, report[:len(report)-9]), "", "exit code 0 without a report"},
		"0, more behind":  {ended(0, report+"\nlogout\n"), "", "exit code 0 without a report"},
		"0, dropped":      {ended(0, report+"\n[9 more bytes were dropped by Cloud Assistant]"), "", "exit code 0 without a report"},
		"not 0, drained":  {ended(75, report), "", "not drained after 12 s and 9 polls"},
		"deadline":        {ended(75, `{"method":"evil\nmethod","seconds":60,"busy":1,"live":2,"left":["1.2.3.4:5 queue","x\u001b[2J"],"arriving":true,"passive_opens":40}`), "", `not drained after 60 s and 0 polls: 1 busy, 2 live, last new connection 0 s ago, method unknown, connections still arrive on the host, probes and other ports included: see background (40 lately), left: "1.2.3.4:5 queue, x\x1b[2J"`},
		"lacking":         {ended(69, `{"error":"there is no awk"}`), "", "lacks what watching its connections needs: \"there is no awk\""},
		"usage":           {ended(64, `{"error":"ports"}`), "", "refused its settings"},
		"awk breaks":      {ended(2, "awk: cannot open\n"), "", `exit code 2 without a report: the last line is no JSON object; output ends with "awk: cannot open"`},
		"no sh":           {ended(127, ""), "", "exit code 127"},
		"another code":    {ended(1, report), "", "exit code 1"},
		"instance gone":   {reply{res: providers.CommandResult{Done: true, Err: providers.ErrInstanceGone}}, "", "instance is gone"},
		"many left":       {ended(75, `{"left":["`+strings.Repeat(`a","`, 5000)+`a"]}`), "", `"a, a, a, a, a, a, a, a, a, a"`},
		"report too long": {ended(75, `{"left":["`+strings.Repeat(`a`, 20000)+`"]}`), "", `...`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := WaitConnections{Ports: []uint16{80}, Timeout: time.Minute, Commander: &replies{results: []reply{tt.r}}}
				detail, err := w.Run(t.Context(), instance(""), 0)
				if tt.detail != "" {
					tt.detail += "; no gap"
				}
				if detail != tt.detail || (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %q, %v; want %q, %q", detail, err, tt.detail, tt.want)
				}
				if err != nil && len(err.Error()) > 1500 {
					t.Errorf("%d bytes are too many to say", len(err.Error()))
				}
				if tt.r.res.Err != nil && !errors.Is(err, tt.r.res.Err) {
					t.Errorf("got %v, want it to match %v", err, tt.r.res.Err)
				}
			})
		})
	}
}

// TestWaitConnectionsSends: the settings stand in front of the script as numbers and addresses.
func TestWaitConnectionsSends(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &replies{results: []reply{ended(0, `{"method":"ss","drained":true}`)}}
		w := WaitConnections{
			Ports: []uint16{80, 443}, Exclude: []netip.Prefix{netip.MustParsePrefix("10.0.0.253/31"), netip.MustParsePrefix("fd00::1/64")},
			ClearChecks: 5, Every: 500 * time.Millisecond, QuietFor: 4 * time.Second, Gap: 10 * time.Second, Background: 2,
			LocalAddress: "{{.PrivateIP}}", Timeout: 20 * time.Minute, Commander: r,
		}
		if err := w.Validate(); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Run(t.Context(), instance("::ffff:10.0.0.7"), 0); err != nil {
			t.Fatal(err)
		}
		want := "#!/bin/sh\nUSHER_PORTS='80 443'\nUSHER_EXCLUDE='10.0.0.252/31 fd00::/64'\nUSHER_LOCAL='10.0.0.7'\nUSHER_UNTIL='quiet'\nUSHER_CHECKS='5'\nUSHER_EVERY='0.5'\n" +
			"USHER_QUIET_FOR='4'\nUSHER_GAP='10'\nUSHER_LONGEST='10'\nUSHER_BACKGROUND='2'\nUSHER_TIMEOUT='1185'\nUSHER_TRIES='0'\nUSHER_METHOD=''\n"
		if !strings.HasPrefix(r.sent.Script, want) {
			t.Errorf("sent %s", r.sent.Script[:len(want)])
		}
		if n := base64.StdEncoding.EncodedLen(len(r.sent.Script)); n > 24<<10 {
			t.Errorf("the script has %d bytes in Base64", n)
		}
		if r.sent.Timeout != w.Timeout || len(r.sent.Key) != 64 {
			t.Errorf("sent timeout %v, key %q", r.sent.Timeout, r.sent.Key)
		}
		t.Logf("script: %d bytes", len(r.sent.Script))
	})
}

func TestWaitConnectionsValidate(t *testing.T) {
	t.Parallel()
	many := make([]netip.Prefix, 300)
	for i := range many {
		many[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{198, byte(18 + i/250), byte(i % 250), 0}), 24)
	}
	tests := map[string]struct {
		change func(*WaitConnections)
		want   string
	}{
		"good":            {func(*WaitConnections) {}, ""},
		"zero":            {func(w *WaitConnections) { w.Until = UntilZero }, ""},
		"no ports":        {func(w *WaitConnections) { w.Ports = nil }, "ports"},
		"port 0":          {func(w *WaitConnections) { w.Ports = []uint16{0} }, "ports"},
		"network":         {func(w *WaitConnections) { w.Exclude = []netip.Prefix{{}} }, "exclude"},
		"mapped":          {func(w *WaitConnections) { w.Exclude = []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/90")} }, "exclude"},
		"networks":        {func(w *WaitConnections) { w.Exclude = many }, "too many networks"},
		"until":           {func(w *WaitConnections) { w.Until = "soon" }, "until"},
		"negative":        {func(w *WaitConnections) { w.Gap = -1 }, "negative"},
		"tries":           {func(w *WaitConnections) { w.Until, w.Tries = UntilZero, 3 }, ""},
		"tries too few":   {func(w *WaitConnections) { w.Until, w.Tries = UntilZero, 2 }, "tries: at least"},
		"tries below 0":   {func(w *WaitConnections) { w.Until, w.Tries = UntilZero, -1 }, "tries: at least"},
		"tries quiet":     {func(w *WaitConnections) { w.Tries = 5 }, "tries: only"},
		"every":           {func(w *WaitConnections) { w.Every = time.Millisecond }, "every"},
		"no timeout":      {func(w *WaitConnections) { w.Timeout = 0 }, "timeout"},
		"gap too long":    {func(w *WaitConnections) { w.Gap = 55 * time.Second }, "timeout"},
		"checks too many": {func(w *WaitConnections) { w.ClearChecks = 60 }, "timeout"},
		"local address":   {func(w *WaitConnections) { w.LocalAddress = "{{.InstanceID}}'; reboot; '" }, "local_address"},
		"local zone":      {func(w *WaitConnections) { w.LocalAddress = "fe80::1%eth0" }, "local_address"},
		"local template":  {func(w *WaitConnections) { w.LocalAddress = "{{.PublicIP}}" }, "local_address"},
		"no commander":    {func(w *WaitConnections) { w.Commander = nil }, "commander"},
	}
	for name, tt := range tests {
		w := WaitConnections{Ports: []uint16{80}, Timeout: time.Minute, Commander: &replies{}}
		tt.change(&w)
		err := w.Validate()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
	w := WaitConnections{Ports: []uint16{80}, LocalAddress: "{{.PrivateIP}}", Timeout: time.Minute, Commander: &replies{}}
	if _, err := w.Run(t.Context(), instance(""), 0); !errors.Is(err, errNoPrivateIP) {
		t.Errorf("got %v, want %v", err, errNoPrivateIP)
	}
}
