//! The leaf formats, with the server's texts.
//!
//! Source: the published table of formats, `PVE/JSONSchema.pm`, `PVE/Storage.pm`.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::validate::matches_pattern;
use crate::access;

/// Splits a `-list` value: commas, semicolons, blanks and NUL all separate.
pub(crate) fn split_list(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c == ',' || c == ';' || c == '\0' || c.is_whitespace())
        .filter(|item| !item.is_empty())
}

/// Checks `text` against the format called `name`.
pub(crate) fn check_format(name: &str, text: &str, major: u8) -> Result<(), String> {
    if let Some(item) = name.strip_suffix("-list") {
        return split_list(text).try_for_each(|part| check_format(item, part, major));
    }
    if let Some(inner) = name.strip_suffix("-opt") {
        return if text.is_empty() { Ok(()) } else { check_format(inner, text, major) };
    }
    if name == "pve-priv" {
        return if access::is_privilege(major, text) {
            Ok(())
        } else {
            Err(format!("invalid privilege '{text}'\n"))
        };
    }
    if is(name, text) { Ok(()) } else { Err(complaint(name, text)) }
}

const STORAGE_ID: &str = "(?i:[a-z][a-z0-9_.-]*[a-z0-9])";

fn is(name: &str, text: &str) -> bool {
    let pattern = match name {
        "ipv4" => return text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => return text.parse::<Ipv6Addr>().is_ok(),
        "ip" => return is("ipv4", text) || is("ipv6", text),
        "address" => return is("ip", text) || is("dns-name", text),
        "CIDR" => return is_network(text, true) || is_network(text, false),
        "pve-ipv4-config" => return ["dhcp", "manual"].contains(&text) || is_network(text, true),
        "pve-ipv6-config" => {
            return ["auto", "dhcp", "manual"].contains(&text) || is_network(text, false);
        }
        "pve-volume-id" => return is_volume_id(text),
        "pve-volume-id-or-qm-path" => {
            return ["none", "cdrom"].contains(&text) || text.starts_with('/') || is_volume_id(text);
        }
        "pve-volume-id-or-absolute-path" => return text.starts_with('/') || is_volume_id(text),
        "storage-pair" => {
            return text.split(':').all(|id| id == "1" || is("pve-storage-id", id));
        }
        "dns-name" => {
            "(?:(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?\\.)*[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)"
        }
        "email" => "[\\w+~-]+(?:\\.[\\w+~-]+)*@[a-zA-Z0-9-]+(?:\\.[a-zA-Z0-9-]+)*",
        "disk-size" => "\\d+(?:\\.\\d+)?(?:[KMGT](?:iB)?)?",
        "mac-addr" => "(?i:[a-f0-9][02468ace](?::[a-f0-9]{2}){5})",
        "pve-bridge-id" => "[-_.\\w\\d]+",
        "pve-configid" => "(?i:[a-z][a-z0-9_-]+)",
        "pve-cpuset" => "\\s*\\d+(?:-\\d+)?\\s*(?:,\\s*\\d+(?:-\\d+)?\\s*)*",
        "pve-groupid" | "pve-roleid" => "[A-Za-z0-9._-]+",
        "pve-hotplug-features" => "(?:[01]|(?:[\\s,;]*(?:network|disk|cpu|memory|usb|cloudinit))+[\\s,;]*)",
        "pve-node" => "[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?",
        "pve-phys-bits" => "(?:host|[89]|[1-5][0-9]|6[0-4])",
        "pve-poolid" => "[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+){0,2}",
        "pve-qm-bootdev" => {
            "(?:ide[0-3]|sata[0-5]|scsi(?:[12]?[0-9]|30)|virtio(?:[0-9]|1[0-5])|net(?:[12]?[0-9]|3[01])|usb(?:[0-9]|1[0-3])|hostpci(?:[0-9]|1[0-5]))"
        }
        "pve-qm-bootdisk" => {
            "(?:ide[0-3]|sata[0-5]|scsi(?:[12]?[0-9]|30)|virtio(?:[0-9]|1[0-5])|efidisk0|tpmstate0)"
        }
        "pve-realm" => "[A-Za-z][A-Za-z0-9._-]+",
        "pve-startup-order" => "(?:(?:\\s*|(?:order=)?\\d+|up=\\d+|down=\\d+)(?:,|$))+",
        "pve-storage-content" => "(?:images|rootdir|vztmpl|iso|backup|snippets|none|import)",
        "pve-storage-id" => STORAGE_ID,
        "pve-tag" => "(?i:[a-z0-9_][a-z0-9_+.-]*)",
        "pve-task-status-type" => "(?i:ok|error|warning|unknown)",
        "pve-tokenid" => "[^\\s:/]+@[A-Za-z][A-Za-z0-9._-]+![A-Za-z][A-Za-z0-9._-]+",
        "pve-userid" => "[^\\s:/]+@[A-Za-z][A-Za-z0-9._-]+",
        "pve-vmid" => "[1-9][0-9]{2,8}",
        "urlencoded" => "[-%a-zA-Z0-9_.!~*'()]*",
        // Any text is a "string"; others stand only in the published schema.
        _ => return true,
    };
    matches_pattern(pattern, text)
}

fn is_network(text: &str, v4: bool) -> bool {
    let Some((address, prefix)) = text.split_once('/') else {
        return false;
    };
    let Ok(prefix) = prefix.parse::<u8>() else {
        return false;
    };
    if v4 {
        is("ipv4", address) && (8..=32).contains(&prefix)
    } else {
        is("ipv6", address) && (8..=128).contains(&prefix)
    }
}

fn is_volume_id(text: &str) -> bool {
    text.split_once(':').is_some_and(|(storage, rest)| is("pve-storage-id", storage) && !rest.is_empty())
}

fn complaint(name: &str, text: &str) -> String {
    let looks = match name {
        "pve-vmid" => "a valid VM ID",
        "pve-node" => "a valid node name",
        "dns-name" => "a valid DNS name",
        "ipv4" => "a valid ipv4 address",
        "ipv6" => "a valid ipv6 address",
        "ip" => "a valid IP address",
        "address" => "a valid IP address or DNS name",
        "CIDR" => "a valid CIDR network",
        "pve-ipv4-config" => "a valid ipv4 network configuration",
        "pve-ipv6-config" => "a valid ipv6 network configuration",
        "mac-addr" => "a valid unicast MAC address",
        "disk-size" => "a valid disk size",
        "email" => "a valid email address",
        "pve-task-status-type" => "a valid task status",
        _ => "",
    };
    if !looks.is_empty() {
        return format!("value does not look like {looks}\n");
    }
    match name {
        "pve-tag" => "invalid characters in tag\n".into(),
        "pve-configid" => format!("invalid configuration ID '{text}'\n"),
        "pve-storage-content" => format!("invalid content type '{text}'\n"),
        "pve-storage-id" => format!("storage ID '{text}' contains illegal characters\n"),
        "pve-volume-id" | "pve-volume-id-or-qm-path" | "pve-volume-id-or-absolute-path" => {
            format!("unable to parse volume ID '{text}'\n")
        }
        "urlencoded" => format!("invalid urlencoded string: {text}\n"),
        "pve-poolid" => format!("pool name '{text}' contains invalid characters\n"),
        "pve-userid" => format!("value '{text}' does not look like a valid user name\n"),
        "pve-tokenid" => format!("value '{text}' does not look like a valid token ID\n"),
        "pve-roleid" => format!("role name '{text}' contains invalid characters\n"),
        "pve-qm-bootdev" => format!("invalid boot device '{text}'\n"),
        "pve-startup-order" => "unable to parse startup options\n".into(),
        _ => format!("value '{text}' does not have the format '{name}'\n"),
    }
}
