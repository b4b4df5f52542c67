//! What a build leaves: the artifact and its manifest.
