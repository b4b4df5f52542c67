//! Property strings, such as `local:301/vm-301-disk-0.raw,discard=on,size=2G`, and what is compared
//! of a config: sizes, tags, booleans.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The models of a network card, any of which can stand where `model=…,macaddr=…` may.
const NIC_MODELS: [&str; 5] = ["virtio", "e1000", "e1000e", "rtl8139", "vmxnet3"];

/// A property string: `key=value` pairs in order, the default key's value possibly bare.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    pairs: Vec<(String, String)>,
    default_key: &'static str,
}

impl Properties {
    /// Reads a property string whose bare value belongs to `default_key`: `file` for disks, `enabled` for
    /// `agent`, `cputype` for `cpu`, `type` for `machine` and `vga`.
    #[must_use]
    pub fn parse(text: &str, default_key: &'static str) -> Self {
        let pair = |part: &str| match part.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => (default_key.to_owned(), part.to_owned()),
        };
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        Self { pairs: parts.map(pair).collect(), default_key }
    }

    /// Reads a `netN` value: `virtio=MAC,bridge=…` becomes `model=virtio,macaddr=MAC,bridge=…`.
    #[must_use]
    pub fn parse_net(text: &str) -> Self {
        let mut net = Self::parse(text, "model");
        let model = net.pairs.iter().position(|(key, _)| NIC_MODELS.contains(&key.as_str()));
        if let Some(index) = model {
            let (model, mac) = net.pairs[index].clone();
            net.pairs.splice(index..=index, [("model".to_owned(), model), ("macaddr".to_owned(), mac)]);
        }
        net
    }

    /// Returns the value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Tells whether a key is there and says yes: 1, on, yes or true.
    #[must_use]
    pub fn is_on(&self, key: &str) -> bool {
        self.get(key).is_some_and(is_on)
    }

    /// Sets a key, in its place or at the end.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        let value = value.into();
        match self.pairs.iter_mut().find(|(name, _)| name == key) {
            Some(pair) => pair.1 = value,
            None => self.pairs.push((key.to_owned(), value)),
        }
        self
    }

    /// Removes a key.
    #[must_use]
    pub fn without(mut self, key: &str) -> Self {
        self.pairs.retain(|(name, _)| name != key);
        self
    }

    /// Returns how this differs from what was meant: each key that was meant and is not so. Booleans in
    /// any spelling and sizes in any unit are compared by what they mean.
    #[must_use]
    pub fn differences(&self, meant: &Self) -> Vec<String> {
        let differs = |(key, value): &&(String, String)| !self.get(key).is_some_and(|have| same(have, value));
        let told = |(key, value): &(String, String)| match self.get(key) {
            Some(have) => format!("{key} is {have} instead of {value}"),
            None => format!("{key}={value} is missing"),
        };
        meant.pairs.iter().filter(differs).map(told).collect()
    }
}

impl fmt::Display for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.pairs.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            // The bare form is only taken in first place by every version.
            if index == 0 && key == self.default_key {
                write!(f, "{value}")?;
            } else {
                write!(f, "{comma}{key}={value}")?;
            }
        }
        Ok(())
    }
}

fn is_on(text: &str) -> bool {
    ["1", "on", "yes", "true"].iter().any(|yes| text.eq_ignore_ascii_case(yes))
}

fn is_off(text: &str) -> bool {
    ["0", "off", "no", "false"].iter().any(|no| text.eq_ignore_ascii_case(no))
}

fn same(have: &str, meant: &str) -> bool {
    let size = |text| parse_size(text).filter(|_| text.ends_with(['K', 'M', 'G', 'T']));
    have == meant
        || (is_on(have) && is_on(meant))
        || (is_off(have) && is_off(meant))
        || size(have).zip(size(meant)).is_some_and(|(have, meant)| have == meant)
}

/// Reads a size such as `2G`, `18366K` or `1.5T` as bytes; a bare number is bytes.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, unit) = match text.char_indices().last()? {
        (end, unit @ ('K' | 'M' | 'G' | 'T')) => (&text[..end], unit),
        _ => (text, 'B'),
    };
    let shift = ["B", "K", "M", "G", "T"].iter().position(|it| it.starts_with(unit))? * 10;
    if let Ok(whole) = digits.parse::<u64>() {
        return whole.checked_mul(1 << shift);
    }
    let value: f64 = digits.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0)?;
    Some((value * (1u64 << shift) as f64).round() as u64)
}

/// Reads tags as the set they are: VM create stores them as given, updates sort and lower-case them.
#[must_use]
pub fn parse_tags(text: &str) -> BTreeSet<String> {
    let words = text.split([';', ',', ' ']).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

/// Reads `boot` as the devices in their order; nothing when it says none.
#[must_use]
pub fn parse_boot_order(text: &str) -> Vec<String> {
    let properties = Properties::parse(text, "legacy");
    let order = properties.get("order").unwrap_or_default();
    order.split([';', ' ']).filter(|device| !device.is_empty()).map(str::to_owned).collect()
}

/// Returns the fields of an `smbios1` value with those that are base64 decoded.
#[must_use]
pub fn parse_smbios(text: &str) -> BTreeMap<String, String> {
    use base64::Engine as _;
    // Proxmox writes no bare value there.
    let properties = Properties::parse(text, "uuid");
    let encoded = properties.is_on("base64");
    let decode = |key: &str, value: &str| {
        let decoded = base64::engine::general_purpose::STANDARD.decode(value).ok();
        let plain = || value.to_owned();
        if !encoded || key == "uuid" {
            plain()
        } else {
            decoded.and_then(|it| String::from_utf8(it).ok()).unwrap_or_else(plain)
        }
    };
    let fields = properties.pairs.iter().filter(|(key, _)| key != "base64");
    fields.map(|(key, value)| (key.clone(), decode(key, value))).collect()
}

/// Returns an `smbios1` value with every field but the UUID in base64: the plain form takes no `;` or `=`.
#[must_use]
pub fn smbios(uuid: &str, fields: &[(&str, &str)]) -> String {
    use base64::Engine as _;
    let encode = |value| base64::engine::general_purpose::STANDARD.encode(value);
    let mut parts = vec![format!("uuid={uuid}")];
    parts.extend(fields.iter().map(|(key, value)| format!("{key}={}", encode(value))));
    parts.extend((!fields.is_empty()).then(|| "base64=1".to_owned()));
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn property_strings_are_read_and_written_back() {
        for (text, key) in [
            ("local:301/vm-301-disk-1.raw,discard=on,iothread=1,size=2G", "file"),
            ("none,media=cdrom", "file"),
            ("enabled=1,fstrim_cloned_disks=1", "other"),
            ("host,flags=+aes", "cputype"),
            ("", "file"),
        ] {
            assert_eq!(Properties::parse(text, key).to_string(), text);
        }
        let disk =
            Properties::parse("local:5,ssd=1", "file").with("ssd", "0").with("size", "2G").without("file");
        assert_eq!(disk.to_string(), "ssd=0,size=2G");
    }

    #[test]
    fn a_card_has_its_model_and_its_address() {
        let net = Properties::parse_net("virtio=BC:24:11:DB:1C:14,bridge=vmbr0,firewall=1");
        assert_eq!((net.get("model"), net.get("macaddr")), (Some("virtio"), Some("BC:24:11:DB:1C:14")));
        assert_eq!(net.differences(&Properties::parse_net("virtio,bridge=vmbr0")), Vec::<String>::new());
        assert_eq!(
            net.differences(&Properties::parse_net("model=e1000,bridge=vmbr0,tag=7")),
            ["model is virtio instead of e1000", "tag=7 is missing"]
        );
    }

    #[test]
    fn values_are_compared_by_what_they_mean() {
        let have = Properties::parse("a,discard=on,iothread=1,backup=no,size=1024M", "file");
        let meant = Properties::parse("a,discard=1,iothread=yes,backup=0,size=1G", "file");
        assert_eq!(have.differences(&meant), Vec::<String>::new());
        assert_eq!(
            Properties::parse("1", "enabled").differences(&Properties::parse("enabled=1", "enabled")).len(),
            0
        );
    }

    #[test]
    fn sizes_tags_and_boot_orders_are_read() {
        for (text, bytes) in [
            ("2G", Some(2 << 30)),
            ("18366K", Some(18366 << 10)),
            ("528", Some(528)),
            ("1.5M", Some(1_572_864)),
            ("0.5T", Some(1 << 39)),
            ("", None),
            ("G", None),
            ("-1G", None),
            ("99999999999T", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
        assert_eq!(parse_tags("forge;Run-1,abc"), parse_tags(" abc forge run-1"));
        assert_eq!(parse_tags(" "), BTreeSet::new());
        assert_eq!(parse_boot_order("order=virtio0;ide2"), ["virtio0", "ide2"]);
        assert_eq!(parse_boot_order(" "), Vec::<String>::new());
    }

    #[test]
    fn smbios_fields_survive() {
        let text = smbios("5f2e", &[("serial", "ds=nocloud;s=http://10.0.0.1:8000/")]);
        assert!(!text.contains(';'), "{text}");
        let fields = parse_smbios(&text);
        assert_eq!(fields["serial"], "ds=nocloud;s=http://10.0.0.1:8000/");
        assert_eq!(fields["uuid"], "5f2e");
        assert_eq!(smbios("5f2e", &[]), "uuid=5f2e");
    }
}
