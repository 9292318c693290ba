package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.org/usher/zerodrop/load"
)

// record is a run of 20 s with a scale-in at 5 s and failures in the second after it.
func record(s load.Scenario, failed int) *load.Record {
	r := &load.Record{Scenario: s, Began: time.Date(2026, 1, 2, 3, 4, s.Repeat, 0, time.UTC), Scale: 1, TookMS: 20_000,
		Kinds: map[load.Kind]load.Totals{
			load.Short:    {Sent: 2000, Finished: 2000 - failed, Failed: failed, Slow: 7, Reasons: map[load.Reason]int{load.Refused: failed}},
			load.Download: {Sent: 30, Finished: 30 - failed/20, Failed: failed / 20, Reasons: map[load.Reason]int{load.Cut: failed / 20}},
		}}
	if failed == 0 {
		for k, of := range r.Kinds {
			of.Reasons = nil
			r.Kinds[k] = of
		}
	}
	r.Series.SlotMS = 100
	for i := range 200 {
		n := 0
		if i == 55 {
			n = failed + failed/20
		}
		r.Series.Sent = append(r.Series.Sent, 10)
		r.Series.Finished = append(r.Series.Finished, 10-n)
		r.Series.Failed = append(r.Series.Failed, n)
		r.Series.InFlight = append(r.Series.InFlight, 30+i%10)
	}
	r.Mark("scale-in", r.Began.Add(5*time.Second))
	r.Mark("deregister", r.Began.Add(6*time.Second))
	r.Mark("http", r.Began.Add(6100*time.Millisecond))
	r.Mark("released", r.Began.Add(15*time.Second))
	return r
}

var records = []*load.Record{
	record(load.Scenario{Name: "nothing", Plan: "kill -9", Balancer: "l4", Repeat: 2, DrainSeconds: 0.2}, 120),
	record(load.Scenario{Name: "nothing", Plan: "kill -9", Balancer: "l4", Repeat: 1, DrainSeconds: 0.3}, 100),
	record(load.Scenario{Name: "api", Plan: "deregister, quiet, stop", Balancer: "l4", Repeat: 1, Usher: true, Result: "CONTINUE", DrainSeconds: 12.4}, 0),
	record(load.Scenario{Name: "api", Plan: "deregister, quiet, stop", Balancer: "clb", Repeat: 1, Usher: true, Result: "CONTINUE", DrainSeconds: 14}, 0),
}

const page = `# Zero drop
before
<!-- table -->
old
<!-- end of table -->
between
<!-- plots -->
<!-- end of plots -->
after
`

// setup writes records and a page.
func setup(t *testing.T, records []*load.Record, text string) (folder, path string) {
	t.Helper()
	folder = t.TempDir()
	for _, r := range records {
		if _, err := r.Write(folder); err != nil {
			t.Fatal(err)
		}
	}
	path = filepath.Join(t.TempDir(), "zero-drop.md")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return folder, path
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestReport: the page has what the records say, its plots are SVG that shows it, and
// the second time changes nothing.
func TestReport(t *testing.T) {
	t.Parallel()
	folder, path := setup(t, records, page)
	plots := strings.TrimSuffix(path, ".md")
	if err := os.MkdirAll(plots, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(plots, "old.svg"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(folder, path, io.Discard); err != nil {
		t.Fatal(err)
	}
	text := read(t, path)
	want := `# Zero drop
before
<!-- table -->

Recorded on 2026-01-02: 4 runs, 8120 requests.

| balancer | what is done | usher | runs | requests a run | failed | of them cut | retryable | slow | result | s until gone | why |
|---|---|---|---|---|---|---|---|---|---|---|---|
| clb | deregister, quiet, stop | yes | 1 | 2030 | **0** | 0 | 0 | 7 | CONTINUE | 14 |  |
| l4 | kill -9 | - | 2 | 2030 | **105-126** | 5-6 | 0 | 7 | - | 0 | 220 refused, 11 cut |
| l4 | deregister, quiet, stop | yes | 1 | 2030 | **0** | 0 | 0 | 7 | CONTINUE | 12 |  |

<!-- end of table -->
between
<!-- plots -->

![clb, with usher: deregister, quiet, stop](zero-drop/clb-api.svg)
![l4, without usher: kill -9](zero-drop/l4-nothing.svg)
![l4, with usher: deregister, quiet, stop](zero-drop/l4-api.svg)

<!-- end of plots -->
after
`
	if text != want {
		t.Errorf("the page is\n%s\nwant\n%s", text, want)
	}
	drawn := map[string]string{}
	for _, name := range []string{"clb-api.svg", "l4-nothing.svg", "l4-api.svg"} {
		drawn[name] = read(t, filepath.Join(plots, name))
		for dec := xml.NewDecoder(strings.NewReader(drawn[name])); ; {
			if _, err := dec.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		for _, words := range []string{"seconds since the scale-in", ">deregister<", ">http<", ">released<", ">end of load<", ">126<", "in flight"} {
			if !strings.Contains(drawn[name], words) {
				t.Errorf("%s does not say %q", name, words)
			}
		}
	}
	const red = "#C0392B"
	if a, b := strings.Count(drawn["l4-nothing.svg"], red), strings.Count(drawn["l4-api.svg"], red); a != 1 || b != 0 {
		t.Errorf("one second with failures has %d bars, no such second %d", a, b)
	}
	if _, err := os.Stat(filepath.Join(plots, "old.svg")); err == nil {
		t.Error("an old plot is left")
	}

	if err := run(folder, path, io.Discard); err != nil {
		t.Fatal(err)
	}
	if again := read(t, path); again != text {
		t.Errorf("the second time gives\n%s", again)
	}
	for name, first := range drawn {
		if read(t, filepath.Join(plots, name)) != first {
			t.Errorf("%s differs the second time", name)
		}
	}
}

// TestRefused: what would give a wrong page changes nothing.
func TestRefused(t *testing.T) {
	t.Parallel()
	unmarked := record(load.Scenario{Name: "x", Plan: "x", Balancer: "l4", Repeat: 1}, 0)
	unmarked.Marks = nil
	short := record(load.Scenario{Name: "x", Plan: "x", Balancer: "l4", Repeat: 1}, 0)
	short.TookMS = 100
	smaller := record(records[0].Scenario, 0)
	smaller.Scenario.Repeat = 3
	smaller.Scale = 0.5
	for want, test := range map[string]struct {
		records []*load.Record
		page    string
	}{
		"no record":       {nil, page},
		"no scenario":     {[]*load.Record{record(load.Scenario{}, 0)}, page},
		"too short":       {[]*load.Record{short}, page},
		"no mark":         {[]*load.Record{unmarked}, page},
		"of two scales":   {[]*load.Record{records[0], smaller}, page},
		"two plans":       {[]*load.Record{records[0], record(load.Scenario{Name: "nothing", Plan: "x", Balancer: "l4", Repeat: 1}, 0)}, page},
		"end of plots":    {records, strings.ReplaceAll(page, "end of plots", "")},
		`"<!-- table -->`: {records, strings.ReplaceAll(page, "<!-- table -->", "")},
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			folder, path := setup(t, test.records, test.page)
			if err := run(folder, path, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v", err)
			}
			if read(t, path) != test.page {
				t.Error("the page was changed")
			}
		})
	}
	folder, path := setup(t, records, page)
	if err := os.WriteFile(filepath.Join(folder, "broken.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(folder, path, io.Discard); err == nil || !strings.Contains(err.Error(), "broken.json") {
		t.Error(err)
	}
}
