package configs

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"example.org/usher/messages"
)

// What Condition.Job can be.
const (
	JobSucceeded = "succeeded"
	JobFailed    = "failed"
)

// Condition is when a step runs. The zero value always holds.
type Condition struct {
	// Transition is the one that the step is for; empty: either.
	Transition messages.Transition
	// Tags are those that the instance must have, with these values.
	Tags map[string]string
	// Job is JobSucceeded or JobFailed, for the steps of Hook.Always; empty: either.
	Job string
}

// What ECS takes as a tag of an instance (TagResources, 2014-05-26), and EC2 as its key
// (CreateTags, 2016-11-15), in characters.
const maxTag = 128

// Each gives all steps that do something, those in parallel and those for every end too, in
// the order of the file.
func (h Hook) Each() iter.Seq[Step] {
	return func(yield func(Step) bool) {
		for _, list := range [][]Step{h.Steps, h.Always} {
			for _, s := range list {
				some := []Step{s}
				if s.Kind == KindParallel {
					some = s.Parallel
				}
				for _, s := range some {
					if !yield(s) {
						return
					}
				}
			}
		}
	}
}

// parallelStep reads a list of steps, or a map with one.
func (f *file) parallelStep(s *Step, n *yaml.Node, path string) {
	list := n
	if n.Kind == yaml.MappingNode {
		m := f.fields(n, path, "steps", "when")
		s.When = m.when()
		if !m.need("steps", "a list of the steps that run at once") {
			return
		}
		list, path = m.values["steps"], m.at("steps")
	}
	if list.Kind != yaml.SequenceNode {
		f.problem(list, path, "want a list of steps, or {steps: [...], when: {...}}, got %s", kind(list))
		return
	}
	switch {
	case len(list.Content) == 0:
		f.problem(list, path, "the list is empty: want the steps that run at once")
	case len(list.Content) > maxParallel:
		f.problem(list, path, "at most %d steps at once, got %d", maxParallel, len(list.Content))
		return
	}
	for i, n := range list.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		if n.Kind == yaml.MappingNode && len(n.Content) == 2 && n.Content[0].Value == KindParallel {
			f.problem(n.Content[0], at+"."+KindParallel, "steps in parallel can't hold others in parallel: put them beside each other")
			continue
		}
		if member, ok := f.step(n, at); ok {
			s.Parallel = append(s.Parallel, member)
		}
	}
}

// maxParallel bounds the steps that run at once for one instance: each has a goroutine.
const maxParallel = 20

// when reads a step's condition.
func (m fields) when() (c Condition) {
	n := m.values["when"]
	if n == nil {
		return c
	}
	w := m.fields(n, m.at("when"), "transition", "tags", "job")
	if n.Kind != yaml.MappingNode {
		return c
	}
	if len(n.Content) == 0 {
		m.refuse("when", "the map is empty: want transition, tags or job")
	}
	c.Transition = messages.Transition(w.choice("transition", "", string(messages.ScaleIn), string(messages.ScaleOut)))
	c.Job = w.choice("job", "", JobSucceeded, JobFailed)
	c.Tags = w.tags("tags")
	return c
}

func (m fields) tags(key string) map[string]string {
	n := m.values[key]
	if n == nil {
		return nil
	}
	const want = "the keys and values of tags, such as {role: web}"
	switch {
	case n.Kind != yaml.MappingNode:
		m.refuse(key, "want %s, got %s", want, kind(n))
		return nil
	case len(n.Content) == 0:
		m.refuse(key, "the map is empty: want %s", want)
		return nil
	}
	if len(n.Content) > 2*maxList {
		m.refuse(key, "at most %d, got %d", maxList, len(n.Content)/2)
		return nil
	}
	var names []string
	for i := 0; i < len(n.Content); i += 2 {
		names = append(names, n.Content[i].Value)
	}
	t := m.fields(n, m.at(key), names...)
	tags := map[string]string{}
	for _, name := range names {
		value, ok := t.text(name, "")
		switch {
		case t.keys[name] == nil || !ok:
		case name == "" || !isTag(name, maxTag):
			t.problem(t.keys[name], t.at(name), "want a tag's key of 1 to %d characters on one line", maxTag)
		case !isTag(value, m.cloud().maxTagValue):
			t.refuse(name, "want a tag's value of at most %d characters on one line", m.cloud().maxTagValue)
		default:
			tags[name] = value
		}
	}
	return tags
}

func isTag(text string, most int) bool {
	return utf8.RuneCountInString(text) <= most && !strings.ContainsFunc(text, unicode.IsControl)
}

// checkConditions refuses what is asked too early.
func (m fields) checkConditions(h Hook) {
	for _, s := range h.Steps {
		for _, s := range append(slices.Clip(s.Parallel), s) {
			if s.When.Job != "" {
				m.refuse("steps", "line %d: when.job is for the steps of always: how the job ends is not known before", s.Line)
			}
		}
		for _, s := range s.Parallel {
			if s.UndoTimeout > 0 || s.Kind == KindUndo {
				m.refuse("steps", "line %d: %s can't be in parallel, its place among the steps counts: make it a step of its own", s.Line, s.Kind)
			}
		}
	}
	for _, outer := range h.Always {
		for _, s := range append(slices.Clip(outer.Parallel), outer) {
			if s.UndoTimeout > 0 {
				m.refuse("always", "line %d: %s has to be undone where an answer keeps the instance, which steps alone are: put it there", s.Line, s.Kind)
			}
			if s.Kind == KindUndo && h.Transition == messages.ScaleIn && h.lets(cmp.Or(s.When.Job, outer.When.Job)) {
				kept := "before a ROLLBACK usher undoes by itself"
				if m.cloud() == aws {
					kept = "on AWS no answer keeps it"
				}
				m.refuse("always", "line %d: undo would let new requests in just before the instance goes; %s", s.Line, kept)
			}
		}
	}
}

// kinds gives the kind of each step where it stands in the file, with its path.
func (m fields) kinds() iter.Seq2[*yaml.Node, string] {
	return func(yield func(*yaml.Node, string) bool) {
		for _, key := range []string{"steps", "always"} {
			if !eachKind(m.values[key], m.at(key), yield) {
				return
			}
		}
	}
}

func eachKind(list *yaml.Node, path string, yield func(*yaml.Node, string) bool) bool {
	if list == nil || list.Kind != yaml.SequenceNode {
		return true
	}
	for i, n := range list.Content {
		if n.Kind != yaml.MappingNode || len(n.Content) != 2 {
			continue
		}
		name, body := n.Content[0], n.Content[1]
		at := fmt.Sprintf("%s[%d].%s", path, i, name.Value)
		if !yield(name, at) {
			return false
		}
		if name.Value != KindParallel {
			continue
		}
		if body.Kind == yaml.MappingNode {
			for j := 0; j < len(body.Content); j += 2 {
				if body.Content[j].Value == "steps" {
					body, at = body.Content[j+1], at+".steps"
					break
				}
			}
		}
		if !eachKind(body, at, yield) {
			return false
		}
	}
	return true
}

// Longest is how long the step may take with all its attempts; in parallel, the longest of
// its members.
func (s Step) Longest() time.Duration {
	longest := s.Timeout * time.Duration(s.Retries+1)
	for _, m := range s.Parallel {
		longest = max(longest, m.Longest())
	}
	return longest
}

// term is how the arithmetic shows that.
func (s Step) term() string {
	if s.Kind == KindParallel {
		terms := make([]string, len(s.Parallel))
		for i, m := range s.Parallel {
			terms[i] = m.term()
		}
		return "max(" + strings.Join(abridged(terms), ", ") + ")"
	}
	if s.Retries > 0 {
		return fmt.Sprintf("%s x %d", show(s.Timeout), s.Retries+1)
	}
	return show(s.Timeout)
}

// abridged is a list of terms that fits a line.
func abridged(terms []string) []string {
	const shown = 12
	if len(terms) > shown {
		return append(terms[:shown:shown], fmt.Sprintf("%d more", len(terms)-shown))
	}
	return terms
}

// undoes says whether an answer of the hook keeps the instance: then what blocks it is undone.
func (h Hook) undoes() bool {
	return h.OnFailure == messages.Rollback || h.OnSuccess == messages.Rollback
}

// lets says whether the answer may let the instance go whose job stands so.
func (h Hook) lets(job string) bool {
	return job != JobSucceeded && h.OnFailure != messages.Rollback || job != JobFailed && h.OnSuccess != messages.Rollback
}

// Kept is the time that is kept back from the steps, for undoing them and for Always.
func (h Hook) Kept() time.Duration {
	var sum time.Duration
	for s := range h.Each() {
		if h.undoes() {
			sum += s.UndoTimeout
		}
	}
	for _, s := range h.Always {
		sum += s.Longest()
	}
	return sum
}

// checkSteps compares what the steps, their undoing and what comes behind them may take with
// the deadline.
func (m fields) checkSteps(h Hook) {
	need := h.Kept()
	var steps, kept []string
	for _, s := range h.Steps {
		need += s.Longest()
		steps = append(steps, s.term())
	}
	if h.Deadline == 0 || need <= h.Deadline {
		return
	}
	for s := range h.Each() {
		if s.UndoTimeout > 0 && h.undoes() {
			kept = append(kept, "undo "+show(s.UndoTimeout))
		}
	}
	for _, s := range h.Always {
		kept = append(kept, "always "+s.term())
	}
	arithmetic := strings.Join(append(abridged(steps), abridged(kept)...), " + ")
	if arithmetic != show(need) {
		arithmetic += " = " + show(need)
	}
	key := "steps"
	if len(h.Steps) == 0 {
		key = "always"
	}
	m.refuse(key, "steps need %s, the deadline is %s", arithmetic, show(h.Deadline))
}
