package aws

import "github.com/aws/aws-sdk-go-v2/aws"

// Credentials gives the keys that sign requests, for callers that do not know the SDK.
type Credentials = aws.CredentialsProvider
