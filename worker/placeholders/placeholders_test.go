package placeholders

import (
	"errors"
	"strings"
	"testing"
	"text/template"
)

// values are what the fields are filled with here.
var values = func() map[string]string {
	m := map[string]string{}
	for _, name := range Names {
		m[name] = "<" + name + ">"
	}
	return m
}()

var errNoField = errors.New("no such field")

func value(name string) (string, error) {
	if v, ok := values[name]; ok {
		return v, nil
	}
	return "", errNoField
}

func TestFill(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                                 "",
		"plain { text } }}":                "plain { text } }}",
		"http://{{.PrivateIP}}:80/":        "http://<PrivateIP>:80/",
		"{{ .Token }}{{.Token}}":           "<Token><Token>",
		"a {{- .Region -}} b":              "a<Region>b",
		"x{{/* what a comment hides */}}y": "xy",
		"{{/* a */}}":                      "",
	} {
		parsed, err := Parse(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		for range 2 {
			if got, err := parsed.Fill(value); got != want || err != nil {
				t.Errorf("%q gives %q, %v", text, got, err)
			}
		}
	}
	parsed, err := Parse("a{{.Nothing}}b")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := parsed.Fill(value); got != "" || !errors.Is(err, errNoField) {
		t.Errorf("an unknown field gives %q, %v", got, err)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"{{.Token | print}}":                 "{{.Token | print}}",
		"{{print 1}}":                        "{{print 1}}",
		"{{.}}":                              "{{.}}",
		"{{.Token.Secret}}":                  "{{.Token.Secret}}",
		"{{$}}":                              "{{$}}",
		"{{$x := .Token}}":                   "{{$x := .Token}}",
		"{{(.Token)}}":                       "{{(.Token)}}",
		"{{.Token 1}}":                       "{{.Token 1}}",
		`{{"text"}}`:                         `{{"text"}}`,
		"{{if .Token}}x{{end}}":              "{{if .Token}}x{{end}}",
		"{{range 9}}x{{end}}":                "{{range 9}}x{{end}}",
		"{{with .Token}}x{{end}}":            "{{with .Token}}x{{end}}",
		`{{template "x"}}`:                   `{{template "x"}}`,
		`{{block "x" .}}{{end}}`:             "{{define}}",
		`{{define "x"}}{{end}}`:              "{{define}}",
		`{{define "text"}}{{.Token}}{{end}}`: "{{define}}",
	} {
		_, err := Parse(text)
		if program, ok := errors.AsType[*ProgramError](err); !ok || program.Got != want || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%q: %v, want it refused for %q", text, err, want)
		}
	}
	for text, want := range map[string]string{
		"{{.Token":     "1: unclosed action",
		"a\n{{.Token/": "2: bad character",
		"{{end}}":      "1: unexpected {{end}}",
		"{{break}}":    "1: {{break}} outside {{range}}",
		"{{}}":         "1: missing value",
	} {
		_, err := Parse(text)
		if err == nil || !strings.HasPrefix(err.Error(), want) || errors.As(err, new(*ProgramError)) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// FuzzText: what is accepted means what it means to text/template, and is no longer than its fields
// make it.
func FuzzText(f *testing.F) {
	for _, text := range []string{
		"http://{{.PrivateIP}}:8080/{{.Token}}?a={{.Region}}", "a {{- .Hook -}} \n b", "{{/* x */}}{{.Activity}}", "{{.Nothing}}", `{{define "x"}}{{.Token}}{{end}}`,
		"{{if .Token}}x{{end}}", "{{.Token | printf \"%9d\"}}", "{{'\xcf", "{{.Token}}}}{{", "{{range 5}}{{.}}{{end}}", "{{.Token.Token}}",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		parsed, err := Parse(text)
		if err != nil {
			return
		}
		theirs, err := template.New("").Option("missingkey=error").Parse(text)
		if err != nil {
			t.Fatalf("%q is accepted, and text/template says %v", text, err)
		}
		var want strings.Builder
		theirErr := theirs.Execute(&want, values)
		got, err := parsed.Fill(value)
		if (err == nil) != (theirErr == nil) || err == nil && got != want.String() {
			t.Fatalf("%q gives %q, %v; text/template gives %q, %v", text, got, err, want.String(), theirErr)
		}
		if fields := strings.Count(text, "{{"); len(got) > len(text)+fields*len("<ScalingGroup>") {
			t.Fatalf("%d bytes became %d", len(text), len(got))
		}
	})
}
