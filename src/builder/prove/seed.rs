//! The cloud-init drive of a proof's clone, with the texts that Proxmox writes for its own clones.
//!
//! Source: qemu-server `PVE/QemuServer/Cloudinit.pm`: for Linux guests a `cidata` volume with a
//! network configuration of version 1, whose addresses are matched by MAC; on demand a `config-2`
//! volume with `/etc/network/interfaces`. The user is the template's own default user.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use sha2::{Digest as _, Sha256};

/// Where a clone gets its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addressing {
    /// From the network.
    Dhcp,
    /// It is told.
    Static {
        /// Its address.
        address: Ipv4Addr,
        /// The length of its network's prefix.
        prefix: u8,
        /// Its gateway.
        gateway: Ipv4Addr,
        /// Its name servers.
        dns: Vec<Ipv4Addr>,
    },
}

impl Addressing {
    /// Returns the static address.
    #[must_use]
    pub const fn address(&self) -> Option<Ipv4Addr> {
        match self {
            Self::Dhcp => None,
            Self::Static { address, .. } => Some(*address),
        }
    }

    /// Returns it as Proxmox's `ipconfig0` has it.
    #[must_use]
    pub fn ipconfig(&self) -> String {
        match self {
            Self::Dhcp => "ip=dhcp".to_owned(),
            Self::Static { address, prefix, gateway, .. } => format!("ip={address}/{prefix},gw={gateway}"),
        }
    }
}

/// What a clone is told at its first boot.
#[derive(Debug, Clone)]
pub struct CloneSeed {
    /// Its hostname.
    pub hostname: String,
    /// The public key of its default user, one line.
    pub public_key: String,
    /// The MAC address of its interface.
    pub mac: String,
    /// Where it gets its address.
    pub addressing: Addressing,
}

impl CloneSeed {
    /// Returns the seed's user-data, as Proxmox writes it with `ciupgrade` off and no `ciuser`.
    #[must_use]
    pub fn user_data(&self) -> String {
        let Self { hostname, public_key, .. } = self;
        format!(
            "#cloud-config\nhostname: {hostname}\nmanage_etc_hosts: true\nfqdn: {hostname}\n\
             ssh_authorized_keys:\n  - {public_key}\nchpasswd:\n  expire: False\nusers:\n  - default\n"
        )
    }

    /// Returns the network configuration, version 1.
    #[must_use]
    pub fn network_config(&self) -> String {
        let nic = format!(
            "version: 1\nconfig:\n    - type: physical\n      name: eth0\n      mac_address: '{}'\n      \
             subnets:\n",
            self.mac.to_lowercase(),
        );
        let Addressing::Static { address, prefix, gateway, dns } = &self.addressing else {
            return nic + "      - type: dhcp4\n";
        };
        let mut text = format!(
            "{nic}      - type: static\n        address: '{address}'\n        netmask: '{}'\n        \
             gateway: '{gateway}'\n    - type: nameserver\n      address:\n",
            netmask(*prefix),
        );
        for server in dns {
            writeln!(text, "      - '{server}'").expect("writing to a string succeeds");
        }
        text
    }

    /// Returns the meta-data: the instance changes with user-data and network, as on Proxmox.
    #[must_use]
    pub fn meta_data(&self) -> String {
        format!("instance-id: {}\n", self.instance())
    }

    /// Returns the network in the format of `/etc/network/interfaces`, for `ConfigDrive`.
    #[must_use]
    pub fn interfaces(&self) -> String {
        let Addressing::Static { address, prefix, gateway, dns } = &self.addressing else {
            return "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\n".to_owned();
        };
        let servers: Vec<String> = dns.iter().map(ToString::to_string).collect();
        format!(
            "auto lo\niface lo inet loopback\n\ndns-nameservers {}\n\nauto eth0\niface eth0 inet static\n\
             \taddress {address}\n\tnetmask {}\n\tgateway {gateway}\n",
            servers.join(" "),
            netmask(*prefix),
        )
    }

    /// Returns the instance's id, 40 hexadecimal digits.
    #[must_use]
    pub fn instance(&self) -> String {
        let digest = Sha256::digest(self.user_data() + &self.network_config());
        digest.iter().take(20).fold(String::new(), |mut text, byte| {
            let _never_fails = write!(text, "{byte:02x}");
            text
        })
    }
}

fn netmask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0))
}

/// Reads `10.10.10.50/24`.
///
/// # Errors
/// When it is no IPv4 address with a prefix length of 1 to 32.
pub fn parse_address(text: &str) -> anyhow::Result<(Ipv4Addr, u8)> {
    let parsed = text.split_once('/').and_then(|(address, prefix)| {
        let prefix: u8 = prefix.parse().ok().filter(|prefix| (1..=32).contains(prefix))?;
        Some((address.parse().ok()?, prefix))
    });
    parsed.ok_or_else(|| {
        anyhow::anyhow!("`{text}` is no IPv4 address with a prefix length, such as 10.10.10.50/24")
    })
}

/// Returns the network that an address is in, such as `10.10.10.0/24`.
#[must_use]
pub fn network(address: Ipv4Addr, prefix: u8) -> String {
    format!("{}/{prefix}", Ipv4Addr::from(u32::from(address) & u32::from(netmask(prefix))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed() -> CloneSeed {
        CloneSeed {
            hostname: "proof".into(),
            public_key: "ssh-ed25519 AAAA k".into(),
            mac: "52:54:00:AB:CD:EF".into(),
            addressing: at([10, 10, 10, 50]),
        }
    }

    fn at(address: [u8; 4]) -> Addressing {
        let gateway = Ipv4Addr::new(10, 10, 10, 1);
        Addressing::Static {
            address: address.into(),
            prefix: 24,
            gateway,
            dns: vec![gateway, [9, 9, 9, 9].into()],
        }
    }

    #[test]
    fn the_texts_are_yaml_of_the_shape_proxmox_writes() {
        let user: serde_json::Value = serde_saphyr::from_str(&seed().user_data()).unwrap();
        assert_eq!(user["users"], serde_json::json!(["default"]));
        assert_eq!(user["ssh_authorized_keys"], serde_json::json!(["ssh-ed25519 AAAA k"]));
        assert!(user.get("ssh_pwauth").is_none() && user.get("user").is_none());
        let network: serde_json::Value = serde_saphyr::from_str(&seed().network_config()).unwrap();
        assert_eq!(network["version"], 1);
        assert_eq!(
            network["config"][0],
            serde_json::json!({
                "type": "physical", "name": "eth0", "mac_address": "52:54:00:ab:cd:ef",
                "subnets": [{"type": "static", "address": "10.10.10.50", "netmask": "255.255.255.0",
                             "gateway": "10.10.10.1"}]
            })
        );
        assert_eq!(network["config"][1]["address"], serde_json::json!(["10.10.10.1", "9.9.9.9"]));
        let dhcp = CloneSeed { addressing: Addressing::Dhcp, ..seed() };
        let network: serde_json::Value = serde_saphyr::from_str(&dhcp.network_config()).unwrap();
        assert_eq!(network["config"][0]["subnets"], serde_json::json!([{"type": "dhcp4"}]));
        assert_eq!(network["config"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn another_address_is_another_instance() {
        let moved = CloneSeed { addressing: at([10, 10, 10, 51]), ..seed() };
        assert_ne!(seed().instance(), moved.instance());
        assert_eq!(seed().instance().len(), 40);
    }

    #[test]
    fn addresses_are_read_with_their_prefix() {
        assert_eq!(parse_address("10.10.10.50/24").unwrap(), (Ipv4Addr::new(10, 10, 10, 50), 24));
        for text in ["10.10.10.50", "10.10.10.50/0", "10.10.10.50/33", "a/24", "10.10.10/24", ""] {
            assert!(parse_address(text).is_err(), "{text}");
        }
        assert_eq!(network(Ipv4Addr::new(10, 10, 10, 50), 24), "10.10.10.0/24");
        assert_eq!(network(Ipv4Addr::new(192, 168, 1, 9), 32), "192.168.1.9/32");
    }
}
