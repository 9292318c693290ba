//go:build !linux

package steps

import (
	"context"
	"errors"
)

const execWorks = false

func runProgram(context.Context, program) (programEnd, error) {
	return programEnd{}, errors.New("needs Linux")
}
