package backup

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"tidelock.dev"
	"tidelock.dev/internal/registry"
	"tidelock.dev/internal/store"
)

// A record is what the rows of an archive say that images have.
type record struct {
	images map[int64]imageRow // by id
	has    []contentRow
}

type imageRow struct {
	project tidelock.ProjectID
	name    string
}

type contentRow struct {
	image    int64
	digest   tidelock.Digest
	manifest bool
}

// watch returns a reader of a table's rows that tells the record of what
// passes, if the table is about images.
func (r *record) watch(t store.DumpTable, rows io.Reader) io.Reader {
	column := func(name string) int { return slices.Index(t.Columns, name) }
	var hear func(row []any)
	switch t.Name {
	case "images":
		id, project, name := column("id"), column("project_id"), column("name")
		hear = func(row []any) {
			if r.images == nil {
				r.images = map[int64]imageRow{}
			}
			r.images[number(row, id)] = imageRow{tidelock.ProjectID(number(row, project)), text(row, name)}
		}
	case "artifacts", "image_blobs":
		image, digest := column("image_id"), column("digest")
		hear = func(row []any) {
			d := tidelock.Digest(text(row, digest))
			if tidelock.ValidDigest(d) == nil {
				r.has = append(r.has, contentRow{number(row, image), d, t.Name == "artifacts"})
			}
		}
	default:
		return rows
	}
	return io.TeeReader(rows, &rowWriter{hear: hear})
}

// lost lists, by image, what the record says there is and the members of an
// archive do not hold.
func (r *record) lost(members []member) (lost []string) {
	sums := map[string]string{}
	for _, m := range members {
		if name, ok := strings.CutPrefix(m.Name, content+"/"); ok {
			sums[name] = m.SHA256
		}
	}
	for _, c := range r.has {
		i, ok := r.images[c.image]
		if !ok {
			continue
		}
		link, data := registry.FilesOf(registry.Repo(i.project, i.name), c.digest, c.manifest)
		_, linked := sums[link]
		sum, there := sums[data]
		if hash, is256 := strings.CutPrefix(string(c.digest), "sha256:"); is256 && sum != hash {
			there = false
		}
		if !linked || !there {
			lost = append(lost, fmt.Sprintf("%s of image %q of project %d", c.digest, i.name, i.project))
		}
	}
	slices.Sort(lost)
	return lost
}

// A rowWriter is written the lines of a table. Lines that make no sense are
// passed over: others complain of them.
type rowWriter struct {
	hear func(row []any)
	rest []byte
}

// maxRow is longer than any row of the tables that are watched.
const maxRow = 4 << 20

func (w *rowWriter) Write(p []byte) (int, error) {
	for left := p; len(left) > 0; {
		line, after, whole := bytes.Cut(left, []byte("\n"))
		if len(w.rest)+len(line) <= maxRow {
			w.rest = append(w.rest, line...)
		}
		if !whole {
			break
		}
		var row []any
		decoder := json.NewDecoder(bytes.NewReader(w.rest))
		decoder.UseNumber()
		if decoder.Decode(&row) == nil {
			w.hear(row)
		}
		w.rest, left = w.rest[:0], after
	}
	return len(p), nil
}

func number(row []any, at int) int64 {
	if at < 0 || at >= len(row) {
		return 0
	}
	n, _ := row[at].(json.Number)
	i, _ := n.Int64()
	return i
}

func text(row []any, at int) string {
	if at < 0 || at >= len(row) {
		return ""
	}
	s, _ := row[at].(string)
	return s
}
