//! Provisioners against a "guest" that is this host: everything really runs.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod bench;
mod files;
mod output;
mod packages;
mod reboot;
mod scripts;
