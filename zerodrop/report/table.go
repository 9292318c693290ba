package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"example.org/usher/zerodrop/load"
)

// scaleIn is the mark from which times count. Each record has it.
const scaleIn = "scale-in"

// scenario is all the runs of one scenario behind one balancer.
type scenario struct {
	load.Scenario
	runs []*load.Record // by repeat
}

// file is the name of its plot.
func (s scenario) file() string { return s.Balancer + "-" + s.Name + ".svg" }

// worst is the run in which most requests failed, the first of them.
func (s scenario) worst() *load.Record {
	return slices.MaxFunc(s.runs, func(a, b *load.Record) int {
		return cmp.Or(cmp.Compare(a.Total().Failed, b.Total().Failed), cmp.Compare(b.Scenario.Repeat, a.Scenario.Repeat))
	})
}

// group sorts records by balancer, without usher first, by name, and by repeat. Records
// that can't stand in one table are refused.
func group(records []*load.Record) ([]scenario, error) {
	if len(records) == 0 {
		return nil, errors.New("there is no record (*.json): run the proof with -usher.record first")
	}
	by := map[string]*scenario{}
	for _, r := range records {
		s := r.Scenario
		key := fmt.Sprintf("%s %t %s", s.Balancer, s.Usher, s.Name)
		switch {
		case s.Name == "" || s.Balancer == "":
			return nil, fmt.Errorf("the record of %v has no scenario", r.Began)
		case !slices.ContainsFunc(r.Marks, func(m load.Mark) bool { return m.Name == scaleIn }):
			return nil, fmt.Errorf("%s, repeat %d, has no mark %q", key, s.Repeat, scaleIn)
		case r.TookMS < 2000:
			return nil, fmt.Errorf("%s, repeat %d, took %d ms: too short to be a proof", key, s.Repeat, r.TookMS)
		}
		if by[key] == nil {
			by[key] = &scenario{Scenario: s}
		}
		if s.Plan != by[key].Plan {
			return nil, fmt.Errorf("%s has two plans, %q and %q: keep the records of one proof in a folder", key, s.Plan, by[key].Plan)
		}
		if len(by[key].runs) > 0 && r.Scale != by[key].runs[0].Scale {
			return nil, fmt.Errorf("%s has loads of two scales, %v and %v: keep the records of one proof in a folder", key, r.Scale, by[key].runs[0].Scale)
		}
		by[key].runs = append(by[key].runs, r)
	}
	var out []scenario
	for _, key := range slices.Sorted(maps.Keys(by)) {
		s := *by[key]
		slices.SortFunc(s.runs, func(a, b *load.Record) int { return a.Scenario.Repeat - b.Scenario.Repeat })
		out = append(out, s)
	}
	return out, nil
}

// table is a row a scenario, with the least and the most of its runs.
func table(scenarios []scenario) string {
	var b strings.Builder
	runs, requests := 0, 0
	first, last := scenarios[0].runs[0].Began, scenarios[0].runs[0].Began
	for _, s := range scenarios {
		for _, r := range s.runs {
			runs++
			requests += r.Total().Sent
			if r.Began.Before(first) {
				first = r.Began
			}
			if r.Began.After(last) {
				last = r.Began
			}
		}
	}
	day := first.Format("2006-01-02")
	if end := last.Format("2006-01-02"); end != day {
		day += " to " + end
	}
	fmt.Fprintf(&b, "Recorded on %s: %d runs, %d requests.\n\n", day, runs, requests)
	b.WriteString("| balancer | what is done | usher | runs | requests a run | failed | of them cut | retryable | slow | result | s until gone | why |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, s := range scenarios {
		each := func(of func(load.Totals) int) string {
			return span(s.runs, func(r *load.Record) float64 { return float64(of(r.Total())) })
		}
		usher := "-"
		if s.Usher {
			usher = "yes"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %d | %s | **%s** | %s | %s | %s | %s | %s | %s |\n", s.Balancer, s.Plan, usher, len(s.runs),
			each(func(t load.Totals) int { return t.Sent }),
			each(func(t load.Totals) int { return t.Failed }),
			each(func(t load.Totals) int { return t.Reasons[load.Cut] }),
			each(func(t load.Totals) int { return t.Retryable }),
			each(func(t load.Totals) int { return t.Slow }),
			results(s.runs),
			span(s.runs, func(r *load.Record) float64 { return r.Scenario.DrainSeconds }),
			why(s.runs))
	}
	return b.String()
}

// span is "least-most" in whole numbers, or the one that is both.
func span(runs []*load.Record, of func(*load.Record) float64) string {
	least, most := of(runs[0]), of(runs[0])
	for _, r := range runs {
		least, most = min(least, of(r)), max(most, of(r))
	}
	from, to := fmt.Sprintf("%.0f", least), fmt.Sprintf("%.0f", most)
	if from == to {
		return from
	}
	return from + "-" + to
}

// results is what the lifecycle actions ended with, "-" where there was none.
func results(runs []*load.Record) string {
	var words []string
	for _, r := range runs {
		if word := cmp.Or(r.Scenario.Result, "-"); !slices.Contains(words, word) {
			words = append(words, word)
		}
	}
	return strings.Join(words, ", ")
}

// why counts the failures of all runs by reason, the most frequent first.
func why(runs []*load.Record) string {
	counts := map[load.Reason]int{}
	for _, r := range runs {
		for reason, n := range r.Total().Reasons {
			counts[reason] += n
		}
	}
	reasons := slices.SortedFunc(maps.Keys(counts), func(a, b load.Reason) int {
		return cmp.Or(counts[b]-counts[a], cmp.Compare(a, b))
	})
	var words []string
	for _, reason := range reasons {
		words = append(words, fmt.Sprintf("%d %s", counts[reason], strings.ReplaceAll(string(reason), "_", " ")))
	}
	return strings.Join(words, ", ")
}

// links shows the plots.
func links(scenarios []scenario, folder string) string {
	var b strings.Builder
	for _, s := range scenarios {
		fmt.Fprintf(&b, "![%s](%s/%s)\n", s.title(), folder, s.file())
	}
	return b.String()
}

// title says what was done, where, and by whom.
func (s scenario) title() string {
	by := "without usher"
	if s.Usher {
		by = "with usher"
	}
	return fmt.Sprintf("%s, %s: %s", s.Balancer, by, s.Plan)
}
