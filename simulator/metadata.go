package simulator

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// MetadataConfig is the metadata server of the instance that the worker runs on.
type MetadataConfig struct {
	// Mode is both (the default), v1, v2 (requests need a token) or off.
	Mode string `yaml:"mode"`
	// Role is the instance's RAM role; empty: it has none.
	Role string `yaml:"role"`
	// Session is how long its keys are good, default 6h; Early how long before their end
	// there are new ones, default 15m.
	Session    time.Duration `yaml:"session"`
	Early      time.Duration `yaml:"early"`
	InstanceID string        `yaml:"instance_id"`
}

const (
	metadataBoth = "both"
	metadataV1   = "v1"
	metadataV2   = "v2"
	metadataOff  = "off"

	maxMetadataToken = 6 * time.Hour
)

// metadata is the state of the metadata server, guarded by Simulator.mu.
type metadata struct {
	tokens *ledger[string, time.Time] // when each is over
	keys   *accessKey                 // given out last
}

// The names under which calls of the metadata server are counted and disturbed.
const (
	metadataToken       = "Token"
	metadataRole        = "Role"
	metadataCredentials = "Credentials"
	metadataOther       = "Other"
)

var metadataActions = []string{metadataToken, metadataRole, metadataCredentials, metadataOther}

const metadataCredentialsPath = "/latest/meta-data/ram/security-credentials/"

// serveMetadata answers one request of the metadata server.
func (s *Simulator) serveMetadata(w http.ResponseWriter, r *http.Request) {
	action := metadataOther
	path := metadataCredentialsPath
	if s.aws() {
		path = awsMetadataCredentials
	}
	switch role, ok := strings.CutPrefix(r.URL.Path, path); {
	case strings.HasPrefix(r.URL.Path, awsContainerCredentials):
		action = metadataCredentials
	case r.URL.Path == "/latest/api/token":
		action = metadataToken
	case ok && role == "":
		action = metadataRole
	case ok:
		action = metadataCredentials
	}
	fx := s.interfere(r.Context(), "metadata", action)
	res := s.answerMetadata(r, action)
	switch fx.kind {
	case Fault5xx:
		res = metadataRefusal(http.StatusServiceUnavailable)
	case FaultThrottle:
		res = metadataRefusal(http.StatusTooManyRequests)
	case FaultDenied:
		res = metadataRefusal(http.StatusForbidden)
	case FaultCorrupt:
		writeGarbage(w)
		return
	case FaultDropAfterEffect:
		panic(http.ErrAbortHandler)
	}
	if res.status != http.StatusOK {
		s.countRefusal("metadata", action, strconv.Itoa(res.status))
	}
	w.Header().Set("Date", s.cloudTime(time.Now()).UTC().Format(http.TimeFormat))
	res.write(w)
}

// metadataRefusal is a page such as the server's own.
func metadataRefusal(status int) *response {
	text := strconv.Itoa(status) + " - " + http.StatusText(status)
	return &response{status: status, header: http.Header{"Content-Type": {"text/html"}}, body: []byte("<html><head><title>" + text + "</title></head><body>" + text + "</body></html>\n")}
}

func metadataText(text string) *response {
	return &response{status: http.StatusOK, header: http.Header{"Content-Type": {"text/plain"}}, body: []byte(text)}
}

func (s *Simulator) answerMetadata(r *http.Request, action string) *response {
	cfg := s.scenario.Metadata
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.aws() {
		return s.answerAWSMetadata(r, action)
	}
	switch {
	case cfg.Mode == metadataOff:
		return metadataRefusal(http.StatusNotFound)
	case action == metadataToken:
		return s.newMetadataToken(r)
	case r.Method != http.MethodGet:
		return metadataRefusal(http.StatusMethodNotAllowed)
	}
	token := r.Header.Get("X-aliyun-ecs-metadata-token")
	over, known := s.metadata.tokens.get(token)
	if good := known && time.Now().Before(over); !good && (token != "" || cfg.Mode == metadataV2) && cfg.Mode != metadataV1 {
		return metadataRefusal(http.StatusForbidden)
	}
	switch role, there := s.role(cfg.Role); {
	case r.URL.Path == "/latest/meta-data/region-id":
		return metadataText(s.scenario.Region)
	case r.URL.Path == "/latest/meta-data/instance-id":
		return metadataText(cfg.InstanceID)
	case action == metadataRole && there:
		return metadataText(role.Name)
	case action == metadataCredentials && there && r.URL.Path == metadataCredentialsPath+role.Name:
		return s.metadataKeys(role)
	}
	return metadataRefusal(http.StatusNotFound)
}

func (s *Simulator) newMetadataToken(r *http.Request) *response {
	seconds, err := strconv.Atoi(r.Header.Get("X-aliyun-ecs-metadata-token-ttl-seconds"))
	switch {
	case s.scenario.Metadata.Mode == metadataV1:
		return metadataRefusal(http.StatusNotFound)
	case r.Method != http.MethodPut:
		return metadataRefusal(http.StatusMethodNotAllowed)
	case err != nil || seconds < 1 || seconds > int(maxMetadataToken/time.Second):
		return metadataRefusal(http.StatusBadRequest)
	}
	token := s.mark() + randomText(26) + "=="
	s.metadata.tokens.add(token, time.Now().Add(time.Duration(seconds)*time.Second))
	return metadataText(token)
}

// instanceKeys gives the keys of the instance's role: the same ones until they are about
// to end. The caller holds s.mu.
func (s *Simulator) instanceKeys(role RoleConfig) *accessKey {
	cfg := s.scenario.Metadata
	if s.metadata.keys == nil || time.Until(s.metadata.keys.expires) <= cfg.Early {
		if s.aws() {
			s.metadata.keys = s.newAWSSession(role, cfg.InstanceID, cfg.Session, nil)
		} else {
			s.metadata.keys = s.newSession(role, cfg.Session, nil)
		}
	}
	return s.metadata.keys
}

func (s *Simulator) metadataKeys(role RoleConfig) *response {
	cfg, k := s.scenario.Metadata, s.instanceKeys(role)
	body, _ := json.Marshal(map[string]string{ // texts only
		"AccessKeyId": k.id, "AccessKeySecret": k.secret, "SecurityToken": k.token, "Code": "Success",
		"Expiration": s.expiration(k), "LastUpdated": s.cloudTime(k.expires.Add(-cfg.Session)).UTC().Format(time.RFC3339),
	})
	return &response{status: http.StatusOK, header: http.Header{"Content-Type": {"text/plain"}}, body: body}
}
