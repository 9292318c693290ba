package configs

import (
	"net/url"
	"path"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// What NotifyStep.Format can be.
const (
	NotifyJSON     = "json"
	NotifyDingTalk = "dingtalk"
	NotifyFeishu   = "feishu"
	NotifySlack    = "slack"
)

// DefaultNotifyText is the text of a notification that has none.
const DefaultNotifyText = "usher: {{.Transition}} of {{.InstanceID}} in {{.ScalingGroup}} ({{.Region}})"

const (
	// notifyTime is what a notify step counts for: it hands over, and waits for nobody.
	notifyTime = time.Second
	// maxNotifyText is what every kind of webhook takes, with room for the facts, in bytes.
	maxNotifyText = 4 << 10
)

// NotifyStep sends a text to a webhook beside the job. It can't fail it.
type NotifyStep struct {
	// Format is whose webhook it is.
	Format string
	// URL is the webhook with its token. One of URL and URLFile is set.
	URL Secret
	// URLFile holds it.
	URLFile string
	// SecretFile holds the key for signatures, with NotifyDingTalk and NotifyFeishu; empty: none.
	SecretFile string
	// Text is a template; see placeholders.Names.
	Text string
}

// Secret is a text that must not be shown.
type Secret string

// String hides the text.
func (Secret) String() string { return "***" }

// GoString hides it from %#v.
func (Secret) GoString() string { return "***" }

func (f *file) notifyStep(s *Step, n *yaml.Node, at string) {
	if n.Kind != yaml.MappingNode {
		s.Notify = &NotifyStep{}
		f.problem(n, at, "want keys and values (format, url, url_file, secret_file, text, when); what it is instead is not shown, it may hold a token")
		return
	}
	m := f.fields(n, at, "format", "url", "url_file", "secret_file", "text", "when")
	s.Timeout, s.OnError, s.When = notifyTime, OnErrorIgnore, m.when()
	notify := &NotifyStep{URLFile: m.secretFile("url_file"), SecretFile: m.secretFile("secret_file")}
	s.Notify = notify
	formats := []string{NotifyJSON, NotifyDingTalk, NotifyFeishu, NotifySlack}
	if m.need("format", "whose webhook it is: "+strings.Join(formats, ", ")) {
		notify.Format = m.choice("format", "", formats...)
	}
	switch {
	case m.keys["url"] == nil && m.keys["url_file"] == nil:
		m.need("url_file", "the absolute path of a file with the webhook's URL; or url, the URL itself")
	case m.keys["url"] != nil && m.keys["url_file"] != nil:
		m.refuse("url", "url and url_file exclude each other")
	case m.keys["url"] != nil:
		notify.URL = m.webhook()
	}
	if m.keys["secret_file"] != nil && (notify.Format == NotifyJSON || notify.Format == NotifySlack) {
		m.refuse("secret_file", "only %s and %s are signed", NotifyDingTalk, NotifyFeishu)
	}
	notify.Text = DefaultNotifyText
	if m.keys["text"] != nil {
		text, _, ok := m.template("text")
		if notify.Text = text; ok && (strings.TrimSpace(text) == "" || len(text) > maxNotifyText) {
			m.refuse("text", "want a text of 1 to %d bytes", maxNotifyText)
		}
	}
}

// secretFile reads where a secret stands. What is no path may be the secret itself.
func (m fields) secretFile(key string) string {
	text, ok := m.text(key, "")
	if ok && m.keys[key] != nil && (!path.IsAbs(text) || strings.ContainsRune(text, 0)) {
		m.refuse(key, "want the absolute path of a file; what it is instead is not shown, it may be a secret")
		return ""
	}
	return text
}

// webhook reads a URL that holds a token. No problem quotes it.
func (m fields) webhook() Secret {
	n := m.values["url"]
	u, err := url.Parse(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		m.refuse("url", "want a URL that begins with https:// (or http://), without user name and password; what it is instead is not shown, it may hold a token")
		return ""
	}
	return Secret(n.Value)
}
