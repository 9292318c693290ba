package aws

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/credentials/processcreds"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"example.org/usher/providers/internal/gather"
	"example.org/usher/providers/internal/renewal"
)

const (
	defaultSession = "usher"
	// chainTries is how often one renewal asks the source.
	chainTries = 3
	// metadataLimit bounds one request to the metadata server. Off EC2 there is none, and in a
	// container its answers may be lost for their hop limit.
	metadataLimit = time.Second
	// metadataGrace is how long the keys of an instance are used on when its metadata server
	// gives no new ones. The SDK has cut their life to an hour before, to renew them early;
	// EC2 lets services take even expired ones while it cannot give others.
	metadataGrace = 10 * time.Minute
)

// Chain is credentials from the first source that this host has, as the SDK's
// config.LoadDefaultConfig finds it: environment, web identity (pods), the profile of the
// shared files with all that a profile can name, container, instance metadata.
//
// The settings are read again with each renewal, so that rotated files are noticed. Unlike
// in the SDK the source that has given keys once stays the one: when it is gone, another
// one would be somebody else, such as the node of a pod.
type Chain struct {
	*renewing
	o         Options
	session   string
	sts       *url.URL        // nil: the cloud's own
	direct    *http.Transport // without a proxy: metadata and containers
	transport *http.Transport
	chosen    atomic.Pointer[string]
	last      keys // what find has got; it runs in one goroutine at a time
}

// NewChain makes the chain. It looks for nothing yet. o.Region is that of STS;
// o.STSEndpoint, o.DialContext, o.CallTimeout and o.Logger are used, too. session names the
// sessions that it opens, if no setting does; default usher. Close ends what it does in the
// background.
func NewChain(o Options, session string) (*Chain, error) {
	o.Credentials = StaticCredentials("", "") // each source has its own
	endpoint, err := parseEndpoint("STSEndpoint", o.STSEndpoint)
	problems := o.common()
	if err != nil {
		problems = append(problems, err)
	}
	if err := invalid("credentials", problems); err != nil {
		return nil, err
	}
	c := &Chain{o: o, session: cmp.Or(session, defaultSession), direct: o.transport(), transport: o.transport()}
	c.direct.Proxy = nil
	if endpoint != nil {
		if c.sts, err = url.Parse(*endpoint); err != nil {
			return nil, fmt.Errorf("STSEndpoint: %w", err)
		}
	}
	c.renewing = &renewing{source: c.Source, renewals: renewal.New("the worker's own keys", o.logger(), c.find)}
	return c, nil
}

// Close ends a renewal that runs and waits for it. Calls that have their keys go on.
func (c *Chain) Close() {
	c.renewals.Close()
	c.direct.CloseIdleConnections()
	c.transport.CloseIdleConnections()
}

// Source is the name of the source that has given keys, "" before.
func (c *Chain) Source() string {
	if s := c.chosen.Load(); s != nil {
		return *s
	}
	return ""
}

// find gets keys from the source that applies. It runs in one goroutine at a time.
func (c *Chain) find(ctx context.Context) (fetched, error) {
	if err := halfSet(); err != nil {
		return fetched{}, fmt.Errorf("environment: %w", err)
	}
	cfg, err := config.LoadDefaultConfig(ctx, c.options(ctx)...)
	if err != nil {
		return fetched{}, fmt.Errorf("read the settings of the SDK: %w; check AWS_PROFILE and the files ~/.aws/config and ~/.aws/credentials", err)
	}
	source := sourceOf(cfg.Credentials)
	if before := c.Source(); before != "" && before != source {
		return fetched{}, fmt.Errorf("%s has given keys and is gone, and %s is not taken in its place: restart usher if that is meant", before, source)
	}
	got, err := retrieve(ctx, cfg.Credentials)
	if err != nil && source == sourceMetadata && c.last != (keys{}) && ctx.Err() == nil {
		c.o.logger().Warn("the metadata server gives no keys, the old ones stay in use", "error", tellable(err))
		return fetched{Keys: c.last, Expires: time.Now().Add(metadataGrace)}, nil
	}
	if err != nil {
		return fetched{}, fmt.Errorf("%s: %w; %s", source, tellable(err), advice(source))
	}
	f := fetchedFrom(got)
	c.last = f.Keys
	if err := usable(got); err != nil {
		return fetched{}, fmt.Errorf("%s: %w", source, err)
	}
	if c.Source() == "" && f.Good(time.Now()) {
		c.chosen.Store(&source)
		c.o.logger().Info("credentials found", "source", source)
	}
	return f, nil
}

// options point everything that the SDK's chain calls to our own transport.
func (c *Chain) options(ctx context.Context) []func(*config.LoadOptions) error {
	client := &tied{Chain: c, ctx: ctx}
	return []func(*config.LoadOptions) error{
		config.WithDefaultRegion(c.o.Region),
		config.WithHTTPClient(client),
		// One layer repeats, and it is ours: it ends with the renewal.
		config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
		config.WithAPIOptions([]func(*middleware.Stack) error{c.toSTS}),
		config.WithWebIdentityRoleCredentialOptions(func(o *stscreds.WebIdentityRoleOptions) {
			o.RoleSessionName = cmp.Or(o.RoleSessionName, os.Getenv("AWS_ROLE_SESSION_NAME"), c.session)
		}),
		config.WithAssumeRoleCredentialOptions(func(o *stscreds.AssumeRoleOptions) {
			o.RoleSessionName = cmp.Or(o.RoleSessionName, c.session)
		}),
		config.WithEndpointCredentialOptions(func(o *endpointcreds.Options) { o.HTTPClient = client }),
		config.WithProcessCredentialOptions(func(o *processcreds.Options) { o.Timeout = renewal.Limit / 2 }),
	}
}

// toSTS sends the chain's calls of STS to o.STSEndpoint. The SDK makes the chain before it
// reads the settings that would.
func (c *Chain) toSTS(stack *middleware.Stack) error {
	const resolved = "ResolveEndpointV2"
	if _, ok := stack.Finalize.Get(resolved); !ok || c.sts == nil {
		return nil
	}
	move := middleware.FinalizeMiddlewareFunc("usher's STS endpoint", func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (
		middleware.FinalizeOutput, middleware.Metadata, error,
	) {
		if req, ok := in.Request.(*smithyhttp.Request); ok && awsmiddleware.GetServiceID(ctx) == sts.ServiceID {
			req.URL.Scheme, req.URL.Host = c.sts.Scheme, c.sts.Host
		}
		return next.HandleFinalize(ctx, in)
	})
	return stack.Finalize.Insert(move, resolved, middleware.After) // and before the signature
}

// retrieve asks a source, and again while that may help. It always waits for the answer:
// the requests end with ctx, and the SDK's cache, which hides that end from the source,
// would go on behind our back.
func retrieve(ctx context.Context, source aws.CredentialsProvider) (aws.Credentials, error) {
	retryer := newRetryer()
	for tries := 1; ; tries++ {
		got, err := source.Retrieve(context.WithoutCancel(ctx))
		if err == nil || tries == chainTries || !retryer.IsErrorRetryable(err) || ctx.Err() != nil {
			return got, err
		}
		if !gather.Sleep(ctx, rand.N(time.Second<<(tries-1))) {
			return got, err
		}
	}
}

// halfSet finds one of a pair of variables alone, which the SDK passes over in silence.
func halfSet() error {
	const id, secret = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"
	switch hasID, hasSecret := os.Getenv(id) != "", os.Getenv(secret) != ""; {
	case hasID && !hasSecret:
		return errors.New(id + " is set, " + secret + " is not")
	case hasSecret && !hasID:
		return errors.New(secret + " is set, " + id + " is not")
	}
	return nil
}

// The names of the sources.
const (
	sourceEnvironment = "environment"
	sourceIdentity    = "web identity"
	sourceProfile     = "profile"
	sourceContainer   = "container"
	sourceMetadata    = "instance metadata"
)

// sourceOf is which source the SDK has chosen: the first that a provider names.
func sourceOf(provider aws.CredentialsProvider) string {
	cache, ok := provider.(*aws.CredentialsCache)
	if !ok {
		return sourceProfile
	}
	sources := cache.ProviderSources()
	if len(sources) == 0 {
		return sourceProfile
	}
	switch sources[0] {
	case aws.CredentialSourceEnvVars:
		return sourceEnvironment
	case aws.CredentialSourceEnvVarsSTSWebIDToken:
		return sourceIdentity
	case aws.CredentialSourceHTTP:
		return sourceContainer
	case aws.CredentialSourceIMDS:
		return sourceMetadata
	}
	return sourceProfile
}

// advice is what an operator can do about a source that fails.
func advice(source string) string {
	switch source {
	case sourceIdentity:
		return "check the role that AWS_ROLE_ARN names, its trust policy, and that the file of AWS_WEB_IDENTITY_TOKEN_FILE is mounted and renewed"
	case sourceContainer:
		return "check the task's role or the pod's association, and AWS_CONTAINER_CREDENTIALS_RELATIVE_URI or _FULL_URI"
	case sourceMetadata:
		return "no other source is set up (AWS_ACCESS_KEY_ID, AWS_WEB_IDENTITY_TOKEN_FILE, a profile, AWS_CONTAINER_CREDENTIALS_...):" +
			" set one, or give the instance a profile, and in a container a hop limit of 2; AWS_EC2_METADATA_DISABLED=true ends the look"
	}
	return "check AWS_PROFILE and the files ~/.aws/config and ~/.aws/credentials"
}

// tellable makes an error of a source fit to be told.
func tellable(err error) error {
	text := err.Error()
	if clean := told(text, aws.Credentials{}, mostMessage); clean != text {
		return errors.New(clean)
	}
	return err
}

// tied is the HTTP client of one renewal, whose end ends its requests. Metadata servers and
// those of containers are never asked through a proxy.
type tied struct {
	*Chain
	ctx context.Context // the renewal's: the SDK's cache hides it from what it caches
}

// Do sends a request once and reads the whole answer.
func (t *tied) Do(req *http.Request) (*http.Response, error) {
	limit, transport := cmp.Or(t.o.CallTimeout, DefaultCallTimeout), t.transport
	if local, metadata := nearby(req.URL); local {
		transport = t.direct
		if metadata {
			limit = min(limit, metadataLimit)
		}
	}
	attempt, cancel := context.WithTimeoutCause(req.Context(), limit, errNoAnswer)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	res, err := transport.RoundTrip(req.WithContext(attempt))
	if err == nil {
		err = readWhole(res)
	}
	if err != nil && req.Context().Err() == nil && attempt.Err() != nil {
		err = cmp.Or(context.Cause(t.ctx), fmt.Errorf("%w (%v)", errNoAnswer, limit))
	}
	if err != nil {
		return nil, err
	}
	return res, nil
}

// nearby tells the addresses of this host and of what EC2 and its containers serve beside it.
func nearby(u *url.URL) (local, metadata bool) {
	addr, err := netip.ParseAddr(u.Hostname())
	if err != nil {
		return u.Hostname() == "localhost", false
	}
	ours := netip.MustParsePrefix("fd00:ec2::/32")
	metadata = addr == netip.AddrFrom4([4]byte{169, 254, 169, 254}) || addr == netip.MustParseAddr("fd00:ec2::254")
	return addr.IsLoopback() || addr.IsLinkLocalUnicast() || ours.Contains(addr), metadata
}
