// Package backup keeps everything that a server keeps in one archive, written
// while the server goes on, and makes an empty folder and database of it
// again. It owns the form of the archive; what the members are made of belongs
// to store, gitrepo and registry.
//
// An archive is a tar, compressed with zstd, whose members come in this order:
//
//	backup.json                what it is, and which tables there are
//	database/<table>.jsonl     the rows of a table, the same for both engines
//	repositories/<id>.bundle   a repository, as git reads it
//	files/<name>               keys and certificates of the data folder
//	registry/<name>            the content of images, if it is in the data folder
//	manifest.json              every member's size and SHA-256, every repository's HEAD
//
// The database is read first, at one moment, and the repositories after it: a
// repository may be newer than what the database knows of it, never older, and
// the server finds out at its start what came in between. So may the content of
// images, of which nobody is given what the database does not know.
package backup

import (
	"archive/tar"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/registry"
	"tidelock.dev/internal/store"
)

// Data says where a server keeps what is kept.
type Data struct {
	Dir      string   // the data folder
	Database string   // URL
	Files    []string // beside repositories, by slash-separated names in Dir
}

// Folders in Dir.
const (
	repositories = "repositories"
	content      = "registry"
)

func (d Data) repositories() string { return filepath.Join(d.Dir, repositories) }

func (d Data) content() string { return filepath.Join(d.Dir, content) }

func (d Data) file(name string) string { return filepath.Join(d.Dir, filepath.FromSlash(name)) }

// Unfinished is the folder in a data folder that is there while one is
// restored. A server must not start beside it.
const Unfinished = ".restore"

// A Summary says what is in an archive.
type Summary struct {
	Made         time.Time
	Version      string // of the program that made it
	Schema       int64
	Rows         int64
	Repositories int
	Refs         int
	Bytes        int64 // of all members, before compression
	// Missing are projects that were deleted while the archive was made.
	Missing []tidelock.ProjectID
	// Lost is content that images have by the database and that is not in the
	// archive, or not as it was: it was removed while the archive was made, was
	// lost before, or lies in a bucket, which no archive has. Create leaves it
	// to Verify.
	Lost []string
}

// format is the version of the archive's form. The first had no content of
// images.
const format = 2

const (
	headerName   = "backup.json"
	manifestName = "manifest.json"
)

// A header is the first member.
type header struct {
	Format   int        `json:"format"`
	Tidelock string     `json:"tidelock"`
	Made     time.Time  `json:"made"`
	Database store.Dump `json:"database"`
}

// A manifest is the last member, and tells of all before it.
type manifest struct {
	Members      []member     `json:"members"`
	Repositories []repository `json:"repositories"`
}

type member struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

type repository struct {
	ID            tidelock.ProjectID `json:"id"`
	DefaultBranch string             `json:"default_branch"`
	Refs          int                `json:"refs"`              // 0: there is no bundle
	Missing       bool               `json:"missing,omitempty"` // deleted while the archive was made
}

// A part is a group of members; they come in the order of these numbers.
type part int

const (
	headerPart part = iota
	databasePart
	repositoryPart
	filePart
	contentPart
	manifestPart
)

// partOf reads the name of a member: which part it belongs to, and what it is
// called there. Only the exact names that Create writes are taken, so that no
// name from an archive ever becomes a path.
func partOf(name string) (part, string, bool) {
	switch name {
	case headerName:
		return headerPart, "", true
	case manifestName:
		return manifestPart, "", true
	}
	folder, base, _ := strings.Cut(name, "/")
	switch folder {
	case "database":
		table, ok := strings.CutSuffix(base, ".jsonl")
		return databasePart, table, ok
	case repositories:
		id, ok := strings.CutSuffix(base, ".bundle")
		n, err := strconv.ParseInt(id, 10, 64)
		return repositoryPart, id, ok && err == nil && n > 0 && strconv.FormatInt(n, 10) == id
	case "files":
		return filePart, base, true
	case content:
		return contentPart, base, registry.IsFile(base)
	}
	return 0, "", false
}

func tableMember(table string) string { return "database/" + table + ".jsonl" }

func repositoryMember(id tidelock.ProjectID) string {
	return fmt.Sprintf("%s/%d.bundle", repositories, id)
}

func fileMember(name string) string { return "files/" + name }

func contentMember(name string) string { return content + "/" + name }

// tarHeader is the same for every member: nothing in it but name and size is
// looked at again.
func tarHeader(name string, size int64, made time.Time) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: made, Format: tar.FormatPAX}
}

// Bounds of members that are read into memory.
const (
	maxHeader   = 16 << 20
	maxManifest = 512 << 20
	maxFile     = 1 << 20
)

// A Progress hears, in words, how far the work is.
type Progress func(format string, args ...any)

func (p Progress) say(format string, args ...any) {
	if p != nil {
		p(format, args...)
	}
}
