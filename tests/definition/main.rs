//! Golden tests: definitions in, messages or plans out.
//!
//! `UPDATE_GOLDEN=1 cargo test --test definition` rewrites the expected files. Read what it wrote:
//! each message is for someone who meets it at three in the morning.

#![expect(clippy::unwrap_used, reason = "a test may fail so")]

mod broken;
mod cases;
mod digest;
mod plans;
mod queries;
mod refused;
mod schemas;
