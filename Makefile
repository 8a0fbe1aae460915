# `make` lists what there is. Everything that a target needs beyond a Rust toolchain it installs (scripts/setup).

cache := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/outrigger
export CARGO_TARGET_DIR ?= $(cache)/target
export PATH := $(cache)/tools/rust/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help dev test test-long build lint servers servers-down loadtest image

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

dev: ## run Outrigger with embedded backends; prints tokens and curl lines (ARGS="--data DIR ...")
	@scripts/setup dev
	@test -x $(CARGO_TARGET_DIR)/debug/outrigger || echo "the first build takes a few minutes; later ones take seconds"
	@cargo build --quiet
	@mkdir -p bin && ln -sf $(CARGO_TARGET_DIR)/debug/outrigger bin/outrigger
	@exec bin/outrigger dev $(ARGS)

test: ## everything: format, alert rules, lints, licences, unit, conformance, whole-process and fault tests
	@scripts/test

test-long: ## the same, with the crash, property and isolation tests at full size (hours; SEED=n repeats one)
	@scripts/test long

build: ## the release binary
	@scripts/setup dev
	cargo build --release --locked
	@mkdir -p bin && ln -sf $(CARGO_TARGET_DIR)/release/outrigger bin/outrigger
	@ls -lh $(CARGO_TARGET_DIR)/release/outrigger

lint: ## format check, alert rules, clippy, licences and bans
	@scripts/test lint

servers: ## start every real server that the tests use, data in .rig/, addresses in .rig/env; leaves them running
	@scripts/setup servers
	@cargo build --quiet
	@mkdir -p bin && ln -sf $(CARGO_TARGET_DIR)/debug/outrigger bin/outrigger
	@cargo run --quiet --package rig -- up

servers-down: ## end exactly those
	@cargo run --quiet --package rig -- down

# A measured commit waits for the disk. `make servers-down` first, where servers run whose commits do not.
loadtest: export RIG_POSTGRES_FSYNC := on
loadtest: servers ## measure beside bare hyper and SQL; rewrites the tables of docs/performance.md (ARGS="--profile ...", EVENTS="--kept ...", USAGE="--kept ...")
	cargo build --release --locked --package outrigger --package loadtest
	@set -a; . ./.rig/env; $(CARGO_TARGET_DIR)/release/loadtest run \
		--outrigger-bin $(CARGO_TARGET_DIR)/release/outrigger \
		--outrigger-config loadtest/redis.yaml --policies loadtest/policies \
		--markdown docs/performance.md --json docs/performance.json --svg docs/performance.svg $(ARGS)
	@set -a; . ./.rig/env; $(CARGO_TARGET_DIR)/release/loadtest events \
		--outrigger-bin $(CARGO_TARGET_DIR)/release/outrigger \
		--markdown docs/performance.md --json docs/performance-events.json $(EVENTS)
	@set -a; . ./.rig/env; exec $(CARGO_TARGET_DIR)/release/loadtest usage \
		--outrigger-bin $(CARGO_TARGET_DIR)/release/outrigger \
		--markdown docs/performance.md --json docs/performance-usage.json $(USAGE)

image: ## build the container image and start what it holds
	@scripts/image-check
