# Everything a developer or a machine runs on this repository. `make` lists it.

SHELL         := /bin/bash -eo pipefail
.DEFAULT_GOAL := help
GO            ?= go
PLAYGROUND    := bin/tidelock-playground
STATICCHECK   := bin/staticcheck
TEST_FLAGS    ?=
# The race detector looks at Go's memory. SQLite, which is C made into Go, has
# its own: to watch it costs two thirds of the time of most tests, and shows
# nothing. All of ours, and all that locks, is watched.
RACE          := -race -gcflags=modernc.org/sqlite/lib=-race=false -gcflags=modernc.org/libc=-race=false
# A program with the race detector would sleep for a second before it exits, for
# races in what it leaves running; ours leave nothing running.
export GORACE ?= atexit_sleep_ms=0

.PHONY: help build playground up down status demo test prepare test-unit test-matrix test-fuzz test-e2e components soak lint gen golden bench clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Without cgo and with the paths as they are, so that these builds share compiled
# packages with those of the components.
build: ## Build bin/tidelock
	@CGO_ENABLED=0 $(GO) build -o bin/tidelock ./cmd/tidelock

playground:
	@cd playground && CGO_ENABLED=0 $(GO) build -o ../$(PLAYGROUND) ./cmd/tidelock-playground

# A KUBECONFIG that merely stands in the environment, such as the playground's
# own, is not a wish to use that cluster; one on make's command line is.
asked = $(if $(filter command,$(firstword $(origin $(1)))),$($(1)))

up: playground ## Start server, agent, Kubernetes and Flux (your own cluster: KUBECONFIG=… HOST=…)
	@$(PLAYGROUND) up --kubeconfig '$(call asked,KUBECONFIG)' --host '$(call asked,HOST)'

down: playground ## Stop the playground; its state is kept
	@$(PLAYGROUND) down

status: playground ## Show what runs in the playground
	@$(PLAYGROUND) status

demo: playground ## Push a change in the playground and print the time of every hop
	@$(PLAYGROUND) demo

test: ## Run everything: lint, unit tests with -race, both databases, end to end
	@for step in prepare lint test-unit test-matrix test-fuzz test-e2e; do \
	  began=$$SECONDS; echo "== $$step"; \
	  $(MAKE) --no-print-directory $$step || { echo "== $$step failed after $$((SECONDS - began))s"; exit 1; }; \
	  echo "== $$step passed in $$((SECONDS - began))s"; \
	done

prepare:
	@.ci/prepare

# lint has vetted the tests.
test-unit: ## Run the unit tests with -race, the store's on SQLite and PostgreSQL
	$(GO) test $(RACE) -vet=off -timeout 15m $(TEST_FLAGS) ./...

# Without -race, which would take most of ten minutes; test-unit asks a part of it.
test-matrix: ## Ask every surface every question of who may do what
	@$(GO) test -count=1 -run '^TestAuthorization$$' -v ./internal/server | grep -E 'authorization|^(---|ok|FAIL|panic)'

test-fuzz: ## Run every fuzz target for a moment (FUZZ=time for each, default 2s)
	@.ci/fuzz $${FUZZ:-2s}

# Tests of the playground module share one machine's ports, cores and memory, and
# mostly wait: for Flux, or for a control plane to start.
test-e2e: components ## Run the playground's tests, end to end against real Kubernetes and Flux
	cd playground && $(GO) test $(RACE) -vet=off -timeout 30m -p 2 -parallel 2 $(TEST_FLAGS) ./...

components: playground
	@$(PLAYGROUND) build
	@for module in kube bootstrap; do (cd playground/components/$$module && CGO_ENABLED=0 $(GO) vet .) || exit; done

soak: components ## Run the long form of the fault tests (TIDELOCK_SOAK=duration, default 1h) and of the fuzz targets
	@.ci/fuzz $${FUZZ:-30s}
	cd playground && TIDELOCK_SOAK=$${TIDELOCK_SOAK:-1h} $(GO) test -count=1 -timeout 0 -run Soak -v $(TEST_FLAGS) ./e2e
	TIDELOCK_SOAK=$${TIDELOCK_SOAK:-1h} $(GO) test -count=1 -timeout 0 -run Soak -v $(TEST_FLAGS) ./internal/servertest
	TIDELOCK_SOAK=$${TIDELOCK_SOAK:-1h} $(GO) test $(RACE) -count=1 -timeout 0 -run Soak -v $(TEST_FLAGS) ./internal/rollout
	TIDELOCK_SOAK=$${TIDELOCK_SOAK:-1h} $(GO) test -count=1 -timeout 0 -run Soak -v $(TEST_FLAGS) ./cmd/tidelock
	TIDELOCK_SOAK=1 $(GO) test -count=1 -timeout 0 -run TestH13ManyReferrers -v $(TEST_FLAGS) ./internal/server
	TIDELOCK_SOAK=1 $(GO) test -count=1 -run TestTraps/never_500 -v $(TEST_FLAGS) ./internal/gitlabapi

lint: ## Check formatting, go vet, staticcheck and the wire's definition
	@unformatted=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); \
	  if [ -n "$$unformatted" ]; then echo "gofmt would change:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	cd playground && $(GO) vet ./...
	@$(GO) build -modfile=tools/go.mod -o $(STATICCHECK) honnef.co/go/tools/cmd/staticcheck
	$(STATICCHECK) ./...
	cd playground && ../$(STATICCHECK) ./...
	$(GO) tool -modfile=tools/go.mod buf lint

gen: ## Generate Go from the wire's definition
	$(GO) tool -modfile=tools/go.mod buf generate

golden: ## Rewrite the golden files; review the difference
	@for dir in $$(grep -rl --include='*_test.go' 'flag.Bool("update"' . | xargs -n1 dirname | sort -u); do \
	  (cd $$dir && $(GO) test -count=1 . -update); \
	done

bench: ## Run the Go benchmarks
	$(GO) test -run '^$$' -bench . -benchmem $(TEST_FLAGS) ./...

clean: ## Remove what was built; the playground's state and the component cache stay
	rm -rf bin
	$(GO) clean -testcache
