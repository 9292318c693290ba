package steps

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// What is read of a file, at most: far more than tokens and certificates have, and than a
// system's roots.
const (
	tokenRead = 16 << 10
	pemRead   = 4 << 20
)

// Unreadable says which of the step's files can't be used as they are now, or nil. A run
// begins with the same look, so that a file may come, and change, at any time.
func (h HTTP) Unreadable() error {
	_, tokenErr := h.token()
	_, tlsErr := h.tlsConfig(sample)
	return errors.Join(tokenErr, tlsErr)
}

// token reads the token's file. No error has anything of what is in it.
func (h HTTP) token() (string, error) {
	if h.TokenFile == "" {
		return "", nil
	}
	data, err := readFile("token_file", h.TokenFile, tokenRead)
	if err != nil {
		return "", err
	}
	token := strings.TrimRight(string(data), "\r\n")
	if token == "" {
		return "", fmt.Errorf("token_file %s: is empty", h.TokenFile)
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf(`token_file %s: want the token alone, without "Bearer": one line of letters, digits and signs, no spaces`, h.TokenFile)
	}
	return token, nil
}

// tlsConfig reads the files that TLS needs; nil: the default settings. No error has
// anything of what is in them.
func (h HTTP) tlsConfig(f facts) (*tls.Config, error) {
	if h.ServerName == "" && h.CertFile == "" && h.CAFile == "" {
		return h.TLS.Clone(), nil
	}
	conf := h.TLS.Clone()
	if conf == nil {
		conf = &tls.Config{}
	}
	if h.ServerName != "" {
		name, err := render("server_name", h.ServerName, f)
		if err != nil {
			return nil, err
		}
		conf.ServerName = name
	}
	if h.CAFile != "" {
		data, err := readFile("ca_file", h.CAFile, pemRead)
		if err != nil {
			return nil, err
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("ca_file %s: there is no certificate in PEM in it", h.CAFile)
		}
	}
	if h.CertFile != "" {
		cert, err := h.certificate()
		if err != nil {
			return nil, err
		}
		// Sent even if the server's list of authorities lacks its issuer: then the server says
		// what it has against it, and not that there was none.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return conf, nil
}

func (h HTTP) certificate() (*tls.Certificate, error) {
	chain, err := readFile("cert_file", h.CertFile, pemRead)
	if err != nil {
		return nil, err
	}
	key, err := readFile("key_file", h.KeyFile, pemRead)
	if err != nil {
		return nil, err
	}
	if block := firstCertificate(chain); block == nil {
		return nil, fmt.Errorf("cert_file %s: there is no certificate in PEM in it", h.CertFile)
	} else if _, err := x509.ParseCertificate(block.Bytes); err != nil {
		return nil, fmt.Errorf("cert_file %s: its first certificate can't be parsed", h.CertFile)
	}
	cert, err := tls.X509KeyPair(chain, key)
	if err != nil {
		// The error's own text can have words of the file in it.
		return nil, fmt.Errorf("key_file %s: want the private key, in PEM and not encrypted, of the certificate in %s", h.KeyFile, h.CertFile)
	}
	return &cert, nil
}

func firstCertificate(data []byte) *pem.Block {
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil || block.Type == "CERTIFICATE" {
			return block
		}
	}
}

// readFile reads a file of at most so many bytes. What is no regular file, such as a pipe, could
// keep the step waiting.
func readFile(key, name string, most int64) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s %s: is no regular file", key, name)
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, most+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	if int64(len(data)) > most {
		return nil, fmt.Errorf("%s %s: is larger than %d KB", key, name, most>>10)
	}
	return data, nil
}
