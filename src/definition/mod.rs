//! Reads definitions and builder profiles: TOML text to checked values.

pub mod model;

pub use model::*;
