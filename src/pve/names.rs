//! The names of things on a cluster, as types that cannot be mixed up.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use super::loose;

/// The number of a VM or container, 100 to 999999999, unique in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Vmid(u32);

impl Vmid {
    /// The smallest and the largest VMID that Proxmox takes.
    pub const RANGE: std::ops::RangeInclusive<u32> = 100..=999_999_999;

    /// Returns the VMID of a number; nothing for one out of [`Self::RANGE`].
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        Self::RANGE.contains(&number).then_some(Self(number))
    }

    /// Returns the number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vmid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a text is no name of that kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {kind}: {rule}")]
pub struct BadName {
    text: String,
    kind: &'static str,
    rule: &'static str,
}

impl<'de> Deserialize<'de> for Vmid {
    /// Reads a number, or text that is one.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        loose::text(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl FromStr for Vmid {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let rule = "a number from 100 to 999999999 is";
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits).and_then(Self::new);
        number.ok_or_else(|| BadName { text: text.to_owned(), kind: "VMID", rule })
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $holds:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Returns the name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = BadName;

            fn from_str(text: &str) -> Result<Self, BadName> {
                let holds: fn(&str) -> bool = $holds;
                if holds(text) {
                    return Ok(Self(text.to_owned()));
                }
                Err(BadName { text: text.to_owned(), kind: $kind, rule: $rule })
            }
        }
    };
}

name!(
    /// The name of a node (format `pve-node`).
    NodeName,
    "node name",
    "letters, digits and inner hyphens are",
    |text| text.len() <= 63 && ends_well(text) && all(text, |byte| byte == b'-')
);

name!(
    /// The name of a storage (format `pve-storage-id`).
    StorageId,
    "storage name",
    "a letter, then letters, digits, `-`, `_` and `.` are",
    |text| {
        text.len() >= 2
            && text.starts_with(|first: char| first.is_ascii_alphabetic())
            && ends_well(text)
            && all(text, |byte| b"-_.".contains(&byte))
    }
);

fn ends_well(text: &str) -> bool {
    let outer = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    outer(text.as_bytes().first()) && outer(text.as_bytes().last())
}

fn all(text: &str, also: fn(u8) -> bool) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || also(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_proxmox_takes() {
        for (text, good) in
            [("pve1", true), ("PVE-01", true), ("a", true), ("", false), ("-a", false), ("a_b", false)]
        {
            assert_eq!(text.parse::<NodeName>().is_ok(), good, "{text}");
        }
        for (text, good) in [
            ("local", true),
            ("local-zfs", true),
            ("a.b_c", true),
            ("l", false),
            ("1a", false),
            ("a/b", false),
        ] {
            assert_eq!(text.parse::<StorageId>().is_ok(), good, "{text}");
        }
        for (text, good) in
            [("100", true), ("90001", true), ("99", false), ("+100", false), ("1000000000", false)]
        {
            assert_eq!(text.parse::<Vmid>().is_ok(), good, "{text}");
        }
    }

    #[test]
    fn a_vmid_is_read_as_number_and_as_text() {
        for (json, good) in [("110", true), ("\"110\"", true), ("99", false), ("null", false), ("1.5", false)]
        {
            assert_eq!(serde_json::from_str::<Vmid>(json).is_ok(), good, "{json}");
        }
    }

    #[test]
    fn a_bad_name_says_what_is_good() {
        let error = "99".parse::<Vmid>().unwrap_err();
        assert_eq!(error.to_string(), "`99` is no VMID: a number from 100 to 999999999 is");
    }
}
