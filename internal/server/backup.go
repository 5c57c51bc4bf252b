package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"tidelock.dev"
	"tidelock.dev/internal/backup"
)

// keptFiles are those files of the data folder that a server cannot make
// again: without them agents and clients would trust it no more, sealed
// secrets could not be read, and what was signed could not be verified.
var keptFiles = []string{
	"secret.key",
	"signing/cosign.key", "signing/retired.pub",
	"ssh/host_ed25519",
	"tls/ca.crt", "tls/ca.key", "tls/server.crt", "tls/server.key",
}

// Data says what a backup is made of: all that a server with this data folder
// and database, "" for the one in the folder, keeps. Left out are the first
// token, which lies there only to be taken away, and what is made anew.
func Data(dir, databaseURL string) backup.Data {
	return backup.Data{Dir: dir, Database: databaseOr(databaseURL, dir), Files: keptFiles}
}

// databaseOr is the URL of the database.
func databaseOr(databaseURL, dir string) string {
	if databaseURL == "" {
		return "sqlite:" + filepath.Join(dir, "tidelock.db")
	}
	return databaseURL
}

// Restore makes an empty or missing data folder, and an empty database, that
// of a server whose data is in a backup, and keeps servers out meanwhile.
func Restore(ctx context.Context, dir, databaseURL string, archive io.Reader, o backup.Options) (_ backup.Summary, err error) {
	_, statErr := os.Stat(dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return backup.Summary{}, fmt.Errorf("make the data folder: %w", err)
	}
	lock, err := lockFolder(dir)
	if err != nil {
		return backup.Summary{}, err
	}
	defer func() {
		if err != nil && errors.Is(statErr, fs.ErrNotExist) {
			// Nothing was there before, and nothing is left.
			_ = os.Remove(filepath.Join(dir, lockName))
			_ = os.Remove(dir)
		}
		err = errors.Join(err, lock.release())
	}()
	return backup.Restore(ctx, Data(dir, databaseURL), archive, o)
}

// checkRestored keeps a server from what a restore left half done.
func checkRestored(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, backup.Unfinished)); err == nil {
		return tidelock.Errorf(tidelock.Conflict, "a restore into %s was cut short; empty the folder and its database, and restore again", dir)
	}
	return nil
}
