//! Downloads, verifies and caches base images.
