package alibaba

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"example.org/usher/providers"
)

func TestRunCommand(t *testing.T) {
	t.Parallel()
	s := loopback(t, func(x seen) string {
		if x.number == 1 {
			return rpcOK(`,"CommandId":"c-1","InvokeId":"t-1"`)
		}
		return rpcOK("")
	})
	as := newAssistant(t, options(s.url()))
	script := "#!/bin/sh\necho 'ü + & = ~ *'\n" + strings.Repeat("#", 15<<10)
	c := providers.Command{Instance: "i-1", Name: strings.Repeat("n", 127) + "ü", Script: script, Timeout: 1500 * time.Millisecond, Key: "key-1"}
	id, err := as.RunCommand(t.Context(), c)
	if err != nil || id != "t-1" {
		t.Fatalf("%s, %v", id, err)
	}
	x := s.requests()[0]
	p := x.params()
	if len(x.target) > 1024 || strings.Contains(x.target, "CommandContent") {
		t.Errorf("the script is in the URL: %d bytes", len(x.target))
	}
	if p.Get("Signature") != rpcSignature(testSecret, p) {
		t.Error("signed wrongly")
	}
	if got, _ := base64.StdEncoding.DecodeString(p.Get("CommandContent")); string(got) != script || p.Get("ContentEncoding") != "Base64" {
		t.Errorf("script came as %.80q", got)
	}
	for name, want := range map[string]string{"Action": "RunCommand", "Version": "2014-05-26", "Type": "RunShellScript", "InstanceId.1": "i-1", "Timeout": "2",
		"ClientToken": "key-1", "Name": strings.Repeat("n", 127), "RegionId": "cn-hangzhou"} {
		if p.Get(name) != want {
			t.Errorf("%s is %q, want %q", name, p.Get(name), want)
		}
	}
	_, err = as.RunCommand(t.Context(), c)
	wantKind(t, err, providers.ErrUnavailable) // no invocation id
	n := len(s.requests())
	for _, bad := range []providers.Command{
		{Script: "x", Key: "k"},
		{Instance: "i-1", Key: "k"},
		{Instance: "i-1", Script: "x"},
		{Instance: "i-1", Script: "x", Key: strings.Repeat("k", 65)},
		{Instance: "i-1", Script: "x", Key: "kéy"},
		{Instance: "i-1", Script: strings.Repeat("x", MaxScript+1), Key: "k"},
	} {
		_, err = as.RunCommand(t.Context(), bad)
		wantKind(t, err, providers.ErrInvalid)
	}
	if len(s.requests()) != n {
		t.Error("a command that is wrong was sent")
	}
}

func TestRunCommandRefusals(t *testing.T) {
	t.Parallel()
	for code, c := range map[string]struct {
		status int
		kind   error
		hint   string
	}{
		"InvalidInstance.NotFound": {404, providers.ErrInstanceGone, ""},
		"InvalidInstance.NotMatch": {403, providers.ErrInvalid, ""},
		"CmdCount.ExceedQuota":     {403, providers.ErrInvalid, ""},
		"Forbidden.RAM":            {403, providers.ErrDenied, "ecs:RunCommand"},
	} {
		s := loopback(t, func(seen) string { return rpcRefusal(c.status, code, "") })
		_, err := newAssistant(t, options(s.url())).RunCommand(t.Context(), providers.Command{Instance: "i-1", Script: "x", Key: "k"})
		if e := wantKind(t, err, c.kind); !strings.Contains(e.Hint, c.hint) {
			t.Errorf("%s: %v", code, err)
		}
	}
}

func TestCommandResult(t *testing.T) {
	t.Parallel()
	const none = "null"
	out := base64.StdEncoding.EncodeToString([]byte("ok\n"))
	for _, c := range []struct {
		status, code, exit string
		done               bool
		want               int
		kind               error
	}{
		{"Pending", "", none, false, 0, nil},
		{"Scheduled", "", "0", false, 0, nil},
		{"Running", "", "0", false, 0, nil},
		{"Stopping", "", "0", false, 0, nil},
		{"Unheard", "", "0", false, 0, nil},
		{"Success", "", "0", true, 0, nil},
		{"success", "", `"0"`, true, 0, nil},
		{"Failed", "ExitCodeNonzero", "3", true, 3, nil},
		{"Failed", "ExitCodeNonzero", `"4"`, true, 4, nil},
		{"Failed", "", "0", true, 0, providers.ErrCommandFailed},
		{"Failed", "ClientNotRunning", `""`, true, 0, providers.ErrAgentUnavailable},
		{"Timeout", "ExecutionTimeout", "0", true, 0, providers.ErrCommandTimeout},
		{"Error", "InstanceNotExists", "0", true, 0, providers.ErrInstanceGone},
		{"Error", "InstanceReleased", "0", true, 0, providers.ErrInstanceGone},
		{"Aborted", "ClientNotResponse", "0", true, 0, providers.ErrAgentUnavailable},
		{"Aborted", "DeliveryTimeout", "0", true, 0, providers.ErrAgentUnavailable},
		{"Error", "ExecutionTimeout", "0", true, 0, providers.ErrCommandTimeout},
		{"Error", "ExecutionException", "0", true, 0, providers.ErrCommandFailed},
		{"Invalid", "CommandNotApplicable", "0", true, 0, providers.ErrCommandFailed},
		{"Cancelled", "", "0", true, 0, providers.ErrCommandFailed},
		{"Terminated", "", "0", true, 0, providers.ErrCommandFailed},
	} {
		t.Run(c.status+c.code, func(t *testing.T) {
			t.Parallel()
			s := loopback(t, func(seen) string {
				return rpcOK(fmt.Sprintf(`,"Invocation":{"InvocationResults":{"InvocationResult":[{"InvokeId":"t-1","InstanceId":"i-other","InvocationStatus":"Success"},`+
					`{"InvokeId":"t-1","InstanceId":"i-1","InvocationStatus":%q,"ErrorCode":%q,"ErrorInfo":"words","ExitCode":%s,"Output":%q,"Dropped":7}]}}`, c.status, c.code, c.exit, out))
			})
			r, err := newAssistant(t, options(s.url())).CommandResult(t.Context(), "t-1", "i-1")
			if err != nil {
				t.Fatal(err)
			}
			if r.Done != c.done || r.ExitCode != c.want || (r.Err == nil) != (c.kind == nil) || !errors.Is(r.Err, c.kind) || r.RequestID == "" {
				t.Errorf("%+v", r)
			}
			if r.Err != nil && !strings.Contains(r.Err.Error(), "words") {
				t.Errorf("error %v", r.Err)
			}
			if !strings.HasPrefix(r.Output, "ok\n") || !strings.Contains(r.Output, "7 more bytes were dropped") {
				t.Errorf("output %q", r.Output)
			}
		})
	}
}

func TestCommandResultNotThereYet(t *testing.T) {
	t.Parallel()
	s := loopback(t, func(x seen) string {
		switch x.number {
		case 1:
			return rpcOK(`,"Invocation":{"InvocationResults":{"InvocationResult":[]}}`)
		case 2:
			return rpcOK(`,"Invocation":7`)
		case 3:
			return rpcOK(`,"Invocation":{"InvocationResults":{"InvocationResult":[{"InvokeId":"t-1","InstanceId":"i-1","InvocationStatus":"Success","Output":"not base64!"}]}}`)
		}
		return rpcRefusal(404, "InvalidInstance.NotFound", "")
	})
	as := newAssistant(t, options(s.url()))
	if r, err := as.CommandResult(t.Context(), "t-1", "i-1"); err != nil || r.Done {
		t.Errorf("%+v, %v", r, err)
	}
	_, err := as.CommandResult(t.Context(), "t-1", "i-1")
	wantKind(t, err, providers.ErrUnavailable)
	if r, err := as.CommandResult(t.Context(), "t-1", "i-1"); err != nil || r.Output != "not base64!" {
		t.Errorf("%+v, %v", r, err)
	}
	_, err = as.CommandResult(t.Context(), "t-1", "i-1")
	wantKind(t, err, providers.ErrInstanceGone)
}
