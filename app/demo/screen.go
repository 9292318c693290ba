package demo

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"example.org/usher/simulator"
)

// Screen is a terminal to draw on.
type Screen struct {
	// Size gives columns and lines; it is asked before each frame.
	Size func() (width, height int)
	// Colour allows colours, Unicode characters beyond ASCII.
	Colour, Unicode bool
}

const (
	frameEvery = 150 * time.Millisecond
	barWidth   = 12
)

// The colours, as ANSI terminals know them.
const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

// palette is whether to colour.
type palette bool

func (p palette) paint(colour, text string) string {
	if !p || colour == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// board is what the demo shows: lines as things happen, or frames on a terminal.
type board struct {
	out     io.Writer
	screen  *Screen
	cloud   func() simulator.State
	started time.Time
	without tally
	with    tally
	drawing sync.WaitGroup
	done    chan struct{} // closed by close

	mu    sync.Mutex // guards all below
	part  int        // of the story, from 1
	title string
	note  string
	rows  []row
	drawn int // lines of the last frame
}

// row is one instance of the fleet.
type row struct {
	id    string
	state string
	// inFlight is how many requests the balancer waits for.
	inFlight int
	// step is what the worker does with it, or what came of the last step.
	step    string
	result  string // of the step; "" while it runs
	since   time.Time
	elapsed time.Duration
}

func newBoard(o Options, cloud func() simulator.State) *board {
	b := &board{out: o.Progress, screen: o.Screen, cloud: cloud, started: time.Now(), done: make(chan struct{})}
	for _, g := range cloud().Groups {
		for _, in := range g.Instances {
			b.rows = append(b.rows, row{id: in.ID})
		}
	}
	if b.screen != nil {
		// The cursor is hidden, and long lines are cut rather than wrapped.
		fmt.Fprint(b.out, "\x1b[?25l\x1b[?7l")
		b.drawing.Go(b.draw)
	}
	return b
}

// close draws the last frame and gives the terminal back.
func (b *board) close() {
	if b.screen == nil {
		return
	}
	close(b.done)
	b.drawing.Wait()
	b.paint()
	fmt.Fprint(b.out, "\x1b[?7h\x1b[?25h")
}

func (b *board) draw() {
	tick := time.NewTicker(frameEvery)
	defer tick.Stop()
	for {
		b.paint()
		select {
		case <-tick.C:
		case <-b.done:
			return
		}
	}
}

// heading begins a part of the story.
func (b *board) heading(part int, title string) {
	b.say("%d/3 %s", part, title)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.part, b.title, b.note = part, title, ""
}

// say tells one thing.
func (b *board) say(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.note = fmt.Sprintf(format, args...)
	if b.screen == nil {
		fmt.Fprintf(b.out, "%6.1fs  %s\n", time.Since(b.started).Seconds(), b.note)
	}
}

// replace gives the places of the instances that are gone to new ones.
func (b *board) replace(ids []string) {
	alive := states(b.cloud())
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.rows {
		if len(ids) > 0 && alive[b.rows[i].id] == "" {
			b.rows[i], ids = row{id: ids[0]}, ids[1:]
		}
	}
}

// step notes what the worker does with an instance; without a result it has just begun.
func (b *board) step(id, name, result string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.rows {
		r := &b.rows[i]
		if r.id != id {
			continue
		}
		if result == "" {
			r.since = time.Now()
		}
		r.step, r.result, r.elapsed = name, result, time.Since(r.since)
	}
}

func states(st simulator.State) map[string]string {
	out := map[string]string{}
	for _, g := range st.Groups {
		for _, in := range g.Instances {
			out[in.ID] = in.State
		}
	}
	return out
}

// view is what one frame shows.
type view struct {
	elapsed       time.Duration
	part          int
	title, note   string
	rows          []row
	without, with Counts
}

func (b *board) view() view {
	st := b.cloud()
	state, inFlight := states(st), map[string]int{}
	for _, m := range st.Balancers[0].Members {
		inFlight[m.Instance] = m.InFlight
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	v := view{
		elapsed: time.Since(b.started), part: b.part, title: b.title, note: b.note,
		without: b.without.counts(), with: b.with.counts(),
	}
	for _, r := range b.rows {
		r.state, r.inFlight = state[r.id], inFlight[r.id]
		if r.state == "" {
			r.state, r.inFlight = stateReleased, 0
		}
		if r.step != "" && r.result == "" {
			r.elapsed = time.Since(r.since)
		}
		v.rows = append(v.rows, r)
	}
	return v
}

// paint draws a frame over the last one.
func (b *board) paint() {
	v := b.view()
	width, height := b.screen.Size()
	lines := v.frame(width, height, b.screen.Colour, b.screen.Unicode)
	b.mu.Lock()
	defer b.mu.Unlock()
	var out strings.Builder
	out.WriteString("\r")
	if b.drawn > 0 {
		fmt.Fprintf(&out, "\x1b[%dA", b.drawn)
	}
	for _, l := range lines {
		out.WriteString(l + "\x1b[K\r\n")
	}
	out.WriteString("\x1b[J")
	b.drawn = len(lines)
	io.WriteString(b.out, out.String()) // a terminal that is gone shows nothing
}

// stateReleased is shown for an instance that the cloud no longer lists.
const stateReleased = "Released"

// frame is the view as lines that fit into a terminal.
func (v view) frame(width, height int, colour, unicode bool) []string {
	c := palette(colour)
	lines := []string{c.paint(bold, "usher demo") + c.paint(dim, fmt.Sprintf("   %.0f s   each bar: the requests in flight on an instance", v.elapsed.Seconds())), ""}
	for i, l := range wrap(fmt.Sprintf("%d/3 %s", v.part, v.title), width-2, 2) {
		indent := "  "
		if i == 0 {
			indent = ""
		}
		lines = append(lines, indent+c.paint(cyan, l))
	}
	lines = append(lines, "")
	for _, r := range v.rows {
		lines = append(lines, r.line(c, unicode))
	}
	lines = append(lines, "",
		tallyLine(c, "without usher", v.without, v.part >= 1),
		tallyLine(c, "with usher", v.with, v.part >= 3),
		"", c.paint(dim, "  "+v.note))
	for i := range lines {
		lines[i] = cut(lines[i], max(width, 0))
	}
	// The last line of the terminal stays free for the cursor.
	return lines[:min(len(lines), max(height-1, 1))]
}

// line is an instance's: id, state, bar, step.
func (r row) line(c palette, unicode bool) string {
	full, empty := "#", "."
	if unicode {
		full, empty = "█", "·"
	}
	n := min(r.inFlight, barWidth)
	paint := map[string]string{"InService": green, stateReleased: dim}[r.state]
	if paint == "" {
		paint = yellow
	}
	bar := c.paint(paint, strings.Repeat(full, n)) + c.paint(dim, strings.Repeat(empty, barWidth-n))
	step := r.step
	switch {
	case step == "":
	case r.result == "":
		step = fmt.Sprintf("%s %.0f s", step, r.elapsed.Seconds())
	default:
		step = fmt.Sprintf("%s %s, %.0f s", step, r.result, r.elapsed.Seconds())
	}
	line := fmt.Sprintf("  %-10.10s  %s  %s %2d  %s", r.id, c.paint(paint, fmt.Sprintf("%-13s", r.state)), bar, r.inFlight, step)
	return strings.TrimRight(line, " ")
}

func tallyLine(c palette, name string, n Counts, begun bool) string {
	if !begun {
		return c.paint(dim, fmt.Sprintf("  %-14s %7s", name, "-"))
	}
	paint := green
	if n.Failed > 0 {
		paint = red
	}
	return fmt.Sprintf("  %-14s %7d requests  %s", name, n.Requests, c.paint(paint, fmt.Sprintf("%5d failed", n.Failed)))
}

// wrap breaks text into at most lines of a width; the last takes what is left.
func wrap(text string, width, lines int) []string {
	var out []string
	for len(out) < lines-1 && utf8.RuneCountInString(text) > width {
		at := strings.LastIndexByte(text[:min(max(width, 0)+1, len(text))], ' ')
		if at < 1 {
			break
		}
		out, text = append(out, text[:at]), text[at+1:]
	}
	return append(out, text)
}

// cut shortens a line to a width. Escape sequences take no room, and colours end.
func cut(line string, width int) string {
	var out strings.Builder
	seen, escape, coloured := 0, false, false
	for _, r := range line {
		switch {
		case r == '\x1b':
			escape, coloured = true, true
		case escape:
			escape = r == '[' || r >= '0' && r <= '9' || r == ';'
		case seen == width:
			if coloured {
				out.WriteString("\x1b[0m")
			}
			return out.String()
		default:
			seen++
		}
		out.WriteRune(r)
	}
	return out.String()
}
