//! Seed files: rendered, on a small volume or over HTTP.
