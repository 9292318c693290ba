package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"example.org/usher/messages"
)

func decodeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "decode [FILE]",
		Short: "Show what usher makes of a message body, or why it refuses it",
		Long: `decode reads a message body from FILE or standard input: the JSON of ESS, of EC2 Auto Scaling
or of either cloud's EventBridge, as it is, in Base64, or in a topic's envelope. It says what was around
the message and what the message is. It exits with 0 for the notification of a lifecycle hook, for an event about instances,
and for another well-formed message, which the worker would delete, and with 1 for one that the worker would refuse.

The worker knows the cloud by the queue. Without --provider, decode guesses it by the looks of the message.`,
		Example: `  usher decode message.json
  pbpaste | usher decode --provider aws --output json`,
		Args: cobra.MaximumNArgs(1),
	}
	format := output(cmd)
	provider := cmd.Flags().String("provider", "", "the cloud that the message is of, alibaba or aws (default: by its looks)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		from := messages.Cloud(*provider)
		if from != "" && from != messages.Alibaba && from != messages.AWS {
			return usageError{fmt.Errorf("--provider: alibaba or aws, got %q", *provider)}
		}
		in := cmd.InOrStdin()
		if len(args) == 1 && args[0] != "-" {
			f, err := os.Open(args[0])
			if err != nil {
				return usageError{err}
			}
			defer f.Close()
			in = f
		}
		body, err := io.ReadAll(io.LimitReader(in, messages.MaxBody+1))
		if err != nil {
			return fmt.Errorf("read the message: %w", err)
		}
		if len(body) > messages.MaxBody {
			return fmt.Errorf("the message is longer than %d bytes, no queue carries that", messages.MaxBody)
		}
		return decode(cmd.OutOrStdout(), *format, cmp.Or(from, messages.GuessCloud(body)), body)
	}
	return cmd
}

// decoded is decode's JSON output.
type decoded struct {
	Kind         string                 `json:"kind"` // lifecycle, event, other or malformed
	Provider     messages.Cloud         `json:"provider"`
	Other        string                 `json:"other,omitempty"`
	Error        string                 `json:"error,omitempty"`
	Layers       []messages.Layer       `json:"layers,omitempty"` // outermost first
	Notification *messages.Notification `json:"notification,omitempty"`
}

func decode(out io.Writer, format string, from messages.Cloud, body []byte) error {
	d := decoded{Kind: "lifecycle", Provider: from, Layers: messages.Layers(body, from)}
	n, err := messages.Decode(body, from)
	if other, ok := errors.AsType[*messages.OtherError](err); ok {
		d.Kind, d.Other = "other", other.Kind
	} else if err != nil {
		d.Kind, d.Error = "malformed", err.Error()
	} else if d.Notification = &n; n.Event != "" {
		d.Kind = "event"
	}
	if format == "json" {
		text, err := json.MarshalIndent(d, "", "  ")
		if err != nil {
			return fmt.Errorf("write the notification: %w", err)
		}
		if _, err := fmt.Fprintln(out, escaped(string(text))); err != nil {
			return err
		}
	} else {
		describe(out, d)
	}
	if d.Kind == "malformed" {
		return errReported
	}
	return nil
}

func describe(out io.Writer, d decoded) {
	for _, l := range d.Layers {
		fmt.Fprintln(out, "in "+printable(layer(l)))
	}
	switch d.Kind {
	case "other":
		fmt.Fprintf(out, "no lifecycle notification, the worker would delete it: %s\n", printable(d.Other))
		return
	case "malformed":
		fmt.Fprintf(out, "refused, the worker would leave it in the queue: %s\n", printable(d.Error))
		return
	}
	n := d.Notification
	ids := make([]string, len(n.Instances))
	for i, id := range n.Instances {
		ids[i] = string(id)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	defer w.Flush()
	clock := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.Format(time.RFC3339Nano)
	}
	what := [2]string{"lifecycle notification", string(n.Transition)}
	if d.Kind == "event" {
		what = [2]string{"event", string(n.Event)}
	}
	for _, row := range [][2]string{
		what,
		{"scaling group", join(string(n.Group), n.GroupName)},
		{"region", cmp.Or(n.Region, "the queue's: the message does not say")},
		{"hook", join(string(n.Hook), n.HookName)},
		{"token", string(n.Token)},
		{"activity", string(n.Activity)},
		{"instances", strings.Join(ids, " ")},
		{"default result", string(n.DefaultResult)},
		{"origin", n.Origin},
		{"destination", n.Destination},
		{"time", clock(n.Time)},
		{"due", clock(n.Due)},
		{"account", n.AccountID},
		{"metadata", n.Metadata},
	} {
		if row[1] != "" {
			fmt.Fprintf(w, "%s\t%s\n", row[0], printable(row[1]))
		}
	}
}

// layer says in words what was around a message.
func layer(l messages.Layer) string {
	about := func(text string, facts ...string) string {
		for i := 0; i+1 < len(facts); i += 2 {
			if facts[i+1] != "" {
				text += ", " + facts[i] + " " + facts[i+1]
			}
		}
		if !l.Published.IsZero() {
			text += ", published " + l.Published.Format(time.RFC3339Nano)
		}
		return text
	}
	switch l.Form {
	case messages.TopicXML:
		return about("an XML envelope of topic "+l.Topic, "subscription", l.Subscription, "message", l.ID, "tag", l.Tag)
	case messages.TopicJSON:
		return about("a JSON envelope of topic "+l.Topic, "subscription", l.Subscription, "message", l.ID, "tag", l.Tag)
	case messages.EventBridge:
		return about("an event of EventBridge, type "+l.Type, "bus", l.Bus, "id", l.ID)
	case messages.SNS:
		return about("an SNS envelope of topic "+l.Topic, "message", l.ID)
	case messages.KeyValue:
		return "lines of Key: value"
	}
	return "Base64"
}

func join(id, name string) string {
	if name == "" || name == id {
		return id
	}
	return id + " (" + name + ")"
}

// upsets says that r could move a terminal's cursor, set its title or turn the text
// around it (the marks of direction of Unicode's bidirectional algorithm).
func upsets(r rune) bool {
	return r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069
}

// printable takes out what could upset a terminal; letters of any script stay.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if upsets(r) {
			return '\uFFFD'
		}
		return r
	}, s)
}

// escaped does the same for JSON, where nothing is lost by it: the package escapes
// only what JSON asks for.
func escaped(s string) string {
	var b strings.Builder
	for _, r := range s {
		if upsets(r) && r != '\n' {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}
