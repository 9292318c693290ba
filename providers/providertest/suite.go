package providertest

import (
	"testing"
)

// Run runs the suite on a cloud.
func Run(t *testing.T, c Cloud) {
	t.Helper()
	for _, group := range []struct {
		name  string
		cases map[string]func(*world)
	}{
		{"lifecycle", lifecycle}, {"duplicate", duplicate}, {"stale", stale}, {"queue", queues}, {"lost", lost},
		{"keys", keys}, {"commands", commands},
	} {
		t.Run(group.name, func(t *testing.T) {
			t.Parallel()
			for name, test := range group.cases {
				t.Run(name, func(t *testing.T) { c.in(t, test) })
			}
		})
	}
	t.Run("balancers", func(t *testing.T) {
		t.Parallel()
		t.Run("attached", func(t *testing.T) { c.in(t, attached) })
		for _, b := range c.Behind {
			for name, test := range balancers {
				t.Run(string(b.Kind)+"/"+name, func(t *testing.T) { c.in(t, func(w *world) { test(w, b) }) })
			}
		}
	})
	for name, trouble := range troubles {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, x := range c.exercises() {
				t.Run(x.name(), func(t *testing.T) { c.in(t, func(w *world) { trouble(w, x) }) })
			}
		})
	}
	t.Run("unsupported", func(t *testing.T) {
		t.Parallel()
		for _, x := range c.missing() {
			t.Run(x.name(), func(t *testing.T) { c.in(t, func(w *world) { unsupported(w, x) }) })
		}
	})
}
