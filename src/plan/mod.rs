//! The plan: a definition with every default, variable and digest resolved.
