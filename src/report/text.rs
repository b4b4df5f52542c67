//! Text for people: cleaned, measured, cut, wrapped, painted.

use std::iter::Peekable;
use std::str::Chars;
use std::time::Duration;

use crate::event::human_duration;

/// How wide text may be, and whether it may have colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Columns.
    pub width: usize,
    /// Whether to use colour.
    pub color: bool,
}

impl Look {
    /// Returns a look without colour.
    #[must_use]
    pub const fn plain(width: usize) -> Self {
        Self { width, color: false }
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.paint(text, "32")
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.paint(text, "1;31")
    }

    pub(crate) fn odd(self, text: &str) -> String {
        self.paint(text, "33")
    }

    pub(crate) fn accent(self, text: &str) -> String {
        self.paint(text, "36")
    }

    pub(crate) fn strong(self, text: &str) -> String {
        self.paint(text, "1")
    }

    pub(crate) fn faint(self, text: &str) -> String {
        self.paint(text, "2")
    }

    fn paint(self, text: &str, code: &str) -> String {
        if self.color && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Returns a guest's line as it may be shown: without control characters and sequences, without
/// characters that reorder text, and of a line that was written over (`\r`) only what stayed.
#[must_use]
pub fn clean(line: &str) -> String {
    let line = line.trim_end_matches(['\r', '\n']);
    let line = line.rsplit('\r').next().unwrap_or(line);
    let mut shown = String::with_capacity(line.len());
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\x1b' => skip_escape(&mut characters),
            '\u{9b}' => skip_csi(&mut characters),
            '\t' => {
                let stop = 8 - shown.chars().count() % 8;
                shown.extend(std::iter::repeat_n(' ', stop));
            }
            '\x08' => drop(shown.pop()),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            other if other.is_control() => {}
            other => shown.push(other),
        }
    }
    shown.truncate(shown.trim_end().len());
    shown
}

/// Skips what follows an ESC (ECMA-48): a control sequence, a string up to its end, or one character.
fn skip_escape(characters: &mut Peekable<Chars<'_>>) {
    match characters.next() {
        Some('[') => skip_csi(characters),
        Some(']' | 'P' | '^' | '_' | 'X') => {
            while let Some(character) = characters.next() {
                if character == '\x07' || (character == '\x1b' && characters.next_if_eq(&'\\').is_some()) {
                    return;
                }
            }
        }
        Some(' '..='/') => {
            while characters.next_if(|next| matches!(next, ' '..='/')).is_some() {}
            characters.next();
        }
        _ => {}
    }
}

fn skip_csi(characters: &mut Peekable<Chars<'_>>) {
    while characters.next_if(|next| matches!(next, ' '..='?')).is_some() {}
    characters.next_if(|next| matches!(next, '@'..='~'));
}

/// Returns the lines of a message, each cleaned, without empty lines at the end.
pub(super) fn clean_lines(text: &str) -> Vec<String> {
    text.trim_end().lines().map(clean).collect()
}

/// Returns how many columns a text takes.
pub(crate) fn columns(text: &str) -> usize {
    console::measure_text_width(text)
}

/// Returns the text, cut with `…` where it is wider than that.
pub(super) fn fit(text: &str, width: usize) -> String {
    console::truncate_str(text, width, "…").into_owned()
}

/// Returns the text as lines of at most that width, broken between words; a longer word stays
/// whole, so that paths can be copied.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        if !line.is_empty() && columns(&line) + 1 + columns(word) > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

/// Returns the message wrapped, its first line after `first`, the others indented as far.
pub(crate) fn hang(first: &str, message: &str, width: usize) -> Vec<String> {
    let indent = columns(first);
    let room = width.saturating_sub(indent).max(20);
    let lines = clean_lines(message);
    let wrapped = lines.iter().flat_map(|line| wrap(line, room));
    wrapped
        .enumerate()
        .map(
            |(index, line)| {
                if index == 0 { format!("{first}{line}") } else { format!("{:indent$}{line}", "") }
            },
        )
        .collect()
}

/// Returns a number of bytes as a person reads it: `512 B`, `1.4 MiB`, `2.9 GiB`.
#[must_use]
pub fn human_bytes(bytes: u64) -> String {
    let (number, unit) = scaled(bytes, bytes);
    format!("{number} {unit}")
}

/// Returns `1.2 of 2.9 GiB`: both numbers in the unit of the larger.
pub(super) fn bytes_of(done: u64, total: u64) -> String {
    let (whole, unit) = scaled(total, total);
    format!("{} of {whole} {unit}", scaled(done, total).0)
}

fn scaled(bytes: u64, like: u64) -> (String, &'static str) {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut like, mut number, mut unit) = (like as f64, bytes as f64, 0);
    // 1023.95 would be shown as 1024.0.
    while like >= 1023.95 && unit + 1 < UNITS.len() {
        like /= 1024.0;
        number /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0);
    (format!("{number:.digits$}"), UNITS[unit])
}

/// Returns a length of time that still grows: in whole seconds, so that it changes calmly.
pub(super) fn growing(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    if seconds < 10 { format!("{seconds} s") } else { human_duration(Duration::from_secs(seconds)) }
}

/// Returns a length of time in seconds as a person reads it.
pub(super) fn lasted(seconds: f64) -> String {
    human_duration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_lines_lose_their_control_codes() {
        for (raw, shown) in [
            ("plain text", "plain text"),
            ("\x1b[1;32mok\x1b[0m done", "ok done"),
            ("\x1b[?25l\x1b[2Jcleared", "cleared"),
            ("\x1b]0;a window title\x07text", "text"),
            ("\x1b]8;;http://x/\x1b\\link\x1b]8;;\x1b\\", "link"),
            ("\x1bP1$r0m\x1b\\after", "after"),
            ("\x1b(Bcharset \x1b7save\x1b=", "charset save"),
            ("unfinished \x1b[12", "unfinished"),
            ("unfinished \x1b]0;never ends", "unfinished"),
            ("\u{9b}31mred", "red"),
            ("bell\x07 and null\0 and del\x7f", "bell and null and del"),
            ("10 %\r20 %\r30 %\r\n", "30 %"),
            ("a\tb", "a       b"),
            ("bo\x08bold", "bbold"),
            ("a\u{202e}txt.exe", "atxt.exe"),
            ("accents é, wide 漢", "accents é, wide 漢"),
        ] {
            assert_eq!(clean(raw), shown, "{raw:?}");
        }
    }

    #[test]
    fn whatever_comes_no_control_character_stays() {
        let every: String = (0..0x300).filter_map(char::from_u32).collect();
        for start in 0..every.chars().count() {
            let raw: String = every.chars().skip(start).take(40).collect();
            assert!(!clean(&format!("\x1b{raw}")).chars().any(char::is_control), "{start}");
        }
    }

    #[test]
    fn bytes_read_well() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (3_386_706_944, "3.2 GiB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
        assert_eq!(bytes_of(300 << 20, 3 << 30), "0.3 of 3.0 GiB");
    }

    #[test]
    fn words_wrap_and_paths_stay_whole() {
        assert_eq!(wrap("one two three", 8), ["one two", "three"]);
        assert_eq!(wrap("see /a/very/long/path now", 6), ["see", "/a/very/long/path", "now"]);
        assert_eq!(hang("! ", "the first line\nsecond", 12), ["! the first line", "  second"]);
    }

    #[test]
    fn growing_times_show_whole_seconds() {
        assert_eq!(growing(3.97), "3 s");
        assert_eq!(growing(252.4), "4 min 12 s");
        assert_eq!(lasted(f64::NAN), "0.0 s");
    }

    #[test]
    fn colour_is_only_where_it_is_wanted() {
        assert_eq!(Look::plain(80).good("✓"), "✓");
        assert_eq!(Look { width: 80, color: true }.good("✓"), "\x1b[32m✓\x1b[0m");
    }
}
