package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// releaseVersion is set by the linker for releases.
var releaseVersion string

// buildVersion is the version of this binary, such as "v0.3.1" or "devel".
func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "(devel)" {
		return cmp.Or(releaseVersion, info.Main.Version, "devel")
	}
	return cmp.Or(releaseVersion, "devel")
}

// buildCommit is the commit it was built from, with "-dirty" if changed; ""
// when it is not known.
func buildCommit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	commit, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		}
	}
	if commit == "" {
		return ""
	}
	return commit + dirty
}

func newVersionCommand(env *environment) *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this program",
		Example: "  tidelock version -o json",
		Args:    arguments(),
		RunE: func(cmd *cobra.Command, args []string) error {
			v := struct {
				Version  string `json:"version"`
				Commit   string `json:"commit"`
				Go       string `json:"go"`
				Platform string `json:"platform"`
			}{buildVersion(), buildCommit(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			if output.json() {
				return printJSON(env.stdout, v)
			}
			text := v.Version
			if v.Commit != "" {
				text += " (" + v.Commit + ")"
			}
			fmt.Fprintf(env.stdout, "tidelock %s %s %s\n", text, v.Go, v.Platform)
			return nil
		},
	}
	output.add(cmd)
	return cmd
}
