package configs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"example.org/usher/messages"
)

// minimalGroup is a group's file up to its steps.
const minimalGroup = `provider: alibaba
region: cn-shenzhen
scaling_group: asg-wz9example0001
queue: {name: ess-lifecycle, endpoint: "https://1234567890123456.mns.cn-shenzhen.aliyuncs.com"}
hooks:
  - transition: scale_in
    deadline: 30m
    steps:
`

// FuzzGroup: whatever is in a group's file, the loader does not panic, each refusal
// has its place, and what is accepted keeps what the worker relies on.
func FuzzGroup(f *testing.F) {
	for _, pattern := range []string{"examples/*.yaml", "examples/mixed/*.yaml", "testdata/group/*.yaml", "testdata/worker/*.yaml"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	for _, step := range []string{
		`http: {url: "http://{{.PrivateIP}}/", headers: {"a\nb"}}`, `http: {url: "http://{{.PrivateIP}}/", headers: {"a\u2028b": x, "a\u2028b": [y]}}`,
		`exec: {command: [/bin/true], env: {"A\eB": {}}}`, `{wait: {for: 1s}, when: {tags: {"a\0": [x], "a\0": y}}}`, `{"wa\nit": {for: 1s}}`,
	} {
		f.Add([]byte(minimalGroup + "      - " + step + "\n"))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		worker := &source{file: &file{name: WorkerFile}, data: data}
		loadWorker(worker, &Worker{}, nil)
		s := &source{file: &file{name: "web.yaml"}, data: data}
		s.load(nil)
		for _, p := range append(s.problems, worker.problems...) {
			if p.File == "" || p.Line < 1 || p.Column < 1 || p.Message == "" || !printed(p.String()) {
				t.Fatalf("problem %+v", p)
			}
		}
		if len(s.problems) == 0 {
			accepted(t, s.group)
		}
	})
}

// printed says whether text neither breaks its line nor upsets a terminal.
func printed(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) })
}

func accepted(t *testing.T, g Group) {
	t.Helper()
	c := cloudOf(g.Provider)
	if c.provider != g.Provider || len(g.Plans()) == 0 || c == alibaba && (g.Queue.Endpoint == "" || len(g.Events) > 0) ||
		!c.scalingGroup(string(g.ScalingGroup)) || !g.ScalingGroup.Valid(messages.Cloud(g.Provider)) || g.Queue.Provider != g.Provider || (g.Queue.Region == "") != (c == alibaba) {
		t.Fatalf("group %+v", g)
	}
	for _, h := range g.Plans() {
		if h.Deadline < 1 || h.Deadline > c.longest || c == alibaba && len(g.HeartbeatPlan(h, MinHookTimeout)) > essHeartbeats {
			t.Fatalf("hook %+v", h)
		}
		if c == aws && (h.undoes() || h.HookID != "" || h.HookName != "" && !messages.HookID(h.HookName).Valid(messages.AWS) || h.Heartbeat != (Heartbeat{})) {
			t.Fatalf("hook of AWS %+v", h)
		}
		need := h.Kept()
		for _, s := range h.Steps {
			need += s.Longest()
		}
		if need > h.Deadline {
			t.Fatalf("steps of %v by a deadline of %v", need, h.Deadline)
		}
		for s := range h.Each() {
			set := 0
			for _, body := range []bool{s.HTTP != nil, s.WaitConnections != nil, s.Command != nil, s.Exec != nil, s.Wait != nil, s.Deregister != nil, s.Register != nil, s.Notify != nil, s.FailHealthCheck != nil, s.BlockConnections != nil, s.Undo != nil} {
				if body {
					set++
				}
			}
			if d := s.Deregister; c == aws && d != nil && d.WeightZero > 0 {
				t.Fatalf("step %+v", d)
			}
			if set != 1 || s.Timeout < 1 || s.Retries < 0 || s.Line < 1 {
				t.Fatalf("step %+v", s)
			}
		}
	}
}

// FuzzEnvironment: whatever is in the environment, the loader does not panic, each refusal
// names its variable or its place, and what is accepted keeps what the worker relies on.
// The second text is a template: one that is accepted does nothing but put fields in.
func FuzzEnvironment(f *testing.F) {
	f.Add("USHER_MAX_JOBS=3\nUSHER_GROUP_MINIMAL_QUEUE_ENDPOINT=http://[::1]:80", "http://{{.PrivateIP}}:8080/{{.Token}}")
	f.Add("USHER_HTTP=:99999\nUSHER_LOG_LEVEL=\nUSHER_=\nUSHER_GROUP_=x\n=\nUSHER_CONFIG", "{{define \"x\"}}{{end}}{{.Hook | print}}")
	f.Add("USHER_AUDIT_FILE=\x00\nUSHER_NAME=a b\nUSHER_MAX_JBOS=1", "{{range .}}{{end}}{{- .Region -}} {{/* x */}}")
	f.Add("USHER_GROUP_MINIMAL_SCALING_GROUP=asg-1;reboot\nUSHER_GROUP_MINIMAL_REGION=cn-x", "{{.Hook.Region}}{{.Nothing}}{{\"a\"}}")
	f.Add("USHER_LOG_LEVEL=\x1b[2J", "{{'A\xcfie0tvI\x00\x02'}}")
	f.Add("USHER_GROUP_MINIMAL_PROVIDER=aws\nUSHER_GROUP_MINIMAL_REGION=eu-west-1\nUSHER_GROUP_MINIMAL_QUEUE_ACCOUNT=1", "{{.Hook}}")
	minimal, err := os.ReadFile("examples/minimal.yaml")
	if err != nil {
		f.Fatal(err)
	}
	dir := f.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "minimal.yaml"), minimal, 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, env, text string) {
		c, err := Load(dir, strings.Split(env, "\n"))
		if err == nil {
			for _, g := range c.Groups {
				accepted(t, g)
			}
			if c.Worker.MaxJobs < 1 || c.Worker.MaxActions < 1 || c.Worker.VisibilityTimeout < 1 || !patternName.MatchString(c.Worker.Name) {
				t.Fatalf("worker %+v", c.Worker)
			}
		} else if problems, ok := errors.AsType[Errors](err); !ok {
			t.Fatalf("%v is no list of problems", err)
		} else {
			for _, p := range problems {
				if p.Message == "" || p.Key == "" && p.File == "" || !printed(p.String()) {
					t.Fatalf("problem %+v", p)
				}
			}
		}
		out, err := try(text)
		if err != nil {
			if !printed(err.Error()) {
				t.Fatalf("refusal %q", err)
			}
			return
		}
		longest := 0
		for _, v := range sample {
			longest = max(longest, len(v))
		}
		if len(out) > len(text)*longest {
			t.Fatalf("%d bytes became %d", len(text), len(out))
		}
	})
}
