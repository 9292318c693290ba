package host

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// passiveOpens is the counter of all connections that the network namespace has accepted.
type passiveOpens struct{}

// Count reads it.
func (passiveOpens) Count() (uint64, error) {
	text, err := os.ReadFile("/proc/thread-self/net/snmp")
	if err != nil {
		return 0, err
	}
	return parsePassiveOpens(string(text))
}

// Close does nothing.
func (passiveOpens) Close() error { return nil }

// parsePassiveOpens finds the number in two lines, one of names and one of values.
func parsePassiveOpens(text string) (uint64, error) {
	column := -1
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "Tcp:" {
			continue
		}
		if column >= 0 && column < len(fields) {
			n, err := strconv.ParseUint(fields[column], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read PassiveOpens: %w", err)
			}
			return n, nil
		}
		for i, name := range fields {
			if name == "PassiveOpens" {
				column = i
			}
		}
	}
	return 0, errors.New("the host does not tell PassiveOpens")
}
