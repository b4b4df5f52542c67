//! Answers as bytes.

use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;

/// An answer on its way out.
#[derive(Debug, Default)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) reason: String,
    pub(crate) content_type: Option<&'static str>,
    pub(crate) body: Vec<u8>,
    pub(crate) location: Option<String>,
}

pub(crate) const JSON: &str = "application/json;charset=UTF-8";

impl Response {
    pub(crate) fn new(status: u16, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into(), ..Self::default() }
    }

    /// An error raised before the API is reached: the text is reason and body.
    pub(crate) fn plain(status: u16, text: &str) -> Self {
        let reason = text.lines().next().unwrap_or_default();
        Self { body: text.into(), ..Self::new(status, reason) }
    }

    /// A death in the server's own code, told as plain text.
    pub(crate) fn plain_died(text: &str) -> Self {
        // The first line ends at a newline, not at a carriage return.
        let reason = text.split('\n').next().unwrap_or_default();
        Self { body: text.into(), ..Self::new(500, reason) }
    }

    pub(crate) fn json(status: u16, reason: &str, body: &serde_json::Value) -> Self {
        Self { content_type: Some(JSON), body: body.to_string().into_bytes(), ..Self::new(status, reason) }
    }

    /// Proxmox replaces an answer whose reason has a carriage return by an empty "Bad Request".
    fn checked(self) -> Self {
        if !self.reason.contains('\r') {
            return self;
        }
        Self { content_type: self.content_type, ..Self::new(400, "Bad Request") }
    }

    /// The whole answer.
    pub(crate) fn into_bytes(self, keep_alive: bool, gzip: bool) -> Vec<u8> {
        let mut this = self.checked();
        let zipped = gzip && this.body.len() > 1024;
        if zipped {
            this.body = compress(&this.body);
        }
        let mut head = format!("HTTP/1.1 {} ", this.status).into_bytes();
        // Reasons are bytes of Latin-1, as Perl writes them.
        head.extend(this.reason.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')));
        let connection = if keep_alive { "Keep-Alive" } else { "close" };
        let mut headers = format!(
            "\r\nCache-Control: max-age=0\r\nConnection: {connection}\r\nDate: {}\r\nPragma: no-cache\r\n\
             Server: pve-api-daemon/3.0\r\nContent-Length: {}\r\n",
            http_date(),
            this.body.len()
        );
        if zipped {
            headers.push_str("Content-Encoding: gzip\r\n");
        }
        if let Some(media) = this.content_type {
            headers.extend(["Content-Type: ", media, "\r\n"]);
        }
        if let Some(location) = this.location {
            headers.extend(["Location: ", &location, "\r\n"]);
        }
        headers.push_str("\r\n");
        head.extend(headers.into_bytes());
        head.extend(this.body);
        head
    }
}

fn compress(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).expect("writing to memory does not fail");
    encoder.finish().expect("writing to memory does not fail")
}

/// The time as HTTP writes it.
fn http_date() -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!(
        "{}, {day:02} {} {year} {hour:02}:{minute:02}:{second:02} GMT",
        DAYS[(days % 7) as usize],
        MONTHS[month as usize]
    )
}

/// Year, month from 0 and day of a count of days since 1970.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month as u64, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_carriage_return_in_the_reason_empties_the_answer() {
        let bytes = Response::plain(500, "bad\rtext").into_bytes(false, false);
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.starts_with("HTTP/1.1 400 Bad Request\r\n"));
        assert!(text.ends_with("\r\n\r\n"));
    }

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 0, 1));
        assert_eq!(civil(20_778), (2026, 10, 21));
        assert_eq!(civil(11_016), (2000, 1, 29));
    }
}
