//! What must not be left in a template: secrets, and how they are looked for.
//!
//! They are looked for twice: in the sealed guest file by file ([`guest`]), and on the exported disk byte by
//! byte ([`disk`]), where deleted files may have left them. Both look for the same [`Value`]s, which only
//! this build has, and the same [`Shape`]s, which give a secret away whatever it is.
//!
//! Packages deliver private keys and password hashes of their own, for self-tests and as examples. Those are
//! everybody's, so a shape counts as found only where it is not as the package delivers it; the guest tells
//! the digests of those that are, and by these the disk's scan knows them again.
//!
//! Out of reach are secrets that are compressed or encrypted (archives, an initramfs), that are written in
//! another way (base64, UTF-16, a key in DER), and on the disk those whose bytes are not in one piece.

pub mod disk;
pub mod guest;

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex::Regex;

use crate::definition::Secret;

/// The fewest bytes that a value must have: fewer are found in every guest.
pub const VALUE_MIN: usize = 8;

/// The most bytes of a value that are looked for; they are telling enough.
const VALUE_MAX: usize = 256;

/// How many lines of a value are looked for, the longest ones.
const LINES_MAX: usize = 4;

/// How many places a message names.
const SHOWN_MAX: usize = 8;

/// Something of this build that must be nowhere. `Debug` hides it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// What it is, in words.
    pub name: String,
    text: Secret,
    /// Whether it is the hash of a password that users are to have: then it may be where passwords are.
    is_password: bool,
}

impl Value {
    /// Returns what is to be looked for, so that a text is found: its longest lines, and the same as JSON and
    /// a shell write them; nothing when no line has [`VALUE_MIN`] bytes.
    #[must_use]
    pub fn of(name: &str, text: &str) -> Vec<Self> {
        let mut lines: Vec<_> = text.lines().map(str::trim).filter(|line| line.len() >= VALUE_MIN).collect();
        lines.sort_by_key(|line| std::cmp::Reverse(line.len()));
        lines.truncate(LINES_MAX);
        let texts: BTreeSet<String> = lines.into_iter().flat_map(spellings).collect();
        let value = |text: String| Self {
            name: name.to_owned(),
            is_password: is_password_hash(&text),
            text: Secret::new(text),
        };
        texts.into_iter().map(value).collect()
    }

    fn text(&self) -> &str {
        self.text.expose()
    }
}

fn is_password_hash(text: &str) -> bool {
    static WHOLE: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(&format!("^(?:{})$", PASSWORD_HASH.regex)).expect("the shape is a regex")
    });
    WHOLE.is_match(text)
}

/// Returns a line as it is, in a JSON string and in a quoted word of a shell.
fn spellings(line: &str) -> [String; 3] {
    let json = serde_json::Value::from(line).to_string();
    [line.to_owned(), json[1..json.len() - 1].to_owned(), line.replace('\'', r"'\''")]
        .map(|text| text[..text.floor_char_boundary(VALUE_MAX)].to_owned())
}

/// A form that gives a secret away, whatever its content.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// What it is, in words.
    pub name: &'static str,
    /// What each match begins with, one of them.
    pub starts: &'static [&'static str],
    /// The whole of it, as both `grep -E` and the crate regex read it; its blanks may be line ends.
    pub regex: &'static str,
    /// Whether it is looked for on disks as well.
    pub on_disk: bool,
}

/// A private key in PEM. The line alone is in every SSH client; a key also has content, at once or after the
/// two headers of an encrypted one. Line ends may be written `\n`, as in JSON.
const PRIVATE_KEY: Shape = Shape {
    name: "a private key",
    starts: &[
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN DSA PRIVATE KEY-----",
        "-----BEGIN EC PRIVATE KEY-----",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "-----BEGIN PGP PRIVATE KEY BLOCK-----",
        "-----BEGIN RSA PRIVATE KEY-----",
    ],
    regex: concat!(
        r"-----BEGIN ([A-Z]+ )?PRIVATE KEY( BLOCK)?-----([[:space:]]|\\[nr])*",
        r"(Proc-Type: 4,ENCRYPTED([[:space:]]|\\[nr])+DEK-Info: [0-9A-Za-z,-]+([[:space:]]|\\[nr])+)?",
        "[0-9A-Za-z/+]{40}",
    ),
    on_disk: true,
};

/// A password's hash as crypt(5) has it: of SHA-2, yescrypt, scrypt, and of bcrypt with a cost that it can
/// have: the self-test of libcrypt has others, and is in each initramfs.
const PASSWORD_HASH: Shape = Shape {
    name: "a password's hash",
    starts: &["$2a$", "$2b$", "$2x$", "$2y$", "$5$", "$6$", "$7$", "$gy$", "$y$"],
    regex: concat!(
        r"\$2[abxy]\$(0[4-9]|[12][0-9]|3[01])\$[./0-9A-Za-z]{53}",
        r"|\$5\$(rounds=[0-9]+\$)?[./0-9A-Za-z]{1,16}\$[./0-9A-Za-z]{43}",
        r"|\$6\$(rounds=[0-9]+\$)?[./0-9A-Za-z]{1,16}\$[./0-9A-Za-z]{86}",
        r"|\$7\$[./0-9A-Za-z]{11,97}\$[./0-9A-Za-z]{43}",
        r"|\$g?y\$[./0-9A-Za-z]{1,16}\$[./0-9A-Za-z]{1,86}\$[./0-9A-Za-z]{43}",
    ),
    on_disk: true,
};

/// An installer's answers. What is secret in them is looked for by itself; so deleted ones may stay on a disk.
const ANSWERS: Shape = Shape {
    name: "an installer's answers",
    starts: &["autoinstall:"],
    regex: concat!(
        "autoinstall:[[:space:]].*[[:space:]]",
        "(early-commands|identity|late-commands|reporting|storage|user-data):[[:space:]]",
    ),
    on_disk: false,
};

/// Every shape that is looked for.
pub const SHAPES: [Shape; 3] = [PRIVATE_KEY, PASSWORD_HASH, ANSWERS];

/// A secret that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Where it is: a path, or bytes of a disk.
    pub place: String,
    /// What it is, in words.
    pub name: String,
}

/// Returns findings as `PLACE: NAME, NAME; PLACE: NAME`, a long list cut short.
#[must_use]
pub fn describe(findings: &[Finding]) -> String {
    let places: Vec<_> = findings.chunk_by(|a, b| a.place == b.place).collect();
    let shown = places.iter().take(SHOWN_MAX).map(|here| {
        let names: Vec<_> = here.iter().map(|finding| finding.name.as_str()).collect();
        format!("{}: {}", here[0].place, names.join(", "))
    });
    let text = shown.collect::<Vec<_>>().join("; ");
    match places.len().saturating_sub(SHOWN_MAX) {
        0 => text,
        1 => format!("{text}; and 1 place more"),
        more => format!("{text}; and {more} places more"),
    }
}

#[cfg(test)]
mod tests;
