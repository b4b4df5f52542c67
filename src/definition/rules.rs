//! What a schema cannot say: combinations that cannot work, each refused where it is written.
//!
//! The rules read the tree, not the structs, so that they hold beside other errors.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use regex::Regex;

use super::diagnostics::{Finding, Findings, Span, one_of};
use super::model::Timeout;
use super::tree::{Node, Value};
use super::variables::{bad_regex, sounds_secret};

/// Checks a whole definition.
pub(crate) fn check(tree: &Node, findings: &mut Findings) {
    let mut rules = Rules { tree, findings };
    rules.template();
    rules.source();
    rules.machine();
    rules.steps();
    rules.checks();
    rules.seal();
    rules.proof();
    rules.timeouts();
}

/// The ways a step can work.
const ACTIONS: [&str; 4] = ["shell", "upload", "packages", "reboot"];

/// The ways a check can look.
const KINDS: [&str; 11] = [
    "file",
    "package",
    "service",
    "user",
    "group",
    "sshd",
    "listening",
    "timezone",
    "locale",
    "sysctl",
    "command",
];

struct Rules<'a> {
    tree: &'a Node,
    findings: &'a mut Findings,
}

impl Rules<'_> {
    fn refuse(&mut self, span: Span, message: impl Into<String>, help: impl Into<String>) {
        let help = help.into();
        let finding = Finding::new(span, message);
        self.findings.push(if help.is_empty() { finding } else { finding.help(help) });
    }

    fn template(&mut self) {
        let Some(template) = self.tree.get("template") else { return };
        // What is not made of the right characters has been refused by the schema's pattern.
        if let Some(name) = template.get("name")
            && name.text().is_some_and(|text| {
                let edge = |at: Option<char>| at.is_some_and(|c| c.is_ascii_alphanumeric());
                let inner = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
                text.len() <= 63
                    && text.chars().all(inner)
                    && edge(text.chars().next())
                    && edge(text.chars().last())
            })
        {
            self.dns_name("template.name", name);
        }
        self.tags("template.tags", template);
    }

    fn dns_name(&mut self, key: &str, node: &Node) {
        let Some(name) = node.text() else { return };
        let good = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        if !name.split('.').all(good) {
            self.refuse(
                node.span,
                format!("`{name}` is not a DNS name, which `{key}` must be"),
                "letters, digits and `-`, beginning and ending with a letter or digit",
            );
        }
    }

    /// Proxmox's format `pve-tag`.
    fn tags(&mut self, key: &str, table: &Node) {
        for tag in table.list("tags") {
            let Some(text) = tag.text() else { continue };
            let mut bytes = text.bytes();
            let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            if !first || !bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_+.-".contains(&byte)) {
                self.refuse(
                    tag.span,
                    format!("`{text}` is not a tag that Proxmox takes, in `{key}`"),
                    "letters, digits, `_`, `+`, `.` and `-`, beginning with a letter, a digit or `_`",
                );
            }
        }
    }

    fn source(&mut self) {
        let Some(source) = self.tree.get("source") else { return };
        match (source.entry("sha256"), source.entry("checksums")) {
            (Some(sha256), Some(checksums)) => {
                let later = sha256.key_span.max(checksums.key_span);
                self.refuse(
                    later,
                    "`sha256` and `checksums` both say what the ISO must be",
                    "keep one: `sha256` pins the ISO, `checksums` follows a signed list",
                );
            }
            (None, None) => self.refuse(
                source.span,
                "nothing says what the ISO must be",
                "add `sha256 = \"…\"`, or a table `[source.checksums]` for a signed list",
            ),
            _ => {}
        }
        self.location(source, "iso");
        if let Some(checksums) = source.get("checksums") {
            self.location(checksums, "file");
            self.location(checksums, "signature");
        }
    }

    /// A URL, or a path.
    fn location(&mut self, table: &Node, key: &str) {
        let Some(node) = table.get(key) else { return };
        match node.text() {
            Some("") => self.refuse(node.span, format!("`{key}` is empty"), "a path or a URL"),
            Some(text) => {
                if let Some((scheme, _)) = text.split_once("://")
                    && !matches!(scheme, "http" | "https")
                {
                    let message = format!("`{scheme}://` is no way to fetch `{key}`");
                    self.refuse(node.span, message, "`https://`, `http://`, or a path");
                }
            }
            None => {}
        }
    }

    fn machine(&mut self) {
        let Some(machine) = self.tree.get("machine") else { return };
        self.disks(machine);
        self.nics(machine);
        self.tags("machine.tags", machine);
        for cdrom in machine.list("cdrom") {
            self.location(cdrom, "iso");
        }
        if machine.bool_at("tpm") == Some(true) && machine.text_at("firmware").unwrap_or("bios") == "bios" {
            let span = machine.get("tpm").map_or(machine.span, |tpm| tpm.span);
            self.refuse(span, "a TPM needs UEFI firmware", "set `firmware = \"uefi\"`, or `tpm = false`");
        }
        if machine.bool_at("agent") == Some(false) {
            let span = machine.get("agent").map_or(machine.span, |agent| agent.span);
            self.refuse(
                span,
                "without the guest agent forge cannot reach the guest",
                "steps, checks and the seal all run through it: remove `agent = false`",
            );
        }
    }

    fn disks(&mut self, machine: &Node) {
        let Some(disks) = machine.get("disk") else { return };
        if matches!(&disks.value, Value::Array(items) if items.is_empty()) {
            self.refuse(disks.span, "a machine needs a disk to install to", "remove `disk = []`");
        }
        let single = machine.text_at("scsi_controller") == Some("virtio-scsi-single");
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for disk in disks.items() {
            let bus = disk.text_at("bus").unwrap_or("virtio");
            *counts.entry(bus).or_default() += 1;
            self.disk(disk, bus, single);
        }
        for (bus, most) in [("virtio", 16), ("scsi", 31), ("sata", 6)] {
            if counts.get(bus).is_some_and(|count| *count > most) {
                let message =
                    format!("{} disks on the bus `{bus}`, which has places for {most}", counts[bus]);
                self.refuse(disks.span, message, "");
            }
        }
    }

    fn disk(&mut self, disk: &Node, bus: &str, single: bool) {
        let span_of = |key: &str| disk.get(key).map_or(disk.span, |node| node.span);
        if disk.bool_at("iothread") == Some(true) {
            match bus {
                "sata" => self.refuse(
                    span_of("iothread"),
                    "a disk on the bus `sata` cannot have an I/O thread",
                    "set `bus = \"virtio\"`, or remove `iothread`",
                ),
                "scsi" if !single => self.refuse(
                    span_of("iothread"),
                    "a disk on the bus `scsi` has an I/O thread only on a controller of its own",
                    "set `scsi_controller = \"virtio-scsi-single\"` in `[machine]`, or remove `iothread`",
                ),
                _ => {}
            }
        }
        if disk.bool_at("ssd") == Some(true) && bus == "virtio" {
            self.refuse(
                span_of("ssd"),
                "a disk on the bus `virtio` cannot pass for a solid-state disk: Proxmox refuses it",
                "remove `ssd` (`discard` works without it), or set `bus = \"scsi\"`",
            );
        }
    }

    fn nics(&mut self, machine: &Node) {
        let Some(nics) = machine.get("nic") else { return };
        let transport = self.tree.get("seed").and_then(|seed| seed.text_at("transport")).unwrap_or("http");
        if matches!(&nics.value, Value::Array(items) if items.is_empty()) && transport == "http" {
            self.refuse(
                nics.span,
                "the installer fetches its answers over the network, and the machine has none",
                "remove `nic = []`, or set `transport = \"cdrom\"` in `[seed]`",
            );
        }
        let mut seen: Vec<String> = Vec::new();
        for mac in nics.items().iter().filter_map(|nic| nic.get("mac")) {
            let Some(text) = mac.text() else { continue };
            let address = text.to_ascii_lowercase();
            let first = address.get(..2).and_then(|byte| u8::from_str_radix(byte, 16).ok());
            if first.is_some_and(|byte| byte & 1 == 1) {
                self.refuse(
                    mac.span,
                    format!("`{text}` is a multicast address, which no interface can have"),
                    "the first byte must be even, such as `52:54:00:…`",
                );
            }
            if seen.contains(&address) {
                self.refuse(mac.span, format!("two interfaces have the address `{text}`"), "");
            }
            seen.push(address);
        }
    }

    fn steps(&mut self) {
        self.names("step");
        for step in self.tree.list("step") {
            self.exactly_one(step, &ACTIONS, "step", "does");
            if let Some(shell) = step.get("shell") {
                self.shell(shell);
            }
            if let Some(upload) = step.get("upload") {
                self.upload(upload);
            }
            if let Some(packages) = step.get("packages") {
                self.packages(packages);
            }
        }
    }

    fn checks(&mut self) {
        self.names("check");
        for check in self.tree.list("check") {
            self.exactly_one(check, &KINDS, "check", "looks at");
            self.patterns(check);
            self.check_contents(check);
        }
    }

    /// Names must be unique: events, reports, `--only` and `--skip` go by them.
    fn names(&mut self, list: &str) {
        let mut seen: Vec<&str> = Vec::new();
        for node in self.tree.list(list).iter().filter_map(|item| item.get("name")) {
            let Some(name) = node.text() else { continue };
            if name.trim().is_empty() {
                self.refuse(node.span, format!("a {list} needs a name"), "");
            } else if seen.contains(&name) {
                let message = format!("there is already a {list} named `{name}`");
                self.refuse(node.span, message, "names are unique in a template and those it extends");
            }
            seen.push(name);
        }
    }

    fn exactly_one(&mut self, item: &Node, kinds: &[&str], list: &str, verb: &str) {
        if !matches!(item.value, Value::Table(_)) {
            return;
        }
        let name = item.text_at("name").unwrap_or_default();
        let there: Vec<_> =
            item.entries().iter().filter(|entry| kinds.contains(&entry.key.as_str())).collect();
        match there.as_slice() {
            [_] => {}
            [] => {
                let known = |entry: &super::tree::Entry| {
                    !matches!(entry.key.as_str(), "name" | "when" | "timeout" | "retries" | "at")
                };
                // An unknown key may be the misspelt one, and has been reported.
                if !item.entries().iter().any(known) {
                    let message = format!("{list} `{name}` does not say what it {verb}");
                    self.refuse(item.span, message, format!("add one of {}", one_of(kinds)));
                }
            }
            [first, second, ..] => {
                let message = format!("{list} `{name}` has both `{}` and `{}`", first.key, second.key);
                self.refuse(
                    second.key_span,
                    message,
                    format!("make two {list}s of it: each has exactly one"),
                );
            }
        }
    }

    fn shell(&mut self, shell: &Node) {
        match (shell.entry("script"), shell.entry("inline")) {
            (Some(script), Some(inline)) => {
                let later = script.key_span.max(inline.key_span);
                self.refuse(later, "`script` and `inline` both say what runs", "keep one of the two");
            }
            (None, None) if matches!(shell.value, Value::Table(_)) => {
                self.refuse(
                    shell.span,
                    "`shell` does not say what runs",
                    "add `script = \"…\"` or `inline = \"…\"`",
                );
            }
            _ => {}
        }
        if let Some(inline) = shell.get("inline")
            && inline.text().is_some_and(|text| text.trim().is_empty())
        {
            self.refuse(inline.span, "`inline` is empty", "");
        }
        if let Some(interpreter) = shell.get("interpreter") {
            match interpreter.items().first().map(|program| (program, program.text())) {
                None if matches!(interpreter.value, Value::Array(_)) => {
                    self.refuse(
                        interpreter.span,
                        "`interpreter` is empty",
                        "a program with its options, such as [\"/bin/bash\", \"-eu\"]",
                    );
                }
                Some((program, Some(""))) => self.refuse(program.span, "`interpreter` names no program", ""),
                _ => {}
            }
        }
        if let Some(codes) = shell.get("exit_codes")
            && matches!(&codes.value, Value::Array(items) if items.is_empty())
        {
            self.refuse(codes.span, "no exit code would mean success", "remove `exit_codes`, or name one");
        }
        if let Some(env) = shell.get("env") {
            self.env(env);
        }
    }

    fn env(&mut self, env: &Node) {
        for entry in env.entries() {
            let name = entry.key.as_str();
            let start = |c: char| c.is_ascii_alphabetic() || c == '_';
            if !name.starts_with(start) || !name.chars().all(|c| start(c) || c.is_ascii_digit()) {
                self.refuse(
                    entry.key_span,
                    format!("`{name}` is not a name that an environment variable can have"),
                    "letters, digits and `_`, not beginning with a digit",
                );
            }
            let Some(text) = entry.node.text() else { continue };
            if text.contains('\0') {
                self.refuse(entry.node.span, format!("the value of `{name}` holds a NUL"), "");
            }
            if entry.node.rendered.is_none() && !text.is_empty() && sounds_secret(name) {
                self.findings.mask(entry.node.span);
                self.refuse(
                    entry.node.span,
                    format!("`{name}` sounds like a secret and stands in the file for all to read"),
                    "declare a variable with `secret = true` and write \"{{ var.… }}\" here",
                );
            }
        }
    }

    fn upload(&mut self, upload: &Node) {
        if let Some(destination) = upload.get("destination")
            && destination.text().is_some_and(|path| path.split('/').any(|part| part == ".."))
        {
            self.refuse(
                destination.span,
                "`destination` must not go through `..`",
                "write the path it leads to",
            );
        }
        self.owner(upload);
    }

    fn owner(&mut self, table: &Node) {
        let Some(owner) = table.get("owner") else { return };
        let Some(text) = owner.text() else { return };
        let part = |name: &str| {
            !name.is_empty()
                && !name.starts_with('-')
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-$".contains(&byte))
        };
        if !text.split_once(':').is_some_and(|(user, group)| part(user) && part(group)) {
            self.refuse(
                owner.span,
                format!("`{text}` is not an owner"),
                "a user and a group, such as `root:root`",
            );
        }
    }

    fn packages(&mut self, packages: &Node) {
        let Some(install) = packages.get("install") else { return };
        if matches!(&install.value, Value::Array(items) if items.is_empty())
            && packages.bool_at("upgrade") != Some(true)
        {
            self.refuse(install.span, "no package is named", "name some, or set `upgrade = true`");
        }
        for package in install.items() {
            let Some(name) = package.text() else { continue };
            let good = name.starts_with(|first: char| first.is_ascii_alphanumeric())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+.-:=~_/".contains(&byte));
            if !good {
                let help = if name.contains(' ') { "one string for each package" } else { "" };
                self.refuse(package.span, format!("`{name}` is not a package's name"), help);
            }
        }
    }

    fn patterns(&mut self, check: &Node) {
        for (kind, key) in [("file", "contains"), ("file", "lacks"), ("command", "stdout")] {
            let Some(node) = check.get(kind).and_then(|table| table.get(key)) else { continue };
            if let Some(text) = node.text()
                && let Err(error) = Regex::new(text)
            {
                self.findings.push(bad_regex(node.span, text, &error));
            }
        }
    }

    fn check_contents(&mut self, check: &Node) {
        for kind in ["file", "user"] {
            let Some(table) = check.get(kind) else { continue };
            if table.bool_at("exists") == Some(false)
                && let Some(other) = table
                    .entries()
                    .iter()
                    .find(|entry| !matches!(entry.key.as_str(), "exists" | "path" | "name"))
            {
                let message = format!("what does not exist has no `{}`", other.key);
                self.refuse(other.key_span, message, "remove it, or `exists = false`");
            }
            if kind == "file" {
                self.owner(table);
            }
        }
        if let Some(service) = check.get("service")
            && matches!(service.value, Value::Table(_))
            && !service.has("active")
            && !service.has("enabled")
        {
            self.refuse(
                service.span,
                "`service` says nothing to check",
                "add `active = true` or `enabled = \"enabled\"`",
            );
        }
        for kind in ["sshd", "sysctl"] {
            let Some(settings) = check.get(kind) else { continue };
            if matches!(&settings.value, Value::Table(entries) if entries.is_empty()) {
                self.refuse(settings.span, format!("`{kind}` says nothing to check"), "");
            }
        }
        for setting in check.get("sshd").map_or(&[][..], Node::entries) {
            if setting.key.bytes().any(|byte| byte.is_ascii_uppercase()) {
                let message = format!("`sshd -T` prints `{}` in lower case", setting.key);
                self.refuse(setting.key_span, message, format!("write `{}`", setting.key.to_lowercase()));
            }
        }
        if let Some(command) = check.get("command").and_then(|command| command.get("run"))
            && command.text().is_some_and(|text| text.trim().is_empty())
        {
            self.refuse(command.span, "`run` is empty", "");
        }
    }

    fn seal(&mut self) {
        let Some(seal) = self.tree.get("seal") else { return };
        if let Some(env) = seal.get("env") {
            self.env(env);
        }
        for path in seal.list("absent") {
            if path.text().is_some_and(|text| !text.starts_with('/')) {
                self.refuse(path.span, "paths in `absent` are absolute", "begin it with `/`");
            }
        }
    }

    fn proof(&mut self) {
        let Some(proof) = self.tree.get("proof") else { return };
        let defaults = super::Proof::default();
        if let Some(hostname) = proof.get("hostname") {
            self.dns_name("proof.hostname", hostname);
        }
        let span_of = |key: &str| proof.get(key).map_or(proof.span, |node| node.span);
        let text_of = |key: &str, default: &str| match proof.get(key) {
            Some(node) => node.text().map(str::to_owned),
            None => Some(default.to_owned()),
        };
        let Some(address_text) = text_of("address", &defaults.address) else { return };
        let Some(gateway_text) = text_of("gateway", &defaults.gateway) else { return };
        let Some((address, prefix)) = parse_address(&address_text) else {
            self.refuse(
                span_of("address"),
                format!("`{address_text}` is not an IPv4 address with its prefix length"),
                "such as `10.10.10.50/24`",
            );
            return;
        };
        let Ok(gateway) = gateway_text.parse::<Ipv4Addr>() else {
            let message = format!("`{gateway_text}` is not an IPv4 address");
            self.refuse(span_of("gateway"), message, "such as `10.10.10.1`");
            return;
        };
        let network = Network::of(address, prefix);
        if !network.has_host(address) {
            let message = format!("{address} is no host's address in {network}");
            self.refuse(span_of("address"), message, "the first and the last address have other uses");
        } else if !network.has_host(gateway) {
            let key = if proof.has("gateway") { "gateway" } else { "address" };
            self.refuse(
                span_of(key),
                format!("the gateway {gateway} is not in the clone's network {network}"),
                format!("set `gateway` to an address in {network}"),
            );
        } else if gateway == address {
            self.refuse(span_of("gateway"), "the clone cannot be its own gateway", "");
        }
    }

    fn timeouts(&mut self) {
        let Some(timeouts) = self.tree.get("timeouts") else { return };
        let defaults = super::Timeouts::default();
        let length = |key: &str, default: Timeout| match timeouts.get(key) {
            Some(node) => node.text().and_then(|text| Timeout::parse(text).ok()),
            None => Some(default),
        };
        if let (Some(fetch), Some(install)) =
            (length("fetch", defaults.fetch), length("install", defaults.install))
            && fetch >= install
        {
            let key = if timeouts.has("fetch") { "fetch" } else { "install" };
            let span = timeouts.get(key).map_or(timeouts.span, |node| node.span);
            self.refuse(
                span,
                format!("fetching may take {fetch} and the whole install {install}, which holds it"),
                "make `fetch` shorter than `install`",
            );
        }
    }
}

/// An IPv4 network.
struct Network {
    base: u32,
    prefix: u32,
}

impl Network {
    fn of(address: Ipv4Addr, prefix: u32) -> Self {
        Self { base: address.to_bits() & Self::mask(prefix), prefix }
    }

    fn mask(prefix: u32) -> u32 {
        u32::MAX.checked_shl(32 - prefix).unwrap_or(0)
    }

    fn has_host(&self, address: Ipv4Addr) -> bool {
        let host = address.to_bits() & !Self::mask(self.prefix);
        let last = !Self::mask(self.prefix);
        address.to_bits() & Self::mask(self.prefix) == self.base
            && (self.prefix >= 31 || (host != 0 && host != last))
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from_bits(self.base), self.prefix)
    }
}

/// Parses `10.10.10.50/24`; the prefix length is 8 to 30.
fn parse_address(text: &str) -> Option<(Ipv4Addr, u32)> {
    let (address, prefix) = text.split_once('/')?;
    let prefix = prefix.parse().ok().filter(|prefix| (8..=30).contains(prefix))?;
    Some((address.parse().ok()?, prefix))
}

/// Checks a whole builder profile.
pub(crate) fn check_profile(tree: &Node, findings: &mut Findings) {
    let mut rules = Rules { tree, findings };
    let builders: Vec<_> =
        tree.entries().iter().filter(|entry| BUILDERS.contains(&entry.key.as_str())).collect();
    match builders.as_slice() {
        [_] => {}
        [] => rules.refuse(
            tree.span.within(&(0..0)),
            "the profile does not say which builder it is for",
            format!("add a table: {}", BUILDERS.map(|name| format!("`[{name}]`")).join(" or ")),
        ),
        [first, second, ..] => {
            let message = format!("the profile is for both `{}` and `{}`", first.key, second.key);
            rules.refuse(second.key_span, message, "make two profiles of it");
        }
    }
    rules.http();
}

/// The tables of a profile that say which builder it is for.
const BUILDERS: [&str; 1] = ["qemu"];

impl Rules<'_> {
    fn http(&mut self) {
        let Some(http) = self.tree.get("http") else { return };
        if let Some(bind) = http.get("bind")
            && bind.text().is_some_and(|text| text.parse::<std::net::IpAddr>().is_err())
        {
            self.refuse(
                bind.span,
                "`http.bind` must be an IP address",
                "such as `0.0.0.0` or `192.168.1.10`",
            );
        }
        let Some(port) = http.get("port") else { return };
        let Some(text) = port.text() else { return };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) if first > 0 && first <= last => {}
            // What is not even digits has been refused by the pattern.
            _ if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') => self.refuse(
                port.span,
                format!("`{text}` is not a port or a range of ports"),
                "1 to 65535, such as `8080` or `8000-8099`",
            ),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_know_their_hosts() {
        let network = |text: &str| {
            let (address, prefix) = parse_address(text).unwrap();
            Network::of(address, prefix)
        };
        let has = |text: &str, host: &str| network(text).has_host(host.parse().unwrap());
        assert!(has("10.10.10.50/24", "10.10.10.1"));
        assert!(!has("10.10.10.50/24", "10.10.11.1"));
        assert!(!has("10.10.10.50/24", "10.10.10.255"));
        assert!(!has("10.10.10.50/24", "10.10.10.0"));
        assert!(has("10.1.2.3/8", "10.255.255.254"));
        assert_eq!(network("192.168.7.9/30").to_string(), "192.168.7.8/30");
        for wrong in ["10.0.0.1", "10.0.0.1/33", "10.0.0.1/0", "x/24", "10.0.0/24", "::1/64", "10.0.0.1/-1"] {
            assert!(parse_address(wrong).is_none(), "{wrong}");
        }
    }
}
