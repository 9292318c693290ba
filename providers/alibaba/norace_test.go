//go:build !race

package alibaba

import "testing"

func hours(*testing.T) {}
