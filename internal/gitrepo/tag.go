package gitrepo

import (
	"context"
	"strings"
	"time"

	"tidelock.dev"
)

// A Tag is an annotated tag: an object of its own with a message. Text is
// valid UTF-8.
type Tag struct {
	Object  tidelock.CommitID
	Target  tidelock.CommitID // what the tag object names
	Tagger  string
	When    time.Time // zero when the tag does not say
	Message string    // without a signature
}

// Tag reads a tag object; its kind is NotFound when the object is no tag,
// such as the commit that a lightweight tag names.
func (r *Repo) Tag(ctx context.Context, object tidelock.CommitID) (Tag, error) {
	if !isObjectName(object) {
		return Tag{}, errNoTag(object)
	}
	if err := r.exists(); err != nil {
		return Tag{}, err
	}
	out, err := r.disk.query(ctx, r.disk.command(r, "cat-file", "tag", string(object)))
	if complains(err, "bad file") {
		return Tag{}, errNoTag(object)
	}
	if err != nil {
		return Tag{}, err
	}
	return parseTag(object, strings.ToValidUTF8(string(out), "\uFFFD")), nil
}

// Tags reads many tag objects at once, and leaves out what is no tag.
func (r *Repo) Tags(ctx context.Context, ids ...tidelock.CommitID) (map[tidelock.CommitID]Tag, error) {
	tags := map[tidelock.CommitID]Tag{}
	if len(ids) == 0 {
		return tags, nil
	}
	err := r.withObjects(ctx, func(o *objects) error {
		for _, id := range ids {
			kind, content, err := o.get(id)
			if err != nil {
				return err
			}
			if kind == "tag" {
				tags[id] = parseTag(id, strings.ToValidUTF8(string(content), "\uFFFD"))
			}
		}
		return nil
	})
	return tags, err
}

func errNoTag(object tidelock.CommitID) error {
	return tidelock.Errorf(tidelock.NotFound, "%.200q is not an annotated tag", object)
}

// parseTag reads a tag object: headers, an empty line, the message, and
// perhaps a signature.
func parseTag(object tidelock.CommitID, text string) Tag {
	headers, message, _ := strings.Cut(text, "\n\n")
	tag := Tag{Object: object}
	for line := range strings.SplitSeq(headers, "\n") {
		switch name, value, _ := strings.Cut(line, " "); name {
		case "object":
			tag.Target = tidelock.CommitID(value)
		case "tagger":
			if i := strings.LastIndex(value, "> "); i >= 0 {
				tag.Tagger, tag.When = value[:i+1], parseRawDate(value[i+2:])
			}
		}
	}
	for _, begin := range []string{"-----BEGIN PGP SIGNATURE-----", "-----BEGIN SSH SIGNATURE-----", "-----BEGIN SIGNED MESSAGE-----"} {
		message, _, _ = strings.Cut(message, begin)
	}
	tag.Message = strings.TrimRight(message, "\n")
	return tag
}
