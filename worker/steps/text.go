package steps

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// head quotes the first n bytes of s, with control characters escaped: what a host
// sends must not be able to write lines of its own into a log.
func head(s string, n int) string {
	s = strings.TrimSpace(s)
	if len(s) <= n {
		return strconv.Quote(s)
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return strconv.Quote(s[:n]) + "..."
}

// tail quotes the last n bytes of s in the same way.
func tail(s string, n int) string {
	s = strings.TrimSpace(s)
	if len(s) <= n {
		return strconv.Quote(s)
	}
	i := len(s) - n
	for i < len(s) && !utf8.RuneStart(s[i]) {
		i++
	}
	return "..." + strconv.Quote(s[i:])
}
