package alibaba

import (
	"context"
	"log/slog"
	"time"

	"example.org/usher/providers/internal/renewal"
)

// fetched is what a source of keys gave.
type fetched = renewal.Fetched[Keys]

// renewing is Credentials of one source, renewed before they end.
type renewing struct{ renewals *renewal.Renewing[Keys] }

func newRenewing(what string, logger *slog.Logger, fetch func(context.Context) (fetched, error)) *renewing {
	return &renewing{renewal.New(what, logger, fetch)}
}

// close ends a renewal that runs, and waits for it.
func (r *renewing) close() { r.renewals.Close() }

// Credentials gives the keys, renewing them under way when they are due.
func (r *renewing) Credentials(ctx context.Context) (Keys, error) { return r.renewals.Get(ctx) }

func (r *renewing) renew(ctx context.Context, refused Keys) (bool, error) {
	return r.renewals.Renew(ctx, refused)
}

// onOurClock moves an end that the cloud tells onto our clock: it counts from the cloud's
// Date, which is cut to whole seconds, and from when the request was sent. Without a Date
// the clocks are taken to agree.
func onOurClock(expires, date, sent time.Time) time.Time {
	if date.IsZero() {
		return expires
	}
	return sent.Add(max(expires.Sub(date), 0) - time.Second)
}
