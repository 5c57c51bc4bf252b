package tidelock

import "time"

type AuditID int64

// An AuditEvent records one change of who may do what: who made it, from
// where, and to what. It is written in the transaction of the change, and
// outlives everything it names.
type AuditEvent struct {
	ID      AuditID
	At      time.Time
	User    UserID  // who; 0 for a deploy token, and for the operator of the server
	Name    string  // the user name of User then
	Token   TokenID // the token used; 0 for none
	From    string  // the address the request came from; "" for the server itself
	Act     string  // a verb in the past and its object, such as "token created"
	Holder          // the project or group it concerns; zero for the forge as a whole
	Path    string  // the full path of Holder then
	Subject string  // what was changed, such as `deploy token 7 "flux"`
	Detail  string  // what it was changed to, such as "scopes read_repository"; never a secret
}

// An AuditFilter narrows a list of audit events; zero fields do not.
type AuditFilter struct {
	Holder Holder
	User   UserID
	Span
	IDBefore AuditID
}
