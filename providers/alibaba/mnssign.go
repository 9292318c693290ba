package alibaba

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
)

// mnsVersion is the data plane's API version.
const mnsVersion = "2015-06-06"

// mnsSignature is signature V2 of MNS 2015-06-06 over a request as it goes on the
// wire: target is the path and query exactly as on the request line, neither sorted
// nor decoded. Headers that begin with x-mns- are signed, security-token is not.
func mnsSignature(secret, method, target string, header http.Header) string {
	var text strings.Builder
	for _, line := range []string{method, header.Get("Content-MD5"), header.Get("Content-Type"), header.Get("Date")} {
		text.WriteString(line)
		text.WriteByte('\n')
	}
	var own []string
	for name, values := range header {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, "x-mns-") && len(values) > 0 {
			own = append(own, lower+":"+strings.TrimSpace(values[0])+"\n")
		}
	}
	slices.Sort(own)
	for _, line := range own {
		text.WriteString(line)
	}
	text.WriteString(target)
	mac := hmac.New(sha1.New, []byte(secret))
	mac.Write([]byte(text.String()))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// mnsDigest is the Content-MD5 of a body, which makes the signature cover it: Base64 of
// the digest's hexadecimal text, as the vendor's own clients send it.
func mnsDigest(body *bytes.Reader) (string, error) {
	text := make([]byte, body.Len())
	if _, err := body.ReadAt(text, 0); err != nil && len(text) > 0 {
		return "", err
	}
	sum := md5.Sum(text)
	return base64.StdEncoding.EncodeToString([]byte(hex.EncodeToString(sum[:]))), nil
}
