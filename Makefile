# `make` lists the targets. Two are enough on a fresh Debian 12 machine with Go, git,
# make and root: `make demo` and `make test`. What else a target needs it installs
# itself, once (hack/setup).
SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help build demo test test-unit test-kernel test-vm soak bench rows lint fmt clean

# The toolchain is the installed one; it is never fetched behind the user's back.
export GOTOOLCHAIN := local
# A commit is stamped into the binaries where git will tell it (a tree that belongs to
# another user it will not), and that must not fail the build.
export GOFLAGS += -buildvcs=$(shell git rev-parse HEAD >/dev/null 2>&1 && echo auto || echo false)

LINTER := .cache/tools/golangci-lint

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

build: ## build bin/vipd and the traffic generator bin/lossgen
	@hack/setup build
	@mkdir -p bin
	go build -trimpath -o bin/ ./cmd/vipd ./internal/loss/cmd/lossgen

# MODE=ipvs shows that mode, in the virtual machine: this machine's kernel may lack it.
demo: build ## the main job with real packets, in network namespaces, under a minute (root)
	@hack/setup $(if $(filter ipvs,$(MODE)),vm,demo)
	@$(if $(filter ipvs,$(MODE)),hack/vm run env MODE=ipvs RATE=20) hack/demo.sh bin

test: ## all lanes: unit, kernel, vm; then the rows they prove (root)
	@hack/setup test vm
	@go run ./hack/lane unit kernel vm

test-unit: ## unit tests: race detector, shuffled, leak-checked
	@hack/setup build
	@go run ./hack/lane unit

test-kernel: ## tests on this machine's kernel, in namespaces of their own (root)
	@hack/setup test
	@go run ./hack/lane kernel

test-vm: ## tests on a real kernel that has the dummy driver, in qemu
	@hack/setup vm
	@go run ./hack/lane vm

soak: ## the kernel lane with the long figures: hours (root)
	@hack/setup test
	@VIPD_SOAK=1 go run ./hack/lane kernel

# SIZES, BACKENDS, ONLY (load session stale memory), ROUNDS, LIMIT and OUT narrow it
# down; BENCH=full measures all sizes, which takes hours. MODE=ipvs measures mode ipvs,
# in the virtual machine. See docs/performance.md.
bench: build ## measure beside rules of kube-proxy's shape: a table, some 15 minutes (root)
	@hack/setup bench $(if $(filter ipvs,$(MODE)),vm)
	@go build -trimpath -o bin/ ./bench
ifeq ($(MODE),ipvs)
	@VM_MEMORY=4096 VM_TIMEOUT=10800 VM_OUT=.cache/results/ipvs hack/vm run sh -c 'bin/bench -backends ipvs -sizes "$(or $(SIZES),100 10000)" \
		-limit $(or $(LIMIT),15m) $(if $(ONLY),-only "$(ONLY)") $(if $(ROUNDS),-rounds $(ROUNDS)) -out $$VM_OUT/bench'
else
	@bin/bench $(if $(filter full,$(BENCH)),-full) $(if $(SIZES),-sizes "$(SIZES)") $(if $(BACKENDS),-backends "$(BACKENDS)") \
		$(if $(ONLY),-only "$(ONLY)") $(if $(ROUNDS),-rounds $(ROUNDS)) $(if $(LIMIT),-limit $(LIMIT)) $(if $(OUT),-out $(OUT)) $(if $(JOIN),-join "$(JOIN)")
endif

rows: ## every behaviour and failure: passed, failed, not yet, not applicable
	@go run ./hack/rows

lint: $(LINTER) ## linter, formatting, shell scripts, dependency rules
	@hack/setup lint
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "not formatted, run make fmt:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	@shellcheck $$(git grep -lE '^#!.*\b(bash|sh)$$' -- hack .ci | grep -v vm.d/init)
	@$(LINTER) run

# Built from source, pinned in a module of its own: some minutes, once.
$(LINTER): tools/go.mod tools/go.sum
	@hack/setup build
	@echo "building golangci-lint, some minutes, once"
	@cd tools && go build -o ../$(LINTER) github.com/golangci/golangci-lint/v2/cmd/golangci-lint

fmt: ## format all Go files
	@gofmt -w $$(git ls-files '*.go')

clean: ## remove what was built, with all caches of this repository
	@rm -rf bin .cache
