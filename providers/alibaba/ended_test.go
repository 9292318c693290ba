package alibaba

import (
	"errors"
	"strings"
	"testing"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// TestEnded: what the listing of an activity says of each action, and whether another
// hook's answer may end it yet, for one call an activity and none for an instance.
func TestEnded(t *testing.T) {
	t.Parallel()
	const two = "Pending i-a"
	tests := map[string]struct {
		listed     []string
		missing    int
		transition messages.Transition
		want       providers.State
		shared     bool
	}{
		"alone":                   {[]string{"ash-bp1example T Pending i-a"}, 0, messages.ScaleIn, providers.Pending, false},
		"with another":            {[]string{"ash-bp1example T Pending i-a", "ash-b U " + two}, 0, messages.ScaleIn, providers.Pending, true},
		"the other has ended":     {[]string{"ash-b U Completed i-a", "ash-bp1example T pending i-a"}, 0, messages.ScaleIn, providers.Pending, false},
		"a launch":                {[]string{"ash-bp1example T Pending i-a", "ash-b U " + two}, 0, messages.ScaleOut, providers.Pending, false},
		"ended by the other":      {[]string{"ash-bp1example T Completed i-a", "ash-b U Completed i-a"}, 0, messages.ScaleIn, providers.Over, false},
		"timed out":               {[]string{"ash-bp1example T Timeout i-a", "ash-b U " + two}, 0, messages.ScaleIn, providers.Over, true},
		"not listed":              {[]string{"ash-b U " + two}, 0, messages.ScaleIn, providers.Unlisted, true},
		"nothing is listed":       {nil, 0, messages.ScaleIn, providers.Unlisted, false},
		"the other is left out":   {[]string{"ash-bp1example T Pending i-a"}, 1, messages.ScaleIn, providers.Pending, true},
		"both are left out":       {nil, 2, messages.ScaleIn, providers.Unlisted, true},
		"a status without a name": {[]string{"ash-bp1example T Paused i-a"}, 0, messages.ScaleIn, providers.Unlisted, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := loopback(t, world{actions: map[string][]string{"asa-bp1example": tt.listed}, page: 50, missing: tt.missing}.answer)
			a := testAction()
			a.Token, a.Transition = "T", tt.transition
			got := newScaling(t, options(s.url())).Ended(t.Context(), []messages.Action{a, a})
			for _, v := range got {
				if v.Err != nil || v.State != tt.want || v.Shared != tt.shared || len(v.Instances) != 0 {
					t.Errorf("got %+v, want %s, shared %v", v, tt.want, tt.shared)
				}
			}
			if n := countActions(s); n["DescribeLifecycleActions"] != 1 || len(n) != 1 {
				t.Errorf("calls %v", n)
			}
		})
	}
}

func TestEndedFails(t *testing.T) {
	t.Parallel()
	s := loopback(t, world{refuse: func(x seen) string {
		if strings.HasSuffix(x.params().Get("ScalingActivityId"), "-denied") {
			return rpcRefusal(403, "Forbidden.RAM", "")
		}
		return ""
	}}.answer)
	known, denied, nameless := testAction(), testAction(), testAction()
	denied.Activity, nameless.Activity = "asa-denied", ""
	got := newScaling(t, options(s.url())).Ended(t.Context(), []messages.Action{denied, known, nameless})
	if !errors.Is(got[0].Err, providers.ErrDenied) || !strings.Contains(got[0].Err.Error(), string(denied.Token)) {
		t.Errorf("refused: %+v", got[0])
	}
	if got[1].Err != nil || got[1].State != providers.Unlisted || got[2].State != providers.Mismatch {
		t.Errorf("the others: %+v", got[1:])
	}
}
