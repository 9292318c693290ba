package main

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"slices"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	vgdraw "gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"example.org/usher/zerodrop/load"
)

// What the plots look like.
const (
	width, height = 22 * vg.Centimeter, 9 * vg.Centimeter
	// point is the time between two points of the upper panel; the lower one has bars
	// of a second.
	point = 500 * time.Millisecond
	// near is how close two marks are, as a part of the width, to share their line.
	near = 0.02
)

var (
	dark  = color.NRGBA{R: 0x1f, G: 0x4e, B: 0x79, A: 0xff}
	light = color.NRGBA{R: 0x1f, G: 0x4e, B: 0x79, A: 0x40}
	red   = color.NRGBA{R: 0xc0, G: 0x39, B: 0x2b, A: 0xff}
	grey  = color.NRGBA{R: 0x60, G: 0x60, B: 0x60, A: 0xff}
)

// limits is the most that any plot shows, so that all have the same axes and nothing
// looks like nothing.
type limits struct{ inFlight, failed float64 }

func axes(scenarios []scenario) limits {
	l := limits{inFlight: 1, failed: 1}
	for _, s := range scenarios {
		for _, r := range s.runs {
			for _, p := range inFlight(r) {
				l.inFlight = max(l.inFlight, p.Y)
			}
			for _, p := range failed(r) {
				l.failed = max(l.failed, p.Y)
			}
		}
	}
	return l
}

// draw plots one scenario: above the requests in flight, in each run, below the failed
// ones a second, in the worst run, whose marks are shown.
func draw(s scenario, l limits) ([]byte, error) {
	worst := s.worst()
	above, below := panel("in flight", l.inFlight), panel("failed/s", l.failed)
	above.Title.Text = fmt.Sprintf("%s (%d failed)", s.title(), worst.Total().Failed)
	above.Title.Padding = vg.Millimeter
	above.HideX()
	below.X.Label.Text = "seconds since the scale-in"

	for _, r := range slices.Concat(s.runs, []*load.Record{worst}) { // the worst again, on top
		line, err := plotter.NewLine(inFlight(r))
		if err != nil {
			return nil, err
		}
		line.Color, line.Width = light, vg.Points(0.7)
		if r == worst {
			line.Color, line.Width = dark, vg.Points(1)
		}
		above.Add(line)
	}
	below.Add(bars(failed(worst)))
	happened := marks(worst)
	above.Add(verticals{happened, false})
	below.Add(verticals{happened, true}) // with usher there is room
	from, to := start(worst), start(worst)
	for _, r := range s.runs {
		points := inFlight(r)
		from, to = min(from, points[0].X), max(to, points[len(points)-1].X)
	}
	for _, p := range []*plot.Plot{above, below} {
		p.X.Min, p.X.Max = from, to
	}
	below.X.Tick.Marker = plot.ConstantTicks(seconds(from, to))
	above.Y.Min, above.Y.Max = 0, l.inFlight*1.05
	below.Y.Min, below.Y.Max = 0, l.failed*1.05

	canvas := vgsvg.New(width, height)
	tiles := vgdraw.Tiles{Rows: 2, Cols: 1, PadX: vg.Millimeter, PadY: 2 * vg.Millimeter,
		PadTop: vg.Millimeter, PadBottom: vg.Millimeter, PadLeft: vg.Millimeter, PadRight: 3 * vg.Millimeter}
	rows := [][]*plot.Plot{{above}, {below}}
	for i, row := range plot.Align(rows, tiles, vgdraw.New(canvas)) {
		rows[i][0].Draw(row[0])
	}
	var out bytes.Buffer
	if _, err := canvas.WriteTo(&out); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// panel is an empty plot.
func panel(y string, most float64) *plot.Plot {
	p := plot.New()
	p.BackgroundColor = color.White
	p.Title.TextStyle.Font = sans(11)
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Label.TextStyle.Font, axis.Tick.Label.Font = sans(9), sans(8)
	}
	p.Y.Label.Text = y
	p.Y.Tick.Marker = plot.ConstantTicks(ticks(most))
	return p
}

// ticks marks zero, the middle and the top of an axis, in whole numbers.
func ticks(most float64) []plot.Tick {
	var out []plot.Tick
	for _, v := range []float64{0, math.Round(most / 2), math.Round(most)} {
		if len(out) == 0 || out[len(out)-1].Value != v {
			out = append(out, plot.Tick{Value: v, Label: fmt.Sprintf("%.0f", v)})
		}
	}
	return out
}

// seconds marks round numbers of them, a dozen or so.
func seconds(from, to float64) []plot.Tick {
	step := 60.0
	for _, s := range []float64{1, 2, 5, 10, 20, 30} {
		if (to-from)/s <= 14 {
			step = s
			break
		}
	}
	var out []plot.Tick
	for v := math.Ceil(from/step) * step; v <= to; v += step {
		out = append(out, plot.Tick{Value: v, Label: fmt.Sprint(int(v))}) // no -0
	}
	return out
}

func sans(size float64) font.Font {
	return font.Font{Typeface: "Liberation", Variant: "Sans", Size: vg.Points(size)}
}

// start is when a record begins, in seconds since its scale-in.
func start(r *load.Record) float64 {
	i := slices.IndexFunc(r.Marks, func(m load.Mark) bool { return m.Name == scaleIn })
	return -float64(r.Marks[i].MS) / 1000
}

// inFlight is the mean number of requests in flight.
func inFlight(r *load.Record) plotter.XYs {
	return bins(r, r.Series.InFlight, point, float64(load.Slot)/float64(point))
}

// failed is the number of requests that failed in each second.
func failed(r *load.Record) plotter.XYs { return bins(r, r.Series.Failed, time.Second, 1) }

// bins sums up a series over length and multiplies. One bin begins with the scale-in; the
// first slots that fill none, and the last, are left out.
func bins(r *load.Record, series []int, length time.Duration, factor float64) plotter.XYs {
	n := int(length / load.Slot)
	slot := load.Slot.Seconds()
	first := int(-start(r)/slot) % n
	var out plotter.XYs
	for i := first; i+n <= len(series); i += n {
		sum := 0
		for _, v := range series[i : i+n] {
			sum += v
		}
		middle := (float64(i) + float64(n)/2) * slot
		out = append(out, plotter.XY{X: start(r) + middle, Y: float64(sum) * factor})
	}
	return out
}

// bars are a second wide, about their points.
type bars plotter.XYs

// Plot implements plot.Plotter.
func (b bars) Plot(c vgdraw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	for _, point := range b {
		if point.Y > 0 {
			left, right := x(point.X-0.5), x(point.X+0.5)
			c.FillPolygon(red, []vg.Point{{X: left, Y: y(0)}, {X: left, Y: y(point.Y)}, {X: right, Y: y(point.Y)}, {X: right, Y: y(0)}})
		}
	}
}

// moment is what happened at a time.
type moment struct {
	at    float64 // s since the scale-in
	names string
}

// marks gives the marks of a record, and when its load ends; those that are near each
// other share a line.
func marks(r *load.Record) []moment {
	last := len(r.Series.Sent)
	for last > 0 && r.Series.Sent[last-1] == 0 {
		last--
	}
	var out []moment
	for _, m := range append(slices.Clone(r.Marks), load.Mark{Name: "end of load", MS: int64(last) * r.Series.SlotMS}) {
		at := start(r) + float64(m.MS)/1000
		if len(out) > 0 && at-out[len(out)-1].at < near*float64(r.TookMS)/1000 {
			out[len(out)-1].names += "\n" + m.Name
		} else {
			out = append(out, moment{at, m.Name})
		}
	}
	return out
}

// verticals are lines at moments, with their names if they are to be named.
type verticals struct {
	moments []moment
	named   bool
}

// Plot implements plot.Plotter.
func (v verticals) Plot(c vgdraw.Canvas, p *plot.Plot) {
	x, _ := p.Transforms(&c)
	line := vgdraw.LineStyle{Color: grey, Width: vg.Points(0.5), Dashes: []vg.Length{vg.Points(2), vg.Points(2)}}
	for _, m := range v.moments {
		c.StrokeLine2(line, x(m.at), c.Min.Y, x(m.at), c.Max.Y)
		if !v.named {
			continue
		}
		style := text.Style{Color: grey, Font: sans(7), Rotation: math.Pi / 2, XAlign: text.XRight, YAlign: text.YBottom, Handler: plot.DefaultTextHandler}
		c.FillText(style, vg.Point{X: x(m.at) - vg.Points(1), Y: c.Max.Y - vg.Points(1)}, m.names)
	}
}
