package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"tidelock.dev/internal/backup"
	"tidelock.dev/internal/server"
)

func newBackupCommand(env *environment) *cobra.Command {
	cmd := parent("backup", "Keep a server's data in one file, and bring it back", `
Keep a server's data in one file, and bring it back.

A backup holds the database, every repository, and the keys and certificates
of the data folder. It is made while the server runs. Whoever has it has
everything that the server keeps, secrets too: keep it as safe, or encrypt it
on its way.`)
	cmd.Example = `  tidelock backup create -o tidelock.backup
  tidelock backup verify tidelock.backup
  tidelock backup restore --data-dir /var/lib/tidelock tidelock.backup`
	cmd.AddCommand(newBackupCreateCommand(env), newBackupVerifyCommand(env), newBackupRestoreCommand(env))
	return cmd
}

// dataFlags say where a server's data is. They can be given by the variables
// that the server itself reads.
type dataFlags struct {
	dir, database string
	set           *pflag.FlagSet
}

func addDataFlags(cmd *cobra.Command) *dataFlags {
	d := &dataFlags{set: pflag.NewFlagSet("data", pflag.ContinueOnError)}
	d.set.StringVar(&d.dir, "data-dir", "", "folder of everything that the server keeps (default ~/.local/share/tidelock)")
	d.set.StringVar(&d.database, "database-url", "", "PostgreSQL, such as postgres://user@host/name (default: SQLite in the data folder)")
	cmd.Flags().AddFlagSet(d.set)
	return d
}

func (d *dataFlags) apply(env *environment) error {
	if err := (settings{flags: d.set, prefix: serverVariables, getenv: env.getenv}).apply(); err != nil {
		return err
	}
	if d.dir == "" {
		dir, err := defaultDataDir(env)
		if err != nil {
			return err
		}
		d.dir = dir
	}
	dir, err := filepath.Abs(d.dir)
	if err != nil {
		return fmt.Errorf("find the data folder: %w", err)
	}
	d.dir = dir
	return nil
}

func newBackupCreateCommand(env *environment) *cobra.Command {
	var data *dataFlags
	var to string
	cmd := &cobra.Command{
		Use:   "create -o FILE",
		Short: "Make a backup, also while the server runs",
		Long: `Make a backup, also while the server runs. What was acknowledged before is in
it. The file appears when it is complete; one that is there already is not
touched. With "-o -" the backup goes to stdout, to be encrypted or sent away.`,
		Example: `  tidelock backup create -o /backups/tidelock-$(date +%F).backup
  tidelock backup create --data-dir /var/lib/tidelock -o - | age -r age1… > tidelock.backup.age`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if to == "" {
				return misusef("name the file to write with -o, or use -o - for stdout")
			}
			if err := data.apply(env); err != nil {
				return err
			}
			options := backup.Options{Version: buildVersion(), Progress: env.progress}
			from := server.Data(data.dir, data.database)
			if to == "-" {
				if f, ok := env.stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
					return misusef("a backup is not for a terminal; name a file with -o")
				}
				_, err := backup.Create(cmd.Context(), from, env.stdout, options)
				return err
			}
			summary, err := createBackup(cmd.Context(), from, to, options)
			if err != nil {
				return err
			}
			fmt.Fprintf(env.stdout, "%s: %v\n", plain(to), summary)
			return nil
		},
	}
	data = addDataFlags(cmd)
	cmd.Flags().StringVarP(&to, "to", "o", "", "file to write, - for stdout")
	return cmd
}

// createBackup writes a file that appears whole or not at all.
func createBackup(ctx context.Context, from backup.Data, name string, options backup.Options) (_ backup.Summary, err error) {
	if _, err := os.Lstat(name); err == nil {
		return backup.Summary{}, errExists(name)
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*") // mode 0600
	if err != nil {
		return backup.Summary{}, fmt.Errorf("write the backup: %w", err)
	}
	defer func() {
		f.Close()
		if removeErr := os.Remove(f.Name()); err == nil && removeErr != nil {
			err = fmt.Errorf("write the backup: %w", removeErr)
		}
	}()
	options.Scratch = filepath.Dir(name) // there has to be room for the backup
	summary, err := backup.Create(ctx, from, f, options)
	if err != nil {
		return backup.Summary{}, err
	}
	if err := f.Sync(); err != nil {
		return backup.Summary{}, fmt.Errorf("write the backup: %w", err)
	}
	// Unlike a renamed file, a link does not replace one that came meanwhile.
	if err := os.Link(f.Name(), name); errors.Is(err, fs.ErrExist) {
		return backup.Summary{}, errExists(name)
	} else if err != nil {
		return backup.Summary{}, fmt.Errorf("write the backup: %w", err)
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return backup.Summary{}, fmt.Errorf("write the backup: %w", err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return backup.Summary{}, fmt.Errorf("write the backup: %w", err)
	}
	return summary, nil
}

func errExists(name string) error {
	return fmt.Errorf("%s exists already; choose another name", name)
}

func newBackupVerifyCommand(env *environment) *cobra.Command {
	return &cobra.Command{
		Use:   "verify FILE",
		Short: "Read a backup to its end and check everything in it",
		Long: `Read a backup to its end and check everything in it: that no byte has changed,
that the rows can be read, and that git finds every object of every repository.
A FILE of - is stdin.`,
		Example: `  tidelock backup verify tidelock.backup
  age -d tidelock.backup.age | tidelock backup verify -`,
		Args: arguments("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			archive, err := env.openBackup(args[0])
			if err != nil {
				return err
			}
			defer archive.Close()
			summary, err := backup.Verify(cmd.Context(), server.Data("", ""), archive, backup.Options{Progress: env.progress})
			if err != nil {
				return err
			}
			fmt.Fprintf(env.stdout, "%s: %v\n", plain(args[0]), summary)
			return nil
		},
	}
}

func newBackupRestoreCommand(env *environment) *cobra.Command {
	var data *dataFlags
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Make the data of a backup that of a server",
		Long: `Make the data of a backup that of a server, which must not run. Data folder
and database must be empty. Everything is checked before it is put in its
place; when something is wrong, both stay empty. A FILE of - is stdin.

The database may be another one than the backup was made from: SQLite becomes
PostgreSQL with --database-url, and PostgreSQL becomes SQLite without.`,
		Example: `  tidelock backup restore --data-dir /var/lib/tidelock tidelock.backup
  age -d tidelock.backup.age | tidelock backup restore --data-dir /var/lib/tidelock -`,
		Args: arguments("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := data.apply(env); err != nil {
				return err
			}
			archive, err := env.openBackup(args[0])
			if err != nil {
				return err
			}
			defer archive.Close()
			summary, err := server.Restore(cmd.Context(), data.dir, data.database, archive, backup.Options{Progress: env.progress})
			if err != nil {
				return err
			}
			fmt.Fprintf(env.stdout, "%s: %v\n", plain(data.dir), summary)
			return nil
		},
	}
	data = addDataFlags(cmd)
	return cmd
}

// openBackup opens a file, or stdin by the name "-".
func (e *environment) openBackup(name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(e.stdin), nil
	}
	return os.Open(name)
}

// progress tells how far something long is.
func (e *environment) progress(format string, args ...any) { e.warnf(format, args...) }
