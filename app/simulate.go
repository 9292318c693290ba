package app

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"example.org/usher/configs"
	"example.org/usher/simulator"
)

// errUsage marks an error that comes from what the caller asked for.
var errUsage = errors.New("wrong usage")

// IsUsage says that err comes from what was asked for, not from doing it.
func IsUsage(err error) bool { return errors.Is(err, errUsage) }

// SimulateOptions is how the simulator is served.
type SimulateOptions struct {
	Listen                       string
	AccessKeyID, AccessKeySecret string
	// Provider is the cloud of the default scenario: alibaba or aws; "": alibaba.
	Provider string
	// Scenario is a YAML file, which says its provider itself; "": the default scenario.
	Scenario string
	Exec     bool
	Logger   *slog.Logger
}

// Endpoints is the line that tells where a simulator listens. Each of them is good for
// the endpoint of the same name in a group's config, MNS and SQS for queue.endpoint.
type Endpoints struct {
	MNS         string `json:"mns,omitempty"`
	ESS         string `json:"ess,omitempty"`
	ECS         string `json:"ecs,omitempty"`
	SQS         string `json:"sqs,omitempty"`
	AutoScaling string `json:"autoscaling,omitempty"`
	ELB         string `json:"elb,omitempty"`
	SSM         string `json:"ssm,omitempty"`
	EC2         string `json:"ec2,omitempty"`

	STS     string `json:"sts"`
	Control string `json:"control"`
	Region  string `json:"region"`
	Account string `json:"account"`
}

// Simulate serves a simulated cloud until ctx ends. When it accepts connections it
// writes one JSON line, the Endpoints, to out.
func Simulate(ctx context.Context, o SimulateOptions, out io.Writer) (err error) {
	scenario, err := scenarioOf(o)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	listener, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return fmt.Errorf("listen for the simulated cloud (--listen): %w", err)
	}
	if host, ok := listener.Addr().(*net.TCPAddr); o.Exec && (!ok || !host.IP.IsLoopback()) {
		return errors.Join(fmt.Errorf("%w: --exec runs scripts on this host for whoever has the key: listen on a loopback address, not %s", errUsage, listener.Addr()), listener.Close())
	}
	s, err := simulator.New(simulator.Options{
		AccessKeyID: o.AccessKeyID, AccessKeySecret: o.AccessKeySecret,
		Scenario: scenario, Exec: o.Exec, Logger: o.Logger,
	})
	if err != nil {
		return errors.Join(fmt.Errorf("start the simulator: %w", err), listener.Close())
	}
	defer func() { err = errors.Join(err, s.Close()) }()

	server := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	context.AfterFunc(ctx, func() {
		// Long polls end with their connections; nobody is owed an answer.
		if err := server.Close(); err != nil && o.Logger != nil {
			o.Logger.Warn("close the simulator's server", "error", err)
		}
	})
	url := "http://" + listener.Addr().String()
	if err := json.NewEncoder(out).Encode(endpointsAt(url, scenario)); err != nil {
		return errors.Join(fmt.Errorf("write the endpoints: %w", err), server.Close(), listener.Close())
	}
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the simulator on %s: %w", listener.Addr(), err)
	}
	return nil
}

// scenarioOf is the scenario that is asked for.
func scenarioOf(o SimulateOptions) (simulator.Scenario, error) {
	switch {
	case o.Provider != "" && o.Provider != configs.ProviderAlibaba && o.Provider != configs.ProviderAWS:
		return simulator.Scenario{}, fmt.Errorf("the provider (--provider) is %s or %s, got %q", configs.ProviderAlibaba, configs.ProviderAWS, o.Provider)
	case o.Scenario != "":
		scenario, err := simulator.LoadScenario(o.Scenario)
		if is := cmp.Or(scenario.Provider, configs.ProviderAlibaba); err == nil && o.Provider != "" && is != o.Provider {
			err = fmt.Errorf("%s is of provider: %s, and --provider says %s", o.Scenario, is, o.Provider)
		}
		return scenario, err
	case o.Provider == configs.ProviderAWS:
		return simulator.DefaultAWSScenario(), nil
	}
	return simulator.DefaultScenario(), nil
}

// endpointsAt are those of a simulator that serves the scenario at url.
func endpointsAt(url string, scenario simulator.Scenario) Endpoints {
	line := Endpoints{STS: url, Control: url + "/simulator", Region: scenario.Region}
	if scenario.Provider == configs.ProviderAWS {
		line.SQS, line.AutoScaling, line.ELB, line.SSM, line.EC2 = url, url, url, url, url
		line.Account = simulator.DefaultAWSAccountID
		return line
	}
	line.MNS, line.ESS, line.ECS, line.Account = url, url, url, simulator.DefaultAccountID
	return line
}
