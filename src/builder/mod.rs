//! The builders: each turns a plan into an artifact on its kind of machine.

pub mod outside;
pub mod workspace;
