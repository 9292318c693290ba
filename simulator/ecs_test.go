package simulator

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func (w *world) firstInstance() InstanceState {
	w.t.Helper()
	return w.State().Groups[0].Instances[0]
}

// run starts a script on an instance and gives the id of the invocation.
func (w *world) run(instance, script string, pairs ...string) string {
	w.t.Helper()
	o := w.call(ecsVersion, "RunCommand", append([]string{"Type", "RunShellScript", "InstanceId.1", instance,
		"ContentEncoding", "Base64", "CommandContent", base64.StdEncoding.EncodeToString([]byte(script))}, pairs...)...)
	return o["InvokeId"].(string)
}

// result is the one result of an invocation, its output decoded.
func (w *world) result(invoke string) map[string]any {
	w.t.Helper()
	inner := w.call(ecsVersion, "DescribeInvocationResults", "InvokeId", invoke)["Invocation"].(map[string]any)
	list := items(w.t, inner, "InvocationResults", "InvocationResult")
	if len(list) != 1 {
		w.t.Fatalf("results %v", list)
	}
	r := list[0].(map[string]any)
	output, err := base64.StdEncoding.DecodeString(r["Output"].(string))
	if err != nil {
		w.t.Fatalf("output: %v", err)
	}
	r["Output"] = string(output)
	return r
}

// ended waits until an event says that a command has ended.
func (w *world) ended(invoke string) map[string]any {
	w.t.Helper()
	limit := time.Now().Add(time.Minute)
	for time.Now().Before(limit) {
		if r := w.result(invoke); r["InvocationStatus"] != "Running" && r["InvocationStatus"] != "Pending" {
			return r
		}
		tick := time.NewTimer(10 * time.Millisecond)
		<-tick.C
	}
	w.t.Fatalf("invocation %s does not end", invoke)
	return nil
}

func wantResult(t *testing.T, r map[string]any, status, record, code string, exit float64, output string) {
	t.Helper()
	if r["InvocationStatus"] != status || r["InvokeRecordStatus"] != record || r["ErrorCode"] != code || r["ExitCode"] != exit || r["Output"] != output {
		t.Errorf("result %v, want %s/%s %q exit %v %q", r, status, record, code, exit, output)
	}
}

func TestCommandWithoutAgent(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: oneGroup(1)}, func(w *world) {
		in := w.firstInstance()
		invoke := w.run(in.ID, "true")
		wantResult(t, w.result(invoke), "Pending", "Running", "", 0, "")
		time.Sleep(time.Second)
		synctest.Wait()
		wantResult(t, w.result(invoke), "Aborted", "Failed", "ClientNotRunning", 0, "")
		st := items(t, w.call(ecsVersion, "DescribeCloudAssistantStatus", "InstanceId.1", in.ID), "InstanceCloudAssistantStatusSet", "InstanceCloudAssistantStatus")
		if st[0].(map[string]any)["CloudAssistantStatus"] != "false" {
			t.Errorf("assistant %v", st)
		}
	})
}

func TestScriptedCommands(t *testing.T) {
	t.Parallel()
	outcomes := map[string]CommandOutcome{
		"ok":     {Output: "done\n", Duration: 3 * time.Second},
		"fails":  {ExitCode: 7, Output: "no\n"},
		"long":   {Duration: time.Hour},
		"absent": {ErrorCode: "ClientNotResponse", Duration: time.Minute},
		"big":    {Output: strings.Repeat("x", 25<<10)},
	}
	o := Options{Scenario: oneGroup(3, hookIn("ash-1", "")), Commands: func(_, script string) CommandOutcome { return outcomes[script] }}
	bubble(t, o, func(w *world) {
		in := w.firstInstance()
		ok, fails, long, absent, big, stopped := w.run(in.ID, "ok"), w.run(in.ID, "fails"), w.run(in.ID, "long"), w.run(in.ID, "absent"), w.run(in.ID, "big"), w.run(in.ID, "long")
		wantResult(t, w.result(ok), "Running", "Running", "", 0, "")
		w.call(ecsVersion, "StopInvocation", "InvokeId", stopped)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		wantResult(t, w.result(ok), "Success", "Finished", "", 0, "done\n")
		wantResult(t, w.result(fails), "Failed", "Failed", "ExitCodeNonzero", 7, "no\n")
		wantResult(t, w.result(stopped), "Terminated", "Stopped", "", 0, "")
		if r := w.result(big); len(r["Output"].(string)) != 24<<10 || r["Dropped"] != 1024.0 {
			t.Errorf("big output: %d kept, %v dropped", len(r["Output"].(string)), r["Dropped"])
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		wantResult(t, w.result(long), "Timeout", "Failed", "ExecutionTimeout", 0, "")
		wantResult(t, w.result(absent), "Aborted", "Failed", "ClientNotResponse", 0, "")

		// A machine that is released takes its command with it.
		cut := w.run(in.ID, "long", "Timeout", "600")
		act, _ := w.ScaleIn("asg-1", 1)
		w.complete("ash-1", act.Tokens[0], "CONTINUE")
		wantResult(t, w.result(cut), "Failed", "Failed", "ExecutionInterrupted", 0, "")
		w.fails(404, "InvalidInstance.NotFound", ecsVersion, "RunCommand", "Type", "RunShellScript", "CommandContent", "x", "InstanceId.1", in.ID)
	})
}

func TestRunCommandParameters(t *testing.T) {
	t.Parallel()
	o := Options{Scenario: oneGroup(2), Commands: func(string, string) CommandOutcome { return CommandOutcome{Output: "hi"} }}
	bubble(t, o, func(w *world) {
		in := w.firstInstance()
		first := w.run(in.ID, "x", "ClientToken", "k")
		if again := w.run(in.ID, "x", "ClientToken", "k"); again != first {
			t.Errorf("invocations %s and %s of one token", first, again)
		}
		if n := w.State().Commands; n != 1 {
			t.Errorf("%d commands, want 1", n)
		}
		const op, kind, content = "RunCommand", "Type", "CommandContent"
		w.fails(400, "IdempotentParameterMismatch", ecsVersion, op, kind, "RunShellScript", content, "other", "InstanceId.1", in.ID, "ClientToken", "k")
		w.fails(403, "InvalidCmdType.NotFound", ecsVersion, op, kind, "Perl", content, "x", "InstanceId.1", in.ID)
		w.fails(400, "MissingCommandContent", ecsVersion, op, kind, "RunShellScript", "InstanceId.1", in.ID)
		w.fails(400, "MissingInstanceId", ecsVersion, op, kind, "RunShellScript", content, "x")
		w.fails(400, "InvalidParameter", ecsVersion, op, kind, "RunShellScript", content, "!", "ContentEncoding", "Base64", "InstanceId.1", in.ID)
		w.fails(400, "InvalidParameter", ecsVersion, op, kind, "RunShellScript", content, "x", "Timeout", "0", "InstanceId.1", in.ID)
		w.fails(403, "CmdContent.ExceedLimit", ecsVersion, op, kind, "RunShellScript", content, strings.Repeat("x", 20<<10), "InstanceId.1", in.ID)
		many := []string{kind, "RunShellScript", content, "x"}
		for i := range 51 {
			many = append(many, fmt.Sprintf("InstanceId.%d", i+1), in.ID)
		}
		w.fails(403, "InstanceIds.ExceedLimit", ecsVersion, op, many...)
		synctest.Wait()
		inner := w.call(ecsVersion, "DescribeInvocationResults", "InstanceId", in.ID, "ContentEncoding", "PlainText", "MaxResults", "5")["Invocation"].(map[string]any)
		if r := items(t, inner, "InvocationResults", "InvocationResult"); len(r) != 1 || r[0].(map[string]any)["Output"] != "hi" {
			t.Errorf("plain results %v", r)
		}
	})
}

func TestDescribeInstances(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: oneGroup(3)}, func(w *world) {
		in := w.firstInstance()
		o := w.call(ecsVersion, "DescribeInstances", "InstanceIds", `["`+in.ID+`","i-unknown"]`)
		list := items(t, o, "Instances", "Instance")
		if len(list) != 1 || list[0].(map[string]any)["Status"] != "Running" {
			t.Fatalf("instances %v", list)
		}
		ips := items(t, list[0].(map[string]any)["VpcAttributes"].(map[string]any), "PrivateIpAddress", "IpAddress")
		if len(ips) != 1 || ips[0] != in.Address {
			t.Errorf("addresses %v, want %s", ips, in.Address)
		}
		w.ScaleIn("asg-1", 1)
		if o := w.call(ecsVersion, "DescribeInstances"); o["TotalCount"] != 2.0 {
			t.Errorf("a released instance is counted: %v", o["TotalCount"])
		}
		w.fails(400, "InvalidParameter", ecsVersion, "DescribeInstances", "InstanceIds", "i-1,i-2")
	})
}

func TestExec(t *testing.T) {
	t.Parallel()
	w := start(t, Options{Scenario: oneGroup(2, hookIn("ash-1", "")), Exec: true})
	in := w.firstInstance()
	invoke := w.run(in.ID, `echo "$USHER_SIMULATOR_INSTANCE $USHER_SIMULATOR_ADDRESS"; echo oops >&2; exit 3`)
	wantResult(t, w.ended(invoke), "Failed", "Failed", "ExitCodeNonzero", 3, in.ID+" "+in.Address+"\noops\n")
	big := w.ended(w.run(in.ID, "head -c 30000 /dev/zero | tr '\\0' x"))
	if len(big["Output"].(string)) != 24<<10 || big["Dropped"] != float64(30000-24<<10) {
		t.Errorf("kept %d, dropped %v", len(big["Output"].(string)), big["Dropped"])
	}
	if r := w.ended(w.run(in.ID, "echo $SECRET_OF_THE_TEST$HOME")); strings.Contains(r["Output"].(string), os.Getenv("HOME")) && os.Getenv("HOME") != os.TempDir() {
		t.Errorf("the script sees this process's environment: %v", r["Output"])
	}
}

func TestExecKillsTheWholeGroup(t *testing.T) {
	t.Parallel()
	w := start(t, Options{Scenario: oneGroup(2, hookIn("ash-1", "")), Exec: true})
	in := w.firstInstance()
	dir := t.TempDir()
	mark, pipe := filepath.Join(dir, "mark"), filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	// Whoever lives on touches the file in the end. The pipe ends with the last of them.
	script := "exec 3>" + pipe + "; (sleep 60; touch " + mark + ") & echo begun; sleep 60; touch " + mark
	over := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(pipe)
		over <- err
	}()
	r := w.ended(w.run(in.ID, script, "Timeout", "2"))
	wantResult(t, r, "Timeout", "Failed", "ExecutionTimeout", 0, "begun\n")
	if t.Failed() {
		return // nobody may have opened the pipe
	}
	if err := <-over; err != nil {
		t.Fatal(err)
	}
	stopped := w.run(in.ID, "sleep 60")
	w.call(ecsVersion, "StopInvocation", "InvokeId", stopped)
	if r := w.result(stopped); r["InvocationStatus"] != "Terminated" {
		t.Errorf("stopped: %v", r)
	}
	w.run(in.ID, "sleep 60; touch "+mark) // Close ends it
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("a script, or a child of one, was left to its end")
	}
}
