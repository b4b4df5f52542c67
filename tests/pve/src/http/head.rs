//! A request's first line and headers.

use super::form::percent_decode;

/// Beyond this many header lines or bytes the connection dies without an answer.
const MAX_LINES: usize = 64;
const MAX_BYTES: usize = 8192;

/// A request before its body.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pub(crate) method: String,
    /// Decoded, without the query.
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) major: u8,
    pub(crate) minor: u8,
    pub(crate) headers: Vec<(String, String)>,
}

/// What the bytes read so far are.
#[derive(Debug)]
pub(crate) enum Read {
    /// The head, and how many bytes it took.
    Whole(Head, usize),
    More,
    /// Not HTTP, or too long: never answered.
    Dead,
}

impl Head {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn content_length(&self) -> u64 {
        self.header("content-length").and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// The media type and the boundary parameter of the body.
    pub(crate) fn content_type(&self) -> (Option<&str>, Option<String>) {
        let Some(whole) = self.header("content-type") else {
            return (None, None);
        };
        let mut parts = whole.split(';').map(str::trim);
        let media = parts.next().filter(|media| !media.is_empty());
        let boundary = parts.find_map(|part| {
            let (key, value) = part.split_once('=')?;
            key.eq_ignore_ascii_case("boundary").then(|| value.trim_matches('"').to_owned())
        });
        (media, boundary)
    }

    pub(crate) fn wants_keep_alive(&self) -> bool {
        let connection = self.header("connection").unwrap_or_default().to_lowercase();
        if self.minor >= 1 { !connection.contains("close") } else { connection.contains("keep-alive") }
    }
}

/// Looks for a whole head at the start of `bytes`.
pub(crate) fn read_head(bytes: &[u8]) -> Read {
    let mut at = 0;
    let mut head: Option<Head> = None;
    let mut lines = 0;
    let mut header_bytes = 0;
    while let Some(length) = bytes[at..].iter().position(|&byte| byte == b'\n') {
        let line = bytes[at..at + length].strip_suffix(b"\r").unwrap_or(&bytes[at..at + length]);
        let line = String::from_utf8_lossy(line).into_owned();
        at += length + 1;
        match &mut head {
            // Blank lines before a request are skipped.
            None if line.is_empty() => {}
            None => match request_line(&line) {
                Some(first) => head = Some(first),
                None => return Read::Dead,
            },
            Some(_) if line.is_empty() => {
                return Read::Whole(head.take().expect("it was just looked at"), at);
            }
            Some(head) => {
                lines += 1;
                header_bytes += length + 1;
                if lines >= MAX_LINES || header_bytes >= MAX_BYTES {
                    return Read::Dead;
                }
                if let Some((key, value)) = line.split_once(':') {
                    head.headers.push((key.trim().into(), value.trim().into()));
                }
            }
        }
    }
    if bytes.len() - at > 4 * MAX_BYTES { Read::Dead } else { Read::More }
}

fn request_line(line: &str) -> Option<Head> {
    let mut words = line.split_whitespace();
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let (major, minor) = version.strip_prefix("HTTP/")?.split_once('.')?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Some(Head {
        method: method.into(),
        path: percent_decode(path, false),
        query: query.into(),
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        headers: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> Head {
        match read_head(text.as_bytes()) {
            Read::Whole(head, used) if used == text.len() => head,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_head_is_read_when_its_blank_line_is_there() {
        let head = whole("GET /api2/json/tasks/UPID%3Ax/log?limit=3 HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!((head.path.as_str(), head.query.as_str()), ("/api2/json/tasks/UPID:x/log", "limit=3"));
        assert!(head.wants_keep_alive());
        assert!(!whole("GET / HTTP/1.0\r\n\r\n").wants_keep_alive());
        assert!(matches!(read_head(b"GET / HTTP/1.1\r\nHost"), Read::More));
        assert!(matches!(read_head(b"hello\r\n"), Read::Dead));
    }

    #[test]
    fn too_many_or_too_long_headers_kill_but_a_long_first_line_does_not() {
        let many = |count| format!("GET / HTTP/1.1\r\n{}\r\n", "X: a\r\n".repeat(count));
        assert!(matches!(read_head(many(60).as_bytes()), Read::Whole(..)));
        assert!(matches!(read_head(many(70).as_bytes()), Read::Dead));
        let long = |size| format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(size));
        assert!(matches!(read_head(long(7000).as_bytes()), Read::Whole(..)));
        assert!(matches!(read_head(long(9000).as_bytes()), Read::Dead));
        let line = format!("GET /?{} HTTP/1.1\r\n\r\n", "a".repeat(9000));
        assert!(matches!(read_head(line.as_bytes()), Read::Whole(..)));
    }
}
