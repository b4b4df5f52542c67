//! The simulator's own typed table of parameters, and the checks that Proxmox does with it.
//!
//! Parameters are checked one by one in the server's order (type, format, pattern, length, range,
//! enumeration; the first failure wins), then the server's texts are given back.
//! Source: `PVE/JSONSchema.pm`, and `shared/pve-api/README.md`.

mod format;
mod param;
mod property;
mod validate;
pub(crate) mod vm;

pub(crate) use format::split_list;
pub(crate) use param::{Format, Kind, Param};
pub(crate) use property::{parse_property, print_property};
pub(crate) use validate::{Arg, Args, NOT_DEFINED, validate};
