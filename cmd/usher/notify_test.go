package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.org/usher/worker/audit"
)

// TestNotify: from the config file to the webhook, and nowhere else with its token.
func TestNotify(t *testing.T) {
	t.Parallel()
	const token = "tokenThatNobodyMaySee"
	type told struct {
		path string
		body map[string]any
	}
	got := make(chan told, 10)
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := told{path: r.URL.Path}
		if err := json.NewDecoder(r.Body).Decode(&n.body); err != nil {
			t.Error(err)
		}
		got <- n
		http.Error(w, "no_service for "+r.URL.Path, http.StatusNotFound)
	}))
	t.Cleanup(hook.Close)
	c := startCloud(t, scenario(3, true))
	w := startWorker(t, c, keys, `- notify: {format: slack, url: "`+hook.URL+`/services/`+token+`", text: "{{.InstanceID}} leaves"}`, "")
	c.scaleIn(t, 1)
	c.awaitCompleted(t, 1, "CONTINUE") // though the webhook refuses it
	end := w.awaitRecords(t, 1, audit.StepFinished)[0]
	if end.Result != "ok" || !strings.HasPrefix(end.Reason, "handed over") {
		t.Errorf("recorded: %+v", end)
	}
	select {
	case n := <-got:
		if n.path != "/services/"+token || n.body["text"] != string(end.Instance)+" leaves" {
			t.Errorf("sent %+v", n)
		}
	case <-time.After(time.Minute):
		t.Fatal("nothing was sent")
	}
	w.signal(t, syscall.SIGTERM)
	w.wantExit(t)
	if said := w.stderr.String(); !strings.Contains(said, "can't send a notification") || strings.Contains(said, token) {
		t.Errorf("the log says %s", said)
	}
	for _, rec := range w.records(t) {
		if text, err := json.Marshal(rec); err != nil || strings.Contains(string(text), token) {
			t.Errorf("recorded: %s, %v", text, err)
		}
	}
}
