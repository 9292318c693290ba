package simulator

import (
	"fmt"
	"io"
	"net/http"
	"regexp"
	"testing"
)

// TestBackendDrain: asked to drain, a backend answers on the connections that it has, and ends
// each with an answer; its actuator's count has the question itself in it.
func TestBackendDrain(t *testing.T) {
	t.Parallel()
	w, c := start(t, Options{Scenario: fast(1)}), user(t)
	in := w.firstInstance()
	ask := func(method, path string) (closes bool, body string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, fmt.Sprintf("http://%s:%d%s", in.Address, in.Port, path), nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		data, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode > 299 {
			t.Fatalf("%s %s: %d %v", method, path, res.StatusCode, err)
		}
		return res.Close, string(data)
	}
	for _, step := range []struct {
		method, path string
		closes       bool
	}{
		{"GET", "/", false}, {"PUT", "/drain", false}, {"GET", "/", true}, {"GET", "/healthz", true},
		{"DELETE", "/drain", true}, {"GET", "/", false},
	} {
		if closes, _ := ask(step.method, step.path); closes != step.closes {
			t.Errorf("%s %s: closes %t, want %t", step.method, step.path, closes, step.closes)
		}
	}
	// At least the question: the balancer's checks come in between.
	if _, body := ask("GET", "/actuator/metrics/http.server.requests.active"); !regexp.MustCompile(`"value":[1-9]\d*\.0`).MatchString(body) {
		t.Errorf("the actuator says %s", body)
	}
}
