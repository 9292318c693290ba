package simulator

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
)

// Machines are hosts outside the simulator that instances run on: containers, network
// namespaces, virtual machines. The simulator calls Start and Stop with its state locked,
// so they return soon and do not call it.
type Machines interface {
	// Start boots the machine of an instance and says where its service listens.
	Start(instanceID string) (netip.AddrPort, error)
	// Stop ends it with all that runs on it, as the cloud stops an instance: nobody on it
	// is owed an answer. What takes time may go on after the return.
	Stop(instanceID string)
	// Command is the script's process on the machine, not started yet: killed when ctx
	// ends, together with its process group.
	Command(ctx context.Context, instanceID, script string) *exec.Cmd
}

// bootMachine starts the instance's machine, which chooses the address.
func (s *Simulator) bootMachine(in *instance) error {
	addr, err := s.options.Machines.Start(in.id)
	if err != nil {
		in.running = false
		return fmt.Errorf("start the machine of instance %s: %w", in.id, err)
	}
	in.addr = addr
	return nil
}

// halt stops what the instance runs on, if it runs.
func (s *Simulator) halt(in *instance) {
	if in.running && s.options.Machines != nil {
		s.options.Machines.Stop(in.id)
	}
	in.running = false
	in.backend.stop()
}

// script is the process of a run.
func (s *Simulator) script(ctx context.Context, r *run) *exec.Cmd {
	if s.options.Machines != nil {
		return s.options.Machines.Command(ctx, r.instanceID, r.invocation.script)
	}
	return exec.CommandContext(ctx, "sh", "-c", r.invocation.script)
}
