package configs

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

// TestHTTPPresets: what a preset stands for, and that a file may say otherwise.
func TestHTTPPresets(t *testing.T) {
	t.Parallel()
	const at = "http://{{.PrivateIP}}/"
	tests := []struct {
		step    string
		timeout time.Duration
		want    HTTPStep
	}{
		{`{preset: down, url: "%", verify_url: "%"}`, 30 * time.Second, HTTPStep{
			Preset: PresetDown, Method: "PUT", URL: at, VerifyURL: at, VerifyExpect: []int{503}, Every: time.Second, ClearChecks: 3}},
		{`{preset: up, url: "%", verify_url: "%", tries: 60, clear_checks: 5}`, 30 * time.Second, HTTPStep{
			Preset: PresetUp, Method: "PUT", URL: at, VerifyURL: at, VerifyExpect: []int{200}, Every: time.Second, ClearChecks: 5, Tries: 60}},
		{`{preset: ask_close, url: "%"}`, 30 * time.Second, HTTPStep{Preset: PresetAskClose, Method: "PUT", URL: at, ClearChecks: 1}},
		{`{preset: ask_close, url: "%", every: 2s, verify_url: "%"}`, 30 * time.Second, HTTPStep{
			Preset: PresetAskClose, Method: "PUT", URL: at, VerifyURL: at, Every: 2 * time.Second, ClearChecks: 3}},
		{`{preset: in_flight, url: "%", field: measurements.0.value, at_most: 1}`, 10 * time.Minute, HTTPStep{
			Preset: PresetInFlight, Method: "GET", URL: at, Field: "measurements.0.value", AtMost: 1, Every: time.Second, ClearChecks: 3}},
		{`{url: "%", verify_url: "%", gap: 10s, call_timeout: 2s}`, 30 * time.Second, HTTPStep{
			Method: "GET", URL: at, Expect: []int{200}, VerifyURL: at, VerifyExpect: []int{200}, Every: time.Second, ClearChecks: 1, Gap: 10 * time.Second, CallTimeout: 2 * time.Second}},
		{`{preset: down, method: POST, repeatable: true, url: "%", expect: [202], verify_url: "%", verify_expect: [404, 503], timeout: 1m, on_refused: done}`, time.Minute, HTTPStep{
			Preset: PresetDown, Method: "POST", URL: at, Expect: []int{202}, VerifyURL: at, VerifyExpect: []int{404, 503}, Every: time.Second, ClearChecks: 3, OnRefused: OnRefusedDone}},
		{`{url: "HTTPS://{{.PrivateIP}}/", token_file: /t, cert_file: /c, key_file: /k, ca_file: /a, server_name: "{{.InstanceID}}.internal"}`, 30 * time.Second, HTTPStep{
			Method: "GET", URL: "HTTPS://{{.PrivateIP}}/", Expect: []int{200}, ClearChecks: 1, TokenFile: "/t", CertFile: "/c", KeyFile: "/k", CAFile: "/a", ServerName: "{{.InstanceID}}.internal"}},
	}
	for _, tt := range tests {
		steps := "steps:\n      - http: " + strings.ReplaceAll(tt.step, "%", at)
		got := load(t, nil, "web.yaml", strings.ReplaceAll(goodGroup, "steps: []", steps)).Groups[0].Hooks[0].Steps[0]
		if tt.want.OnRefused == "" {
			tt.want.OnRefused = OnRefusedFail
		}
		if !reflect.DeepEqual(*got.HTTP, tt.want) || got.Timeout != tt.timeout {
			t.Errorf("%s\n got %+v, timeout %v\nwant %+v, timeout %v", tt.step, *got.HTTP, got.Timeout, tt.want, tt.timeout)
		}
	}
}
