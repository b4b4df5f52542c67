//! Whole builds by the real `forge` against a stand-in for QEMU and its guest, and what is left of
//! them when something goes wrong: a kill, a Ctrl-C or a failure, in each step.
//!
//! `tests/fake/` says what is real there and what is not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod build;
mod failing;
mod kept;
mod machines;
mod password;
mod process;
mod prove;
mod root;
mod seeds;
mod ssh;
mod stopped;
mod whole;

/// The steps of a build of `mini`, in order.
const STEPS: [&str; 17] = [
    "fetch",
    "seed",
    "disks",
    "install",
    "boot",
    "step:greet",
    "step:upload",
    "check",
    "facts",
    "seal",
    "sweep",
    "power-off",
    "export",
    "sweep-disk",
    "prove:proof",
    "prove:config-drive",
    "artifact",
];
