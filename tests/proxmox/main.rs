//! Whole builds by the real `forge` on a simulated Proxmox VE, whose VMs are the stand-in for QEMU and
//! its guest, and what is left there when something goes wrong.
//!
//! Time runs ten times as fast on both sides.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "what was measured is part of the result")]

mod faults;
mod kept;
mod killed;
mod media;
mod node;
mod prove;
mod ready;
mod requests;
mod taken;
mod whole;
mod worlds;

#[path = "../faults/build.rs"]
#[expect(dead_code, reason = "other tests use the rest of it")]
mod build;
#[path = "../faults/process.rs"]
#[expect(dead_code, reason = "other tests use the rest of it")]
mod process;
#[path = "../faults/root.rs"]
#[expect(dead_code, reason = "other tests use the rest of it")]
mod root;
#[path = "../faults/ssh.rs"]
mod ssh;

/// The steps of a build of `mini`, in order.
const STEPS: [&str; 17] = [
    "preflight",
    "seed",
    "media",
    "create",
    "install",
    "boot",
    "step:greet",
    "step:upload",
    "check",
    "facts",
    "seal",
    "sweep",
    "power-off",
    "template",
    "prove:proof",
    "candidate",
    "artifact",
];
