package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"reflect"
	"testing"
)

// FuzzRecord: whatever a record holds, it is written as one line, and reading that gives
// the record again.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"event":"quarantined","schema":1,"worker":"w","body":"\u2028\u0000 <&> é","body_base64":"AAH/","instances":["i-1"],"receive_count":5}`))
	f.Add([]byte(`{"event":"received","time":"2026-01-01T00:00:00.123456789+08:00","duration_ms":-1,"error":"a\nb","reason":"\ud800"}`))
	f.Add([]byte(`{"time":"9999-12-31T23:59:59Z","token":null,"instances":[]}`))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var rec Record
		if json.Unmarshal(data, &rec) != nil {
			return
		}
		var out bytes.Buffer
		if err := New(&out, "w", nil).Write(context.Background(), rec); err != nil {
			t.Fatal(err)
		}
		line := out.Bytes()
		if bytes.Count(line, []byte("\n")) != 1 || line[len(line)-1] != '\n' {
			t.Fatalf("not one line: %q", line)
		}
		var again Record
		dec := json.NewDecoder(bytes.NewReader(line))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&again); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if again.Schema != Schema || again.Worker != "w" || again.Time.IsZero() {
			t.Fatalf("%+v", again)
		}
		rec.Time, rec.Schema, rec.Worker = again.Time, Schema, "w"
		if len(rec.Instances) == 0 {
			rec.Instances = nil
		}
		if len(rec.BodyBase64) == 0 {
			rec.BodyBase64 = nil
		}
		if !reflect.DeepEqual(rec, again) {
			t.Fatalf("%+v became %+v", rec, again)
		}
	})
}
