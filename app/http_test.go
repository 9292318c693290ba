package app

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"example.org/usher/configs"
	"example.org/usher/providers/alibaba"
	"example.org/usher/simulator"
)

// applicationFile is a scale-in that the application itself takes part in.
const applicationFile = `provider: alibaba
region: cn-shenzhen
scaling_group: asg-1
queue: {name: ess-lifecycle, endpoint: %[1]q}
endpoints: {ess: %[1]q, ecs: %[1]q}
hooks:
  - transition: scale_in
    deadline: 1h
    on_failure: ABANDON
    steps:
      - http: {preset: down, url: "http://{{.PrivateIP}}:%[2]d/actuator/health/down", verify_url: "http://{{.PrivateIP}}:%[2]d/actuator/health", every: 100ms, gap: 300ms, token_file: %[3]q, timeout: 5m, call_timeout: 1m}
      - http: {preset: ask_close, url: "http://{{.PrivateIP}}:%[2]d/drain", verify_url: "http://{{.PrivateIP}}:%[2]d/", every: 100ms, timeout: 5m, call_timeout: 1m}
      - http: {preset: in_flight, url: "http://{{.PrivateIP}}:%[2]d/in_flight", field: in_flight, every: 100ms, call_timeout: 1m}
      - http: {preset: in_flight, url: "http://{{.PrivateIP}}:%[2]d/actuator/metrics/http.server.requests.active", field: measurements.0.value, at_most: 1, every: 100ms, call_timeout: 1m}
`

// TestApplicationDrainsItself: with the presets alone an instance is let go when the request
// that it works on has been answered, and the client has been told to go elsewhere with the next.
func TestApplicationDrainsItself(t *testing.T) {
	t.Parallel()
	sim, err := simulator.New(simulator.Options{AccessKeyID: mark + "Id", AccessKeySecret: mark + "Key", Scenario: simulator.Scenario{
		Region: "cn-shenzhen",
		Queues: []simulator.QueueConfig{{Name: "ess-lifecycle", VisibilityTimeout: 30 * time.Second}},
		ScalingGroups: []simulator.GroupConfig{{ID: "asg-1", Instances: 1, Hooks: []simulator.HookConfig{
			{ID: "ash-1", Transition: "scale_in", Queue: "ess-lifecycle", DefaultResult: "ABANDON"},
		}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sim.Close(); err != nil {
			t.Error(err)
		}
	})
	server := httptest.NewServer(sim)
	t.Cleanup(server.Close)
	in := sim.State().Groups[0].Instances[0]
	base := fmt.Sprintf("http://%s:%d", in.Address, in.Port)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(mark+"Token\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	// Both requests are on connections that the client would like to keep.
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	status, err := fetch(t.Context(), client, base+"/")
	if err != nil || status != http.StatusOK {
		t.Fatalf("before the drain: %d, %v", status, err)
	}
	slow := make(chan error, 1)
	askSlowly := func() {
		status, err := fetch(t.Context(), client, base+"/slow?ms=3000")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("status %d", status)
		}
		slow <- err
	}
	go askSlowly()
	inFlight := func() bool {
		res, err := client.Get(base + "/in_flight")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var text [100]byte
		n, _ := res.Body.Read(text[:])
		return strings.Contains(string(text[:n]), `"in_flight":1`)
	}
	for !inFlight() {
		select {
		case err := <-slow: // this machine is so busy that we have not seen it
			if err != nil {
				t.Fatal(err)
			}
			go askSlowly()
		default:
		}
	}

	worker, logs := startApp(t, fmt.Sprintf(applicationFile, server.URL, in.Port, token))
	if _, err := sim.ScaleIn("asg-1", 1); err != nil {
		t.Fatal(err)
	}
	if err := <-slow; err != nil {
		t.Errorf("the request that was in flight: %v", err)
	}
	for st := sim.State(); st.Queues[0].Active+st.Queues[0].Inactive > 0 || len(st.Actions) == 0 || st.Actions[0].EndedBy == ""; st = sim.State() {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatalf("the action does not end: %+v", st.Actions)
		}
	}
	worker()
	if a := sim.State().Actions[0]; a.EndedBy != "call" || a.Result != "CONTINUE" {
		t.Errorf("action %+v", a)
	}
	text := string(logs.text())
	var told []string
	for _, found := range regexp.MustCompile(`"event":"step_finished".*"result":"ok","reason":"([^"]+)"`).FindAllStringSubmatch(text, -1) {
		told = append(told, regexp.MustCompile(`\d+ (good|calls)`).ReplaceAllString(strings.ReplaceAll(found[1], base, ""), "N $1"))
	}
	want := []string{
		"PUT /actuator/health/down answered 204, N good in a row, N calls; then GET /actuator/health answered 503, N good in a row, N calls",
		"PUT /drain answered 204, N good in a row, N calls; then GET / answered 200 and closes, N good in a row, N calls",
		"GET /in_flight answered 200, 0 in flight, N good in a row, N calls",
		"GET /actuator/metrics/http.server.requests.active answered 200, 1 in flight, N good in a row, N calls",
	}
	if !slices.Equal(told, want) {
		t.Errorf("steps told %q, want %q; the audit log:\n%s", told, want, text)
	}
	if strings.Contains(text, mark) {
		t.Errorf("a secret is in the audit log:\n%s", text)
	}
}

// TestMissingFilesAreWarnedOf: a worker starts without the files of an http step, and says so.
func TestMissingFilesAreWarnedOf(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	text := fmt.Sprintf(applicationFile, "http://cloud.test", 80, token)
	if err := os.WriteFile(filepath.Join(dir, "web.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := configs.Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	config.Worker.HTTP = ""
	for _, there := range []bool{false, true} {
		if there {
			if err := os.WriteFile(token, []byte(mark), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		said := &journal{}
		a, err := New(Options{
			Config: config, Credentials: alibaba.StaticCredentials(mark, mark), Audit: said, Logger: slog.New(slog.NewTextHandler(said, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		warned := strings.Contains(said.logs(), "token_file: stat "+token) && strings.Contains(said.logs(), "file=web.yaml line=11")
		if warned == there || strings.Count(said.logs(), "level=WARN") > 1 {
			t.Errorf("with the file %t, it says:\n%s", there, said.logs())
		}
		said.holdsNoKey(t)
	}
}
