package simulator

import (
	"net/http"
	"slices"
	"time"
)

// launch boots the new instances of a scale-out. What runs on a machine is not there the
// moment that the machine is: its service warms up, its agent is started, and the APIs
// learn its address, each in its own time. The hooks do not wait for that.
func (s *Simulator) launch(act *activity) {
	now, t := time.Now(), s.scenario.Timings
	for _, in := range act.instances {
		if in.running { // in a warm pool
			continue
		}
		in.agentAt, in.knownAt = now.Add(t.Agent), now.Add(t.Address)
		if err := s.boot(in); err != nil {
			s.log.Error("instance does not boot", "instance", in.id, "error", err)
		}
		s.setPower(in, powerRunning)
		if b := in.backend; b != nil && t.WarmUp > 0 {
			b.warming.Store(true)
			s.after(t.WarmUp, func() { b.warming.Store(false) })
		}
	}
}

// known says whether the APIs tell the instance's address, and ECS the instance.
func (in *instance) known() bool { return !time.Now().Before(in.knownAt) }

// hasAgent says whether Cloud Assistant can run a script on the instance by now.
func (in *instance) hasAgent(s *Simulator) bool {
	return s.hasAgent() && !time.Now().Before(in.agentAt)
}

// warm lets the service answer only when it has warmed up. That its process runs, which
// is what the balancer's check at /healthz sees, is true before.
func (b *backend) warm(next http.Handler) http.Handler {
	early := []string{"/healthz", "/actuator/health/up", "/actuator/health/down"}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if b.warming.Load() && !slices.Contains(early, r.URL.Path) {
			http.Error(w, "the service warms up", http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Terminate ends a machine from outside, whatever its group does with it, as a spot
// reclaim or an operator would. An action that waits for it goes on waiting on Alibaba
// Cloud; on AWS it is over.
func (s *Simulator) Terminate(instanceID string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.instances[instanceID]
	if in == nil {
		return &InputError{text: "there is no instance " + instanceID, notFound: true}
	}
	s.vanish(in)
	return nil
}

// vanish pulls the plug of an instance. The caller holds s.mu.
func (s *Simulator) vanish(in *instance) {
	was := in.state
	if act := in.activity; act != nil {
		act.instances = slices.DeleteFunc(slices.Clone(act.instances), func(o *instance) bool { return o == in })
	}
	s.release(in)
	if s.aws() {
		s.lost(in, was)
	}
}
