package aws

import (
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
)

// MaxAttempts is the most often one call is sent. With the waits between (full
// jitter below 0.2, 0.4, 0.8 ... 10 s) all attempts take 8 s on average and 23 s at
// most, and the time that they run and wait for the rate limit.
const MaxAttempts = 8

const (
	backoffBase = 200 * time.Millisecond
	backoffCap  = 10 * time.Second
	// tokenPause is how often it is looked whether the rate limit lets another attempt pass.
	tokenPause = 50 * time.Millisecond
)

// newRetryer is the SDK's adaptive retryer: once a call was refused for its rate, all that
// share it are slowed to what the service grants. Its budget of retries is left out, since
// it ends the calls of a storm long before their time is over, and the layers above do not
// repeat them.
func newRetryer() aws.RetryerV2 {
	return retry.NewAdaptiveMode(func(o *retry.AdaptiveModeOptions) {
		o.FailOnNoAttemptTokens = true // the carrier waits
		o.StandardOptions = append(o.StandardOptions, func(s *retry.StandardOptions) {
			s.MaxAttempts = MaxAttempts
			s.RateLimiter = ratelimit.None
			s.Backoff = retry.BackoffDelayerFunc(func(attempt int, _ error) (time.Duration, error) {
				return rand.N(min(backoffBase<<min(max(attempt-1, 0), 10), backoffCap)), nil
			})
			s.Retryables = append([]retry.IsErrorRetryable{retry.IsErrorRetryableFunc(mistaken)}, s.Retryables...)
		})
	})
}

// mistaken tells failures that come from a mistake in a config and do not pass, though the
// SDK takes them for passing.
func mistaken(err error) aws.Ternary {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return aws.FalseTernary
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return aws.FalseTernary
	}
	return aws.UnknownTernary
}
