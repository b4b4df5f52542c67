# The only task names; each does its own set-up.
#   make demo    the main job on the local builder, from a fresh clone to a proven template
#   make test    everything that must hold: check, the fast tests, the end-to-end builds
#   make check   formatting, lints, documentation, shell scripts, dependencies
#   make e2e     the real-machine tier alone: boots real QEMU, tries the hardening as root

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := test
.PHONY: setup demo test check fast e2e release

HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
FORGE := target/$(HOST)/release/forge
NEXTEST := $(shell command -v cargo-nextest 2>/dev/null)

# Each Rust release brings new lints. They fail the check only in the release the code was last read
# with; in any other they are shown, and stop nobody who only builds and tests.
LINTED_WITH := 1.95
DENY := $(if $(findstring rustc $(LINTED_WITH).,$(shell rustc -V 2>/dev/null)),-D warnings)

setup:
	@.ci/setup

release: setup
	cargo build --release --locked

demo: release
	tests/demo $(FORGE)

test: check fast e2e

check: setup
	cargo fmt --check
	cargo clippy --workspace --all-targets --test e2e --locked -- $(DENY)
	RUSTDOCFLAGS="$(DENY)" cargo doc --workspace --no-deps --locked
	shellcheck $$(git ls-files -- ':!tests/golden' | xargs grep -lE '^#!.*\b(ba)?sh\b')
	/usr/bin/python3 -m unittest discover -s tests/media/installer
	@if command -v cargo-deny >/dev/null; then cargo deny --offline check bans licenses sources; \
	 else echo "cargo-deny is not installed: its rules are held by tests/dependencies.rs alone"; fi

fast: release
ifdef NEXTEST
	FORGE_RELEASE=$(abspath $(FORGE)) cargo nextest run --workspace --locked
else
	FORGE_RELEASE=$(abspath $(FORGE)) cargo test --workspace --locked
endif
	cargo test --doc --workspace --locked

# What stands for a node is fast enough only when it is optimised.
e2e: release
	cargo build --release --locked --package pve-sim
ifdef NEXTEST
	FORGE_RELEASE=$(abspath $(FORGE)) cargo nextest run --locked --profile e2e --test e2e
else
	FORGE_RELEASE=$(abspath $(FORGE)) cargo test --locked --test e2e -- --test-threads=1 --nocapture
endif
