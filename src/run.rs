//! Runs steps one after another: events, undo, cancel.
