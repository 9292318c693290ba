package alibaba

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	contract "example.org/usher/providers"
)

const (
	// metadataHost is the metadata server of ECS, reached from instances only.
	metadataHost = "http://100.100.100.200"
	// metadataTimeout bounds connecting, and each call: where there is no ECS there is
	// often nothing that answers.
	metadataTimeout = time.Second
	metadataTTL     = 6 * time.Hour
	metadataMax     = 64 << 10
	metadataRole    = "/latest/meta-data/ram/security-credentials/"
)

var metadataRolePattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// metadata reads the keys of the RAM role that the ECS instance has.
type metadata struct {
	*wire
	at endpoint
}

// newMetadata has a transport of its own: without a proxy, which has no business with
// keys and may sit on another instance, and without patience.
func newMetadata(o Options) (*metadata, error) {
	at := metadataHost
	if o.MetadataEndpoint != "" {
		at = o.MetadataEndpoint
	}
	server, err := parseEndpoint("MetadataEndpoint", at)
	if err != nil {
		return nil, err
	}
	w := o.newWire()
	w.timeout = metadataTimeout
	w.transport.Proxy = nil
	if o.DialContext == nil {
		w.transport.DialContext = (&net.Dialer{Timeout: metadataTimeout}).DialContext
	}
	return &metadata{wire: w, at: server}, nil
}

// errNoServer: nothing that could be a metadata server answers.
var errNoServer = errors.New("there is no metadata server")

// fetch gives the keys of the named role, or of the one that the instance has. Its error
// is absentError when the instance has none, or when there is no instance.
func (m *metadata) fetch(ctx context.Context, role string) (fetched, error) {
	header := http.Header{}
	if token, err := m.token(ctx); err == nil {
		header.Set("X-aliyun-ecs-metadata-token", token)
	} else if isTrue("ALIBABA_CLOUD_IMDSV1_DISABLED") {
		err = fmt.Errorf("fetch a metadata token, without which ALIBABA_CLOUD_IMDSV1_DISABLED forbids to ask: %w", err)
		if errors.Is(err, errNoServer) {
			err = m.absent(err, role)
		}
		return fetched{}, err
	}
	if role == "" {
		a, err := m.get(ctx, metadataRole, header)
		if err != nil {
			return fetched{}, m.absent(fmt.Errorf("read the name of the instance's RAM role: %w", err), role)
		}
		role = strings.TrimSpace(string(a.body))
	}
	if !metadataRolePattern.MatchString(role) {
		return fetched{}, errors.New("the metadata server names no RAM role: what it says does not look like one")
	}
	sent := time.Now()
	a, err := m.get(ctx, metadataRole+role, header)
	if err != nil {
		return fetched{}, m.absent(fmt.Errorf("read the keys of RAM role %s: %w", role, err), role)
	}
	var body struct {
		Code string
		session
	}
	if err := json.Unmarshal(a.body, &body); err != nil || body.Code != "Success" {
		return fetched{}, fmt.Errorf("read the keys of RAM role %s: %w, or its Code is not Success", role, errNoSession)
	}
	got, err := body.session.read(a.date(), sent)
	if err != nil {
		return fetched{}, fmt.Errorf("read the keys of RAM role %s: %w", role, err)
	}
	return got, nil
}

// absent says whether an error means that this is no instance with a role, unless the
// operator has named the role.
func (m *metadata) absent(err error, role string) error {
	if role != "" || os.Getenv("ALIBABA_CLOUD_ECS_METADATA") != "" {
		return err
	}
	e, ok := errors.AsType[*contract.Error](err)
	switch {
	case ok && e.Status == http.StatusNotFound:
		return absentError{"this instance has no RAM role", err}
	case errors.Is(err, errNoServer):
		return absentError{"nothing answers at " + m.at.String() + ": this is no ECS instance, or its network is closed to it", err}
	}
	return err
}

// token fetches what proves to the server that a request does not come through a proxy
// or a confused service: metadata v2.
func (m *metadata) token(ctx context.Context) (string, error) {
	a, err := m.do(ctx, http.MethodPut, "/latest/api/token", http.Header{
		"X-aliyun-ecs-metadata-token-ttl-seconds": {strconv.Itoa(int(metadataTTL / time.Second))},
	})
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(a.body))
	if token == "" || len(token) > 1024 || strings.ContainsFunc(token, outsideToken) {
		return "", errors.New("what the metadata server gives is no token")
	}
	return token, nil
}

// get reads a path; if that fails with the token, without it, unless that is disabled.
func (m *metadata) get(ctx context.Context, path string, header http.Header) (answer, error) {
	a, err := m.do(ctx, http.MethodGet, path, header)
	if e, ok := errors.AsType[*contract.Error](err); ok && e.Status != http.StatusNotFound && len(header) > 0 && !isTrue("ALIBABA_CLOUD_IMDSV1_DISABLED") {
		return m.do(ctx, http.MethodGet, path, nil)
	}
	return a, err
}

// do makes one call. Its errors quote nothing of the answer.
func (m *metadata) do(ctx context.Context, method, path string, header http.Header) (answer, error) {
	req, err := http.NewRequest(method, m.at.String()+path, nil)
	if err != nil {
		return answer{}, err
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", "usher")
	op := "metadata " + method + " " + path
	a, f := m.exchange(ctx, call{op: op, keys: Keys{Token: header.Get("X-aliyun-ecs-metadata-token")}, limit: m.timeout, bound: metadataMax}, req)
	switch {
	case f != nil && f.Status == 0 && ctx.Err() == nil:
		return answer{}, fmt.Errorf("%w: %w", errNoServer, f.cloudError)
	case f != nil:
		return answer{}, f.cloudError
	case a.status != http.StatusOK:
		return answer{}, &contract.Error{Op: op, Kind: contract.ErrUnavailable, Status: a.status}
	}
	return a, nil
}
