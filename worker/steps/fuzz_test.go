package steps

import (
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// FuzzHostSays: what an instance's script prints, with whatever exit code, is told in a
// few printable words, and only exit code 0 with a report is a success.
func FuzzHostSays(f *testing.F) {
	f.Add("noise\n"+`{"method":"ss","drained":true,"seconds":4.2,"polls":5,"checks":3,"established":1,"live":1,"busy":0,"listeners":1}`, 0)
	f.Add(`{"method":"proc","seconds":1e300,"since_new":-1,"left":["10.0.0.1:80 <- 10.0.0.2:1"],"arriving":true,"passive_opens":9}`, 75)
	f.Add(`{"error":"no awk\u001b[2J"}`, 69)
	f.Add(`{"left":[`+strings.Repeat(`"`+strings.Repeat("x", 100)+`",`, 50)+`""]}`, 75)
	f.Add("\x1b[2J\xff\n", 1)
	f.Add(`{"method":"nft iptables-nft\n","syns":9,"packets":-1,"connections":-1,"error":"clients\u001b[2J"}`, 77)
	f.Fuzz(func(t *testing.T, output string, code int) {
		res := providers.CommandResult{Done: true, ExitCode: code, Output: output}
		detail, err := verdict(res)
		if err == nil && (code != exitDrained || detail == "") {
			t.Errorf("exit code %d is a success: %q", code, detail)
		}
		text := detail
		if err != nil {
			text = err.Error()
		}
		report, err := readFirewall(res)
		if err == nil && code != 0 {
			t.Errorf("exit code %d is a success: %+v", code, report)
		}
		text += report.method() + report.seen()
		if err != nil {
			text += err.Error()
		}
		text += outputOf(res) + tail(output, outputTail) + head(output, bodyQuoted)
		if len(text) > 8000 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%d bytes are told: %.300q", len(text), text)
		}
	})
}

// FuzzRender: a template with any facts does not panic, the request that comes of it goes
// where the operator wrote, and a script gets numbers and addresses alone.
func FuzzRender(f *testing.F) {
	f.Add("http://{{.PrivateIP}}:8080/{{.InstanceID}}?t={{.Token}}", "{{.Hook}}", []byte{10, 0, 0, 1}, "i-1")
	f.Add("https://[{{.PrivateIP}}]/", "{{.PrivateIP}}", []byte("0123456789abcdef"), "i-a")
	f.Add("http://{{.PrivateIP}}@evil.test/", "10.0.0.1", []byte{100, 100, 100, 200}, "i-1")
	f.Add("{{range 5}}{{.}}{{end}}", "{{printf \"%1000000d\" 1}}", []byte{}, "")
	f.Fuzz(func(t *testing.T, url, text string, ip []byte, id string) {
		in := instance("")
		in.PrivateIP, _ = netip.AddrFromSlice(ip)
		if messages.InstanceID(id).Valid() {
			in.ID = messages.InstanceID(id)
		}
		facts := factsOf(in)
		h := HTTP{URL: url, Body: text, Headers: map[string]string{"X-Text": text}}
		if call, _, err := h.inquiries(facts); err == nil {
			req, err := call.request(t.Context(), "")
			if err != nil {
				t.Fatalf("%q was tried out and gives no request: %v", url, err)
			}
			if req.URL.Hostname() == "" || req.URL.Scheme != "http" && req.URL.Scheme != "https" {
				t.Errorf("%q gives a request to %v", url, req.URL)
			}
			for _, values := range req.Header {
				for _, v := range values {
					if strings.ContainsAny(v, "\r\n\x00") {
						t.Errorf("%q gives the header %q", text, v)
					}
				}
			}
			if h.permit(req.URL, facts.privateIP) == nil {
				to, err := netip.ParseAddr(req.URL.Hostname())
				if err != nil || to.Unmap() != facts.privateIP {
					t.Errorf("%q calls %v, the instance has %v", url, req.URL, facts.privateIP)
				}
				for _, p := range guarded {
					if p.Contains(to.Unmap().WithZone("")) {
						t.Errorf("%q calls %v", url, req.URL)
					}
				}
			}
			redacted := redact("x "+text+" y", &http.Request{Header: http.Header{"X": {text}}})
			if len(text) >= 6 && !strings.Contains("***", text) && strings.Contains(redacted, text) && !strings.Contains(text, "*") {
				t.Errorf("%q is not taken out: %q", text, redacted)
			}
		} else if len(url) > 20 && strings.Contains(err.Error(), url) {
			t.Errorf("the error quotes the URL, which may hold a secret: %v", err)
		}
		w := WaitConnections{Ports: []uint16{80}, LocalAddress: text, Timeout: time.Minute}
		script, err := w.script(facts)
		if err != nil {
			return
		}
		settings, _, ok := strings.Cut(script, "USHER_METHOD=''\n")
		if !ok {
			t.Fatalf("no settings in %.200q", script)
		}
		for line := range strings.Lines(strings.TrimPrefix(settings, "#!/bin/sh\n")) {
			name, value, ok := strings.Cut(line, "='")
			value, closed := strings.CutSuffix(value, "'\n")
			if !ok || !closed || !strings.HasPrefix(name, "USHER_") || strings.Trim(value, "0123456789abcdefABCDEF.:/ quitzro") != "" {
				t.Errorf("line %s of a script", strconv.Quote(line))
			}
		}
	})
}

// FuzzInFlight: whatever an application answers, a count is a whole number that its body
// says, and a refusal is a few printable words.
func FuzzInFlight(f *testing.F) {
	f.Add([]byte(`{"name":"http.server.requests.active","measurements":[{"statistic":"ACTIVE_TASKS","value":0.0}]}`), "measurements.0.value")
	f.Add([]byte("0\n"), "")
	f.Add([]byte("1e-999"), "")
	f.Add([]byte(`{"a":{"":{"a":"0"}}}`), "a..a")
	f.Add([]byte("[[[0]],-1]\x1b[2J\xff"), "0.0.0")
	f.Fuzz(func(t *testing.T, body []byte, field string) {
		if strings.ContainsFunc(field, func(r rune) bool { return !unicode.IsPrint(r) }) || len(field) > 100 {
			t.Skip() // the operator's own, told as it is
		}
		n, err := count(body, field)
		if err != nil {
			if text := err.Error(); len(text) > 2000 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("%d bytes are told: %.300q", len(text), text)
			}
			return
		}
		if n < 0 || n > 1<<53 {
			t.Errorf("%q has %d in flight", body, n)
		}
		if n == 0 && !strings.Contains(string(body), "0") {
			t.Errorf("%q has none in flight", body)
		}
		if text := strings.TrimSpace(string(body)); field == "" && strings.Trim(text, "0123456789.eE+-") != "" {
			t.Errorf("%q is a number: %d", body, n)
		}
	})
}
