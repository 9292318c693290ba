package simulator

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
)

// maxControlBody bounds a control request; a 64 KB message fits, escaped.
const maxControlBody = 1 << 20

func badInput(format string, args ...any) error {
	return &InputError{text: fmt.Sprintf(format, args...)}
}

func notFound(what, id string, there []string) error {
	return &InputError{text: fmt.Sprintf("there is no %s %q; there are: %s", what, id, strings.Join(there, ", ")), notFound: true}
}

// serveControl answers the calls under /simulator/, which are JSON and not signed.
func (s *Simulator) serveControl(w http.ResponseWriter, r *http.Request) {
	status, answer, err := s.control(r)
	if err != nil {
		status = http.StatusBadRequest
		if e, ok := errors.AsType[*InputError](err); ok && e.notFound {
			status = http.StatusNotFound
		} else if errors.Is(err, errMethod) {
			status = http.StatusMethodNotAllowed
		} else if errors.Is(err, errBodyTooLarge) {
			status = http.StatusRequestEntityTooLarge
		}
		answer = map[string]string{"error": err.Error()}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if answer != nil {
		json.NewEncoder(w).Encode(answer)
	}
}

// serveHealth answers what asks whether the simulator works: it hangs if the world is locked for good.
func (s *Simulator) serveHealth(w http.ResponseWriter) {
	s.State()
	w.Write([]byte("ok\n")) // an error here means that the client is gone
}

var errMethod = errors.New("method not allowed")

var controlPaths = []string{
	"GET /simulator/state", "GET /simulator/events", "POST /simulator/scaling-groups/{id}/scale-in",
	"POST /simulator/scaling-groups/{id}/scale-out", "POST /simulator/instances/{id}/health", "POST /simulator/queues/{name}/messages",
	"POST /simulator/topics/{name}/messages", "POST /simulator/cloud-events",
	"POST /simulator/faults", "DELETE /simulator/faults", "PUT /simulator/policy", "DELETE /simulator/policy",
}

func (s *Simulator) control(r *http.Request) (int, any, error) {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/simulator/"), "/")
	switch {
	case slices.Equal(parts, []string{"state"}):
		return http.StatusOK, s.State(), allow(r, http.MethodGet)
	case slices.Equal(parts, []string{"events"}):
		return http.StatusOK, s.Events(), allow(r, http.MethodGet)
	case slices.Equal(parts, []string{"faults"}) && r.Method == http.MethodDelete:
		s.ClearFaults()
		return http.StatusNoContent, nil, nil
	case slices.Equal(parts, []string{"faults"}):
		return s.controlFault(r)
	case slices.Equal(parts, []string{"cloud-events"}):
		return s.controlCloudEvent(r)
	case slices.Equal(parts, []string{"policy"}):
		return s.controlPolicy(r)
	case len(parts) == 3 && parts[0] == "scaling-groups" && (parts[2] == "scale-in" || parts[2] == "scale-out"):
		return s.controlScale(r, parts[1], parts[2])
	case len(parts) == 3 && parts[0] == "instances" && parts[2] == "health":
		return s.controlHealth(r, parts[1])
	case len(parts) == 3 && parts[0] == "queues" && parts[2] == "messages":
		return s.controlMessage(r, parts[1])
	case len(parts) == 3 && parts[0] == "topics" && parts[2] == "messages":
		return s.controlPublish(r, parts[1])
	}
	return 0, nil, notFound("path", r.URL.Path, controlPaths)
}

func allow(r *http.Request, methods ...string) error {
	if slices.Contains(methods, r.Method) {
		return nil
	}
	return fmt.Errorf("%w: %s takes %s, not %s", errMethod, r.URL.Path, strings.Join(methods, " or "), r.Method)
}

func (s *Simulator) controlScale(r *http.Request, id, way string) (int, any, error) {
	var in struct {
		Count int `json:"count"`
	}
	if err := readControl(r, &in, `{"count": 3}`); err != nil {
		return 0, nil, err
	}
	scale := s.ScaleIn
	if way == "scale-out" {
		scale = s.ScaleOut
	}
	a, err := scale(id, in.Count)
	return http.StatusOK, a, err
}

func (s *Simulator) controlMessage(r *http.Request, queue string) (int, any, error) {
	var in struct {
		Body string `json:"body"`
	}
	if err := readControl(r, &in, `{"body": "text"}`); err != nil {
		return 0, nil, err
	}
	id, err := s.SendMessage(queue, in.Body)
	return http.StatusCreated, map[string]string{"message_id": id}, err
}

func (s *Simulator) controlHealth(r *http.Request, id string) (int, any, error) {
	var in struct {
		Healthy *bool `json:"healthy"`
	}
	const like = `{"healthy": false}`
	if err := readControl(r, &in, like); err != nil {
		return 0, nil, err
	}
	if in.Healthy == nil {
		return 0, nil, badInput("the body must be JSON such as %s", like)
	}
	return http.StatusNoContent, nil, s.SetHealth(id, *in.Healthy)
}

func (s *Simulator) controlFault(r *http.Request) (int, any, error) {
	var f Fault
	if err := readControl(r, &f, `{"service": "mns", "action": "ReceiveMessage", "kind": "latency", "latency": "200ms", "count": 3}`); err != nil {
		return 0, nil, err
	}
	id, err := s.InjectFault(f)
	return http.StatusCreated, map[string]string{"id": id}, err
}

// readControl decodes a POST's JSON body strictly; like shows what it should be.
func readControl(r *http.Request, into any, like string) error {
	allowed := http.MethodPost
	if err := allow(r, allowed); err != nil {
		return err
	}
	body, err := readBody(r, maxControlBody)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err = dec.Decode(into); err == nil {
		if _, err = dec.Token(); err == io.EOF {
			return nil
		}
		err = errors.New("more than one JSON value")
	}
	return badInput("the body must be JSON such as %s: %v", like, err)
}
