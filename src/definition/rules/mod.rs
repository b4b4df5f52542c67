//! What a schema cannot say: combinations that cannot work, each refused where it is written.
//!
//! The rules read the tree, not the structs, so that they hold beside other errors.

mod control;
mod machine;
mod prove;
mod work;

use std::net::Ipv4Addr;

pub(crate) use control::check_control;

use super::diagnostics::{Finding, Findings, Span};
use super::model::Timeout;
use super::tree::{Node, Value};

/// Checks a whole definition.
pub(crate) fn check(tree: &Node, findings: &mut Findings) {
    let mut rules = Rules { tree, findings };
    rules.template();
    rules.source();
    rules.machine();
    rules.steps();
    rules.checks();
    rules.seal();
    rules.prove();
    rules.timeouts();
}

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
    if let Some(machine) = tree.get("machine") {
        rules.memory(machine);
    }
    rules.http();
    rules.proxmox();
}

/// The tables of a profile that say which builder it is for.
const BUILDERS: [&str; 2] = ["qemu", "proxmox"];

impl Rules<'_> {
    fn proxmox(&mut self) {
        let Some(table) = self.tree.get("proxmox") else { return };
        self.endpoints(table);
        self.vmids(table);
        if let Some(node) = table.get("proof_addresses")
            && let Some((from, to)) = node.text().and_then(|text| text.split_once('-'))
            && !matches!((from.parse::<Ipv4Addr>(), to.parse::<Ipv4Addr>()), (Ok(from), Ok(to)) if from <= to)
        {
            let help = "the lower one first, such as `10.10.10.240-10.10.10.249`";
            self.refuse(node.span, format!("`{from}-{to}` is not a range of IPv4 addresses"), help);
        }
        let is_off = table.bool_at("verify_tls") == Some(false);
        for key in ["fingerprint", "ca_file"].into_iter().filter(|_| is_off) {
            if let Some(entry) = table.entry(key) {
                let message = format!("`{key}` says how to verify the certificate, and `verify_tls` not to");
                self.refuse(entry.key_span, message, "leave `verify_tls` away");
            }
        }
        if let Some(command) = table.entry("token_command")
            && matches!(&command.node.value, Value::Array(items) if items.is_empty())
        {
            let help = "such as `token_command = [\"pass\", \"show\", \"proxmox/forge\"]`";
            self.refuse(command.key_span, "`token_command` is empty", help);
        }
        if let (Some(file), Some(command)) = (table.entry("token_file"), table.entry("token_command")) {
            self.refuse(
                file.key_span.max(command.key_span),
                "`token_file` and `token_command` both say where the token is",
                "keep one",
            );
        }
    }

    fn endpoints(&mut self, table: &Node) {
        let help = "such as `endpoints = [\"https://asgard.lan:8006\"]`, one for each node of a cluster";
        let Some(entry) = table.entry("endpoints") else {
            return self.refuse(table.span, "nothing says where the Proxmox API is", help);
        };
        let endpoints = table.list("endpoints");
        if matches!(&entry.node.value, Value::Array(items) if items.is_empty()) {
            self.refuse(entry.key_span, "`endpoints` is empty", help);
        }
        for (index, endpoint) in endpoints.iter().enumerate() {
            // What is no https:// address at all has been refused by the pattern.
            let Some(text) = endpoint.text().filter(|text| text.starts_with("https://")) else { continue };
            if text.contains('@') {
                let help = "credentials come from the environment, a file or a command: see `token_file`";
                self.findings.mask(endpoint.span);
                self.refuse(endpoint.span, "an endpoint has no user and password", help);
            } else if let Some(port) = port(text).filter(|port| port.parse::<std::num::NonZeroU16>().is_err())
            {
                self.refuse(
                    endpoint.span,
                    format!("`{port}` is not a port"),
                    "1 to 65535; Proxmox's is 8006",
                );
            } else if endpoints[..index].iter().any(|earlier| earlier.text() == Some(text)) {
                self.refuse(endpoint.span, "this endpoint is there twice", "keep one");
            }
        }
    }

    fn vmids(&mut self, table: &Node) {
        let Some(node) = table.get("vmids") else { return };
        let Some((first, last)) = node.text().and_then(|text| text.split_once('-')) else { return };
        // What has too few or too many digits has been refused by the pattern.
        if ![first, last].iter().all(|text| (3..=9).contains(&text.len())) {
            return;
        }
        let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) else { return };
        if first < 100 || first > last {
            self.refuse(
                node.span,
                format!("`{first}-{last}` is not a range of VMIDs"),
                "from 100 to 999999999, the lower one first, such as `9000-9099`",
            );
        }
    }

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
        if let Some(advertise) = http.get("advertise")
            && advertise.text().is_some_and(|text| text.is_empty() || text.contains(['/', ' ']))
        {
            self.refuse(
                advertise.span,
                "`http.advertise` must be an address, not a URL",
                "such as `192.168.1.10` or `forge.lan:8080`",
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

/// Returns what follows an address's last colon, but for those of IPv6 and of `https:`.
fn port(endpoint: &str) -> Option<&str> {
    endpoint.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.contains(['/', ']']))
}
