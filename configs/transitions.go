package configs

import "example.org/usher/messages"

// checkTransition refuses what has no meaning for a launching instance: ROLLBACK is the
// same as ABANDON there (CompleteLifecycleAction, ESS 2014-08-28), releasing what has
// become ready serves nobody, and there is no traffic yet whose end could be waited for.
func (m fields) checkTransition(h Hook) {
	if h.Transition != messages.ScaleOut {
		return
	}
	for key, result := range map[string]messages.Result{"on_success": h.OnSuccess, "on_failure": h.OnFailure} {
		if result == messages.Rollback {
			m.refuse(key, "on scale_out ROLLBACK does what ABANDON does, which releases the instances: write ABANDON")
		}
	}
	if h.OnSuccess == messages.Abandon {
		m.refuse("on_success", "on scale_out ABANDON releases the instances: none would ever join")
	}
	for kind, path := range m.kinds() {
		if kind.Value == KindWaitConnections {
			m.problem(kind, path, "an instance that is launched has no traffic yet: use http with every, to wait until it answers")
		}
	}
}
