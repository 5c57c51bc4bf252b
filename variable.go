package tidelock

type VariableID int64

// A VariableKind says how a job gets a variable.
type VariableKind string

const (
	EnvironmentVariable VariableKind = "env_var"
	FileVariable        VariableKind = "file" // the value is in a file, and the variable names it
)

// A Variable is given to the jobs of a project, or of all projects in a group.
// Its holder may have others of the same key for other scopes.
type Variable struct {
	ID VariableID
	Holder
	Key         string
	Scope       string // the environments it is for, which may have a "*"
	Value       Secret
	Kind        VariableKind
	Protected   bool // only for protected branches and tags
	Masked      bool // left out of logs
	Hidden      bool // masked, and never shown again
	Raw         bool // "$" in it means nothing
	Description string
}
