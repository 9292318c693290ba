package simulator

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"github.com/aws/aws-sdk-go-v2/service/ssm/types"
)

func (w awsWorld) ssm() *ssm.Client { return ssm.NewFromConfig(w.config()) }

func ssmGroup(n int) Scenario {
	return Scenario{Provider: providerAWS, ScalingGroups: []GroupConfig{{ID: "asg-1", Instances: n}}}
}

// command makes a SendCommand, which edit may change.
func command(ids []string, script string, edit func(*ssm.SendCommandInput)) *ssm.SendCommandInput {
	in := &ssm.SendCommandInput{DocumentName: aws.String("AWS-RunShellScript"), InstanceIds: ids, Parameters: map[string][]string{"commands": {script}}}
	if edit != nil {
		edit(in)
	}
	return in
}

func (w awsWorld) sendCommand(script string, ids ...string) string {
	w.t.Helper()
	o, err := w.ssm().SendCommand(w.t.Context(), command(ids, script, nil))
	if err != nil {
		w.t.Fatal(err)
	}
	return *o.Command.CommandId
}

func (w awsWorld) invocation(command, id string) *ssm.GetCommandInvocationOutput {
	w.t.Helper()
	o, err := w.ssm().GetCommandInvocation(w.t.Context(), &ssm.GetCommandInvocationInput{CommandId: &command, InstanceId: &id})
	if err != nil {
		w.t.Fatal(err)
	}
	return o
}

// outcome is an invocation as "status, details, code, stdout, stderr".
func outcome(o *ssm.GetCommandInvocationOutput) string {
	return fmt.Sprintf("%s, %s, %d, %s, %s", o.Status, *o.StatusDetails, o.ResponseCode, *o.StandardOutputContent, *o.StandardErrorContent)
}

// answered makes a machine do with each script what it is called after.
func answered(outcomes map[string]CommandOutcome) func(id, script string) CommandOutcome {
	return func(_, script string) CommandOutcome { return outcomes[script] }
}

// How a command goes, from the sending to each end it can have.
func TestSSMLifeOfACommand(t *testing.T) {
	t.Parallel()
	o := Options{Scenario: ssmGroup(1), Commands: answered(map[string]CommandOutcome{
		"well":     {Output: "ok\n", ErrorOutput: "a warning\n", Duration: 5800 * time.Millisecond},
		"badly":    {ExitCode: 3, Output: "no\n", Duration: time.Second},
		"for ever": {Duration: 100 * time.Hour},
		"deaf":     {ErrorCode: "ClientNotRunning"},
		"gone":     {ErrorCode: "InstanceNotRunning", Duration: time.Second},
	})}
	bubbleAWS(t, o, func(w awsWorld) {
		id := w.instances()[0]
		for _, c := range []struct {
			script string
			wait   time.Duration
			during string
			after  string
		}{
			{"well", 6 * time.Second, "InProgress, InProgress, -1, , ", "Success, Success, 0, ok\n, a warning\n"},
			{"badly", 2 * time.Second, "InProgress, InProgress, -1, , ", "Failed, Failed, 3, no\n, "},
			{"for ever", time.Hour + time.Second, "InProgress, InProgress, -1, , ", "TimedOut, ExecutionTimedOut, 137, , "},
			{"deaf", time.Hour + time.Second, "Pending, Pending, -1, , ", "TimedOut, DeliveryTimedOut, -1, , "},
			{"gone", 2 * time.Second, "Pending, Pending, -1, , ", "Failed, Undeliverable, -1, , "},
		} {
			command := w.sendCommand(c.script, id)
			time.Sleep(100 * time.Millisecond)
			wantText(t, c.script+", during", outcome(w.invocation(command, id)), c.during)
			time.Sleep(c.wait)
			o := w.invocation(command, id)
			wantText(t, c.script+", after", outcome(o), c.after)
			if *o.CommandId != command || *o.InstanceId != id || *o.DocumentName != "AWS-RunShellScript" || *o.PluginName != "aws:runShellScript" {
				t.Errorf("%s: %+v", c.script, o)
			}
			start, err := time.Parse(time.RFC3339, *o.ExecutionStartDateTime)
			if c.script == "well" && (*o.ExecutionElapsedTime != "PT5.8S" || err != nil || time.Since(start) < c.wait || !strings.HasSuffix(*o.ExecutionEndDateTime, "Z")) {
				t.Errorf("times %s, %s, %s", *o.ExecutionStartDateTime, *o.ExecutionElapsedTime, *o.ExecutionEndDateTime)
			}
			if o.ResponseCode == -1 && *o.ExecutionStartDateTime+*o.ExecutionEndDateTime+*o.ExecutionElapsedTime != "" {
				t.Errorf("%s has never run, and has times: %+v", c.script, o)
			}
		}
		if n := w.State().Commands; n != 5 {
			t.Errorf("%d commands", n)
		}
	})
}

// The timeouts are the delivery's and the execution's, each on its own.
func TestSSMTimeouts(t *testing.T) {
	t.Parallel()
	o := Options{Scenario: ssmGroup(1), Commands: answered(map[string]CommandOutcome{"deaf": {ErrorCode: "ClientNotRunning"}, "slow": {Duration: time.Hour}})}
	bubbleAWS(t, o, func(w awsWorld) {
		id := w.instances()[0]
		for script, want := range map[string]string{"deaf": "Pending TimedOut", "slow": "InProgress TimedOut"} {
			o, err := w.ssm().SendCommand(w.t.Context(), command(w.instances(), script, func(in *ssm.SendCommandInput) {
				in.TimeoutSeconds, in.Comment = aws.Int32(30), aws.String("usher drain")
				in.Parameters["executionTimeout"] = []string{"30"}
			}))
			check(t, err)
			c := o.Command
			if c.ExpiresAfter.Sub(*c.RequestedDateTime) != time.Minute || *c.TimeoutSeconds != 30 || *c.Comment != "usher drain" || c.Status != "Pending" && c.Status != "InProgress" || len(c.InstanceIds) != 1 {
				t.Errorf("command %+v", c)
			}
			time.Sleep(29 * time.Second)
			states := string(w.invocation(*c.CommandId, id).Status)
			time.Sleep(2 * time.Second)
			wantText(t, script, states+" "+string(w.invocation(*c.CommandId, id).Status), want)
		}
	})
}

// A command is not there at once for those who look.
func TestSSMEventuallyThere(t *testing.T) {
	t.Parallel()
	sc := ssmGroup(1)
	sc.Timings.Listing = 2 * time.Second
	bubbleAWS(t, Options{Scenario: sc, Commands: answered(nil)}, func(w awsWorld) {
		id := w.instances()[0]
		command := w.sendCommand("x", id)
		_, err := w.ssm().GetCommandInvocation(w.t.Context(), &ssm.GetCommandInvocationInput{CommandId: &command, InstanceId: &id})
		wantText(t, "at once", codeOf(err), "InvocationDoesNotExist")
		if o, err := w.ssm().ListCommandInvocations(w.t.Context(), &ssm.ListCommandInvocationsInput{CommandId: &command}); err != nil || len(o.CommandInvocations) != 0 {
			t.Errorf("listed at once: %+v, %v", o, err)
		}
		time.Sleep(2 * time.Second)
		wantText(t, "later", string(w.invocation(command, id).Status), "Success")
		waiter := ssm.NewCommandExecutedWaiter(w.ssm())
		if err := waiter.Wait(w.t.Context(), &ssm.GetCommandInvocationInput{CommandId: &command, InstanceId: &id}, time.Minute); err != nil {
			t.Errorf("the SDK's own waiter: %v", err)
		}
	})
}

// The output is cut by characters, not bytes.
func TestSSMOutputLimits(t *testing.T) {
	t.Parallel()
	o := Options{Scenario: ssmGroup(1), Commands: answered(map[string]CommandOutcome{
		"much": {Output: strings.Repeat("ü", 30_000), ErrorOutput: strings.Repeat("€", 10_000)},
	})}
	bubbleAWS(t, o, func(w awsWorld) {
		id := w.instances()[0]
		command := w.sendCommand("much", id)
		time.Sleep(time.Second)
		o := w.invocation(command, id)
		if *o.StandardOutputContent != strings.Repeat("ü", 24_000) || *o.StandardErrorContent != strings.Repeat("€", 8_000) {
			t.Errorf("outputs of %d and %d bytes", len(*o.StandardOutputContent), len(*o.StandardErrorContent))
		}
		list, err := w.ssm().ListCommandInvocations(w.t.Context(), &ssm.ListCommandInvocationsInput{CommandId: &command, Details: true})
		check(t, err)
		if p := list.CommandInvocations[0].CommandPlugins; len(p) != 1 || *p[0].Output != strings.Repeat("ü", 2_500) || p[0].ResponseFinishDateTime == nil {
			t.Errorf("plugins %+v", p)
		}
	})
}

func TestSSMCancel(t *testing.T) {
	t.Parallel()
	o := Options{Scenario: ssmGroup(2), Commands: answered(map[string]CommandOutcome{"slow": {Duration: time.Hour}, "deaf": {ErrorCode: "ClientNotRunning"}})}
	bubbleAWS(t, o, func(w awsWorld) {
		ids := w.instances()
		for _, script := range []string{"slow", "deaf"} {
			command := w.sendCommand(script, ids...)
			time.Sleep(time.Second)
			cancel := func(ids ...string) error {
				_, err := w.ssm().CancelCommand(w.t.Context(), &ssm.CancelCommandInput{CommandId: &command, InstanceIds: ids})
				return err
			}
			check(t, cancel(ids[0]))
			wantText(t, "the one", outcome(w.invocation(command, ids[0])), "Cancelled, Cancelled, -1, , ")
			if s := w.invocation(command, ids[1]).Status; s == "Cancelled" {
				t.Error("the other is cancelled too")
			}
			wantText(t, "a stranger", codeOf(cancel("i-0aa11bb22cc33dd44")), "InvalidInstanceId")
			check(t, cancel())
			check(t, cancel()) // again
			wantText(t, "the other", string(w.invocation(command, ids[1]).Status), "Cancelled")
		}
		_, err := w.ssm().CancelCommand(w.t.Context(), &ssm.CancelCommandInput{CommandId: aws.String("7d1b0a52-3c6f-4e18-9b7a-5f2e8c4d1a06")})
		wantText(t, "no such command", codeOf(err), "InvalidCommandId")
	})
}

// An instance that is terminated takes its commands with it.
func TestSSMInstanceGoes(t *testing.T) {
	t.Parallel()
	o := Options{Scenario: ssmGroup(1), Commands: answered(map[string]CommandOutcome{"slow": {Duration: time.Hour}, "deaf": {ErrorCode: "ClientNotRunning"}})}
	bubbleAWS(t, o, func(w awsWorld) {
		id := w.instances()[0]
		slow, deaf := w.sendCommand("slow", id), w.sendCommand("deaf", id)
		time.Sleep(time.Second)
		check(t, w.Terminate(id))
		wantText(t, "running", outcome(w.invocation(slow, id)), "Failed, Failed, -1, , ")
		wantText(t, "waiting", outcome(w.invocation(deaf, id)), "Failed, Undeliverable, -1, , ")
		_, err := w.ssm().SendCommand(w.t.Context(), command([]string{id}, "slow", nil))
		if codeOf(err) != "InvalidInstanceId" || !strings.Contains(err.Error(), "Instances [["+id+"]] not in a valid state for account 111122223333") {
			t.Errorf("a command to it: %v", err)
		}
	})
}

// An instance is managed when its agent runs, and not before.
func TestSSMInstanceInformation(t *testing.T) {
	t.Parallel()
	sc := ssmGroup(7)
	sc.Timings.Agent = time.Minute
	bubbleAWS(t, Options{Scenario: sc, Commands: answered(nil)}, func(w awsWorld) {
		if _, err := w.ScaleOut("asg-1", 1); err != nil {
			t.Fatal(err)
		}
		ids := w.instances()
		count := func() (n int) {
			pages := ssm.NewDescribeInstanceInformationPaginator(w.ssm(), &ssm.DescribeInstanceInformationInput{MaxResults: aws.Int32(5)})
			for pages.HasMorePages() {
				page, err := pages.NextPage(w.t.Context())
				check(t, err)
				n += len(page.InstanceInformationList)
			}
			return n
		}
		named := func() []types.InstanceInformation {
			o, err := w.ssm().DescribeInstanceInformation(w.t.Context(), &ssm.DescribeInstanceInformationInput{
				Filters: []types.InstanceInformationStringFilter{{Key: aws.String("InstanceIds"), Values: ids[7:]}},
			})
			check(t, err)
			return o.InstanceInformationList
		}
		_, err := w.ssm().SendCommand(w.t.Context(), command(ids, "x", nil))
		if codeOf(err) != "InvalidInstanceId" || !strings.Contains(err.Error(), "[["+ids[7]+"]]") || w.State().Commands != 0 {
			t.Errorf("a command to all: %v, %d begun", err, w.State().Commands)
		}
		if n, list := count(), named(); n != 7 || len(list) != 0 {
			t.Errorf("%d managed, among them %+v", n, list)
		}
		time.Sleep(time.Minute)
		if n, list := count(), named(); n != 8 || len(list) != 1 || *list[0].InstanceId != ids[7] || list[0].PingStatus != "Online" || *list[0].IPAddress == "" || list[0].LastPingDateTime == nil {
			t.Errorf("%d managed, among them %+v", n, list)
		}
		o, err := w.ssm().DescribeInstanceInformation(w.t.Context(), &ssm.DescribeInstanceInformationInput{
			InstanceInformationFilterList: []types.InstanceInformationFilter{{Key: "InstanceIds", ValueSet: ids[:2]}},
		})
		if err != nil || len(o.InstanceInformationList) != 2 {
			t.Errorf("with the old filter: %+v, %v", o, err)
		}
	})
}

// The calls that list find commands by what the service can filter by.
func TestSSMListings(t *testing.T) {
	t.Parallel()
	o := Options{Scenario: ssmGroup(2), Commands: answered(map[string]CommandOutcome{
		"slow": {Duration: 90 * time.Minute}, "deaf": {ErrorCode: "ClientNotRunning"}, "badly": {ExitCode: 1},
	})}
	bubbleAWS(t, o, func(w awsWorld) {
		ids := w.instances()
		var commands []string
		names := map[string]string{}
		for _, script := range []string{"well", "badly", "slow", "deaf"} {
			id := w.sendCommand(script, ids...)
			commands, names[id] = append(commands, id), script
			time.Sleep(time.Minute)
		}
		middle := time.Now().Add(-150 * time.Second).UTC().Format(time.RFC3339)
		for _, c := range []struct {
			key         types.CommandFilterKey
			value       string
			commands    string
			invocations int // -1: refused
		}{
			{"Status", "Success", "well", 2},
			{"Status", "Failed", "badly", 2},
			{"Status", "InProgress", "slow", 2},
			{"Status", "Pending", "deaf", 2},
			{"Status", "Cancelled", "", 0},
			{"InvokedAfter", middle, "deaf slow", 4},
			{"InvokedBefore", middle, "badly well", 4},
			{"DocumentName", "AWS-RunShellScript", "deaf slow badly well", 8},
			{"DocumentName", "other", "", 0},
			{"ExecutionStage", "Executing", "deaf slow", -1},
			{"ExecutionStage", "Complete", "badly well", -1},
		} {
			filters := []types.CommandFilter{{Key: c.key, Value: aws.String(c.value)}}
			list, err := w.ssm().ListCommands(w.t.Context(), &ssm.ListCommandsInput{Filters: filters})
			check(t, err)
			var found []string
			for _, x := range list.Commands {
				found = append(found, names[*x.CommandId])
			}
			wantText(t, string(c.key)+" "+c.value, strings.Join(found, " "), c.commands)
			runs, err := w.ssm().ListCommandInvocations(w.t.Context(), &ssm.ListCommandInvocationsInput{Filters: filters})
			if c.invocations == -1 {
				wantText(t, string(c.key), codeOf(err), "InvalidFilterKey")
			} else if err != nil || len(runs.CommandInvocations) != c.invocations {
				t.Errorf("%s %s: %+v, %v", c.key, c.value, runs, err)
			}
		}
		time.Sleep(2 * time.Hour)
		for i, want := range []string{"Success Success 2 0 0", "Failed Failed 2 2 0", "TimedOut ExecutionTimedOut 2 2 0", "TimedOut DeliveryTimedOut 2 0 2"} {
			list, err := w.ssm().ListCommands(w.t.Context(), &ssm.ListCommandsInput{CommandId: &commands[i], InstanceId: &ids[0]})
			check(t, err)
			c := list.Commands[0]
			wantText(t, names[commands[i]], fmt.Sprint(c.Status, " ", *c.StatusDetails, " ", c.CompletedCount, " ", c.ErrorCount, " ", c.DeliveryTimedOutCount), want)
		}
		late, err := w.ssm().ListCommandInvocations(w.t.Context(), &ssm.ListCommandInvocationsInput{Filters: []types.CommandFilter{{Key: "Status", Value: aws.String("DeliveryTimedOut")}}, Details: true})
		if err != nil || len(late.CommandInvocations) != 2 || late.CommandInvocations[0].CommandPlugins[0].ResponseStartDateTime != nil {
			t.Errorf("never delivered: %+v, %v", late, err)
		}

		n := 0
		pages := ssm.NewListCommandInvocationsPaginator(w.ssm(), &ssm.ListCommandInvocationsInput{InstanceId: &ids[1], MaxResults: aws.Int32(3)})
		for pages.HasMorePages() {
			page, err := pages.NextPage(w.t.Context())
			check(t, err)
			n += len(page.CommandInvocations)
		}
		if n != 4 {
			t.Errorf("%d invocations on one instance", n)
		}
		if list, err := w.ssm().ListCommandInvocations(w.t.Context(), &ssm.ListCommandInvocationsInput{CommandId: aws.String("7d1b0a52-3c6f-4e18-9b7a-5f2e8c4d1a06")}); err != nil || len(list.CommandInvocations) != 0 {
			t.Errorf("no such command: %+v, %v", list, err)
		}
		if _, err := w.InjectFault(Fault{Service: "ssm", Action: "ListCommandInvocations", Kind: FaultEmpty, Count: 1}); err != nil {
			t.Fatal(err)
		}
		if list, err := w.ssm().ListCommandInvocations(w.t.Context(), &ssm.ListCommandInvocationsInput{}); err != nil || list.CommandInvocations == nil || len(list.CommandInvocations) != 0 {
			t.Errorf("with the fault: %+v, %v", list, err)
		}
	})
}

// A command whose instances fare differently is what the worst of them is.
func TestSSMStatusOfSeveral(t *testing.T) {
	t.Parallel()
	first := ""
	o := Options{Scenario: ssmGroup(2), Commands: func(id, _ string) CommandOutcome {
		if id == first {
			return CommandOutcome{ExitCode: 1, Duration: time.Minute}
		}
		return CommandOutcome{Duration: time.Second}
	}}
	bubbleAWS(t, o, func(w awsWorld) {
		ids := w.instances()
		first = ids[0]
		id := w.sendCommand("x", ids...)
		var seen []string
		for range 2 {
			time.Sleep(30 * time.Second)
			list, err := w.ssm().ListCommands(w.t.Context(), &ssm.ListCommandsInput{CommandId: &id})
			check(t, err)
			c := list.Commands[0]
			seen = append(seen, fmt.Sprint(c.Status, " ", c.CompletedCount, "/", c.TargetCount, " ", c.ErrorCount))
			time.Sleep(time.Second)
		}
		wantText(t, "in turn", strings.Join(seen, ", "), "InProgress 1/2 0, Failed 2/2 1")
	})
}

func TestSSMTargets(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: ssmGroup(2), Commands: answered(nil)}, func(w awsWorld) {
		ids := w.instances()
		o, err := w.ssm().SendCommand(w.t.Context(), command(nil, "x", func(in *ssm.SendCommandInput) {
			in.Targets = []types.Target{{Key: aws.String("InstanceIds"), Values: ids}}
		}))
		check(t, err)
		if c := o.Command; c.TargetCount != 2 || len(c.InstanceIds) != 0 || len(c.Targets) != 1 {
			t.Errorf("command %+v", c)
		}
		time.Sleep(time.Second)
		wantText(t, "the second", string(w.invocation(*o.Command.CommandId, ids[1]).Status), "Success")
	})
}

func TestSSMErrors(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: ssmGroup(1), Commands: answered(nil)}, func(w awsWorld) {
		id := w.instances()[0]
		send := func(members string) string {
			return `{"DocumentName":"AWS-RunShellScript","InstanceIds":["` + id + `"],"Parameters":{"commands":["x"]}` + members + `}`
		}
		at := func(command, instance string) string {
			return `{"CommandId":"` + command + `","InstanceId":"` + instance + `"}`
		}
		const none = "7d1b0a52-3c6f-4e18-9b7a-5f2e8c4d1a06"
		there := w.sendCommand("x", id)
		for _, c := range []struct{ code, action, body string }{
			{"SerializationException", "SendCommand", `{`},
			{"SerializationException", "SendCommand", ``},
			{"SerializationException", "SendCommand", `[]`},
			{"SerializationException", "SendCommand", send(`,"TimeoutSeconds":"x"`)},
			{"SerializationException", "GetCommandInvocation", `{"CommandId":7}`},
			{"ValidationException", "SendCommand", `{}`},
			{"ValidationException", "SendCommand", send(`,"TimeoutSeconds":29`)},
			{"ValidationException", "SendCommand", send(`,"TimeoutSeconds":2592001`)},
			{"ValidationException", "SendCommand", send(`,"Comment":"` + strings.Repeat("x", 101) + `"`)},
			{"ValidationException", "SendCommand", `{"DocumentName":"AWS-RunShellScript","InstanceIds":[` + strings.Repeat(`"i",`, 50) + `"i"]}`},
			{"InvalidDocument", "SendCommand", `{"DocumentName":"Mine","InstanceIds":["` + id + `"]}`},
			{"InvalidInstanceId", "SendCommand", `{"DocumentName":"AWS-RunShellScript","Parameters":{"commands":["x"]}}`},
			{"InvalidInstanceId", "SendCommand", `{"DocumentName":"AWS-RunShellScript","InstanceIds":["` + id + `","i-0aa11bb22cc33dd44"],"Parameters":{"commands":["x"]}}`},
			{"DuplicateInstanceId", "SendCommand", `{"DocumentName":"AWS-RunShellScript","InstanceIds":["` + id + `","` + id + `"],"Parameters":{"commands":["x"]}}`},
			{"InvalidParameters", "SendCommand", `{"DocumentName":"AWS-RunShellScript","InstanceIds":["` + id + `"]}`},
			{"InvalidParameters", "SendCommand", send(`,"Parameters":{"commands":["x"],"executionTimeout":["172801"]}`)},
			{"InvalidParameters", "SendCommand", send(`,"Parameters":{"commands":["x"],"executionTimeout":["soon"]}`)},
			{"InvalidParameters", "SendCommand", send(`,"Parameters":{"commands":["x"],"other":["x"]}`)},
			{"ValidationException", "GetCommandInvocation", at("short", id)},
			{"ValidationException", "GetCommandInvocation", at(there, "web-1")},
			{"InvocationDoesNotExist", "GetCommandInvocation", at(none, id)},
			{"InvocationDoesNotExist", "GetCommandInvocation", at(there, "i-0aa11bb22cc33dd44")},
			{"InvalidPluginName", "GetCommandInvocation", `{"CommandId":"` + there + `","InstanceId":"` + id + `","PluginName":"other"}`},
			{"ValidationException", "ListCommands", `{"CommandId":"short"}`},
			{"ValidationException", "ListCommandInvocations", `{"InstanceId":"web-1"}`},
			{"ValidationException", "ListCommands", `{"MaxResults":51}`},
			{"ValidationException", "ListCommands", `{"Filters":[{"key":"InvokedAfter","value":"today"}]}`},
			{"ValidationException", "ListCommands", `{"Filters":[` + strings.Repeat(`{"key":"Status","value":"Success"},`, 5) + `{"key":"Status","value":"Success"}]}`},
			{"InvalidFilterKey", "ListCommandInvocations", `{"Filters":[{"key":"Colour","value":"red"}]}`},
			{"InvalidNextToken", "ListCommandInvocations", `{"NextToken":"MTAw"}`},
			{"InvalidNextToken", "ListCommandInvocations", `{"NextToken":"?"}`},
			{"ValidationException", "DescribeInstanceInformation", `{"MaxResults":4}`},
			{"InvalidFilterKey", "DescribeInstanceInformation", `{"Filters":[{"Key":"Colour","Values":["red"]}]}`},
			{"InvalidCommandId", "CancelCommand", `{"CommandId":"` + none + `"}`},
			{"UnknownOperationException", "StartSession", `{}`},
		} {
			r := w.json("ssm", c.action, c.body)
			w.refusedWith(r, 400, c.code)
			if !strings.Contains(r.body, `"__type":"`) {
				t.Errorf("%s: %s", c.action, r.body)
			}
		}
		if n := w.State().Commands; n != 1 {
			t.Errorf("%d commands were begun", n)
		}
	})
}

// A policy allows a command by its document and its instances.
func TestSSMRefusals(t *testing.T) {
	t.Parallel()
	sc := ssmGroup(1)
	sc.Policy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"ssm:SendCommand","Resource":["arn:aws:ssm:eu-west-1::document/AWS-RunShellScript","arn:aws:ec2:eu-west-1:111122223333:instance/*"]}]}`
	bubbleAWS(t, Options{Scenario: sc, Commands: answered(nil)}, func(w awsWorld) {
		id := w.instances()[0]
		command1 := w.sendCommand("x", id)
		_, err := w.ssm().SendCommand(w.t.Context(), command([]string{id}, "x", func(in *ssm.SendCommandInput) { in.DocumentName = aws.String("AWS-RunPowerShellScript") }))
		if codeOf(err) != "AccessDeniedException" || !strings.Contains(err.Error(), "document/AWS-RunPowerShellScript") {
			t.Errorf("another document: %v", err)
		}
		_, err = w.ssm().GetCommandInvocation(w.t.Context(), &ssm.GetCommandInvocationInput{CommandId: &command1, InstanceId: &id})
		wantText(t, "another action", codeOf(err), "AccessDeniedException")
		if _, err := w.InjectFault(Fault{Service: "ssm", Kind: FaultThrottle, Count: 1}); err != nil {
			t.Fatal(err)
		}
		_, err = w.ssm().SendCommand(w.t.Context(), command([]string{id}, "x", nil))
		wantText(t, "throttled", codeOf(err), "ThrottlingException")
		w.SetPolicy(nil)
		o, err := w.ssm().SendCommand(w.t.Context(), command([]string{id}, "x", func(in *ssm.SendCommandInput) { in.DocumentName = aws.String("AWS-RunPowerShellScript") }))
		check(t, err)
		time.Sleep(time.Second)
		wantText(t, "a document for another system", outcome(w.invocation(*o.Command.CommandId, id)), "Failed, InvalidPlatform, -1, , ")
	})
}

// ranOut waits until an invocation that really runs is over.
func (w awsWorld) ranOut(command, id string) *ssm.GetCommandInvocationOutput {
	w.t.Helper()
	var o *ssm.GetCommandInvocationOutput
	until(w.t, "the command is over", func() bool {
		o = w.invocation(command, id)
		return o.Status != "Pending" && o.Status != "InProgress"
	})
	return o
}

// Scripts really run, on this host.
func TestSSMRunsScripts(t *testing.T) {
	t.Parallel()
	w := startAWS(t, Options{Scenario: ssmGroup(1), Exec: true})
	id, dir := w.instances()[0], t.TempDir()
	o, err := w.ssm().SendCommand(t.Context(), command(w.instances(), "echo on $USHER_SIMULATOR_INSTANCE", func(in *ssm.SendCommandInput) {
		in.Parameters = map[string][]string{"commands": {"pwd", "echo on $USHER_SIMULATOR_INSTANCE", "echo problems >&2; exit 4"}, "workingDirectory": {dir}}
	}))
	check(t, err)
	wantText(t, "a script", outcome(w.ranOut(*o.Command.CommandId, id)), fmt.Sprintf("Failed, Failed, 4, %s\non %s\n, problems\n", dir, id))

	o, err = w.ssm().SendCommand(t.Context(), command(w.instances(), "", func(in *ssm.SendCommandInput) {
		in.Parameters = map[string][]string{"commands": {"echo here"}, "workingDirectory": {dir + "/it's not there"}}
	}))
	check(t, err)
	if o := w.ranOut(*o.Command.CommandId, id); o.ResponseCode != 1 || *o.StandardOutputContent != "" || *o.StandardErrorContent == "" {
		t.Errorf("in no directory: %s", outcome(o))
	}

	o, err = w.ssm().SendCommand(t.Context(), command(w.instances(), "echo begun; sleep 1000", func(in *ssm.SendCommandInput) { in.Parameters["executionTimeout"] = []string{"1"} }))
	check(t, err)
	wantText(t, "too long", outcome(w.ranOut(*o.Command.CommandId, id)), "TimedOut, ExecutionTimedOut, 137, begun\n, ")

	slow := w.sendCommand("sleep 1000", id)
	_, err = w.ssm().CancelCommand(t.Context(), &ssm.CancelCommandInput{CommandId: &slow})
	check(t, err)
	wantText(t, "cancelled", string(w.ranOut(slow, id).Status), "Cancelled")
	_ = w.sendCommand("sleep 1000", id) // which Close ends
}

// Scripts run on machines that the caller brings.
func TestSSMRunsOnMachines(t *testing.T) {
	t.Parallel()
	c := &closet{running: map[string]*httptest.Server{}}
	w := startAWS(t, Options{Scenario: ssmGroup(1), Machines: c})
	id := w.instances()[0]
	wantText(t, "a script", outcome(w.ranOut(w.sendCommand("echo badly >&2", id), id)), "Success, Success, 0, on "+id+"\n, badly\n")
}

// A lost answer: the command has been sent all the same.
func TestSSMLostAnswer(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: ssmGroup(1), Commands: answered(nil)}, func(w awsWorld) {
		if _, err := w.InjectFault(Fault{Service: "ssm", Action: "SendCommand", Kind: FaultDropAfterEffect, Count: 1}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.ssm().SendCommand(context.WithoutCancel(w.t.Context()), command(w.instances(), "x", nil)); err == nil || codeOf(err) != "" {
			t.Errorf("the answer was not lost: %v", err)
		}
		list, err := w.ssm().ListCommands(w.t.Context(), &ssm.ListCommandsInput{})
		if err != nil || len(list.Commands) != 1 {
			t.Errorf("%d commands, %v", len(list.Commands), err)
		}
	})
}

// FuzzSSM: whatever the body, the answer is JSON and no command comes of what is refused.
func FuzzSSM(f *testing.F) {
	for _, body := range []string{`{`, `{}`, `null`, `{"CommandId":"x","Filters":[{"key":"Status"}]}`, `{"DocumentName":"AWS-RunShellScript","InstanceIds":["i-1"],"Parameters":{"commands":[]}}`, `{"NextToken":"LTE=","MaxResults":-1}`} {
		f.Add(body)
	}
	s, err := New(Options{AccessKeyID: testKey, AccessKeySecret: testSecret, Scenario: ssmGroup(1), NoServers: true, Commands: answered(nil)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	f.Fuzz(func(t *testing.T, body string) {
		for name, op := range ssmOperations {
			c := &awsCall{ctx: t.Context(), name: "ssm", service: awsServices["ssm"], protocol: awsJSON11, action: name, body: []byte(body), requestID: "r-1"}
			s.ssmResources(c)
			answer, bad := op(s, c)
			if bad != nil {
				if bad.status != http.StatusBadRequest || bad.code == "" {
					t.Errorf("%s: %+v", name, bad)
				}
				continue
			}
			if res := c.success(answer); len(res.body) < 2 || res.body[0] != '{' {
				t.Errorf("%s: %s", name, res.body)
			}
		}
	})
}
