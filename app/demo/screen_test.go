package demo

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func sampleView() view {
	return view{
		elapsed: 12 * time.Second, part: 3, title: "With usher: its lifecycle hook lets each instance finish", note: "usher: completed",
		rows: []row{
			{id: "i-wz9abcdefghijklmnopq", state: "InService", inFlight: 3},
			{id: "i-wz9bbcdefghijklmnopq", state: "Removing:Wait", inFlight: 20, step: "wait_connections", elapsed: 4 * time.Second},
			{id: "i-wz9cbcdefghijklmnopq", state: stateReleased, step: "wait_connections", result: "ok", elapsed: 6 * time.Second},
		},
		without: Counts{Requests: 412, Failed: 9}, with: Counts{Requests: 1300},
	}
}

func TestFrame(t *testing.T) {
	t.Parallel()
	want := []string{
		"usher demo   12 s   each bar: the requests in flight on an instance",
		"",
		"3/3 With usher: its lifecycle hook lets each instance finish",
		"",
		"  i-wz9abcde  InService      ###.........  3",
		"  i-wz9bbcde  Removing:Wait  ############ 20  wait_connections 4 s",
		"  i-wz9cbcde  Released       ............  0  wait_connections ok, 6 s",
		"",
		"  without usher      412 requests      9 failed",
		"  with usher        1300 requests      0 failed",
		"",
		"  usher: completed",
	}
	if got := sampleView().frame(80, 24, false, false); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	v := sampleView()
	v.part = 1
	if got := v.frame(80, 24, false, false); !strings.HasSuffix(got[9], "-") {
		t.Errorf("a phase that has not begun shows %q", got[9])
	}
}

func TestFrameFitsTheTerminal(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ width, height int }{{80, 24}, {60, 24}, {40, 24}, {20, 10}, {5, 3}, {1, 1}, {0, 0}, {300, 100}} {
		for _, colour := range []bool{false, true} {
			for _, unicode := range []bool{false, true} {
				lines := sampleView().frame(tt.width, tt.height, colour, unicode)
				if len(lines) > max(tt.height-1, 1) {
					t.Errorf("%+v: %d lines", tt, len(lines))
				}
				for _, l := range lines {
					if columns(l) > tt.width {
						t.Errorf("%+v: %d columns in %q", tt, columns(l), l)
					}
					if strings.Contains(l, "\x1b") != colour && strings.Contains(l, "\x1b") {
						t.Errorf("%+v: colour in %q", tt, l)
					}
					if i := strings.LastIndex(l, "\x1b["); i >= 0 && !strings.HasPrefix(l[i:], "\x1b[0m") {
						t.Errorf("%+v: the colour of %q does not end", tt, l)
					}
					if !unicode && strings.ContainsFunc(l, func(r rune) bool { return r > 0x7f }) {
						t.Errorf("%+v: not ASCII: %q", tt, l)
					}
				}
			}
		}
	}
}

func TestCut(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		line  string
		width int
		want  string
	}{
		{"abc", 3, "abc"},
		{"abcd", 3, "abc"},
		{"", 3, ""},
		{"██·", 2, "██"},
		{"\x1b[31mabcd\x1b[0m", 2, "\x1b[31mab\x1b[0m"},
		{"\x1b[31mab\x1b[0m", 2, "\x1b[31mab\x1b[0m"},
		{"a\x1b[1;31mbc\x1b[0md", 3, "a\x1b[1;31mbc\x1b[0m\x1b[0m"},
		{"abc", 0, ""},
	} {
		if got := cut(tt.line, tt.width); got != tt.want {
			t.Errorf("cut(%q, %d) = %q, want %q", tt.line, tt.width, got, tt.want)
		}
	}
}

func TestWrap(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		text  string
		width int
		want  []string
	}{
		{"one two", 10, []string{"one two"}},
		{"one two three", 8, []string{"one two", "three"}},
		{"one two", 7, []string{"one two"}},
		{"one two three four", 7, []string{"one two", "three four"}},
		{"unbreakable", 4, []string{"unbreakable"}},
		{"one two", -2, []string{"one two"}},
	} {
		if got := wrap(tt.text, tt.width, 2); !slices.Equal(got, tt.want) {
			t.Errorf("wrap(%q, %d) = %q, want %q", tt.text, tt.width, got, tt.want)
		}
	}
}
