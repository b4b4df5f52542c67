//! The shape of a contract's clones, as far as the machine that proves it can give it.

use std::net::Ipv4Addr;

use anyhow::Context as _;

use super::seed::{Addressing, network, parse_address};
use crate::definition::{Contract, Machine};
use crate::failure::{Failure, Kind, ResultExt as _};

/// How much larger than the template's a clone's system disk is that no contract gives a size, in GiB.
const GROWTH_GIB: u64 = 4;

/// What `address` says where the network gives one.
const DHCP: &str = "dhcp";

/// What the machine that proves can give one clone.
#[derive(Debug, Clone, Default)]
pub(in crate::builder) struct Limits {
    /// Cores, with why there are no more.
    pub(in crate::builder) cores: Option<(u32, String)>,
    /// Memory in MiB, with why there is no more.
    pub(in crate::builder) memory_mib: Option<(u32, String)>,
}

/// What a contract's clones are given.
#[derive(Debug, Clone)]
pub(in crate::builder) struct Shape {
    pub(in crate::builder) contract: Contract,
    pub(in crate::builder) hostname: String,
    pub(in crate::builder) cores: u32,
    pub(in crate::builder) memory_mib: u32,
    /// The size of the system disk, in bytes; the template's is smaller.
    pub(in crate::builder) disk_bytes: u64,
    pub(in crate::builder) first: Addressing,
    /// What a second clone has, and the first later, if anything.
    pub(in crate::builder) other: Option<Addressing>,
    /// What is other than the contract says, and why.
    pub(in crate::builder) scaled: Vec<String>,
}

impl Shape {
    /// Returns the shape of a contract's clones of a template whose system disk has so many bytes.
    ///
    /// # Errors
    /// Kind `Definition` for addresses that are none.
    pub(in crate::builder) fn of(
        contract: &Contract,
        machine: &Machine,
        template_bytes: u64,
        limits: &Limits,
    ) -> Result<Self, Failure> {
        let mut scaled = Vec::new();
        let mut least = |what: &str, wanted: u32, limit: Option<&(u32, String)>| match limit {
            Some((most, why)) if *most < wanted => {
                scaled.push(format!("{what} {most} instead of {wanted}: {why}"));
                *most
            }
            _ => wanted,
        };
        let cores = least("cores", contract.cores.unwrap_or(machine.cores), limits.cores.as_ref());
        let memory = contract.memory_mib.unwrap_or(machine.memory_mib);
        let memory_mib = least("memory in MiB", memory, limits.memory_mib.as_ref());
        let disk_bytes = match contract.disk_gib {
            Some(size) => (u64::from(size) << 30).max(template_bytes),
            None => template_bytes + (GROWTH_GIB << 30),
        };
        let first = addressing(contract, &contract.address)?;
        let other = match (&contract.other_address, &first) {
            (Some(address), _) => Some(addressing(contract, address)?),
            (None, Addressing::Dhcp) => None,
            (None, Addressing::Static { address, prefix, gateway, dns }) => {
                next_address(*address, *prefix, *gateway).map(|address| Addressing::Static {
                    address,
                    prefix: *prefix,
                    gateway: *gateway,
                    dns: dns.clone(),
                })
            }
        };
        let hostname = contract.hostname.clone().unwrap_or_else(|| contract.name.clone());
        Ok(Self { contract: contract.clone(), hostname, cores, memory_mib, disk_bytes, first, other, scaled })
    }
}

impl Shape {
    /// Returns the addresses that its clones take by themselves.
    pub(in crate::builder) fn addresses(&self) -> Vec<Ipv4Addr> {
        let all = [Some(&self.first), self.other.as_ref()].into_iter().flatten();
        all.filter_map(Addressing::address).collect()
    }

    /// Gives its clones addresses of a range, as far as that is in their network.
    pub(in crate::builder) fn take_addresses(&mut self, (from, to): (Ipv4Addr, Ipv4Addr)) {
        let mut free = (from.to_bits()..=to.to_bits()).map(Ipv4Addr::from_bits);
        for addressing in [Some(&mut self.first), self.other.as_mut()].into_iter().flatten() {
            let Addressing::Static { address, prefix, .. } = addressing else { continue };
            let (of, prefix) = (network(*address, *prefix), *prefix);
            let Some(own) = free.find(|own| network(*own, prefix) == of) else { continue };
            let why = "the builder profile keeps it for proofs";
            self.scaled.push(format!("address {own} instead of {address}: {why}"));
            *address = own;
        }
    }
}

fn addressing(contract: &Contract, address: &str) -> Result<Addressing, Failure> {
    if address == DHCP {
        return Ok(Addressing::Dhcp);
    }
    let parse = |text: &str| {
        text.parse::<Ipv4Addr>().with_context(|| format!("reading the address `{text}` of {}", contract.name))
    };
    let (address, prefix) = parse_address(address).kind(Kind::Definition)?;
    let gateway = parse(&contract.gateway).kind(Kind::Definition)?;
    let dns: Result<Vec<_>, _> = contract.dns.iter().map(|text| parse(text)).collect();
    let dns =
        Some(dns.kind(Kind::Definition)?).filter(|dns| !dns.is_empty()).unwrap_or_else(|| vec![gateway]);
    Ok(Addressing::Static { address, prefix, gateway, dns })
}

/// Returns the next host's address in a network, without its gateway.
fn next_address(address: Ipv4Addr, prefix: u8, gateway: Ipv4Addr) -> Option<Ipv4Addr> {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    let (base, last) = (address.to_bits() & mask, address.to_bits() | !mask);
    let after = (address.to_bits() + 1..last).map(Ipv4Addr::from_bits);
    let before = (base + 1..address.to_bits()).map(Ipv4Addr::from_bits);
    after.chain(before).find(|other| *other != gateway)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: u64 = 20 << 30;

    fn shape(contract: &Contract, limits: &Limits) -> Shape {
        Shape::of(contract, &Machine::default(), TEMPLATE, limits).unwrap()
    }

    #[test]
    fn a_contract_that_says_little_gets_what_the_template_has_and_a_larger_disk() {
        let shape = shape(&Contract::default(), &Limits::default());
        assert_eq!((shape.cores, shape.memory_mib, shape.disk_bytes), (2, 4096, 24 << 30));
        assert_eq!(shape.hostname, "clone");
        assert_eq!(shape.other.unwrap().address(), Some([10, 10, 10, 51].into()));
        assert!(shape.scaled.is_empty());
    }

    #[test]
    fn what_there_is_not_room_for_is_scaled_and_told() {
        let worker = Contract {
            cores: Some(3),
            memory_mib: Some(12288),
            disk_gib: Some(100),
            address: "10.10.10.254/24".to_owned(),
            hostname: Some("w1".to_owned()),
            ..Contract::default()
        };
        let limits = Limits {
            cores: Some((1, "emulated".to_owned())),
            memory_mib: Some((8192, "little is free".to_owned())),
        };
        let shape = shape(&worker, &limits);
        assert_eq!((shape.cores, shape.memory_mib, shape.disk_bytes), (1, 8192, 100 << 30));
        assert_eq!(
            shape.scaled,
            ["cores 1 instead of 3: emulated", "memory in MiB 8192 instead of 12288: little is free"]
        );
        // Neither the broadcast address nor the gateway.
        assert_eq!(shape.other.unwrap().address(), Some([10, 10, 10, 2].into()));
        assert_eq!(shape.hostname, "w1");
    }

    #[test]
    fn addresses_kept_for_proofs_are_taken_where_they_are_in_the_network() {
        let mut shape = shape(&Contract::default(), &Limits::default());
        let elsewhere = ([192, 168, 1, 10].into(), [192, 168, 1, 19].into());
        shape.take_addresses(elsewhere);
        assert_eq!(shape.addresses(), [Ipv4Addr::from([10, 10, 10, 50]), [10, 10, 10, 51].into()]);
        shape.take_addresses(([10, 10, 10, 240].into(), [10, 10, 10, 240].into()));
        assert_eq!(shape.addresses(), [Ipv4Addr::from([10, 10, 10, 240]), [10, 10, 10, 51].into()]);
        assert_eq!(
            shape.scaled,
            ["address 10.10.10.240 instead of 10.10.10.50: the builder profile keeps it for proofs"]
        );
    }

    #[test]
    fn a_clone_with_dhcp_moves_only_where_that_is_said() {
        let dhcp = Contract { address: "dhcp".to_owned(), ..Contract::default() };
        let alone = shape(&dhcp, &Limits::default());
        assert_eq!((alone.first, alone.other), (Addressing::Dhcp, None));
        let moves = Contract { other_address: Some("10.10.10.60/24".to_owned()), ..dhcp };
        let other = shape(&moves, &Limits::default()).other.unwrap();
        assert_eq!(other.ipconfig(), "ip=10.10.10.60/24,gw=10.10.10.1");
    }
}
