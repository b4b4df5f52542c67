# The only task names; each does its own set-up.
#   make demo    the main job on the local builder, from a fresh clone to a proven template
#   make test    everything that must hold: check, the fast tests, the end-to-end builds
#   make check   formatting, lints, documentation, shell scripts, dependencies
#   make e2e     the real-machine tier alone: boots real QEMU, tries the hardening as root
#   make e2e-full  what takes longer still: all contracts on a node, a second build, UEFI, Lynis in a clone

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := test
.PHONY: setup demo test check tests fast e2e e2e-full release optimised

HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
FORGE := target/$(HOST)/release/forge
NEXTEST := $(shell command -v cargo-nextest 2>/dev/null)

# Each Rust release brings new lints. They fail the check only in the release the code was last read
# with; in any other they are shown, and stop nobody who only builds and tests.
LINTED_WITH := 1.95
DENY := $(if $(findstring rustc $(LINTED_WITH).,$(shell rustc -V 2>/dev/null)),-D warnings)

setup:
	@.ci/setup

# What audits templates lies beside the caches, where .ci/setup puts it.
export PATH := $(PATH):$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/forge-tools/bin

release: setup
	cargo build --release --locked

demo: release
	tests/demo $(FORGE)

# Two things at once: an optimised build ends on one core.
test: setup
	$(MAKE) --jobs=2 --output-sync=line check optimised tests
	$(MAKE) fast e2e

check: setup
	cargo fmt --check
	cargo clippy --workspace --all-targets --locked -- $(DENY)
	cargo clippy --test e2e --locked -- $(DENY)
	RUSTDOCFLAGS="$(DENY)" cargo doc --workspace --no-deps --locked
	shellcheck $$(git ls-files -- ':!tests/golden' | xargs grep -lE '^#!.*\b(ba)?sh\b')
	/usr/bin/python3 -m unittest discover -s tests/media/installer
	@if command -v cargo-deny >/dev/null; then cargo deny --offline check bans licenses sources; \
	 else echo "cargo-deny is not installed: its rules are held by tests/dependencies.rs alone"; fi

# forge, and what stands for a node: that is fast enough only when it is optimised.
optimised: setup
	cargo build --release --locked --workspace

# The tests, compiled.
tests: check
	cargo test --workspace --locked --no-run
	cargo test --locked --no-run --test e2e

fast: optimised
ifdef NEXTEST
	FORGE_RELEASE=$(abspath $(FORGE)) cargo nextest run --workspace --locked
else
	FORGE_RELEASE=$(abspath $(FORGE)) cargo test --workspace --locked
endif
	cargo test --doc --workspace --locked

# Rates are measured alone.
e2e: optimised
ifdef NEXTEST
	FORGE_RELEASE=$(abspath $(FORGE)) cargo nextest run --locked --profile e2e --test e2e
else
	FORGE_RELEASE=$(abspath $(FORGE)) cargo test --locked --test e2e -- --test-threads=2 --nocapture --skip upload::
	FORGE_RELEASE=$(abspath $(FORGE)) cargo test --locked --test e2e -- --nocapture upload::
endif

# More of it than a push waits for, an hour and a half under emulation.
e2e-full: optimised
	FORGE_RELEASE=$(abspath $(FORGE)) cargo test --locked --test e2e -- --test-threads=1 --nocapture --ignored
