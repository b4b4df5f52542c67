//! The builders: each turns a plan into an artifact on its kind of machine.

pub mod clone;
pub mod outside;
pub mod workspace;
