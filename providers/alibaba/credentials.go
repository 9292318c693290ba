package alibaba

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/aliyun/credentials-go/credentials/providers"

	contract "example.org/usher/providers"
	"example.org/usher/providers/internal/renewal"
)

// Keys sign a request. Token is set for temporary keys only.
type Keys struct{ ID, Secret, Token string }

// String keeps keys out of logs.
func (k Keys) String() string { return "keys(redacted)" }

// GoString keeps keys out of %#v.
func (k Keys) GoString() string { return k.String() }

// Credentials is where keys come from. It is asked before every attempt, so that
// rotated keys are used at once, and must be safe for concurrent use.
type Credentials interface {
	Credentials(ctx context.Context) (Keys, error)
}

// renewer is Credentials whose keys may be replaced once the cloud refuses them.
type renewer interface {
	Credentials
	// renew says whether there are other keys than the refused ones now.
	renew(ctx context.Context, refused Keys) (bool, error)
}

// EnvironmentCredentials reads ALIBABA_CLOUD_ACCESS_KEY_ID,
// ALIBABA_CLOUD_ACCESS_KEY_SECRET and, for temporary keys,
// ALIBABA_CLOUD_SECURITY_TOKEN, each time it is asked.
func EnvironmentCredentials() Credentials { return environment{} }

type environment struct{}

func (environment) Credentials(context.Context) (Keys, error) {
	source, err := providers.NewEnvironmentVariableCredentialsProviderBuilder().Build()
	if err != nil {
		return Keys{}, fmt.Errorf("environment: %w", err)
	}
	found, err := source.GetCredentials()
	if err != nil {
		return Keys{}, fmt.Errorf("environment: set ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET,"+
			" and ALIBABA_CLOUD_SECURITY_TOKEN if the keys are temporary: %w", err)
	}
	return Keys{ID: found.AccessKeyId, Secret: found.AccessKeySecret, Token: found.SecurityToken}, nil
}

// StaticCredentials are fixed keys, for the demo and for tests.
func StaticCredentials(id, secret string) Credentials {
	return static{ID: id, Secret: secret}
}

type static Keys

// keysExpired says whether a code means that the keys themselves are not known or not good
// any more, so that new ones would be (the gateway of the RPC services).
func keysExpired(code string) bool {
	return strings.HasPrefix(code, "invalidsecuritytoken") || strings.HasPrefix(code, "invalidaccesskeyid")
}

func (s static) Credentials(context.Context) (Keys, error) { return Keys(s), nil }

// String keeps keys out of logs.
func (s static) String() string { return Keys(s).String() }

// GoString keeps keys out of %#v.
func (s static) GoString() string { return Keys(s).GoString() }

// keysFor fetches the keys for one attempt, within limit, and refuses those that cannot
// be right.
func keysFor(ctx context.Context, op string, source Credentials, limit time.Duration) (Keys, *failure) {
	waiting, cancel := renewal.Awaiting(ctx, limit)
	defer cancel()
	keys, err := source.Credentials(waiting)
	if err != nil {
		return Keys{}, &failure{cloudError: &contract.Error{Op: op, Kind: contract.ErrCredentials, Cause: err}, certain: true}
	}
	hint := ""
	switch {
	case keys.ID == "" || keys.Secret == "":
		hint = "the source of credentials gave an empty key"
	case strings.ContainsFunc(keys.ID+keys.Secret+keys.Token, outsideToken):
		// A line feed from a mounted file is the usual case; it would break the request's header.
		hint = "a key holds white space or control characters: check how it was written to its file or variable"
	default:
		return keys, nil
	}
	return Keys{}, &failure{cloudError: &contract.Error{Op: op, Kind: contract.ErrCredentials, Hint: hint}, certain: true}
}

func outsideToken(r rune) bool { return r <= ' ' || r > '~' }
