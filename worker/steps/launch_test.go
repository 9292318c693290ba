package steps_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/providers/alibaba"
	"example.org/usher/simulator"
	"example.org/usher/worker/steps"
)

// boot starts an instance in a simulated cloud inside a bubble.
func boot(t *testing.T, timings simulator.Timings, does func(script string) simulator.CommandOutcome) (*simulator.Simulator, *alibaba.Assistant, messages.Instance) {
	t.Helper()
	sim, err := simulator.New(simulator.Options{
		AccessKeyID: "id", AccessKeySecret: "secret", NoServers: true,
		Scenario: simulator.Scenario{Timings: timings, ScalingGroups: []simulator.GroupConfig{{
			ID: "asg-1", Hooks: []simulator.HookConfig{{ID: "ash-1", Transition: "scale_out"}},
		}}},
		Commands: func(_, script string) simulator.CommandOutcome { return does(script) },
	})
	if err != nil {
		t.Fatal(err)
	}
	listener := simulator.NewPipeListener()
	server := &http.Server{Handler: sim, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	assistant, err := alibaba.NewAssistant(alibaba.Options{
		Region: "cn-shenzhen", ECSEndpoint: "http://ecs.test", Credentials: alibaba.StaticCredentials("id", "secret"), DialContext: listener.DialContext,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		assistant.Close()
		if err := errors.Join(server.Close(), sim.Close()); err != nil {
			t.Error(err)
		}
		<-served
	})
	act, err := sim.ScaleOut("asg-1", 1)
	if err != nil {
		t.Fatal(err)
	}
	return sim, assistant, messages.Instance{ID: messages.InstanceID(act.Instances[0]), Action: messages.Action{
		Region: "cn-shenzhen", Group: "asg-1", Hook: "ash-1", Token: messages.Token(act.Tokens[0]), Transition: messages.ScaleOut,
	}}
}

func TestCommandOnALaunch(t *testing.T) {
	t.Parallel()
	const timeout = 5 * time.Minute
	for name, tt := range map[string]struct {
		timings    simulator.Timings
		transition messages.Transition
		terminate  bool
		outcome    simulator.CommandOutcome
		ran        int
		least      time.Duration // how long it takes
		most       time.Duration
		want       string // of the error, "": none
		kind       error
	}{
		"ready":         {simulator.Timings{}, messages.ScaleOut, false, simulator.CommandOutcome{}, 1, 0, 5 * time.Second, "", nil},
		"no agent yet":  {simulator.Timings{Agent: 2 * time.Minute}, messages.ScaleOut, false, simulator.CommandOutcome{}, 1, 2 * time.Minute, 140 * time.Second, "", nil},
		"unknown yet":   {simulator.Timings{Address: 30 * time.Second}, messages.ScaleOut, false, simulator.CommandOutcome{}, 1, 30 * time.Second, 50 * time.Second, "", nil},
		"both":          {simulator.Timings{Address: 30 * time.Second, Agent: 50 * time.Second}, messages.ScaleOut, false, simulator.CommandOutcome{}, 1, 50 * time.Second, 70 * time.Second, "", nil},
		"never":         {simulator.Timings{Agent: time.Hour}, messages.ScaleOut, false, simulator.CommandOutcome{}, 0, timeout - time.Second, timeout + time.Second, "ClientNotRunning", providers.ErrAgentUnavailable},
		"it fails":      {simulator.Timings{Agent: 10 * time.Second}, messages.ScaleOut, false, simulator.CommandOutcome{ExitCode: 4}, 1, 10 * time.Second, 30 * time.Second, "exit code 4", nil},
		"it is gone":    {simulator.Timings{}, messages.ScaleOut, true, simulator.CommandOutcome{}, 0, time.Minute, 80 * time.Second, "instance is gone", providers.ErrInstanceGone},
		"at a scale-in": {simulator.Timings{Agent: time.Hour}, messages.ScaleIn, false, simulator.CommandOutcome{}, 0, 0, 5 * time.Second, "ClientNotRunning", providers.ErrAgentUnavailable},
		"other trouble": {simulator.Timings{}, messages.ScaleOut, false, simulator.CommandOutcome{ErrorCode: "ExecutionException"}, 1, 0, 5 * time.Second, "ExecutionException", providers.ErrCommandFailed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ran := 0
				sim, assistant, in := boot(t, tt.timings, func(string) simulator.CommandOutcome { ran++; return tt.outcome })
				in.Action.Transition = tt.transition
				if tt.terminate {
					if err := sim.Terminate(string(in.ID)); err != nil {
						t.Fatal(err)
					}
				}
				ctx, cancel := context.WithTimeout(t.Context(), timeout)
				defer cancel()
				begun := time.Now()
				_, err := steps.Command{Script: "install", Timeout: timeout, Commander: assistant}.Run(ctx, in, 0)
				took := time.Since(begun)
				switch {
				case tt.want == "" && err != nil, tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
					t.Errorf("got %v, want %q", err, tt.want)
				case tt.kind != nil && !errors.Is(err, tt.kind):
					t.Errorf("%v does not match %v", err, tt.kind)
				}
				if ran != tt.ran || took < tt.least || took > tt.most {
					t.Errorf("ran %d times, want %d; took %v, want %v to %v", ran, tt.ran, took, tt.least, tt.most)
				}
			})
		})
	}
}
