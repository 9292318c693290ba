package aws

import (
	"github.com/aws/aws-sdk-go-v2/aws"

	"example.org/usher/providers"
)

// maxPages ends a listing whose pages lead in a circle.
const maxPages = 1000

// lasting says whether a page's marker leads on.
func lasting(marker, last *string) bool {
	next := aws.ToString(marker)
	return next != "" && next != aws.ToString(last)
}

// circle is the error of a listing whose pages do not end.
func circle(op string) error {
	return &providers.Error{Op: op, Kind: providers.ErrUnavailable, Message: "its pages do not end"}
}
