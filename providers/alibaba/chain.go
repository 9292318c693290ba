package alibaba

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"example.org/usher/providers/internal/renewal"
)

// Chain is Credentials from the first source that this host has, in the order of the
// vendor's libraries: environment, OIDC (pods), profile of the aliyun CLI, INI file, RAM
// role of the ECS instance, credential URI. See credentials-go and alibaba-cloud-sdk-go,
// whose default chains these are.
//
// Of credentials-go v1.4.14 only the environment is used. Its other sources take no
// context and can be neither bounded nor stopped; they race when goroutines share them;
// they lose good keys when a renewal fails, and stick to the last source when none
// applies; they ask the metadata server through HTTP_PROXY; some errors hold whole answers
// and files, keys and all; and their addresses are fixed, so that no test can reach them.
//
// Unlike there, a source that is set up but fails ends the search: to go on would take
// the keys of somebody else, such as those of a pod's node, for a passing failure. And
// the source that has given keys once stays the one.
type Chain struct {
	*renewing
	sources  []namedSource
	chosen   atomic.Pointer[namedSource]
	sts      *sts
	metadata *metadata
	uri      *wire
}

var _ renewer = (*Chain)(nil)

// namedSource is one link of the chain.
type namedSource struct {
	name  string
	fetch func(context.Context) (fetched, error)
}

// absentError says why a source does not apply on this host.
type absentError struct {
	why string
	// cause is what it was taken from, if there is more to say; for a source that did
	// apply before it is a failure like any other.
	cause error
}

func (e absentError) Error() string { return e.why }

func absent(why string) error { return absentError{why: why} }

// present makes the absence of a source that is known to apply a failure.
func present(err error) error {
	e, ok := errors.AsType[absentError](err)
	switch {
	case ok && e.cause != nil:
		return e.cause
	case ok:
		return errors.New(e.why)
	}
	return err
}

// NewChain makes the chain. It looks for nothing yet, and reads its settings, the
// ALIBABA_CLOUD_ variables of the environment, whenever it fetches keys. o.STSEndpoint and
// o.MetadataEndpoint replace the cloud's own addresses; o.DialContext, o.CallTimeout and
// o.Logger are used, too. session names the sessions that it opens, if no variable does.
// Close ends what it does in the background.
func NewChain(o Options, session string) (*Chain, error) {
	o.Credentials = StaticCredentials("", "") // each call of STS has its own
	client, err := newSTS(o)
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	server, err := newMetadata(o)
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	c := &Chain{sts: client, metadata: server, uri: o.newWire()}
	p := profiles{sts: client, metadata: server, session: cmp.Or(session, defaultRoleSession)}
	c.sources = []namedSource{
		{"environment", fromEnvironment},
		{"OIDC", p.fromOIDC},
		{"CLI profile", p.fromCLI},
		{"INI file", p.fromINI},
		{"ECS metadata", c.fromMetadata},
		{"URI", c.fromURI},
	}
	c.renewing = newRenewing("the worker's own keys", client.logger, c.find)
	return c, nil
}

// Close ends a renewal that runs and waits for it. Calls that have their keys go on.
func (c *Chain) Close() {
	c.renewing.close()
	c.sts.close()
	c.metadata.close()
	c.uri.close()
}

// Source is the name of the source that has given keys, "" before.
func (c *Chain) Source() string {
	if s := c.chosen.Load(); s != nil {
		return s.name
	}
	return ""
}

// find gets keys from the source in use, or looks for one that applies. It runs in one
// goroutine at a time.
func (c *Chain) find(ctx context.Context) (fetched, error) {
	if s := c.chosen.Load(); s != nil {
		got, err := s.fetch(ctx)
		if err != nil {
			return fetched{}, fmt.Errorf("%s: %w", s.name, present(err))
		}
		return got, nil
	}
	var tried []string
	for i := range c.sources {
		s := &c.sources[i]
		got, err := s.fetch(ctx)
		if err == nil && !got.Good(time.Now()) {
			err = renewal.ErrExpired
		}
		if absent, ok := errors.AsType[absentError](err); ok {
			tried = append(tried, s.name+": "+absent.why)
			continue
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", s.name, err)
			if len(tried) > 0 {
				err = fmt.Errorf("%w; before it were tried: %s", err, strings.Join(tried, "; "))
			}
			return fetched{}, err
		}
		c.chosen.Store(s)
		c.sts.logger.Info("credentials found", "source", s.name)
		return got, nil
	}
	return fetched{}, errors.New("no source applies: " + strings.Join(tried, "; "))
}

// fromEnvironment reads ALIBABA_CLOUD_ACCESS_KEY_ID and its companions. One of them alone
// is a mistake, not another source's turn.
func fromEnvironment(ctx context.Context) (fetched, error) {
	const id, secret = "ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET"
	switch hasID, hasSecret := os.Getenv(id) != "", os.Getenv(secret) != ""; {
	case !hasID && !hasSecret:
		return fetched{}, absent(id + " and " + secret + " are not set")
	case !hasID:
		return fetched{}, errors.New(secret + " is set, " + id + " is not")
	case !hasSecret:
		return fetched{}, errors.New(id + " is set, " + secret + " is not")
	}
	keys, err := environment{}.Credentials(ctx)
	return fetched{Keys: keys}, err
}

// fromOIDC is RRSA: the pod's token for the keys of a role. The webhook of ACK sets the
// variables, and the kubelet writes the file anew before the token ends. The role alone is
// no mistake: the vendor's other sources read that variable, too.
func (p profiles) fromOIDC(ctx context.Context) (fetched, error) {
	const arn, provider, file = "ALIBABA_CLOUD_ROLE_ARN", "ALIBABA_CLOUD_OIDC_PROVIDER_ARN", "ALIBABA_CLOUD_OIDC_TOKEN_FILE"
	if os.Getenv(file) == "" || os.Getenv(provider) == "" || os.Getenv(arn) == "" {
		var missing []string
		for _, name := range []string{arn, provider, file} {
			if os.Getenv(name) == "" {
				missing = append(missing, name)
			}
		}
		if os.Getenv(file) != "" {
			// Nothing else reads the file. A pod without the rest is set up wrongly, and must not
			// go on with the role of its node.
			return fetched{}, errors.New(file + " is set, " + strings.Join(missing, " and ") + " not")
		}
		return fetched{}, absent(strings.Join(missing, ", ") + " not set")
	}
	return p.oidc(ctx, p.sts, Role{ARN: os.Getenv(arn), SessionName: os.Getenv("ALIBABA_CLOUD_ROLE_SESSION_NAME")}, os.Getenv(provider), os.Getenv(file))
}

// The service's bounds of a token (AssumeRoleWithOIDC, STS 2015-04-01).
const (
	minOIDCToken = 4
	maxOIDCToken = 20_000
)

// oidc reads the token again each time: it rotates.
func (p profiles) oidc(ctx context.Context, client *sts, role Role, provider, file string) (fetched, error) {
	role.SessionName = cmp.Or(role.SessionName, p.session)
	role = role.withDefaults()
	if err := errors.Join(role.problems()...); err != nil {
		return fetched{}, err
	}
	text, err := readSmall(file)
	if err != nil {
		return fetched{}, fmt.Errorf("OIDC token: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if len(token) < minOIDCToken || len(token) > maxOIDCToken || strings.ContainsFunc(token, outsideToken) {
		return fetched{}, fmt.Errorf("%s holds no OIDC token: want %d to %d characters without white space", file, minOIDCToken, maxOIDCToken)
	}
	return client.withOIDC(ctx, role, provider, token)
}

// fromMetadata reads the keys of the instance's RAM role.
func (c *Chain) fromMetadata(ctx context.Context) (fetched, error) {
	if isTrue("ALIBABA_CLOUD_ECS_METADATA_DISABLED") {
		return fetched{}, absent("off by ALIBABA_CLOUD_ECS_METADATA_DISABLED")
	}
	return c.metadata.fetch(ctx, os.Getenv("ALIBABA_CLOUD_ECS_METADATA"))
}

// fromURI asks a server beside us. Its address may be a secret and is not told.
func (c *Chain) fromURI(ctx context.Context) (fetched, error) {
	const variable = "ALIBABA_CLOUD_CREDENTIALS_URI"
	at := os.Getenv(variable)
	if at == "" {
		return fetched{}, absent(variable + " is not set")
	}
	u, err := url.Parse(at)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		return fetched{}, errors.New(variable + " is no http or https URL without a user")
	}
	req, err := http.NewRequest(http.MethodGet, u.String(), nil)
	if err != nil {
		return fetched{}, errors.New(variable + " is no URL")
	}
	req.Header.Set("User-Agent", "usher")
	sent := time.Now()
	a, f := c.uri.exchange(ctx, call{op: "GET " + variable, limit: c.uri.timeout, bound: metadataMax}, req)
	switch {
	case f != nil:
		return fetched{}, f.cloudError
	case a.status != http.StatusOK:
		return fetched{}, fmt.Errorf("the server that %s names answers with status %d", variable, a.status)
	}
	var body session
	if err := json.Unmarshal(a.body, &body); err != nil {
		return fetched{}, errNoSession
	}
	return body.read(a.date(), sent)
}

// mostFile bounds a file of keys.
const mostFile = 1 << 20

// readSmall reads a file that an operator has written. What is no regular file is not
// opened: a pipe would block.
func readSmall(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", name)
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, mostFile+1))
	if err == nil && len(text) > mostFile {
		err = fmt.Errorf("%s is larger than 1 MiB", name)
	}
	return text, err
}

// inHome is a file below the user's home, as the vendor's libraries find it; "": there
// is no home.
func inHome(path string) string {
	home := os.Getenv("HOME")
	if home == "" {
		return ""
	}
	return filepath.Join(home, path)
}
