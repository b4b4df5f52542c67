//! Where the server listens and what guests are told.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::ServerError;

/// How guests reach this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Through QEMU's user networking, which shows this machine's loopback under that address.
    UserNetwork(Ipv4Addr),
    /// Over a network on which that host is, such as a node of the cluster.
    Towards(IpAddr),
}

impl Reach {
    /// QEMU's user networking with its default network, 10.0.2.0/24.
    pub const QEMU: Self = Self::UserNetwork(Ipv4Addr::new(10, 0, 2, 2));
}

/// How a server listens, what it advertises, and its limits.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The address to listen on.
    pub bind: IpAddr,
    /// The ports to try, in order; 0 is any free port.
    pub ports: RangeInclusive<u16>,
    /// The host that guests are told, with or without a port.
    pub advertise: String,
    /// The folder that logs go to; made when the first arrive.
    pub logs: PathBuf,
    /// The most bytes that one upload of logs may have.
    pub logs_max: u64,
    /// How long a request's head may take, and how long a connection may be unused.
    pub header_timeout: Duration,
    /// How long nothing may move on a connection in the middle of a request.
    pub idle_timeout: Duration,
    /// How long answers under way may still take when the server stops.
    pub grace: Duration,
    /// How many connections are served at once; more wait.
    pub connections_max: usize,
}

impl Settings {
    /// Returns settings with forge's limits for guests that reach this machine that way.
    ///
    /// # Errors
    /// When there is no route to the host named by [`Reach::Towards`].
    pub fn new(reach: Reach, logs: impl Into<PathBuf>) -> Result<Self, ServerError> {
        let (bind, advertise) = match reach {
            Reach::UserNetwork(host) => (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(host)),
            Reach::Towards(peer) => {
                let local = local_address_towards(peer)?;
                (local, local)
            }
        };
        Ok(Self {
            bind,
            ports: 0..=0,
            advertise: host_text(advertise),
            logs: logs.into(),
            logs_max: 256 * 1024 * 1024,
            header_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_mins(2),
            grace: Duration::from_secs(1),
            connections_max: 64,
        })
    }

    /// Applies what a builder profile's `[http]` table sets; the rest stays.
    ///
    /// A `bind` alone that is one address, not all of them, is also what guests are told, unless
    /// they come through QEMU's user networking.
    ///
    /// # Errors
    /// The key that is wrong, and why.
    pub fn with_profile(
        mut self,
        reach: Reach,
        bind: Option<&str>,
        port: Option<&str>,
        advertise: Option<&str>,
    ) -> Result<Self, ServerError> {
        let wrong = |key, value: &str, reason: &str| ServerError::Setting {
            key,
            value: value.to_owned(),
            reason: reason.to_owned(),
        };
        if let Some(value) = bind {
            self.bind = value.parse().map_err(|_| wrong("bind", value, "is not an IP address"))?;
            if !self.bind.is_unspecified() && matches!(reach, Reach::Towards(_)) {
                self.advertise = host_text(self.bind);
            }
        }
        if let Some(value) = port {
            self.ports = parse_ports(value)
                .ok_or_else(|| wrong("port", value, "is not a port or a range such as 8000-8099"))?;
        }
        if let Some(value) = advertise {
            self.advertise = parse_host(value).ok_or_else(|| {
                wrong("advertise", value, "is not a host name or address, with or without a port")
            })?;
        }
        Ok(self)
    }

    /// Returns host and port as they stand in a URL.
    pub(super) fn advertised(&self, bound: SocketAddr) -> String {
        let after_brackets = self.advertise.rsplit(']').next().unwrap_or_default();
        if after_brackets.contains(':') {
            self.advertise.clone()
        } else {
            format!("{}:{}", self.advertise, bound.port())
        }
    }

    pub(super) fn listen_text(&self) -> String {
        let host = host_text(self.bind);
        match (*self.ports.start(), *self.ports.end()) {
            (0, _) => format!("{host}, any port"),
            (one, same) if one == same => format!("{host}:{one}"),
            (first, last) => format!("{host}, ports {first} to {last}"),
        }
    }
}

/// Returns an address as it stands in a URL.
fn host_text(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// Parses `8000` or `8000-8099`; no port is 0.
fn parse_ports(text: &str) -> Option<RangeInclusive<u16>> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    (first <= last).then_some(first..=last)
}

/// Parses a host with or without a port into the form it has in a URL.
fn parse_host(text: &str) -> Option<String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(host_text(address));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(address.to_string());
    }
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let is_name = !host.is_empty()
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'));
    let port_fits =
        port.is_none_or(|port| parse_ports(port).is_some_and(|range| range.start() == range.end()));
    (is_name && port_fits).then(|| text.to_owned())
}

/// Returns the address that this machine's packets to a host come from.
///
/// # Errors
/// When there is no route there, or the host would have to reach this machine's loopback.
pub fn local_address_towards(peer: IpAddr) -> Result<IpAddr, ServerError> {
    let failed = |source| ServerError::Route { peer, source };
    let any: IpAddr = match peer {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).map_err(failed)?;
    // Connecting a UDP socket sends nothing: it only makes the kernel choose a route.
    socket.connect((peer, 9)).map_err(failed)?;
    socket.local_addr().map(|address| address.ip()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings::new(Reach::QEMU, "/nowhere").unwrap()
    }

    #[test]
    fn a_qemu_guest_is_told_the_address_of_its_network() {
        let settings = settings();
        assert_eq!(settings.bind, IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert_eq!(settings.advertised("127.0.0.1:4711".parse().unwrap()), "10.0.2.2:4711");
    }

    #[test]
    fn logs_may_have_256_mib_and_no_more() {
        assert_eq!(settings().logs_max, 268_435_456);
    }

    #[test]
    fn a_peer_is_told_the_address_towards_it() {
        let reach = Reach::Towards(Ipv4Addr::LOCALHOST.into());
        let settings = Settings::new(reach, "/nowhere").unwrap();
        assert_eq!(settings.advertise, "127.0.0.1");
        let settings = settings.with_profile(reach, Some("192.0.2.7"), None, None).unwrap();
        assert_eq!(
            (settings.bind.to_string(), settings.advertise.as_str()),
            ("192.0.2.7".to_owned(), "192.0.2.7")
        );
    }

    #[test]
    fn profiles_are_applied() {
        let with = |bind, port, advertise| settings().with_profile(Reach::QEMU, bind, port, advertise);
        let bound = "127.0.0.1:1".parse().unwrap();
        for (advertise, told) in [
            ("forge.lan", "forge.lan:1"),
            ("forge.lan:8080", "forge.lan:8080"),
            ("192.0.2.1", "192.0.2.1:1"),
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("2001:db8::1", "[2001:db8::1]:1"),
            ("[2001:db8::1]:80", "[2001:db8::1]:80"),
        ] {
            assert_eq!(with(None, None, Some(advertise)).unwrap().advertised(bound), told);
        }
        assert_eq!(with(Some("0.0.0.0"), None, None).unwrap().advertise, "10.0.2.2");
        assert_eq!(with(None, Some("8000-8099"), None).unwrap().ports, 8000..=8099);
        assert_eq!(with(None, Some("8000"), None).unwrap().ports, 8000..=8000);
        for (bind, port, advertise, key) in [
            (Some("eth0"), None, None, "http.bind"),
            (None, Some("0"), None, "http.port"),
            (None, Some("9-8"), None, "http.port"),
            (None, Some("65536"), None, "http.port"),
            (None, None, Some("http://x"), "http.advertise"),
            (None, None, Some("x:1-2"), "http.advertise"),
            (None, None, Some(""), "http.advertise"),
        ] {
            let message = with(bind, port, advertise).unwrap_err().to_string();
            assert!(message.starts_with(key), "{message}");
        }
    }
}
