package configs

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"example.org/usher/messages"
)

// eventNames are the events there are, in the order in which problems list them.
var eventNames = []string{
	string(messages.SpotInterruption), string(messages.RebalanceRecommendation), string(messages.ScheduledChange), string(messages.StateChange),
}

// events reads what to do when the cloud warns of instances that no hook holds.
func (m fields) events() []Hook {
	nodes, paths := m.list("events")
	if n := m.values["events"]; n != nil && n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		m.refuse("events", "the list is empty: want one entry for each kind of event, or no events at all")
	}
	var events []Hook
	first := map[messages.Event]string{}
	for i, n := range nodes {
		e := m.event(n, paths[i])
		for _, on := range e.On {
			if other := first[on]; other != "" {
				m.problem(n, paths[i], "%s is in %s already: want one entry for each event", on, other)
			}
			first[on] = paths[i]
		}
		events = append(events, e)
	}
	return events
}

func (f *file) event(n *yaml.Node, path string) Hook {
	m := f.fields(n, path, "on", "deadline", "steps", "always")
	e := Hook{Transition: messages.ScaleIn}
	if n.Kind != yaml.MappingNode {
		return e
	}
	e.On = m.on()
	e.Deadline = m.deadline("event")
	if slices.Contains(e.On, messages.SpotInterruption) && e.Deadline > spotNotice {
		m.refuse("deadline", "at most %s with %s, got %s: then EC2 takes the instance", show(spotNotice), messages.SpotInterruption, show(e.Deadline))
		e.Deadline = 0
	}
	m.work(&e)
	return e
}

// on reads which events are meant.
func (m fields) on() (on []messages.Event) {
	if !m.need("on", "a list of "+strings.Join(eventNames, ", ")) {
		return nil
	}
	names, nodes, paths := m.texts("on")
	if n := m.values["on"]; n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		m.refuse("on", "the list is empty: want some of %s", strings.Join(eventNames, ", "))
	}
	for i, name := range names {
		if _, err := parseChoice(name, eventNames...); err != nil {
			m.problem(nodes[i], paths[i], "%s", err)
		} else if event := messages.Event(name); slices.Contains(on, event) {
			m.problem(nodes[i], paths[i], "%s is in the list twice", name)
		} else {
			on = append(on, event)
		}
	}
	return on
}
