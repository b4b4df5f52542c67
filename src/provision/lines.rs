//! Turns what a script prints, bytes in pieces, into lines for people.

use std::collections::VecDeque;

/// The most bytes of a line that are shown; the log has it whole.
const SHOWN_MAX: usize = 4 * 1024;

/// The most bytes that a line may have before it is passed on in pieces.
const PENDING_MAX: usize = 1024 * 1024;

/// How many lines are remembered for a failure's message.
const TAIL_LINES: usize = 10;

/// What stands in a secret's place.
const MASK: &str = "••••";

/// Hides secrets in text.
#[derive(Clone)]
pub(crate) struct Mask(Vec<String>);

impl Mask {
    /// Takes the secrets; of one with several lines, each line is hidden by itself.
    pub(crate) fn new(secrets: &[String]) -> Self {
        let mut parts: Vec<String> = secrets
            .iter()
            .flat_map(|secret| secret.lines())
            .map(|line| line.trim().to_owned())
            .filter(|line| !line.is_empty())
            .collect();
        parts.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        parts.dedup();
        Self(parts)
    }

    /// Returns the text with `••••` in the place of every secret.
    pub(crate) fn apply(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret, MASK))
    }

    /// Tells whether the text ends within what may become a secret.
    fn ends_inside_one(&self, text: &[u8]) -> bool {
        self.0.iter().map(String::as_bytes).any(|secret| {
            (1..secret.len().min(text.len() + 1)).any(|length| text.ends_with(&secret[..length]))
        })
    }
}

/// Where finished lines go.
pub(crate) struct Lines<'a> {
    mask: &'a Mask,
    /// The script's path in the guest, and what it is called instead.
    names: (String, &'a str),
    show: &'a (dyn Fn(&str) + Send + Sync),
    log: &'a (dyn Fn(&str) + Send + Sync),
    pending: Vec<u8>,
    /// Whether the beginning of the pending line was passed on already.
    begun: bool,
    tail: VecDeque<String>,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(
        mask: &'a Mask,
        names: (String, &'a str),
        show: &'a (dyn Fn(&str) + Send + Sync),
        log: &'a (dyn Fn(&str) + Send + Sync),
    ) -> Self {
        Self { mask, names, show, log, pending: Vec::new(), begun: false, tail: VecDeque::new() }
    }

    /// Takes more output and passes on the lines that it ends.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.pending.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.pending.pop();
                self.pass_on();
                self.begun = false;
            } else if self.pending.len() > PENDING_MAX {
                self.flush();
            }
        }
    }

    /// Passes on an unfinished line, so that a progress display or a question is seen.
    pub(crate) fn flush(&mut self) {
        if !self.pending.is_empty() && !self.mask.ends_inside_one(&self.pending) {
            self.pass_on();
            self.begun = true;
        }
    }

    /// Passes on what is left and returns the last lines, as shown.
    pub(crate) fn finish(mut self) -> Vec<String> {
        if !self.pending.is_empty() {
            self.pass_on();
        }
        self.tail.into()
    }

    fn pass_on(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        let line = printable(visible_part(&pending)).replace(&self.names.0, self.names.1);
        let line = self.mask.apply(&line);
        if line.is_empty() && (self.begun || !pending.is_empty()) {
            return;
        }
        (self.log)(&line);
        let shown = cut(&line);
        (self.show)(shown);
        if !shown.trim().is_empty() {
            self.tail.push_back(shown.to_owned());
            if self.tail.len() > TAIL_LINES {
                self.tail.pop_front();
            }
        }
    }
}

/// Returns what a terminal would show of a line: a carriage return starts it over.
fn visible_part(line: &[u8]) -> &[u8] {
    let end = line.iter().rposition(|byte| *byte != b'\r').map_or(0, |last| last + 1);
    let start = line[..end].iter().rposition(|byte| *byte == b'\r').map_or(0, |at| at + 1);
    &line[start..end]
}

/// Returns text without escape sequences and control characters: the guest has no say over the
/// user's terminal.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut clean = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' if characters.next_if_eq(&'[').is_some() => {
                for next in characters.by_ref() {
                    if ('@'..='~').contains(&next) {
                        break;
                    }
                }
            }
            '\t' => clean.push('\t'),
            other if other.is_control() => {}
            other => clean.push(other),
        }
    }
    clean
}

/// Returns as much of a line as is shown.
fn cut(line: &str) -> &str {
    &line[..line.floor_char_boundary(SHOWN_MAX)]
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Pushes the pieces and returns (shown, logged, tail).
    fn run(secrets: &[&str], pieces: &[&[u8]], flush: bool) -> (Vec<String>, Vec<String>, Vec<String>) {
        let (shown, logged) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        let mask = Mask::new(&secrets.iter().map(|&secret| secret.to_owned()).collect::<Vec<_>>());
        let show = |line: &str| shown.lock().unwrap().push(line.to_owned());
        let log = |line: &str| logged.lock().unwrap().push(line.to_owned());
        let mut lines = Lines::new(&mask, ("/run/forge/1/script".to_owned(), "a.sh"), &show, &log);
        for piece in pieces {
            lines.push(piece);
            if flush {
                lines.flush();
            }
        }
        let tail = lines.finish();
        (shown.into_inner().unwrap(), logged.into_inner().unwrap(), tail)
    }

    #[test]
    fn pieces_become_lines() {
        for (pieces, expected) in [
            (&[&b"a\nb"[..], b"c\n", b"d"][..], &["a", "bc", "d"][..]),
            (&[b"a\r\n\nb\r\n"], &["a", "", "b"]),
            (&[b"10%\r50%\r", b"100%\n"], &["100%"]),
            (&[b"\x1b[1;31mred\x1b[0m\x07 \tand\n"], &["red \tand"]),
            (&[b"/run/forge/1/script: 2: x: not found\n"], &["a.sh: 2: x: not found"]),
            (&[b"broken \xff\xfe text\n"], &["broken \u{fffd}\u{fffd} text"]),
            (&["caf\u{e9}".as_bytes().split_at(4).0, b"\xa9\n"], &["caf\u{e9}"]),
        ] {
            assert_eq!(run(&[], pieces, false).0, expected, "{pieces:?}");
        }
    }

    #[test]
    fn unfinished_lines_can_be_shown() {
        let (shown, ..) = run(&[], &[b"waiting... ", b"done\n", b"10%\r", b"20%\r", b"\n", b"x\n"], true);
        assert_eq!(shown, ["waiting... ", "done", "10%", "20%", "x"]);
    }

    #[test]
    fn secrets_are_hidden_even_in_pieces() {
        let (shown, logged, tail) =
            run(&["s3cret", "", "key1\nkey2"], &[b"pw=s3", b"cret!\nkey", b"2 key1\n"], true);
        assert_eq!(shown, ["pw=••••!", "•••• ••••"]);
        assert_eq!(logged, shown);
        assert_eq!(tail, shown);
    }

    #[test]
    fn the_longer_secret_is_hidden_first() {
        assert_eq!(run(&["abc", "abcdef"], &[b"abcdef abc\n"], false).0, ["•••• ••••"]);
    }

    #[test]
    fn long_lines_are_cut_when_shown_and_whole_in_the_log() {
        let line = "é".repeat(10_000);
        let (shown, logged, _) = run(&[], &[line.as_bytes(), b"\n"], false);
        assert_eq!(shown[0].len(), SHOWN_MAX);
        assert_eq!(logged[0], line);
    }

    #[test]
    fn the_tail_has_the_last_ten_lines_with_text() {
        let text = (0..30).map(|number| number.to_string()).collect::<Vec<_>>().join("\n\n");
        let (.., tail) = run(&[], &[text.as_bytes()], false);
        assert_eq!(tail.len(), TAIL_LINES);
        assert_eq!((tail[0].as_str(), tail[9].as_str()), ("20", "29"));
    }
}
