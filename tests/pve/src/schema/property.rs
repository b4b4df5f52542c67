//! Property strings: `virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1`.

use std::collections::BTreeMap;

use super::Param;
use super::param::Kind;

/// Splits a property string into its keys and values, aliases resolved and booleans as 1 or 0.
/// Unknown keys are kept: it is the check that refuses them.
///
/// # Errors
/// The server's text, a newline at its end.
pub(crate) fn parse_property(keys: &[Param], text: &str) -> Result<BTreeMap<String, String>, String> {
    let default = keys.iter().find(|key| key.default_key).map(|key| key.name);
    let mut found = BTreeMap::new();
    for part in text.split(',').filter(|part| !part.trim().is_empty()) {
        let (key, value) = match part.split_once('=') {
            Some((key, value)) if !key.is_empty() && !value.is_empty() => (key, value),
            Some(_) => return Err("missing key in comma-separated list property\n".into()),
            None => match default {
                Some(key) if found.contains_key(key) => return Err(duplicate(key)),
                Some(key) => (key, part),
                None => {
                    return Err("value without key, but schema does not define a default key\n".into());
                }
            },
        };
        insert(keys, &mut found, key, value)?;
    }
    Ok(found)
}

fn insert(
    keys: &[Param],
    found: &mut BTreeMap<String, String>,
    key: &str,
    value: &str,
) -> Result<(), String> {
    let mut name = key;
    if let Some(alias) = keys.iter().find(|known| known.name == key)
        && let Some(real) = alias.alias
    {
        if let Some(holder) = alias.key_alias
            && found.insert(holder.into(), key.into()).is_some()
        {
            return Err(format!("key alias '{holder}' is already defined\n"));
        }
        name = real;
    }
    if found.contains_key(name) {
        return Err(duplicate(name));
    }
    let boolean = keys.iter().any(|known| known.name == name && known.kind == Kind::Boolean);
    let value = if boolean { plain_boolean(value).unwrap_or(value) } else { value };
    found.insert(name.into(), value.into());
    Ok(())
}

fn duplicate(key: &str) -> String {
    format!("duplicate key in comma-separated list property: {key}\n")
}

fn plain_boolean(text: &str) -> Option<&'static str> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "on" | "yes" | "true" => Some("1"),
        "0" | "off" | "no" | "false" => Some("0"),
        _ => None,
    }
}

/// Writes a property string as Proxmox stores it: the default key's bare value first, then sorted.
pub(crate) fn print_property(keys: &[Param], values: &BTreeMap<String, String>) -> String {
    let model = keys.iter().any(|key| key.key_alias.is_some());
    let default = keys.iter().find(|key| key.default_key).map(|key| key.name);
    let mut parts = Vec::new();
    if model && let (Some(name), Some(address)) = (values.get("model"), values.get("macaddr")) {
        parts.push(format!("{name}={address}"));
    } else if let Some(value) = default.and_then(|key| values.get(key)) {
        parts.push(value.clone());
    }
    let rest = values.iter().filter(|(key, _)| {
        Some(key.as_str()) != default && !(model && ["model", "macaddr"].contains(&key.as_str()))
    });
    parts.extend(rest.map(|(key, value)| format!("{key}={value}")));
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::super::vm;
    use super::*;

    #[test]
    fn a_nic_and_a_disk_are_stored_in_proxmox_order() {
        let net = parse_property(vm::NET, "virtio,bridge=vmbr0,firewall=yes").unwrap();
        assert_eq!(net["model"], "virtio");
        assert_eq!(net["firewall"], "1");
        let mut net = net;
        net.insert("macaddr".into(), "BC:24:11:00:00:01".into());
        assert_eq!(print_property(vm::NET, &net), "virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1");
        let again = parse_property(vm::NET, "virtio=BC:24:11:00:00:01,bridge=vmbr0").unwrap();
        assert_eq!(again["macaddr"], "BC:24:11:00:00:01");
        let disk = parse_property(vm::VIRTIO, "local:9/x.raw,iothread=on,discard=on").unwrap();
        assert_eq!(print_property(vm::VIRTIO, &disk), "local:9/x.raw,discard=on,iothread=1");
    }

    #[test]
    fn broken_strings_give_the_servers_texts() {
        let missing = "missing key in comma-separated list property\n";
        assert_eq!(parse_property(vm::BOOT, "order=").unwrap_err(), missing);
        let twice = parse_property(vm::NET, "virtio,bridge=a,bridge=b").unwrap_err();
        assert_eq!(twice, "duplicate key in comma-separated list property: bridge\n");
    }
}
