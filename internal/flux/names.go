package flux

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/types"
	"tidelock.dev"
)

// What marks the objects an agent made. Only objects with the agent's own
// values are ever changed or deleted.
const (
	labelManagedBy = "app.kubernetes.io/managed-by"
	labelAgent     = "tidelock.dev/agent-id"
	labelForge     = "tidelock.dev/forge"      // a hash: agents of two forges may have one id
	labelSourceUID = "tidelock.dev/source-uid" // of the source an object serves

	managedBy    = "tidelock"
	fieldManager = "tidelock-agent"

	maxName = 63
)

// AgentName names an agent in a cluster, apart from those of other forges that
// may have the same id.
func AgentName(agent tidelock.AgentID, forge string) string {
	return "tidelock-agent-" + strconv.FormatInt(int64(agent), 10) + "-" + shortHash(forge)
}

// An owner is the agent, as the objects it made name it.
type owner struct {
	agent tidelock.AgentID
	forge string // 8 hex digits
}

func newOwner(agent tidelock.AgentID, forge string) owner {
	return owner{agent: agent, forge: shortHash(forge)}
}

// labels marks all objects of the owner.
func (o owner) labels() map[string]string {
	return map[string]string{
		labelManagedBy: managedBy,
		labelAgent:     strconv.FormatInt(int64(o.agent), 10),
		labelForge:     o.forge,
	}
}

// labelsFor marks the objects of one source.
func (o owner) labelsFor(uid types.UID) map[string]string {
	labels := o.labels()
	labels[labelSourceUID] = string(uid)
	return labels
}

// made reports whether an object's labels say that it serves the source on
// behalf of the owner.
func (o owner) made(labels map[string]string, uid types.UID) bool {
	for name, value := range o.labelsFor(uid) {
		if labels[name] != value {
			return false
		}
	}
	return true
}

// name is that of both the Secret and the Receiver of a source. The hash has
// the source's uid in it, so that a source made anew under its old name does
// not meet objects that are being collected with the old one.
func (o owner) name(source string, uid types.UID) string {
	prefix := "tidelock-" + strconv.FormatInt(int64(o.agent), 10) + "-"
	suffix := "-" + shortHash(o.forge+"/"+string(uid))
	room := maxName - len(prefix) - len(suffix)
	if len(source) > room {
		source = strings.TrimRight(source[:room], "-.")
	}
	return prefix + source + suffix
}

func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:4])
}
