package main

import (
	"testing"
	"time"
)

func TestCallState(t *testing.T) {
	until := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		alert string
		until *time.Time
		want  string
	}{
		{"executable", nil, "active"},
		{"temporarily_disabled", &until, "paused until 2030-01-01T12:00:00Z after failures"},
		{"disabled", nil, "disabled"},
	} {
		if got := callState(tc.alert, tc.until); got != tc.want {
			t.Errorf("got %q, want %q", got, tc.want)
		}
	}
}
