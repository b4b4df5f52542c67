//! How long each stage may take, and how a length of time is written: the table `[timeouts]`.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How long each stage may take.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// From power-on until the installer fetches its answers; from there to its first report; and from when
    /// the answers are applied until it begins to install.
    pub fetch: Timeout,
    /// From power-on until the installer has powered the machine off.
    pub install: Timeout,
    /// From booting the disk until the guest agent answers and cloud-init has ended.
    pub boot: Timeout,
    /// One attempt of one step.
    pub step: Timeout,
    /// One check.
    pub check: Timeout,
    /// Sealing, looking for secrets, powering off: each of them.
    pub seal: Timeout,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            fetch: Timeout::minutes(10),
            install: Timeout::minutes(60),
            boot: Timeout::minutes(10),
            step: Timeout::minutes(15),
            check: Timeout::minutes(1),
            seal: Timeout::minutes(10),
        }
    }
}

/// A length of time, written `90s`, `10m` or `1h30m`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timeout(Duration);

impl Timeout {
    /// Returns that many minutes.
    #[must_use]
    pub const fn minutes(minutes: u64) -> Self {
        Self(Duration::from_mins(minutes))
    }

    /// Returns the length of time.
    #[must_use]
    pub const fn duration(self) -> Duration {
        self.0
    }

    /// Parses `90s`, `10m`, `1h30m`: whole numbers with units, largest first, not zero.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a length of time such as `90s`, `10m` or `1h30m`");
        let (mut total, mut number, mut last) = (0_u64, String::new(), u64::MAX);
        for character in text.chars() {
            if character.is_ascii_digit() {
                number.push(character);
                continue;
            }
            let unit = match character {
                'h' => 3600,
                'm' => 60,
                's' => 1,
                _ => return Err(wrong()),
            };
            let count: u64 = number.parse().map_err(|_| wrong())?;
            if unit >= last {
                return Err(wrong());
            }
            last = unit;
            total = count.checked_mul(unit).and_then(|more| total.checked_add(more)).ok_or_else(wrong)?;
            number.clear();
        }
        if !number.is_empty() || total == 0 || total > 7 * 24 * 3600 {
            return Err(wrong());
        }
        Ok(Self(Duration::from_secs(total)))
    }
}

impl From<Duration> for Timeout {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        for (count, unit) in [(seconds / 3600, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')] {
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timeout {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timeout {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Timeout {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timeout".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A length of time, written `90s`, `10m` or `1h30m`.",
            "type": "string",
            "pattern": r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$",
            "minLength": 2
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Timeout;

    #[test]
    fn timeouts_read_back_as_written() {
        for text in ["90s", "10m", "1h30m", "2h", "1h1m1s"] {
            let shown = Timeout::parse(text).unwrap().to_string();
            assert_eq!(Timeout::parse(&shown), Timeout::parse(text), "{text}");
        }
        assert_eq!(Timeout::parse("90s").unwrap().to_string(), "1m30s");
    }

    #[test]
    fn wrong_timeouts_are_refused() {
        for text in ["", "10", "0s", "5d", "m", "1m1h", "1s1s", "-1s", "99999999999999999999s", "8000h"] {
            assert!(Timeout::parse(text).unwrap_err().contains("such as `90s`"), "{text}");
        }
    }
}
