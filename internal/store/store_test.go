package store_test

import (
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/store"
)

var _ forge.Store = (*store.DB)(nil)
