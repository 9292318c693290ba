package simulator

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// awsWindow is how far a request's time may be off.
const awsWindow = 5 * time.Minute

const (
	awsAlgorithm = "AWS4-HMAC-SHA256"
	awsTime      = "20060102T150405Z"
)

// awsSignature is an Authorization header of Signature Version 4, taken apart.
type awsSignature struct {
	key, day, region, service, end string
	headers                        []string // signed, small letters, as listed
	signature                      string
}

// parseAuthorization reads "AWS4-HMAC-SHA256 Credential=..., SignedHeaders=..., Signature=...".
func parseAuthorization(text string) (awsSignature, bool) {
	var a awsSignature
	rest, ok := strings.CutPrefix(text, awsAlgorithm+" ")
	if !ok {
		return a, false
	}
	parts := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		if _, twice := parts[name]; !ok || twice || value == "" {
			return a, false
		}
		parts[name] = value
	}
	scope := strings.Split(parts["Credential"], "/")
	if len(parts) != 3 || len(scope) != 5 || parts["SignedHeaders"] == "" || parts["Signature"] == "" {
		return a, false
	}
	return awsSignature{
		key: scope[0], day: scope[1], region: scope[2], service: scope[3], end: scope[4],
		headers: strings.Split(parts["SignedHeaders"], ";"), signature: parts["Signature"],
	}, true
}

// checkAWS verifies who sent the call: key, token, time, scope and signature.
func (s *Simulator) checkAWS(c *awsCall) *awsError {
	if c.name == "sts" && c.action == "AssumeRoleWithWebIdentity" {
		return nil // it is not signed
	}
	header := c.r.Header.Get("Authorization")
	if header == "" {
		return c.unsigned()
	}
	a, ok := parseAuthorization(header)
	date, err := time.Parse(awsTime, c.r.Header.Get("X-Amz-Date"))
	switch {
	case !ok:
		return c.incomplete("Authorization header requires 'Credential' parameter. Authorization header requires 'Signature' parameter. Authorization header requires 'SignedHeaders' parameter.")
	case c.r.Header.Get("X-Amz-Date") == "":
		return c.incomplete("Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.")
	case err != nil:
		return c.incomplete("Date must be in ISO-8601 'basic format'. Got '" + c.r.Header.Get("X-Amz-Date") + "'.")
	}
	for _, name := range mustSign(c.r) {
		if !slices.Contains(a.headers, name) {
			return c.mismatch("'" + http.CanonicalHeaderKey(name) + "' must be a 'SignedHeader' in the AWS Authorization.")
		}
	}
	keys := s.accessKey(a.key)
	token := c.r.Header.Get("X-Amz-Security-Token")
	switch {
	case keys == nil || token != keys.token:
		return c.unknownKey()
	case keys.over():
		return c.expired()
	}
	if bad := s.checkScope(c, a, date); bad != nil {
		return bad
	}
	if want := signAWS(keys.secret, a, c.r, c.body); !hmac.Equal([]byte(want), []byte(a.signature)) {
		return c.mismatch("The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")
	}
	c.keys = keys
	return nil
}

// mustSign lists the headers that a signature has to cover: the host and all of AWS's own.
func mustSign(r *http.Request) []string {
	names := []string{"host"}
	for name := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-amz-") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// checkScope refuses a signature for another service, region, day or hour.
func (s *Simulator) checkScope(c *awsCall, a awsSignature, date time.Time) *awsError {
	text := date.Format(awsTime)
	switch {
	case a.region != s.scenario.Region:
		return c.mismatch("Credential should be scoped to a valid region, not '" + a.region + "'. ")
	case a.service != c.service.signing:
		return c.mismatch("Credential should be scoped to correct service: '" + c.service.signing + "'. ")
	case a.end != "aws4_request":
		return c.mismatch("Credential should be scoped with a valid terminator: 'aws4_request', not '" + a.end + "'.")
	case a.day != text[:8]:
		return c.mismatch("Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '" + a.day + "' != '" + text[:8] + "', from '" + text + "'.")
	}
	now := s.cloudTime(time.Now()).UTC()
	if early, late := now.Add(-awsWindow), now.Add(awsWindow); date.Before(early) {
		return c.tooOld("Signature expired: " + text + " is now earlier than " + early.Format(awsTime) + " (" + now.Format(awsTime) + " - 5 min.)")
	} else if date.After(late) {
		return c.tooOld("Signature not yet current: " + text + " is still later than " + late.Format(awsTime) + " (" + now.Format(awsTime) + " + 5 min.)")
	}
	return nil
}

// signAWS computes the signature that a request must have.
func signAWS(secret string, a awsSignature, r *http.Request, body []byte) string {
	scope := strings.Join([]string{a.day, a.region, a.service, a.end}, "/")
	digest := sha256.Sum256([]byte(canonicalRequest(a, r, body)))
	text := strings.Join([]string{awsAlgorithm, r.Header.Get("X-Amz-Date"), scope, hex.EncodeToString(digest[:])}, "\n")
	key := []byte("AWS4" + secret)
	for _, part := range []string{a.day, a.region, a.service, a.end, text} {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(part))
		key = mac.Sum(nil)
	}
	return hex.EncodeToString(key)
}

// canonicalRequest is what the digest in the text to sign is of. The body's own digest is
// always computed: none of these services takes an unsigned one.
func canonicalRequest(a awsSignature, r *http.Request, body []byte) string {
	var b strings.Builder
	b.WriteString(r.Method + "\n" + canonicalPath(r.URL) + "\n" + canonicalQuery(r.URL) + "\n")
	for _, name := range a.headers {
		values := r.Header.Values(name)
		switch name {
		case "host":
			values = []string{r.Host}
		case "content-length":
			values = []string{strconv.FormatInt(r.ContentLength, 10)}
		}
		trimmed := make([]string, len(values))
		for i, v := range values {
			trimmed[i] = strings.Join(strings.Fields(v), " ")
		}
		b.WriteString(name + ":" + strings.Join(trimmed, ",") + "\n")
	}
	digest := sha256.Sum256(body)
	b.WriteString("\n" + strings.Join(a.headers, ";") + "\n" + hex.EncodeToString(digest[:]))
	return b.String()
}

// canonicalPath is the path as it was sent, escaped once more.
func canonicalPath(u *url.URL) string {
	var b strings.Builder
	for i, part := range strings.Split(u.EscapedPath(), "/") {
		if i > 0 {
			b.WriteByte('/')
		}
		b.WriteString(percentEncode(part))
	}
	if b.Len() == 0 {
		return "/"
	}
	return b.String()
}

func canonicalQuery(u *url.URL) string {
	var pairs []string
	for name, values := range u.Query() {
		for _, v := range values {
			pairs = append(pairs, percentEncode(name)+"="+percentEncode(v))
		}
	}
	slices.Sort(pairs)
	return strings.Join(pairs, "&")
}
