package configs

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The functions here read one value from its text, whether that came from a file or
// from the environment. Their errors say what is allowed.

func parseCount(text string, low, high int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("want a whole number from %d to %d, got %s", low, high, clip(text))
	}
	return n, nil
}

func parseDuration(text string, low, high time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("want a duration such as 30s, 5m or 1h30m, got %s", clip(text))
	}
	if d < low {
		return 0, fmt.Errorf("at least %s, got %s", show(low), show(d))
	}
	if d > high {
		return 0, fmt.Errorf("at most %s, got %s", show(high), show(d))
	}
	return d, nil
}

func parseChoice(text string, allowed ...string) (string, error) {
	if slices.Contains(allowed, text) {
		return text, nil
	}
	if text == "" {
		return "", fmt.Errorf("is required (allowed: %s)", strings.Join(allowed, ", "))
	}
	return "", fmt.Errorf("got %s%s (allowed: %s)", clip(text), suggest(text, allowed), strings.Join(allowed, ", "))
}

// parseEndpoint reads the address of a service: scheme and host, nothing else. A
// slash at the end is dropped, so that two ways to write one address are equal.
func parseEndpoint(text string) (string, error) {
	u, err := parseURL(text)
	if err != nil {
		return "", err
	}
	if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" || u.ForceQuery {
		return "", fmt.Errorf("want only scheme and host, such as https://%s, got %s", u.Host, clip(text))
	}
	return u.Scheme + "://" + strings.ToLower(u.Host), nil
}

// parseURL reads an absolute http or https URL. Credentials have no place in one:
// they would end in logs.
func parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" {
		return nil, fmt.Errorf("want a URL that begins with http:// or https://, got %s", clip(text))
	}
	if u.User != nil {
		return nil, fmt.Errorf("want a URL without user name and password")
	}
	if port := u.Port(); port != "" {
		if _, err := parseCount(port, 1, 65535); err != nil {
			return nil, fmt.Errorf("port: %w", err)
		}
	}
	return u, nil
}

// show writes a duration without the zero parts that Duration.String adds.
func show(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
