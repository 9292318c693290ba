package simulator

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// parseMNSV4 takes apart "Credential={ak}/{scope},Signature={hex}".
func parseMNSV4(text string) (id, scope, signature string, ok bool) {
	credential, signature, ok := strings.Cut(text, ",Signature=")
	credential, isCredential := strings.CutPrefix(credential, "Credential=")
	id, scope, hasScope := strings.Cut(credential, "/")
	parts := strings.Split(scope, "/")
	ok = ok && isCredential && hasScope && len(parts) == 4 && parts[2] == "mns" && parts[3] == "aliyun_v4_request"
	return id, scope, signature, ok
}

// signMNSV4 computes a signature of version 4: HMAC-SHA256 over a canonical
// request, with a key derived for the day and the region that scope names.
func signMNSV4(secret, scope, method, target string, sent time.Time, h http.Header) string {
	path, query, _ := strings.Cut(target, "?")
	canonical := method + "\n" + path + "\n" + canonicalQueryV4(query) + "\n" + canonicalHeadersV4(h) + "\n"
	text := "MNS4-HMAC-SHA256\n" + sent.UTC().Format("20060102T150405Z") + "\n" + scope + "\n" + canonical
	key := []byte("aliyun_v4" + secret)
	for part := range strings.SplitSeq(scope, "/") {
		key = hmacSHA256(key, part)
	}
	return hex.EncodeToString(hmacSHA256(key, text))
}

func hmacSHA256(key []byte, text string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return mac.Sum(nil)
}

// canonicalQueryV4 sorts the items by their names in lower case.
func canonicalQueryV4(raw string) string {
	items := map[string]string{}
	for item := range strings.SplitSeq(raw, "&") {
		if item == "" {
			continue
		}
		name, value, _ := strings.Cut(item, "=")
		name, _ = url.PathUnescape(name)
		value, _ = url.PathUnescape(value)
		name = percentEncode(strings.ToLower(name))
		items[name] = name
		if value != "" {
			items[name] = name + "=" + percentEncode(value)
		}
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(items)) {
		out = append(out, items[name])
	}
	return strings.Join(out, "&")
}

func canonicalHeadersV4(h http.Header) string {
	lines := map[string]string{}
	for name, values := range h {
		name = strings.ToLower(name)
		if name == "content-type" || name == "content-md5" || strings.HasPrefix(name, "x-mns-") {
			lines[name] = strings.TrimSpace(strings.Join(values, ","))
		}
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(lines)) {
		b.WriteString(name + ":" + lines[name] + "\n")
	}
	return b.String()
}
