//! The proof and its contracts.

use std::net::Ipv4Addr;

use super::Rules;
use crate::definition::diagnostics::{Finding, Span, did_you_mean};
use crate::definition::model::Contract;
use crate::definition::tree::{Node, Value};

/// What `address` says where the network gives one.
const DHCP: &str = "dhcp";

impl Rules<'_> {
    pub(super) fn prove(&mut self) {
        self.names("contract");
        for contract in self.tree.list("contract") {
            if !contract.has("name") {
                self.refuse(
                    contract.span,
                    "a contract needs a name",
                    "who clones the template, such as `web-server`",
                );
            }
            if let Some(hostname) = contract.get("hostname") {
                self.dns_name("contract.hostname", hostname);
            }
            self.tags("contract.tags", contract);
            self.addresses(contract);
            self.holds_disk(contract);
        }
        self.chosen_contracts();
    }

    /// A build can only hold the template to a contract that is there.
    fn chosen_contracts(&mut self) {
        let Some(prove) = self.tree.get("prove") else { return };
        let names: Vec<&str> =
            self.tree.list("contract").iter().filter_map(|contract| contract.text_at("name")).collect();
        let default = Contract::default().name;
        for chosen in prove.list("contracts") {
            let Some(name) = chosen.text() else { continue };
            if names.contains(&name) || names.is_empty() && name == default {
                continue;
            }
            let help = did_you_mean(name, names.iter().copied()).unwrap_or_else(|| match names.as_slice() {
                [] => "there are none: describe it in a table `[[contract]]`".to_owned(),
                names => format!("there are: {}", names.join(", ")),
            });
            self.findings
                .push(Finding::new(chosen.span, format!("there is no contract `{name}`")).help(help));
        }
    }

    fn addresses(&mut self, contract: &Node) {
        let defaults = Contract::default();
        for dns in contract.list("dns") {
            if let Some(text) = dns.text().filter(|text| text.parse::<Ipv4Addr>().is_err()) {
                self.refuse(dns.span, format!("`{text}` is not an IPv4 address"), "such as `10.10.10.1`");
            }
        }
        let text_of = |key: &str, default: &str| match contract.get(key) {
            Some(node) => node.text().map(str::to_owned),
            None => Some(default.to_owned()),
        };
        let Some(first) = text_of("address", &defaults.address) else { return };
        let Some(other) = text_of("other_address", "") else { return };
        let Some(gateway_text) = text_of("gateway", &defaults.gateway) else { return };
        let span_of = |key: &str| contract.get(key).map_or(contract.span, |node| node.span);
        let Ok(gateway) = gateway_text.parse::<Ipv4Addr>() else {
            let message = format!("`{gateway_text}` is not an IPv4 address");
            return self.refuse(span_of("gateway"), message, "such as `10.10.10.1`");
        };
        let first_one = (first != DHCP).then(|| self.address(&first, span_of("address"), gateway, contract));
        let other_one =
            (!other.is_empty()).then(|| self.address(&other, span_of("other_address"), gateway, contract));
        if let (Some(Some(first)), Some(Some(other))) = (first_one, other_one)
            && first == other
        {
            let help = "two clones have them at the same time";
            self.refuse(span_of("other_address"), "it is the contract's `address`, too", help);
        }
    }

    /// Refuses what is no address of a host in its gateway's network.
    fn address(&mut self, text: &str, span: Span, gateway: Ipv4Addr, contract: &Node) -> Option<Ipv4Addr> {
        let Some((address, prefix)) = parse_address(text) else {
            let message = format!("`{text}` is not an IPv4 address with its prefix length");
            self.refuse(span, message, "such as `10.10.10.50/24`; `address` may also be `dhcp`");
            return None;
        };
        let network = Network::of(address, prefix);
        if !network.has_host(address) {
            let message = format!("{address} is no host's address in {network}");
            self.refuse(span, message, "the first and the last address have other uses");
        } else if !network.has_host(gateway) {
            self.refuse(
                contract.get("gateway").map_or(span, |node| node.span),
                format!("the gateway {gateway} is not in the clone's network {network}"),
                format!("set `gateway` to an address in {network}"),
            );
        } else if gateway == address {
            let span = contract.get("gateway").map_or(span, |node| node.span);
            self.refuse(span, "the clone cannot be its own gateway", "");
        } else {
            return Some(address);
        }
        None
    }

    /// A clone's disk holds the template's.
    fn holds_disk(&mut self, contract: &Node) {
        let whole = |node: Option<&Node>| match node.map(|node| &node.value) {
            Some(Value::Integer(size)) => Some(*size),
            _ => None,
        };
        let disk = self.tree.get("machine").and_then(|machine| machine.list("disk").first());
        let template = whole(disk.and_then(|disk| disk.get("size_gib")));
        if let (Some(template), Some(size)) = (template, whole(contract.get("disk_gib")))
            && size < template
        {
            let span = contract.get("disk_gib").map_or(contract.span, |node| node.span);
            let message =
                format!("a clone with {size} GiB cannot hold the template's disk of {template} GiB");
            self.refuse(span, message, "clones may have larger disks, never smaller ones");
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
