//! The rules beyond keys and shapes.

use super::Finding;
use super::shape::{CLOUD_CONFIG, MATCH, did_you_mean};
use super::tree::{Entry, Node, Position, Value};

/// Checks what stands under `autoinstall`; `at` is where that key stands.
pub(super) fn check(at: Position, autoinstall: &Node, findings: &mut Vec<Finding>) {
    check_version(autoinstall, findings);
    check_ending(at, autoinstall, findings);
    check_attendance(autoinstall, findings);
    if let Some(timezone) = autoinstall.get("timezone") {
        check_timezone(timezone, findings);
    }
    if let Some(layout) = autoinstall.get("keyboard").and_then(|keyboard| keyboard.get("layout")) {
        check_layout(layout, findings);
    }
    match (autoinstall.get("identity"), autoinstall.get("user-data")) {
        (None, None) => {
            findings
                .push(Finding::at(at, "the installer wants `identity` or `user-data`, and finds neither"));
        }
        (Some(identity), _) => check_identity(identity, findings),
        (None, Some(_)) => {}
    }
    if let Some(user_data) = autoinstall.get("user-data") {
        check_user_data(user_data, findings);
    }
    if let Some(keys) = autoinstall.get("ssh").and_then(|ssh| ssh.get("authorized-keys")) {
        check_keys(keys, findings);
    }
    if let Some(storage) = autoinstall.get("storage") {
        check_storage(storage, findings);
    }
    if let Some(entry) = autoinstall.entry("network") {
        check_network(entry, findings);
    }
    if let Some(entry) = autoinstall.entry("kernel") {
        check_kernel(entry, findings);
    }
    if let Some(apt) = autoinstall.get("apt") {
        check_apt(apt, findings);
    }
    if let Some(reporting) = autoinstall.get("reporting") {
        check_reporting(reporting, findings);
    }
}

fn check_version(autoinstall: &Node, findings: &mut Vec<Finding>) {
    if let Some(Node { value: Value::Integer(number), at }) = autoinstall.get("version")
        && *number != 1
    {
        findings.push(Finding::at(*at, format!("`version` is {number}, but the installer knows only 1")));
    }
}

fn check_ending(at: Position, autoinstall: &Node, findings: &mut Vec<Finding>) {
    const WHY: &str = "powering off is how forge learns that the installation succeeded";
    match autoinstall.get("shutdown") {
        None => findings.push(Finding::at(at, format!("`shutdown: poweroff` is missing: {WHY}"))),
        Some(node) if node.text() == Some("reboot") => {
            findings.push(Finding::at(node.at, format!("`shutdown` must be `poweroff`: {WHY}")));
        }
        Some(_) => {}
    }
}

fn check_attendance(autoinstall: &Node, findings: &mut Vec<Finding>) {
    if let Some(entry) = autoinstall.entry("interactive-sections") {
        let message =
            "with `interactive-sections` the installer asks questions and sends no reports: remove it";
        findings.push(Finding::at(entry.at, message));
    }
    if let Some(entry) = autoinstall.entry("early-commands") {
        let message = "these `early-commands` would not run: forge's own come first, and the installer \
                       reads this file only after them; use `late-commands`, or a step of the template";
        findings.push(Finding::at(entry.at, message));
    }
}

fn check_timezone(timezone: &Node, findings: &mut Vec<Finding>) {
    let Some(text) = timezone.text() else { return };
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_uppercase())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_+-".contains(&byte))
    };
    if !(text.is_empty() || text == "geoip" || text.split('/').all(part)) {
        let message = format!("`timezone` is `{text}`, which is not a name such as `Europe/Paris`");
        findings.push(Finding::at(timezone.at, message));
    }
}

fn check_layout(layout: &Node, findings: &mut Vec<Finding>) {
    let Some(text) = layout.text() else { return };
    if text.len() < 2 || !text.bytes().all(|byte| byte.is_ascii_lowercase()) {
        let message = format!(
            "`keyboard.layout` is `{text}`, which is not a layout such as `fr`; a variant has its own key"
        );
        findings.push(Finding::at(layout.at, message));
    }
}

fn check_identity(identity: &Node, findings: &mut Vec<Finding>) {
    let mut wrong = |key: &str, fits: fn(&str) -> bool, reason: &str| {
        if let Some(node) = identity.get(key)
            && let Some(text) = node.text()
            && !fits(text)
        {
            findings.push(Finding::at(node.at, format!("`identity.{key}` {reason}")));
        }
    };
    wrong(
        "username",
        is_user_name,
        "must be a user's name other than root: a-z, 0-9, `_` and `-`, not a digit first",
    );
    wrong("hostname", is_host_name, "must be a host name: letters, digits and inner `-`, at most 63");
    wrong(
        "password",
        |text| !text.starts_with('!') && !text.is_empty(),
        "would become an empty password: write \"*\" for no password",
    );
    wrong(
        "password",
        |text| text.is_empty() || text == "*" || text.starts_with('!') || is_crypt(text),
        "must be \"*\" for no password, or a hash such as `openssl passwd -6` makes; nobody could log in with this",
    );
}

fn is_user_name(text: &str) -> bool {
    text != "root"
        && text.len() <= 32
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte))
}

fn is_host_name(text: &str) -> bool {
    let part = |part: &str| {
        (1..=63).contains(&part.len())
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    text.len() <= 253 && text.split('.').all(part)
}

/// Tells whether a text is a password hash: `$id$…$hash` (crypt(5)).
fn is_crypt(text: &str) -> bool {
    let parts: Vec<&str> = text.split('$').collect();
    parts.len() >= 4 && parts[0].is_empty() && parts[1..].iter().all(|part| !part.is_empty())
}

/// Checks the keys that may log in: the base64 of each public key begins with the length of its type's
/// name (RFC 4253, 6.6), whatever options stand before it.
fn check_keys(keys: &Node, findings: &mut Vec<Finding>) {
    for key in keys.items() {
        if key.text().is_some_and(|text| !text.contains(" AAAA") || text.contains('\n')) {
            let message = "this is no public key: a key is one line, such as `ssh-ed25519 AAAA… name`";
            findings.push(Finding::at(key.at, message));
        }
    }
}

fn check_user_data(user_data: &Node, findings: &mut Vec<Finding>) {
    let known: Vec<&str> = CLOUD_CONFIG.split(' ').collect();
    for entry in user_data.entries().iter().filter(|entry| !known.contains(&entry.key.as_str())) {
        let message = format!(
            "the installer refuses `user-data.{}`, which cloud-init does not know{}",
            entry.key,
            did_you_mean(&entry.key, &known)
        );
        findings.push(Finding::at(entry.at, message));
    }
}

fn check_storage(storage: &Node, findings: &mut Vec<Finding>) {
    if let (Some(_), Some(config)) = (storage.get("layout"), storage.entry("config")) {
        findings
            .push(Finding::at(config.at, "`storage.config` is ignored beside `storage.layout`: keep one"));
    }
    let Some(wanted) = storage.get("layout").and_then(|layout| layout.get("match")) else { return };
    for entry in wanted.entries().iter().chain(wanted.items().iter().flat_map(Node::entries)) {
        if !MATCH.contains(&entry.key.as_str()) {
            let message = format!(
                "the installer does not know `storage.layout.match.{}` and would ignore it{}",
                entry.key,
                did_you_mean(&entry.key, MATCH)
            );
            findings.push(Finding::at(entry.at, message));
        }
    }
}

/// Checks the network, which may stand in a further `network` mapping, as netplan writes it.
fn check_network(entry: &Entry, findings: &mut Vec<Finding>) {
    let network = entry.node.get("network").unwrap_or(&entry.node);
    let version = network.get("version").map(|node| &node.value);
    if !matches!(version, Some(Value::Integer(2))) {
        findings.push(Finding::at(entry.at, "`network.version` must be 2"));
    }
    let kinds = ["ethernets", "wifis", "bridges", "bonds", "tunnels", "vlans"];
    if !kinds.iter().any(|kind| network.get(kind).is_some_and(|node| !node.entries().is_empty())) {
        let message =
            "`network` configures no interface, so there would be no network: leave it out for DHCP on all";
        findings.push(Finding::at(entry.at, message));
    }
}

fn check_kernel(entry: &Entry, findings: &mut Vec<Finding>) {
    if entry.node.get("package").is_some() == entry.node.get("flavor").is_some() {
        findings.push(Finding::at(entry.at, "`kernel` must have either `package` or `flavor`"));
    }
}

fn check_apt(apt: &Node, findings: &mut Vec<Finding>) {
    if let (Some(_), Some(primary)) = (apt.get("mirror-selection"), apt.entry("primary")) {
        findings.push(Finding::at(
            primary.at,
            "`apt.primary` cannot stand beside `apt.mirror-selection`: keep the latter",
        ));
    }
    let mirrors = apt.get("mirror-selection").and_then(|selection| selection.get("primary"));
    for mirror in mirrors.map(Node::items).unwrap_or_default() {
        let fits = mirror.text() == Some("country-mirror")
            || mirror.get("uri").is_some_and(|uri| uri.text().is_some());
        if !fits {
            findings.push(Finding::at(mirror.at, "a mirror must be `country-mirror` or have a `uri`"));
        }
    }
}

fn check_reporting(reporting: &Node, findings: &mut Vec<Finding>) {
    for entry in reporting.entries() {
        match entry.node.get("type").and_then(Node::text) {
            None => {
                findings.push(Finding::at(entry.at, format!("`reporting.{}` has no `type`", entry.key)));
            }
            Some("webhook") if entry.node.get("endpoint").and_then(Node::text).is_none_or(str::is_empty) => {
                findings.push(Finding::at(entry.at, format!("`reporting.{}` has no `endpoint`", entry.key)));
            }
            Some(_) => {}
        }
    }
}
