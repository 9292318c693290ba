package steps

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// judge says what is good about an answer, or why it is not good.
func (q *inquiry) judge(ctx context.Context, resp *http.Response, req *http.Request) (string, error) {
	if resp.StatusCode == http.StatusSwitchingProtocols {
		// The connection is ours now, and no context would end a read of it.
		return "", errors.New("status 101: the host switches protocols, which was not asked for")
	}
	body, broken := io.ReadAll(io.LimitReader(resp.Body, bodyRead))
	if !q.expected(resp.StatusCode) {
		// The status is known: a body that breaks off or is too long changes nothing.
		return "", fmt.Errorf("status %d, expected %s; body starts with %s",
			resp.StatusCode, q.expectation(), head(q.redact(string(body), req), bodyQuoted))
	}
	said := fmt.Sprintf("answered %d", resp.StatusCode)
	if q.closes {
		if !resp.Close {
			return "", fmt.Errorf("status %d without Connection: close", resp.StatusCode)
		}
		said += " and closes"
	}
	if !q.inFlight {
		return said, nil
	}
	// Here the body is the answer, and half of one may say something else.
	if broken != nil {
		return "", fmt.Errorf("status %d, but the body breaks off: %w", resp.StatusCode, q.transportError(ctx, broken, req))
	}
	if len(body) == bodyRead {
		return "", fmt.Errorf("status %d, but the body is longer than a count: %d KB and more", resp.StatusCode, bodyRead>>10)
	}
	n, err := count(body, q.field)
	if err != nil {
		return "", fmt.Errorf("status %d, but %s", resp.StatusCode, q.redact(err.Error(), req))
	}
	if n > int64(q.atMost) {
		return "", fmt.Errorf("%d in flight, at most %d wanted", n, q.atMost)
	}
	return fmt.Sprintf("%s, %d in flight", said, n), nil
}

func (q *inquiry) expected(status int) bool {
	if len(q.expect) == 0 {
		return status >= 200 && status <= 299
	}
	return slices.Contains(q.expect, status)
}

func (q *inquiry) expectation() string {
	if len(q.expect) == 0 {
		return "200 to 299"
	}
	return strings.Trim(fmt.Sprint(q.expect), "[]")
}

// count reads how many requests an application says it works on: a number, or JSON with
// one at field, whose parts are keys and, in lists, indices. An error says what was found.
func count(body []byte, field string) (int64, error) {
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	var at any
	if err := decoder.Decode(&at); err != nil {
		return 0, fmt.Errorf("the body is neither a number nor JSON, it starts with %s", head(string(body), bodyQuoted))
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("the body goes on behind its first value, it starts with %s", head(string(body), bodyQuoted))
	}
	path := "the body"
	if field != "" {
		for part := range strings.SplitSeq(field, ".") {
			next, ok := inside(at, part)
			if !ok {
				return 0, fmt.Errorf("%s has no %s: it is %s", path, part, found(at))
			}
			if at = next; path == "the body" {
				path = part
			} else {
				path += "." + part
			}
		}
	}
	number, ok := at.(json.Number)
	if !ok {
		return 0, fmt.Errorf("%s is no number: it is %s", path, found(at))
	}
	n, err := number.Float64()
	mantissa, _, _ := strings.Cut(strings.ToLower(number.String()), "e")
	tiny := n == 0 && strings.ContainsAny(mantissa, "123456789") // 1e-999, which is read as 0
	if err != nil || tiny || n < 0 || n != math.Trunc(n) || n > 1<<53 {
		return 0, fmt.Errorf("%s is no count of requests: it is %s", path, head(number.String(), bodyQuoted))
	}
	return int64(n), nil
}

// inside is what a JSON value has by a key or an index.
func inside(value any, part string) (any, bool) {
	switch v := value.(type) {
	case map[string]any:
		next, ok := v[part]
		return next, ok
	case []any:
		if i, err := strconv.Atoi(part); err == nil && i >= 0 && i < len(v) {
			return v[i], true
		}
	}
	return nil, false
}

// found says what a JSON value is.
func found(value any) string {
	switch v := value.(type) {
	case nil:
		return "null"
	case bool:
		return strconv.FormatBool(v)
	case string:
		return "the text " + head(v, bodyQuoted)
	case json.Number:
		return "the number " + head(v.String(), bodyQuoted)
	case []any:
		return fmt.Sprintf("a list of %d", len(v))
	case map[string]any:
		if len(v) == 0 {
			return "an object without keys"
		}
		return "an object with " + head(strings.Join(slices.Sorted(maps.Keys(v)), ", "), bodyQuoted)
	}
	return fmt.Sprintf("a %T", value)
}
