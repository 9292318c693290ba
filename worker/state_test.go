package worker

import (
	"slices"
	"testing"
)

// Every pair of state and event is here: what is not listed changes nothing.
func TestNext(t *testing.T) {
	t.Parallel()
	type move struct {
		s State
		e event
	}
	moves := map[move]State{
		{Judging, eventAdmit}: Waiting, {Waiting, eventStart}: Draining, {Draining, eventSettle}: Answering,
		{Judging, eventClose}: Closed, {Waiting, eventClose}: Closed, {Draining, eventClose}: Closed, {Answering, eventClose}: Closed,
	}
	for _, s := range []State{Judging, Waiting, Draining, Answering, Closed} {
		for _, e := range []event{eventAdmit, eventStart, eventSettle, eventClose} {
			want, allowed := moves[move{s, e}]
			if !allowed {
				want = s
			}
			if got, ok := next(s, e); got != want || ok != allowed {
				t.Errorf("%s + %s = %s, %v; want %s, %v", s, e, got, ok, want, allowed)
			}
		}
	}
}

func TestEveryStateReachesClosed(t *testing.T) {
	t.Parallel()
	var path []State
	s := Judging
	for _, e := range []event{eventAdmit, eventStart, eventSettle, eventClose} {
		s, _ = next(s, e)
		path = append(path, s)
	}
	if want := []State{Waiting, Draining, Answering, Closed}; !slices.Equal(path, want) {
		t.Errorf("got %v, want %v", path, want)
	}
}
