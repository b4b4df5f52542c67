//! Brings content into the guest: over the caller's HTTP server, or in pieces.

use std::any::Any;
use std::fmt;
use std::path::PathBuf;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::script::{expect_success, shell_command};
use super::{Context, is_transient};
use crate::communicator::{CommunicatorError, PUT_FILE_MAX};

/// A caller's HTTP server that the guest can reach.
pub trait Bulk: Send + Sync {
    /// Offers content until the offer's guard is dropped; `None` when the guest cannot be served.
    fn offer(&self, content: Content) -> Option<Offer>;

    /// Takes what a script prints, in one request; `None` when the guest cannot send it.
    fn receive(&self) -> Option<Feed> {
        None
    }
}

/// What a script prints, as the guest sends it.
pub struct Feed {
    /// Where the guest sends it to; nobody can guess it.
    pub url: String,
    /// Its pieces, from its beginning: first an empty one, when the guest begins to send. They end with
    /// the script, or when the guest is not heard any more.
    pub pieces: mpsc::Receiver<Bytes>,
    /// Takes the address away when dropped.
    pub guard: Box<dyn Any + Send + Sync>,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").finish_non_exhaustive()
    }
}

/// Content to offer.
#[derive(Debug, Clone)]
pub enum Content {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A file that lives as long as the offer.
    File(PathBuf),
}

/// Content that is being offered.
pub struct Offer {
    /// Where the guest finds it; nobody can guess it.
    pub url: String,
    /// Ends the offer when dropped.
    pub guard: Box<dyn Any + Send + Sync>,
}

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offer").finish_non_exhaustive()
    }
}

/// Writes content to `FOLDER/part-000000` and so on, in pieces that one call carries.
pub(super) async fn put_parts(
    folder: &str,
    content: &[u8],
    deadline: Instant,
    cx: &Context<'_>,
) -> Result<(), CommunicatorError> {
    let command = shell_command("mkdir -p -- \"$1\" && chmod 700 -- \"$1\"", [folder]);
    expect_success(&command, &format!("creating {folder}"), deadline, cx).await?;
    for (number, part) in content.chunks(PUT_FILE_MAX).enumerate() {
        put_part(&format!("{folder}/part-{number:06}"), part, deadline, cx).await?;
    }
    Ok(())
}

/// Writes one piece; writing it again harms nothing, so lost answers are asked for again.
pub(super) async fn put_part(
    path: &str,
    content: &[u8],
    deadline: Instant,
    cx: &Context<'_>,
) -> Result<(), CommunicatorError> {
    let mut pause = std::time::Duration::from_millis(100);
    loop {
        match cx.guest.put_file(path, content).await {
            Err(error) if is_transient(&error) && Instant::now() < deadline => sleep(pause).await,
            result => return result,
        }
        pause = (pause * 2).min(std::time::Duration::from_secs(2));
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Returns bytes as base64 (RFC 4648 §4).
pub(crate) fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0_u32, |bits, at| bits << 8 | u32::from(group.get(at).copied().unwrap_or(0)));
        for at in 0..4 {
            let letter = ALPHABET[(bits >> (18 - 6 * at)) as usize & 63];
            text.push(if at <= group.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

/// Returns bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).expect("four bits are a digit");
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Parses base64 on one line, perhaps with a newline at its end.
pub(crate) fn parse_base64(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.trim_ascii();
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let letters = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for group in letters.chunks(4) {
        let mut bits = 0;
        for at in 0..4 {
            let value = match group.get(at) {
                Some(letter) => ALPHABET.iter().position(|known| known == letter)?,
                None => 0,
            };
            bits = bits << 6 | value;
        }
        bytes.extend((0..group.len() - 1).map(|at| (bits >> (16 - 8 * at)) as u8));
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_the_standard_one() {
        for (plain, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
        ] {
            assert_eq!(base64(plain.as_bytes()), text);
            assert_eq!(parse_base64(text.as_bytes()).unwrap(), plain.as_bytes());
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(parse_base64(base64(&all).as_bytes()).unwrap(), all);
        for wrong in ["Zg=", "Z", "Zm9*", "Z==="] {
            assert_eq!(parse_base64(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
