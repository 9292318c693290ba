package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"example.org/usher/messages"
	"example.org/usher/simulator"
	"example.org/usher/web"
)

var commands = []string{"decode", "demo", "health", "host", "run", "simulate", "validate"}

func TestUsage(t *testing.T) {
	t.Parallel()
	example := filepath.Join("..", "..", "configs", "examples")
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no command":                {nil, "say which command to run"},
		"unknown command":           {[]string{"rnu"}, `unknown command "rnu"`},
		"unknown flag":              {[]string{"run", "--confg", "x"}, "unknown flag: --confg"},
		"flag of another command":   {[]string{"decode", "--config", "x"}, "unknown flag: --config"},
		"flag without value":        {[]string{"run", "--config"}, "needs an argument: --config"},
		"bad duration":              {[]string{"validate", example, "--hook-timeout", "5"}, "--hook-timeout"},
		"hook timeout out of range": {[]string{"validate", example, "--hook-timeout", "7h"}, "30s to 2h on AWS"},
		"run without config":        {[]string{"run"}, "--config: name the folder"},
		"run with an argument":      {[]string{"run", "/etc/usher"}, "unknown command"},
		"simulate without a key":    {[]string{"simulate"}, `"access-key-id", "access-key-secret"`},
		"simulate without a secret": {[]string{"simulate", "--access-key-id", "ID"}, `"access-key-secret"`},
		"demo of another cloud":     {[]string{"demo", "--provider", "azure"}, `--provider: alibaba or aws, got "azure"`},
		"validate nothing":          {[]string{"validate"}, "1 arg"},
		"validate two":              {[]string{"validate", "a", "b"}, "1 arg"},
		"decode two":                {[]string{"decode", "a", "b"}, "at most 1 arg"},
		"bad output of validate":    {[]string{"validate", example, "--output", "yaml"}, `--output: text or json, got "yaml"`},
		"bad output of decode":      {[]string{"decode", "-o", ""}, `--output: text or json, got ""`},
		"bad output of demo":        {[]string{"demo", "--output", "xml"}, `--output: text or json, got "xml"`},
		"decode no such file":       {[]string{"decode", filepath.Join(t.TempDir(), "none.json")}, "none.json"},
		"health with an argument":   {[]string{"health", "127.0.0.1:1"}, "unknown command"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := usher(t, "", c.args...)
			s.want(t, 2, c.want, "usher COMMAND --help")
			if s.stdout != "" {
				t.Errorf("wrong usage is told on standard output:\n%s", s.stdout)
			}
		})
	}
}

func TestHelpHasExamples(t *testing.T) {
	t.Parallel()
	root := usher(t, "", "--help")
	root.want(t, 0, "Examples:")
	var listed []string
	for _, m := range regexp.MustCompile(`(?m)^  (\w+) {2,}[A-Z]`).FindAllStringSubmatch(root.stdout, -1) {
		if m[1] != "help" {
			listed = append(listed, m[1])
		}
	}
	if !slices.Equal(listed, commands) {
		t.Errorf("help lists %q, tested are %q", listed, commands)
	}
	for _, name := range commands {
		s := usher(t, "", name, "--help")
		s.want(t, 0, "Examples:\n  ", "usher "+name+" ", "Usage:\n  usher "+name)
		if s.stderr != "" {
			t.Errorf("%s: help that was asked for goes to standard error", name)
		}
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	if s := usher(t, "", "--version"); s.code != 0 || s.stdout != "usher version "+version+"\n" {
		t.Errorf("got %+v", s)
	}
}

// writeFiles makes a folder with the files.
func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// badFiles have three problems in two files.
func badFiles(t *testing.T) string {
	return writeFiles(t, map[string]string{
		"web.yaml": `provider: alibaba
region: cn-shenzhen
scaling_group: asg-web
queue: {name: q, endpoint: "http://127.0.0.1:1"}
colour: red
hooks:
  - transition: scale_in
    deadline: 8h
    steps: []
`,
		"usher.yaml": "max_jobs: 0\n",
	})
}

var badLines = []string{"usher.yaml:1: max_jobs: ", "web.yaml:5: colour: ", "web.yaml:8: hooks[0].deadline: "}

func TestValidate(t *testing.T) {
	t.Parallel()
	t.Run("examples", func(t *testing.T) {
		t.Parallel()
		s := usher(t, "", "validate", filepath.Join("..", "..", "configs", "examples"))
		s.want(t, 0, "worker usher-1: up to 100 jobs", "web-frontend.yaml: asg-wz9example0001", "with role acs:ram::1234567890123456:role/usher-web, renewed every 1h at most",
			"the queue is read with the worker's own keys", "5. wait_connections, at most 20m", "x 3 attempts", "errors ignored",
			"       - deregister, at most 10m", "only with tag role=web", "the steps end 1m1s before the deadline", "always: command, at most 1m, only if the job has failed",
			"    1. fail_health_check, at most 1m\n", "    1. fail_health_check, at most 1m, undone in at most 1m before a ROLLBACK\n",
			"heartbeats: ", " of 20 at most, with a hook timeout of 10m", " files, no problem.")
		if s.stderr != "" {
			t.Errorf("stderr: %s", s.stderr)
		}
	})
	t.Run("AWS", func(t *testing.T) {
		t.Parallel()
		dir := filepath.Join("..", "..", "configs", "examples")
		usher(t, "", "validate", dir).want(t, 0, "aws-web.yaml: web-asg in eu-west-1, queue drain-q", "reconcile every 5m, but on AWS: no API tells which tokens wait",
			"heartbeats: 0, with a hook timeout of 1h\n    AWS waits 48h at most, the lesser of 48h and 100 timeouts\n",
			"  spot_interruption: deadline 1m40s, nothing waits for an answer\n    1. http", "  rebalance_recommendation, scheduled_change: deadline 10m, ")
		usher(t, "", "validate", dir, "--hook-timeout", "30s").want(t, 0, "with a hook timeout of 30s",
			"heartbeats: 134, with a hook timeout of 30s; the first after 20s, each of 30s to 30s\n", "AWS waits 50m at most, the lesser of 48h and 100 timeouts\n")
		usher(t, "", "validate", filepath.Join(dir, "mixed")).want(t, 0, "web-ireland.yaml: web-asg in eu-west-1", "with role arn:aws:iam::444455556666:role/usher, ",
			"web-shenzhen.yaml: asg-wz9example0001 in cn-shenzhen", "of 20 at most, with a hook timeout of 10m", "3 files, no problem.")
		long := t.TempDir()
		file := "provider: aws\nregion: eu-west-1\nscaling_group: web\nqueue: {name: q}\nhooks: [{transition: scale_in, deadline: 2h, steps: []}]\n"
		if err := os.WriteFile(filepath.Join(long, "web.yaml"), []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		usher(t, "", "validate", long, "--hook-timeout", "30s").want(t, 0, "the lesser of 48h and 100 timeouts; it would end after 49m58s, before the deadline: give the hook a longer timeout")
	})
	t.Run("examples as json", func(t *testing.T) {
		t.Parallel()
		s := usher(t, "", "validate", filepath.Join("..", "..", "configs", "examples"), "--output", "json", "--hook-timeout", "30s")
		s.want(t, 0)
		got := decodeJSON[struct {
			Valid    bool
			Problems []problemJSON
			Hooks    []hookJSON
		}](t, s.stdout)
		if !got.Valid || got.Problems == nil || len(got.Problems) != 0 || len(got.Hooks) < 5 {
			t.Fatalf("got %+v", got)
		}
		for _, h := range got.Hooks {
			most := 20
			if strings.HasPrefix(h.File, "aws-") {
				most = 150
			}
			n := len(h.Heartbeats)
			if len(h.On) > 0 {
				if n > 0 {
					t.Errorf("%s: the events %v make the heartbeats %+v", h.File, h.On, h.Heartbeats)
				}
			} else if n == 0 || n > most || h.Heartbeats[0].At >= 30 || h.Heartbeats[0].Extension < 30 || most == 150 && h.Heartbeats[0].Extension != 30 {
				t.Errorf("%s: a hook timeout of 30 s makes the heartbeats %+v", h.File, h.Heartbeats)
			}
		}
	})
	t.Run("problems", func(t *testing.T) {
		t.Parallel()
		s := usher(t, "", "validate", badFiles(t))
		s.want(t, 2)
		wantProblemLines(t, s.stderr)
		if s.stdout != "" {
			t.Errorf("problems on standard output:\n%s", s.stdout)
		}
	})
	t.Run("problems as json", func(t *testing.T) {
		t.Parallel()
		s := usher(t, "", "validate", badFiles(t), "-o", "json")
		s.want(t, 2)
		got := decodeJSON[struct {
			Valid    bool
			Problems []problemJSON
			Hooks    []hookJSON
		}](t, s.stdout)
		if got.Valid || len(got.Problems) != 3 || got.Hooks == nil || len(got.Hooks) != 0 || s.stderr != "" {
			t.Fatalf("got %+v, stderr %q", got, s.stderr)
		}
		for i, p := range got.Problems {
			if line := fmt.Sprintf("%s:%d: %s: ", filepath.Base(p.File), p.Line, p.Key); line != badLines[i] || p.Message == "" || p.Column == 0 {
				t.Errorf("got %+v, want %s", p, badLines[i])
			}
		}
	})
	t.Run("environment", func(t *testing.T) {
		t.Parallel()
		s := usherIn(t, t.Context(), []string{"USHER_MAX_JOBS=many", "USHER_NMAE=x"}, "", "validate", filepath.Join("..", "..", "configs", "examples"))
		s.want(t, 2, "USHER_MAX_JOBS: want a whole number", "USHER_NMAE")
		usherIn(t, t.Context(), []string{"USHER_MAX_JOBS=50"}, "", "validate", filepath.Join("..", "..", "configs", "examples")).want(t, 0, "up to 50 jobs")
	})
	t.Run("no folder", func(t *testing.T) {
		t.Parallel()
		dir := filepath.Join(t.TempDir(), "none")
		usher(t, "", "validate", dir).want(t, 2, dir)
		s := usher(t, "", "validate", dir, "--output", "json")
		s.want(t, 2, `"valid": false`)
		if s.stderr != "" {
			t.Errorf("stderr: %s", s.stderr)
		}
	})
}

// wantProblemLines wants the problems of badFiles, one a line, each with its place.
func wantProblemLines(t *testing.T, text string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) != len(badLines) {
		t.Fatalf("%d problems, want %d:\n%s", len(lines), len(badLines), text)
	}
	for i, line := range lines {
		if !strings.Contains(line, badLines[i]) {
			t.Errorf("line %d is %q, want %q in it", i+1, line, badLines[i])
		}
	}
}

func TestDecode(t *testing.T) {
	t.Parallel()
	file := filepath.Join("..", "..", "messages", "testdata", "hook.json")
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("file", func(t *testing.T) {
		t.Parallel()
		s := usher(t, "", "decode", file)
		s.want(t, 0, "asg-bp1example (web)", "ash-bp1example (drain-on-scale-in)", "C8BEAE68-CB77-4E60-986D-1E8BBF1A6B99",
			"i-bp1aaaaaaaaaaaaaaaa1 i-bp1aaaaaaaaaaaaaaaa2", "中文 metadata, 'quotes' & <tags>", "2018-06-21T03:07:57.641Z")
	})
	t.Run("standard input", func(t *testing.T) {
		t.Parallel()
		for _, args := range [][]string{{"decode"}, {"decode", "-"}} {
			usher(t, string(body), args...).want(t, 0, "scale_in", "asa-bp1example")
		}
	})
	t.Run("base64", func(t *testing.T) {
		t.Parallel()
		usher(t, "", "decode", filepath.Join(filepath.Dir(file), "hook.base64-twice")).want(t, 0, "asa-bp1example")
	})
	for name, layers := range map[string][]string{
		"hook.base64":           {"in Base64\nlifecycle notification"},
		"topic-xml.base64":      {"in Base64\nin an XML envelope of topic ess-events, subscription usher, message 6CC4D900CA59A2CD-1-15180534A8F-20000002, tag drain, published 2018-06-21T03:07:58Z\nin Base64\nlife"},
		"topic-plain.json":      {"in a JSON envelope of topic ess-events, subscription usher, message 6CC4D900CA59A2CD-1-15180534A8F-20000002, published 2018-06-21T03:07:58Z\nlife"},
		"topic-eventbridge.xml": {"in an XML envelope of ", "\nin an event of EventBridge, type ess:LifecycleHook:ScaleIn, bus default, id 45ef4dew-7c35-447a-bd93-fab1, published "},
	} {
		t.Run("layers/"+name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(filepath.Dir(file), name)
			usher(t, "", "decode", path).want(t, 0, append(layers, "asa-bp1example")...)
			s := usher(t, "", "decode", path, "-o", "json")
			s.want(t, 0)
			if got := decodeJSON[decoded](t, s.stdout); len(got.Layers) != strings.Count("\n"+strings.Join(layers, ""), "\nin ") || got.Notification == nil {
				t.Errorf("got %+v", got)
			}
		})
	}
	t.Run("layers/other", func(t *testing.T) {
		t.Parallel()
		usher(t, "", "decode", filepath.Join(filepath.Dir(file), "topic-event.xml")).want(t, 0, "in an XML envelope of topic ess-events", "no lifecycle notification, the worker would delete it: ESS AUTOSCALING:")
	})
	t.Run("layers/garbage", func(t *testing.T) {
		t.Parallel()
		usher(t, `{"TopicName":"t\u001b[2J","Message":"hello, world"}`, "decode").want(t, 1, "in a JSON envelope of topic t\uFFFD[2J\n", "malformed message: Message > body, byte 5: neither")
	})
	t.Run("json", func(t *testing.T) {
		t.Parallel()
		s := usher(t, string(body), "decode", "--output", "json")
		s.want(t, 0)
		if got := decodeJSON[decoded](t, s.stdout); got.Kind != "lifecycle" || got.Notification == nil || got.Notification.Token != "C8BEAE68-CB77-4E60-986D-1E8BBF1A6B99" || len(got.Notification.Instances) != 2 {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("other", func(t *testing.T) {
		t.Parallel()
		other := filepath.Join(filepath.Dir(file), "event-spot.json")
		usher(t, "", "decode", other).want(t, 0, "no lifecycle notification, the worker would delete it: ")
		s := usher(t, "", "decode", other, "-o", "json")
		s.want(t, 0)
		if got := decodeJSON[decoded](t, s.stdout); got.Kind != "other" || got.Other == "" || got.Notification != nil {
			t.Errorf("got %+v", got)
		}
	})
	for name, garbage := range map[string]string{
		"nothing": "", "text": "hello there", "cut": string(body[:len(body)/2]), "xml": "<Message/>", "bytes": "\xff\xfe\x00", "64 KB": strings.Repeat("A", 64<<10),
	} {
		t.Run("garbage/"+name, func(t *testing.T) {
			t.Parallel()
			usher(t, garbage, "decode").want(t, 1, "refused, the worker would leave it in the queue: ")
			s := usher(t, garbage, "decode", "-o", "json")
			s.want(t, 1)
			if got := decodeJSON[decoded](t, s.stdout); got.Kind != "malformed" || got.Error == "" || got.Notification != nil || s.stderr != "" {
				t.Errorf("got %+v, stderr %q", got, s.stderr)
			}
		})
	}
	t.Run("aws", func(t *testing.T) {
		t.Parallel()
		aws := func(name string) string { return filepath.Join(filepath.Dir(file), "aws", name) }
		const queues = "the queue's: the message does not say"
		usher(t, "", "decode", aws("sns.json")).want(t, 0, "in an SNS envelope of topic arn:aws:sns:eu-west-1:111122223333:asg-events, message b1f7c2d0-5a3e-5c68-9f04-91c2d3e4f5a6, published 2026-09-21T10:15:04.601Z\nlife",
			"web-asg\n", "usher-drain\n", queues, "i-0aa11bb22cc33dd44", "AutoScalingGroup\n", "3d9c1f7e-52b8-4a06-9e41-7c0d5b2a6f18")
		usher(t, "", "decode", aws("sns-lines.json")).want(t, 0, "\nin lines of Key: value\nlife", queues)
		usher(t, "", "decode", aws("sns-eventbridge.json")).want(t, 0, "in an SNS envelope of ", "\nin an event of EventBridge, type EC2 Instance-terminate Lifecycle Action, id 4b7e1a90-2c5d-4f83-b6a7-8e9d0c1f2a3b, published ", "eu-west-1\n")
		usher(t, "", "decode", aws("spot.json")).want(t, 0, "spot_interruption\n", "2026-09-21T11:02:00Z\n")
		usher(t, "", "decode", aws("test.json")).want(t, 0, "the worker would delete it: Auto Scaling autoscaling:TEST_NOTIFICATION")
		usher(t, "", "decode", "--provider", "alibaba", aws("test.json")).want(t, 1, "neither ESS nor any other sender")
		usher(t, "", "decode", "--provider", "aws", file).want(t, 1, "neither of Auto Scaling, nor an event, nor of SNS")
		usher(t, "", "decode", "--provider", "azure", file).want(t, 2, "alibaba or aws")
		got := decodeJSON[decoded](t, usher(t, "", "decode", aws("health.json"), "-o", "json").stdout)
		if got.Kind != "event" || got.Provider != "aws" || got.Notification == nil || len(got.Notification.Instances) != 2 {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("too long", func(t *testing.T) {
		t.Parallel()
		usher(t, strings.Repeat("A", messages.MaxBody+1), "decode").want(t, 1, "longer than 1048576 bytes")
	})
	t.Run("directory", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		usher(t, "", "decode", dir).want(t, 1, "read the message", dir)
	})
}

// TestDecodeSparesTheTerminal: what somebody wrote into a queue cannot move the
// cursor, set the title or turn the text around.
func TestDecodeSparesTheTerminal(t *testing.T) {
	t.Parallel()
	body, err := os.ReadFile(filepath.Join("..", "..", "messages", "testdata", "hook.json"))
	if err != nil {
		t.Fatal(err)
	}
	const upsetting = `\u001b]0;owned\u0007\u009b2J\u202e\u2066\r`
	for name, text := range map[string]string{
		"metadata": strings.Replace(string(body), "中文", "中文"+upsetting, 1),
		"other":    `{"product":"ESS","event":"AUTOSCALING:` + upsetting + `","content":{}}`,
		"token":    strings.Replace(string(body), "C8BEAE68", upsetting, 1),
		"garbage":  "{\"product\": \x1b[2J\u202e",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, format := range []string{"text", "json"} {
				s := usher(t, text, "decode", "-o", format)
				for _, r := range s.stdout + s.stderr {
					if r < ' ' && r != '\n' || r >= 0x7f && r < 0xa0 || r == '\u202e' || r == '\u2066' {
						t.Errorf("%s has %U: %q", format, r, s.stdout+s.stderr)
					}
				}
			}
			if name == "metadata" {
				usher(t, text, "decode").want(t, 0, "中文\uFFFD")
				whole := decodeJSON[decoded](t, usher(t, text, "decode", "-o", "json").stdout)
				if want := "中文\x1b]0;owned\a\u009b2J\u202e\u2066\r metadata, 'quotes' & <tags>"; whole.Notification.Metadata != want {
					t.Errorf("JSON has lost something: %q, want %q", whole.Notification.Metadata, want)
				}
			}
		})
	}
}

// goodGroup is a config that is right, of a queue where nothing listens.
const goodGroup = `provider: alibaba
region: cn-shenzhen
scaling_group: asg-web
queue: {name: q, endpoint: "http://127.0.0.1:1"}
endpoints: {ess: "http://127.0.0.1:1", ecs: "http://127.0.0.1:1"}
hooks:
  - {transition: scale_in, deadline: 5m, steps: []}
`

func TestRunRefusesToStart(t *testing.T) {
	t.Parallel()
	t.Run("config", func(t *testing.T) {
		t.Parallel()
		s := usher(t, "", "run", "--config", badFiles(t))
		s.want(t, 2, badLines...)
		if s.stdout != "" {
			t.Errorf("the audit log has begun:\n%s", s.stdout)
		}
	})
	t.Run("config from the environment", func(t *testing.T) {
		t.Parallel()
		usherIn(t, t.Context(), []string{"USHER_CONFIG=" + badFiles(t)}, "", "run").want(t, 2, badLines...)
	})
	t.Run("audit file", func(t *testing.T) {
		t.Parallel()
		file := filepath.Join(t.TempDir(), "none", "audit.log")
		dir := writeFiles(t, map[string]string{"web.yaml": goodGroup, "usher.yaml": "http: 127.0.0.1:0\naudit: {file: " + file + "}\n"})
		usher(t, "", "run", "--config", dir).want(t, 1, "open the audit log", file)
	})
	t.Run("port in use", func(t *testing.T) {
		t.Parallel()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		dir := writeFiles(t, map[string]string{"web.yaml": goodGroup})
		usher(t, "", "run", "--config", dir, "--http", l.Addr().String()).want(t, 1, "http: in usher.yaml, --http", l.Addr().String(), "in use")
	})
	t.Run("SDK that prints keys", func(t *testing.T) {
		t.Parallel()
		dir := writeFiles(t, map[string]string{"web.yaml": goodGroup})
		usherIn(t, t.Context(), []string{"DEBUG=tea,sdk"}, "", "run", "--config", dir).want(t, 2, "DEBUG", "signed requests")
	})
	t.Run("address that is none", func(t *testing.T) {
		t.Parallel()
		dir := writeFiles(t, map[string]string{"web.yaml": goodGroup})
		usher(t, "", "run", "--config", dir, "--http", "here").want(t, 2, "--http: ", "127.0.0.1:9090", "off")
	})
}

// TestRunEndsWithItsContext: whoever runs the worker in this process can end it.
func TestRunEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := writeFiles(t, map[string]string{"web.yaml": goodGroup})
	s := usherIn(t, ctx, nil, "", "run", "--config", dir, "--http", "off")
	s.want(t, 0, `"event":"started"`, `"event":"stopped"`)
}

func TestHealth(t *testing.T) {
	t.Parallel()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	usher(t, "", "health", "--http", gone.Addr().String()).want(t, 1, gone.Addr().String())
	usher(t, "", "health", "--http", "nowhere").want(t, 1, "nowhere")

	server := httptest.NewServer(web.Handler(func() error { return nil }, func() error { return fmt.Errorf("queue q: queue does not exist") }, func() string { return "" }))
	defer server.Close()
	address := server.Listener.Addr().String()
	if s := usher(t, "", "health", "--http", address); s.code != 0 || s.stdout != "ok\n" {
		t.Errorf("healthy: %+v", s)
	}
	usher(t, "", "health", "--http", address, "--ready").want(t, 1, "503", "queue q: queue does not exist")

	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	usher(t, "", "health", "--http", other.Listener.Addr().String()).want(t, 1, "404")
}

func TestSimulateRefusesToStart(t *testing.T) {
	t.Parallel()
	simulate := func(t *testing.T, args ...string) said {
		return usher(t, "", append([]string{"simulate", "--access-key-id", "ID", "--access-key-secret", "SECRET"}, args...)...)
	}
	dir := writeFiles(t, map[string]string{"bad.yaml": "queues:\n  - name: q\n    visibility_timeout: 13h\ncolour: red\n", "impossible.yaml": "scaling_groups:\n  - id: asg-web\n    instances: -1\n"})
	t.Run("scenario", func(t *testing.T) {
		t.Parallel()
		simulate(t, "--listen", "127.0.0.1:0", "--scenario", filepath.Join(dir, "bad.yaml")).want(t, 2, "bad.yaml:4: ", "colour")
		simulate(t, "--listen", "127.0.0.1:0", "--scenario", filepath.Join(dir, "impossible.yaml")).want(t, 2, "impossible.yaml:3: ", "instances")
		simulate(t, "--listen", "127.0.0.1:0", "--scenario", filepath.Join(dir, "none.yaml")).want(t, 2, "none.yaml")
	})
	t.Run("provider", func(t *testing.T) {
		t.Parallel()
		simulate(t, "--listen", "127.0.0.1:0", "--provider", "azure").want(t, 2, `(--provider) is alibaba or aws, got "azure"`)
		of := filepath.Join(writeFiles(t, map[string]string{"aws.yaml": "provider: aws\n"}), "aws.yaml")
		simulate(t, "--listen", "127.0.0.1:0", "--provider", "alibaba", "--scenario", of).want(t, 2, "aws.yaml is of provider: aws, and --provider says alibaba")
	})
	t.Run("scripts for strangers", func(t *testing.T) {
		t.Parallel()
		for _, listen := range []string{"0.0.0.0:0", "[::]:0", ":0"} {
			s := simulate(t, "--listen", listen, "--exec")
			s.want(t, 2, "--exec", "loopback")
			if s.stdout != "" {
				t.Errorf("%s: it has served: %s", listen, s.stdout)
			}
		}
	})
	t.Run("port in use", func(t *testing.T) {
		t.Parallel()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		simulate(t, "--listen", l.Addr().String()).want(t, 1, "--listen", "in use")
	})
	t.Run("empty key", func(t *testing.T) {
		t.Parallel()
		usher(t, "", "simulate", "--listen", "127.0.0.1:0", "--access-key-id", "", "--access-key-secret", "").want(t, 2, "--access-key-id")
	})
}

// TestSimulateAWS: the line with the endpoints has what a group's file of AWS may name, and
// nothing of the other cloud.
func TestSimulateAWS(t *testing.T) {
	t.Parallel()
	p := start(t, os.Args[0], nil, "simulate", "--listen", "127.0.0.1:0", "--access-key-id", keyID, "--access-key-secret", keySecret, "--provider", "aws")
	p.await(t, &p.stdout, "the line with the endpoints", func(text string) bool { return strings.HasSuffix(text, "\n") })
	line := decodeJSON[map[string]string](t, p.stdout.String())
	if line["region"] != "eu-west-1" || line["account"] != "111122223333" || !strings.HasSuffix(line["control"], "/simulator") {
		t.Errorf("the line is %v", line)
	}
	for _, key := range []string{"sqs", "autoscaling", "elb", "ssm", "ec2", "sts"} {
		if !strings.HasPrefix(line[key], "http://127.0.0.1:") {
			t.Errorf("the line lacks %s: %v", key, line)
		}
	}
	if len(line) != 9 {
		t.Errorf("the line has more: %v", line)
	}
	st := ask[simulator.State](t, &cloud{process: p, url: line["sqs"]}, http.MethodGet, "/simulator/state", "")
	if g, ok := st.Group("web-asg"); !ok || len(g.Instances) != 6 {
		t.Errorf("group %+v", g)
	}
}
