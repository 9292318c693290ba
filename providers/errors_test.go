package providers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
)

func TestError(t *testing.T) {
	t.Parallel()
	whole := &Error{
		Op: "CompleteLifecycleAction", Kind: ErrThrottled, Status: 400, Code: "Throttling.User", Message: "slow down",
		RequestID: "R-1", Hint: "wait", Untouched: true, Cause: fmt.Errorf("read: %w", io.ErrUnexpectedEOF),
	}
	for want, e := range map[string]*Error{
		"CompleteLifecycleAction: throttled: Throttling.User: slow down (HTTP 400) [request R-1]: read: unexpected EOF; wait": whole,
		"RunCommand: unavailable": {Op: "RunCommand", Kind: ErrUnavailable},
	} {
		if got := e.Error(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	wrapped := fmt.Errorf("complete: %w", whole)
	if !errors.Is(wrapped, ErrThrottled) || !errors.Is(wrapped, io.ErrUnexpectedEOF) || errors.Is(wrapped, ErrUnavailable) {
		t.Error("the kind and the cause, and nothing else, must match")
	}
	if RequestID(wrapped) != "R-1" || !Untouched(wrapped) {
		t.Errorf("request %q, untouched %v", RequestID(wrapped), Untouched(wrapped))
	}
	for _, err := range []error{nil, context.Canceled, &Error{Kind: ErrDenied}} {
		if RequestID(err) != "" || Untouched(err) {
			t.Errorf("%v has request %q, untouched %v", err, RequestID(err), Untouched(err))
		}
	}
	if errors.Is(&Error{Kind: ErrDenied}, io.EOF) || !errors.Is(&Error{Kind: ErrDenied}, ErrDenied) {
		t.Error("without a cause the kind alone must match")
	}
}
