package aws

import (
	"context"
	"errors"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"

	"example.org/usher/providers/internal/renewal"
)

// StaticCredentials are fixed keys, for the demo and for tests.
func StaticCredentials(id, secret string) aws.CredentialsProvider {
	return static{AccessKeyID: id, SecretAccessKey: secret, Source: "StaticCredentials"}
}

type static aws.Credentials

func (s static) Retrieve(context.Context) (aws.Credentials, error) { return aws.Credentials(s), nil }

// String keeps keys out of logs.
func (s static) String() string { return "keys(redacted)" }

// GoString keeps keys out of %#v.
func (s static) GoString() string { return s.String() }

// renewer is credentials whose keys may be replaced once the cloud refuses them.
type renewer interface {
	// Renew says whether there are other keys than the refused ones now.
	Renew(ctx context.Context, refused aws.Credentials) (bool, error)
}

// credentialsError marks an error as one of getting keys.
type credentialsError struct{ err error }

func (e *credentialsError) Error() string { return e.err.Error() }
func (e *credentialsError) Unwrap() error { return e.err }

// usable refuses keys that cannot be right.
func usable(keys aws.Credentials) error {
	switch {
	case !keys.HasKeys():
		return errors.New("the source of credentials gave an empty key")
	case strings.ContainsFunc(keys.AccessKeyID+keys.SecretAccessKey+keys.SessionToken, func(r rune) bool { return r <= ' ' || r > '~' }):
		// A line feed from a mounted file is the usual case; it would break the request's header.
		return errors.New("a key holds white space or control characters: check how it was written to its file or variable")
	}
	return nil
}

// keys are what of credentials makes two of them the same.
type keys struct{ id, secret, token string }

func keysOf(c aws.Credentials) keys {
	return keys{c.AccessKeyID, c.SecretAccessKey, c.SessionToken}
}

// fetched is what a source of keys gave.
type fetched = renewal.Fetched[keys]

// fetchedFrom takes what the SDK gives. Its keys end by the cloud's clock, which is taken to
// be ours.
func fetchedFrom(c aws.Credentials) fetched {
	f := fetched{Keys: keysOf(c)}
	if c.CanExpire {
		f.Expires = c.Expires.Round(0)
	}
	return f
}

// renewing is credentials of one source, renewed under way: calls go on with the old keys
// while they are good, whatever becomes of a renewal.
type renewing struct {
	renewals *renewal.Renewing[keys]
	source   func() string
}

var _ renewer = (*renewing)(nil)

// Retrieve gives the keys.
func (r *renewing) Retrieve(ctx context.Context) (aws.Credentials, error) {
	k, err := r.renewals.Get(ctx)
	if err != nil {
		return aws.Credentials{}, err
	}
	return aws.Credentials{AccessKeyID: k.id, SecretAccessKey: k.secret, SessionToken: k.token, Source: r.source()}, nil
}

// Renew says whether there are other keys than those which the cloud has refused. It
// fetches new ones first, once for all who ask.
func (r *renewing) Renew(ctx context.Context, refused aws.Credentials) (bool, error) {
	return r.renewals.Renew(ctx, keysOf(refused))
}
