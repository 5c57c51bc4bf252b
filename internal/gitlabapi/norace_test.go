//go:build !race

package gitlabapi_test

// raced reports whether the race detector slows the tests down.
const raced = false
