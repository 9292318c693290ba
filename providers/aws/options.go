package aws

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
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
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
	// Region is an id such as eu-west-1.
	Region string
	// QueueName is the SQS queue's, and QueueAccount the account that owns it; empty: the
	// account of the credentials.
	QueueName, QueueAccount string
	// VisibilityTimeout hides what one receive takes: whole seconds, 12 hours at most. Zero:
	// DefaultVisibilityTimeout. A poll lasts for a third of it at most.
	VisibilityTimeout time.Duration
	// The endpoints replace the cloud's own for the region: URLs with a scheme. ELB is that of
	// both generations.
	SQSEndpoint, AutoScalingEndpoint, ELBEndpoint, SSMEndpoint, EC2Endpoint, STSEndpoint string
	// Credentials gives the keys that sign each attempt.
	Credentials aws.CredentialsProvider
	// DialContext replaces the net package's dialer, for connections in memory. Nil: the net package's.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// CallTimeout bounds one attempt of every call but a long poll, which may take its
	// wait and 5 s more. Zero: DefaultCallTimeout.
	CallTimeout time.Duration
	// Logger gets what is odd but not an error, and repeats at debug level. Nil: none.
	Logger *slog.Logger
}

var regionPattern = regexp.MustCompile(`^[a-z]{2,8}(-[a-z0-9]+){1,5}$`)

// parseEndpoint reads a URL; an empty one is the cloud's own endpoint. A path is refused
// because it is signed and a proxy that takes it away would break the signature.
func parseEndpoint(field, s string) (*string, error) {
	if s == "" {
		return nil, nil
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %q is not a URL", field, s)
	case u.User != nil:
		return nil, fmt.Errorf("%s: must not carry a user or password", field)
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("%s: %q: the scheme must be https, or http for a simulator or proxy", field, s)
	case u.Hostname() == "":
		return nil, fmt.Errorf("%s: %q names no host", field, s)
	case u.Path != "" && u.Path != "/", u.RawQuery != "", u.Fragment != "":
		return nil, fmt.Errorf("%s: %q: only a scheme and a host are allowed, such as https://host:port", field, s)
	}
	return aws.String(u.Scheme + "://" + u.Host), nil
}

// common checks the fields that every client needs.
func (o Options) common() []error {
	var problems []error
	if o.Credentials == nil {
		problems = append(problems, errors.New("no Credentials: use NewChain, NewAssumedRole or StaticCredentials"))
	}
	if o.CallTimeout < 0 {
		problems = append(problems, fmt.Errorf("CallTimeout: must not be negative, got %v", o.CallTimeout))
	}
	if !regionPattern.MatchString(o.Region) {
		problems = append(problems, fmt.Errorf("bad Region %q: an id such as eu-west-1 is needed", o.Region))
	}
	return problems
}

// invalid joins the problems of one set of options, nil when there are none.
func invalid(what string, problems []error) error {
	if len(problems) == 0 {
		return nil
	}
	return fmt.Errorf("aws %s options: %w", what, errors.Join(problems...))
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
		// Shorter than what the services keep idle connections for, so that we seldom meet a
		// dead one.
		IdleConnTimeout:        50 * time.Second,
		MaxResponseHeaderBytes: 256 << 10,
		// A compressed answer could grow past our bounds while it is unpacked.
		DisableCompression: true,
	}
}

func (o Options) logger() *slog.Logger {
	if o.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Logger
}

// newWire puts the options together for a client of one service. service is as IAM writes
// it, such as sqs; field and own are the endpoint that the options give, if any.
func (o Options) newWire(service, field, own string) (*wire, error) {
	problems := o.common()
	endpoint, err := parseEndpoint(field, own)
	if err != nil {
		problems = append(problems, err)
	}
	if err := invalid(service, problems); err != nil {
		return nil, err
	}
	w := &wire{
		service: service, region: o.Region, endpoint: endpoint,
		transport: o.transport(), credentials: o.Credentials,
		timeout: cmp.Or(o.CallTimeout, DefaultCallTimeout), logger: o.logger(),
	}
	w.retryer = newRetryer()
	return w, nil
}

// arn writes an ARN of the region's partition, for hints. An unknown account is *.
func (w *wire) arn(service, account, resource string) string {
	return fmt.Sprintf("arn:%s:%s:%s:%s:%s", partition(w.region), service, w.region, cmp.Or(account, "*"), resource)
}

func partition(region string) string {
	switch {
	case strings.HasPrefix(region, "cn-"):
		return "aws-cn"
	case strings.HasPrefix(region, "us-gov-"):
		return "aws-us-gov"
	}
	return "aws"
}
