package forge

import (
	"context"
	"maps"
	"slices"
	"strings"

	"tidelock.dev"
)

// A cargo is what a revision stands for.
type cargo struct {
	commit tidelock.CommitID // "" when it is none of the project's
	digest tidelock.Digest
}

type cargoKey struct {
	kind  tidelock.SourceKind
	image tidelock.ImageID
	text  string
}

// cargoOf finds the commit of a project that a revision carries; one that is
// not among the project's own is none.
func (f *Forge) cargoOf(ctx context.Context, project tidelock.ProjectID, s tidelock.AgentSource, text string, own map[tidelock.CommitID]bool) (c cargo, err error) {
	if text == "" || len(text) > maxRevision {
		return c, nil
	}
	switch r := tidelock.ParseRevision(s.Source.Kind(), text); {
	case r.Commit != "":
		if own[r.Commit] {
			c.commit = r.Commit
		}
	case r.Digest != "":
		c.digest = r.Digest
		c.commit, err = f.store.CommitOfDigest(ctx, project, r.Digest)
	case r.Version != "" && s.Image != 0:
		return f.cargoOfVersion(ctx, project, s.Image, r)
	}
	return c, err
}

// cargoOfVersion finds the artifact that holds a version of a chart.
func (f *Forge) cargoOfVersion(ctx context.Context, project tidelock.ProjectID, image tidelock.ImageID, r tidelock.Revision) (cargo, error) {
	if at := strings.LastIndexByte(r.Version, '@'); at >= 0 { // with the digest behind it
		if d := tidelock.Digest(r.Version[at+1:]); tidelock.ValidDigest(d) == nil {
			commit, err := f.store.CommitOfDigest(ctx, project, d)
			return cargo{commit, d}, err
		}
	}
	heads, err := f.store.TagHeads(ctx, image)
	if err != nil {
		return cargo{}, err
	}
	for _, h := range heads {
		if r.Meets(h.Goal()) {
			commit := h.Commit
			if commit == "" {
				commit, err = f.store.CommitOfDigest(ctx, project, h.Digest)
			}
			return cargo{commit, h.Digest}, err
		}
	}
	return cargo{}, nil
}

// ownCommits finds the commits that revisions name and the project has. An
// agent may name as many as it likes, so they are looked up together.
func (f *Forge) ownCommits(ctx context.Context, project tidelock.ProjectID, revisions map[tidelock.SourceID][]string) (map[tidelock.CommitID]bool, error) {
	own := map[tidelock.CommitID]bool{}
	for id, list := range revisions {
		for _, text := range list {
			if len(text) > maxRevision {
				continue
			}
			if commit := tidelock.ParseRevision(id.Kind(), text).Commit; commit != "" {
				own[commit] = false
			}
		}
	}
	pushed, err := f.store.PushedCommits(ctx, project, slices.Collect(maps.Keys(own)))
	if err != nil {
		return nil, err
	}
	var others []tidelock.CommitID
	for commit := range own {
		if _, known := pushed[commit]; known {
			own[commit] = true
		} else {
			others = append(others, commit)
		}
	}
	if len(others) == 0 {
		return own, nil
	}
	found, err := f.repos.Repo(project).CommitsAmong(ctx, others...)
	if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
		return nil, err
	}
	maps.Copy(own, found)
	return own, nil
}
