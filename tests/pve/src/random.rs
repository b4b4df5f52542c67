//! Random names and numbers.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use crate::world::config;

fn bytes(count: usize) -> Vec<u8> {
    let mut buffer = vec![0; count];
    getrandom::fill(&mut buffer).expect("the system gives random bytes");
    buffer
}

/// `count` random bytes in hexadecimal digits.
pub(crate) fn hex(count: usize) -> String {
    config::hex(&bytes(count))
}

/// What a ticket ends with: an RSA signature in base64, here with each of `+`, `/` and `=` for sure.
pub(crate) fn signature() -> String {
    format!("+/{}", STANDARD.encode(bytes(256)))
}

/// What a CSRF token ends with: a digest in base64, which Perl does not pad.
pub(crate) fn digest() -> String {
    format!("+/{}", STANDARD_NO_PAD.encode(bytes(30)))
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
