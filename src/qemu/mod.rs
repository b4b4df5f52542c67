//! A local QEMU: arguments, process, QMP.
//!
//! ```text
//! definition::Machine ─► spec ─► args ─► process ─► Machine ─► qmp (events ─► State)
//!                accel ───┘ └─── firmware    └─► guard: dies with forge     └─► agent, serial sockets
//! ```
//!
//! [`spec`], [`args`], [`accel`] and the parsing half of [`firmware`] are pure. A machine is launched
//! with [`process::Machine::launch`] and watched through its [`State`].

pub mod accel;
pub mod args;
mod error;
pub mod firmware;
mod guard;
pub mod img;
pub mod process;
pub mod qmp;
mod screen;
pub mod smbios;
pub mod sockets;
pub mod spec;
pub mod state;
mod tpm;
pub(crate) mod wire;

pub use error::Error;
pub use process::Machine;
pub use spec::MachineSpec;
pub use state::{AgentPort, End, State};
