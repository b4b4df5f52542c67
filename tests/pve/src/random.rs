//! Random names and numbers.

use crate::world::config;

/// `bytes` random bytes in hexadecimal digits.
pub(crate) fn hex(bytes: usize) -> String {
    let mut buffer = vec![0; bytes];
    getrandom::fill(&mut buffer).expect("the system gives random bytes");
    config::hex(&buffer)
}

/// A random UUID.
pub(crate) fn uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// A hardware address under Proxmox's prefix.
pub(crate) fn mac() -> String {
    let tail = hex(3).to_uppercase();
    format!("BC:24:11:{}:{}:{}", &tail[..2], &tail[2..4], &tail[4..])
}
