package steps

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
)

// TestPrefixes compares the script's matcher with netip's on random prefixes and
// addresses near them, mapped ones too, in every awk there is.
func TestPrefixes(t *testing.T) {
	t.Parallel()
	start := strings.Index(waitConnectionsScript, "# --- addresses")
	end := strings.Index(waitConnectionsScript, "# --- the rest")
	if start < 0 || end < start {
		t.Fatal("the script has lost its marks")
	}
	// One line: prefix, address. One line back: 1 when the prefix contains it.
	program := waitConnectionsScript[start:end] + `
BEGIN { tables() }
{ xn = 0; if (!addprefix($1)) print "bad prefix"; else if ((h = unmap(hexof($2))) == "") print "bad address"; else print excluded(h) }`

	const lines = 4000
	rng := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	var input strings.Builder
	var cases []string
	var want []bool
	for range lines {
		prefix, addr := randomPair(rng)
		text := addr.String()
		if addr.Is4() && rng.IntN(3) == 0 {
			text = "::ffff:" + text
		}
		if addr.Is6() && rng.IntN(3) == 0 {
			text = "[" + addr.StringExpanded() + "]"
		}
		fmt.Fprintf(&input, "%s %s\n", prefix, text)
		cases = append(cases, fmt.Sprintf("%s contains %s", prefix, text))
		want = append(want, prefix.Contains(addr.Unmap()))
	}
	for _, awk := range [][]string{{"mawk"}, {"gawk"}, {"busybox", "awk"}} {
		t.Run(awk[0], func(t *testing.T) {
			t.Parallel()
			path, err := exec.LookPath(awk[0])
			if err != nil {
				t.Skipf("%s is not on this machine", awk[0])
			}
			cmd := exec.CommandContext(t.Context(), path, append(awk[1:], program)...)
			cmd.Stdin = strings.NewReader(input.String())
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Fields(strings.ReplaceAll(string(out), "bad ", "bad-"))
			if len(got) != lines {
				t.Fatalf("want %d lines, got %d", lines, len(got))
			}
			for i, w := range want {
				if (got[i] == "1") != w || len(got[i]) > 1 {
					t.Errorf("%s: want %v, got %s", cases[i], w, got[i])
				}
			}
		})
	}
}

// randomPair is a prefix and an address that lies in it, beside it or anywhere.
func randomPair(rng *rand.Rand) (netip.Prefix, netip.Addr) {
	random := func(v6 bool) netip.Addr {
		var b [16]byte
		for i := range b {
			if rng.IntN(3) > 0 { // zeros make short forms
				b[i] = byte(rng.Uint32())
			}
		}
		if v6 {
			return netip.AddrFrom16(b).Unmap()
		}
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	base := random(rng.IntN(2) == 0)
	bits := rng.IntN(base.BitLen() + 1)
	prefix := netip.PrefixFrom(base, bits).Masked()
	if rng.IntN(8) == 0 {
		return prefix, random(rng.IntN(2) == 0)
	}
	raw := base.AsSlice()
	for bit := max(bits-1, 0) + rng.IntN(2); bit < base.BitLen(); bit += 1 + rng.IntN(9) {
		raw[bit/8] ^= 0x80 >> (bit % 8) // from the last bit of the prefix on, or the first behind it
	}
	addr, _ := netip.AddrFromSlice(raw)
	return prefix, addr.Unmap()
}
