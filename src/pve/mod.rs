//! Talks to Proxmox VE.
//!
//! ```text
//! settings ─► Client ─┬─ vm(node, vmid) ──► Vm ─┬─ create, set, start, clone_to, convert, … ─► Upid ─► wait
//!                     │                         ├─ agent() ─► Agent
//!                     │                         └─ screenshot, serial
//!                     ├─ storage(node, id) ► Storage: upload, download, volumes, …
//!                     └─ version, privileges, nodes, guests, bridges, tasks, counts
//! ```
//!
//! - Reads are repeated while the server is not reached; changes, and what is asked of a guest agent, only
//!   when they certainly were not sent. A change whose answer is lost is looked for among the node's tasks,
//!   else it is [`Error::Unknown`] and [`Client::settle`] lets the caller look at the world before it is
//!   made again.
//! - For each VM one call is under way at a time, for each node at most two that bother guest agents: a
//!   node has three workers for everybody, and a silent agent keeps one busy for 3 s.
//! - Connections are reused for less than the 5 s after which the server closes them.
//! - Every error carries Proxmox's words whole; none carries a secret.

mod access;
mod again;
pub mod agent;
mod auth;
mod call;
mod client;
mod cluster;
mod console;
mod counts;
mod error;
mod http;
mod loose;
mod names;
pub mod property;
mod rfb;
mod settings;
mod storage;
mod task;
mod tls;
mod upload;
mod vm;
mod websocket;

pub use access::{Role, Version};
pub use again::{Attempt, HELD, Seen};
pub use agent::Agent;
pub use call::Params;
pub use client::Client;
pub use cluster::{Bridge, Guest, Node};
pub use console::SerialLog;
pub use counts::Counts;
pub use error::{Error, Missing};
pub use names::{BadName, NodeName, StorageId, Vmid};
pub use rfb::Picture;
pub use settings::{Credentials, Endpoint, Fingerprint, Pace, SecretSource, Settings, Trust};
pub use storage::{Content, Download, Storage, StorageStatus, Volume, VolumeInfo, normalise_file_name};
pub use task::{BadUpid, Ending, OnLine, TaskEntry, TaskFilter, TaskLog, TaskState, Upid};
pub use upload::{OnSent, Upload};
pub use vm::{CloneOptions, ConfigChange, Vm, VmConfig, VmStatus};
