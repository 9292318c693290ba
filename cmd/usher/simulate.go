package main

import (
	"errors"

	"github.com/spf13/cobra"

	"example.org/usher/app"
	"example.org/usher/configs"
)

func simulateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "simulate",
		Short: "Run the cloud in a box as a server, to try a config against",
		Long: `simulate serves the queue service, Auto Scaling and Cloud Assistant on one port, with
real backends and a real balancer on 127.0.0.x; with --provider aws, SQS, EC2 Auto Scaling,
both generations of ELB, Systems Manager, EC2 and STS. When it accepts connections it prints
one JSON line with its endpoints. Requests must be signed with the given key; the
/simulator/ paths, which drive it, are not signed.

With --exec a RunCommand or SendCommand really runs its script on this host: only on a loopback address.`,
		Example: `  usher simulate --listen 127.0.0.1:8700 --access-key-id ID --access-key-secret SECRET --exec
  curl -X POST http://127.0.0.1:8700/simulator/scaling-groups/asg-web/scale-in -d '{"count": 1}'
  curl http://127.0.0.1:8700/simulator/state`,
		Args: cobra.NoArgs,
	}
	var o app.SimulateOptions
	f := cmd.Flags()
	f.StringVar(&o.Listen, "listen", "127.0.0.1:8700", "the address to serve on; port 0 takes a free one")
	f.StringVar(&o.AccessKeyID, "access-key-id", "", "the key that requests must be signed with")
	f.StringVar(&o.AccessKeySecret, "access-key-secret", "", "its secret")
	f.StringVar(&o.Provider, "provider", "", "the cloud of the default scenario: alibaba or aws (default alibaba; a scenario's file says its own)")
	f.StringVar(&o.Scenario, "scenario", "", "a YAML file with groups, hooks, queues and balancers (default: a small fleet)")
	f.BoolVar(&o.Exec, "exec", false, "really run the scripts of commands on this host")
	for _, name := range []string{"access-key-id", "access-key-secret"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flag is defined above
		}
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if o.AccessKeyID == "" || o.AccessKeySecret == "" {
			return usageError{errors.New("--access-key-id and --access-key-secret must not be empty")}
		}
		log, _ := newLogger(cmd.ErrOrStderr(), configs.Log{Level: configs.DefaultLogLevel})
		receiving, _, stop := signals(cmd.Context(), log)
		defer stop()
		o.Logger = log
		err := app.Simulate(receiving, o, cmd.OutOrStdout())
		if app.IsUsage(err) {
			return usageError{err}
		}
		return err
	}
	return cmd
}
