package alibaba

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"time"
)

const (
	// DefaultCallTimeout bounds one attempt of a call when Options.CallTimeout is zero.
	DefaultCallTimeout = 10 * time.Second
	// pollMargin is how much longer than its wait a long poll may take.
	pollMargin = 5 * time.Second
	// dialTimeout bounds connecting and the TLS handshake, each.
	dialTimeout = 5 * time.Second
)

// Options says where the cloud is and how to reach it. Each constructor uses the
// fields that concern it and ignores the rest.
type Options struct {
	// Region is an id such as cn-shenzhen. An action that names its own region wins over it.
	Region string
	// QueueName is the MNS queue.
	QueueName string
	// QueueEndpoint is the MNS endpoint, such as
	// https://1234567890123456.mns.cn-shenzhen.aliyuncs.com. Without a scheme it is https;
	// http:// is for a simulator, a proxy or the internal endpoints that have no TLS.
	QueueEndpoint string
	// ESSEndpoint and ECSEndpoint replace the cloud's own https endpoints for the
	// region. Without a scheme they are https.
	ESSEndpoint, ECSEndpoint string
	// SLBEndpoint, ALBEndpoint and NLBEndpoint do so for the balancers; SLB is the product
	// name of CLB.
	SLBEndpoint, ALBEndpoint, NLBEndpoint string
	// STSEndpoint replaces sts.aliyuncs.com, and what ALIBABA_CLOUD_STS_REGION and
	// ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED make of it.
	STSEndpoint string
	// MetadataEndpoint replaces http://100.100.100.200, for tests.
	MetadataEndpoint string
	// Credentials gives the keys that sign each attempt.
	Credentials Credentials
	// Pacer is shared by the clients of ESS that draw on one quota; nil: one of its own.
	Pacer *Pacer
	// DialContext replaces the net package's dialer, for connections in memory. Nil: the net package's.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// CallTimeout bounds one attempt of every call but a long poll, which may take its
	// wait and 5 s more. Zero: DefaultCallTimeout.
	CallTimeout time.Duration
	// Logger gets what is odd but not an error, and repeats at debug level. Nil: none.
	Logger *slog.Logger
}

var (
	regionPattern = regexp.MustCompile(`^[a-z]{2,8}(-[a-z0-9]+){1,5}$`)
	// Queue names: letters, digits and hyphens, at most 120 characters, 256 in older documents.
	queuePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{0,255}$`)
)

// endpoint is where a service listens.
type endpoint struct{ scheme, host string }

func (e endpoint) String() string { return e.scheme + "://" + e.host }

// parseEndpoint reads a URL or a bare host. A path is refused because MNS signs the
// path it sees, so a prefix could never verify.
func parseEndpoint(field, s string) (endpoint, error) {
	bare := s
	if !regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*://`).MatchString(s) {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return endpoint{}, fmt.Errorf("%s: %q is neither a URL nor a host", field, bare)
	case u.User != nil:
		return endpoint{}, fmt.Errorf("%s: must not carry a user or password", field)
	case u.Scheme != "http" && u.Scheme != "https":
		return endpoint{}, fmt.Errorf("%s: %q: the scheme must be https, or http for a simulator or proxy", field, bare)
	case u.Hostname() == "":
		return endpoint{}, fmt.Errorf("%s: %q names no host", field, bare)
	case u.Path != "" && u.Path != "/", u.RawQuery != "", u.Fragment != "":
		return endpoint{}, fmt.Errorf("%s: %q: only a scheme and a host are allowed, such as https://host:port", field, bare)
	}
	return endpoint{scheme: u.Scheme, host: u.Host}, nil
}

// common checks the fields that every client needs.
func (o Options) common() []error {
	var problems []error
	if o.Credentials == nil {
		problems = append(problems, errors.New("no Credentials: use NewChain, EnvironmentCredentials or StaticCredentials"))
	}
	if o.CallTimeout < 0 {
		problems = append(problems, fmt.Errorf("CallTimeout: must not be negative, got %v", o.CallTimeout))
	}
	return problems
}

// regional checks Region as well.
func (o Options) regional() []error {
	problems := o.common()
	if !regionPattern.MatchString(o.Region) {
		problems = append(problems, fmt.Errorf("bad Region %q: an id such as cn-shenzhen is needed", o.Region))
	}
	return problems
}

// invalid joins the problems of one set of options, nil when there are none.
func invalid(what string, problems []error) error {
	if len(problems) == 0 {
		return nil
	}
	return fmt.Errorf("alibaba %s options: %w", what, errors.Join(problems...))
}

// transport is what the calls of one client share.
func (o Options) transport() *http.Transport {
	dial := o.DialContext
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext
	}
	http1 := new(http.Protocols)
	http1.SetHTTP1(true)
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         dial,
		Protocols:           http1,
		TLSHandshakeTimeout: dialTimeout,
		MaxIdleConnsPerHost: 64,
		// The services close idle connections after a time of their own; ours is shorter
		// than the minute that their balancers use, so that we seldom meet a dead one.
		IdleConnTimeout:        50 * time.Second,
		MaxResponseHeaderBytes: 256 << 10,
		// A compressed answer could grow past our bounds while it is unpacked.
		DisableCompression: true,
	}
}

// newWire puts the options together for one client.
func (o Options) newWire() *wire {
	logger := o.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &wire{
		transport:   o.transport(),
		credentials: o.Credentials,
		timeout:     cmp.Or(o.CallTimeout, DefaultCallTimeout),
		logger:      logger,
	}
}
