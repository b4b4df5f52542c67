//! How often each endpoint of the API was called.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use super::call::{Call, Method};

#[derive(Debug, Default)]
pub(super) struct Counter(Mutex<BTreeMap<String, u64>>);

impl Counter {
    pub(super) fn count(&self, call: &Call) {
        let Call { method, template, .. } = call;
        self.add(*method, template);
    }

    fn add(&self, method: Method, template: &str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(format!("{template} {method}")).or_default() += 1;
    }

    pub(super) fn counts(&self) -> Counts {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let turned = |(key, count): (&String, &u64)| {
            let (template, method) = key.split_once(' ').expect("both are there");
            (format!("{method} {template}"), *count)
        };
        Counts(counts.iter().map(turned).collect())
    }
}

/// How often each endpoint was called, in the order of their paths; `Display` gives a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts(pub Vec<(String, u64)>);

impl Counts {
    /// Returns how many requests were made.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// Returns how often one endpoint was called, such as `POST /nodes/{node}/qemu`.
    #[must_use]
    pub fn of(&self, endpoint: &str) -> u64 {
        self.0.iter().find(|(name, _)| name == endpoint).map_or(0, |(_, count)| *count)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (endpoint, count) in &self.0 {
            writeln!(f, "{count:>6}  {endpoint}")?;
        }
        write!(f, "{:>6}  in all", self.total())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_path_and_shown_as_a_table() {
        let counter = Counter::default();
        for _ in 0..12 {
            counter.add(Method::Get, "/version");
        }
        counter.add(Method::Post, "/nodes/{node}/qemu");
        let counts = counter.counts();
        assert_eq!((counts.total(), counts.of("GET /version")), (13, 12));
        assert_eq!(
            counts.to_string(),
            "     1  POST /nodes/{node}/qemu\n    12  GET /version\n    13  in all"
        );
    }
}
