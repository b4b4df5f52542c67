//! The real-machine tier.
