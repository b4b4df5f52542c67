//! Reads values that Perl writes now as numbers, now as text.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// Reads a number, or text that is one.
pub(super) fn number<'de, D: Deserializer<'de>, T: FromStr + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    maybe_number(deserializer).map(Option::unwrap_or_default)
}

/// Reads a number, text that is one, or nothing: null and an empty text.
pub(super) fn maybe_number<'de, D: Deserializer<'de>, T: FromStr>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    match maybe_text(deserializer)? {
        Some(text) if !text.trim().is_empty() => {
            // Sizes above 2^53 and sums come as floats now and then.
            let whole = text.trim().split('.').next().unwrap_or_default();
            let parsed = text.trim().parse().or_else(|_| whole.parse());
            parsed.map(Some).map_err(|_| de::Error::custom(format!("`{text}` is no number that fits")))
        }
        _ => Ok(None),
    }
}

/// Reads 1, "1" or true as true, and everything else as false.
pub(super) fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(matches!(maybe_text(deserializer)?.as_deref(), Some("1" | "true")))
}

/// Reads text, a number or a boolean as text.
pub(super) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    maybe_text(deserializer).map(Option::unwrap_or_default)
}

/// Reads text, a number or a boolean as text, null as nothing.
pub(super) fn maybe_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    struct Loose;
    impl Visitor<'_> for Loose {
        type Value = Option<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("text, a number or a boolean")
        }

        fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
            Ok(Some(value.to_owned()))
        }

        fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
            Ok(Some(value.to_string()))
        }

        fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
            Ok(Some(value.to_string()))
        }

        fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
            Ok(Some(value.to_string()))
        }

        fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
            Ok(Some(if value { "1" } else { "0" }.to_owned()))
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }
    deserializer.deserialize_any(Loose)
}

/// Reads a list of words with commas, semicolons or blanks between them.
pub(super) fn words<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<std::collections::BTreeSet<String>, D::Error> {
    let text = text(deserializer)?;
    Ok(text.split([',', ';', ' ']).filter(|word| !word.is_empty()).map(str::to_owned).collect())
}

/// A value that is text, a number or a boolean.
#[derive(Debug, Clone)]
pub(super) struct Text(pub(super) Option<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        maybe_text(deserializer).map(Self)
    }
}
