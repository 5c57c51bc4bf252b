package webhook

var (
	Code      = code
	CodeBlock = codeBlock
	SlackLink = slackLink
	SpanOf    = spanOf
)
