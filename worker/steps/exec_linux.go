package steps

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

const execWorks = true

// runProgram runs a program until it has ended, and then nothing of its process group is
// left. An error says that it could not be started.
func runProgram(ctx context.Context, p program) (programEnd, error) {
	cmd := exec.Command(p.command[0], p.command[1:]...)
	cmd.Env, cmd.Dir = p.env, p.dir
	cmd.Stdout, cmd.Stderr = p.output, p.output
	cmd.WaitDelay = execRelease
	// Pdeathsig ends the program when the thread that started it ends, which is when the
	// worker does, as long as the thread is kept here.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return programEnd{}, fmt.Errorf("start it: %w", err)
	}
	group := -cmd.Process.Pid

	ended := make(chan struct{})
	var end programEnd
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-ended:
			return
		case <-ctx.Done():
		}
		end.interrupted = true
		_ = syscall.Kill(group, syscall.SIGTERM)
		timer := time.NewTimer(p.grace)
		defer timer.Stop()
		select {
		case <-ended:
		case <-timer.C:
			_ = syscall.Kill(group, syscall.SIGKILL)
		}
	})
	// Until it is reaped nobody else can have its id, so no signal hits a stranger.
	awaitEnd(cmd.Process.Pid)
	close(ended)
	watching.Wait()
	_ = syscall.Kill(group, syscall.SIGKILL) // what it has left behind
	if err := cmd.Wait(); err != nil && cmd.ProcessState == nil {
		return programEnd{}, fmt.Errorf("wait for it: %w", err)
	}
	end.code, end.state = cmd.ProcessState.ExitCode(), cmd.ProcessState.String()
	reap(group)
	return end, nil
}

// reap buries what of a killed group has become a child of ours: where the worker is the
// first process of its container, orphans are its own, and nobody else would.
func reap(group int) {
	for end := time.Now().Add(execRelease); time.Now().Before(end); {
		pid, err := syscall.Wait4(group, nil, syscall.WNOHANG, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return // none is left
		case pid == 0:
			time.Sleep(time.Millisecond) // killed, and not dead yet
		}
	}
}

// awaitEnd returns when the process has ended, and leaves it to be reaped.
func awaitEnd(pid int) {
	const pPID, wExited, wNoWait = 1, 0x4, 0x1000000 // linux/wait.h
	for {
		_, _, err := syscall.Syscall6(syscall.SYS_WAITID, pPID, uintptr(pid), 0, wExited|wNoWait, 0, 0)
		if !errors.Is(err, syscall.EINTR) {
			return
		}
	}
}
