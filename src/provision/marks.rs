//! Makes a `sh` script able to tell where it failed.
//!
//! Debian's and Ubuntu's `sh` knows neither `$LINENO` nor a trap for errors. So a script is given
//! marks: `_=$((forge_line=12)) command` notes the line and is otherwise the same as `command`.
//! An arithmetic expansion is the one place where a POSIX shell can take a note without touching
//! `$?`, the command's environment apart from `_`, or what `set -e` does.
//!
//! Marks stand only before simple commands at the outermost level that the shell itself runs (not
//! a pipeline's), because those follow one another in order: what failed lies between the last
//! mark passed and the next one. What the reader below is not sure of stays without marks.

/// A script with marks, and the lines that have one, from 1, in order.
#[derive(Debug)]
pub(crate) struct Marked {
    pub(crate) text: String,
    pub(crate) lines: Vec<usize>,
}

/// Returns the script with marks; at its end, its exit code and the last mark go to `$0`'s folder.
pub(crate) fn mark(script: &str) -> Marked {
    let lines = Reader::new(script).marks();
    let mut text = String::from(TRAP);
    let mut marks = lines.iter().copied().peekable();
    for (number, line) in (1..).zip(script.split_inclusive('\n')) {
        if marks.next_if_eq(&number).is_some() {
            text.extend(["_=$((forge_line=", &number.to_string(), ")) "]);
        }
        text.push_str(line);
    }
    Marked { text, lines }
}

/// Stands before the first line, on the same line, so that the shell's own messages stay right.
const TRAP: &str = r#"trap 'echo "$?:${forge_line:-0}" >"${0%/*}/line"' EXIT; "#;

impl Marked {
    /// Returns the first and the last line of what may have failed after the mark of `line` was
    /// passed; 0 stands for none.
    pub(crate) fn range(&self, script: &str, line: usize) -> Option<(usize, usize)> {
        if line > 0 && self.lines.binary_search(&line).is_err() {
            return None;
        }
        let lines: Vec<&str> = script.lines().collect();
        let next = self.lines.iter().find(|mark| **mark > line).map_or(lines.len(), |next| next - 1);
        let busy = |number: &usize| {
            let text = lines.get(number - 1).map_or("", |text| text.trim());
            !text.is_empty() && !text.starts_with('#')
        };
        let mut candidates = (line.max(1)..=next).filter(busy);
        let first = candidates.next()?;
        Some((first, candidates.next_back().unwrap_or(first)))
    }
}

/// A construct that is still open.
#[derive(Clone, Copy, PartialEq)]
enum Open {
    /// `if`, `while`, `until`, `for`, `{`: ends with its own word.
    Compound(&'static str),
    /// `(`.
    Subshell,
    /// `case`; whether a pattern comes next, rather than commands.
    Case { pattern: bool },
}

/// Says that the reader is not sure any more.
struct Unsure;

/// Reads a script as far as is needed to know where its outermost commands begin.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    line: usize,
    open: Vec<Open>,
    /// Whether a command may begin here.
    command: bool,
    /// Whether the next newline only continues the command, as after `&&`.
    continued: bool,
    /// Delimiters of here-documents that begin after this line; whether tabs are stripped.
    documents: Vec<(Vec<u8>, bool)>,
    /// The mark of the command being read, if it began a line at the outermost level.
    current: Option<usize>,
    marks: Vec<usize>,
}

impl<'a> Reader<'a> {
    fn new(script: &'a str) -> Self {
        Self {
            bytes: script.as_bytes(),
            at: 0,
            line: 1,
            open: Vec::new(),
            command: true,
            continued: false,
            documents: Vec::new(),
            current: None,
            marks: Vec::new(),
        }
    }

    fn marks(mut self) -> Vec<usize> {
        // An alias may stand for a word that no assignment may precede.
        if self.bytes.windows(5).any(|word| word == b"alias") {
            return Vec::new();
        }
        while self.at < self.bytes.len() {
            if self.token().is_err() {
                return self.marks;
            }
        }
        self.keep();
        self.marks
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn starts_with(&self, text: &str) -> bool {
        self.bytes[self.at..].starts_with(text.as_bytes())
    }

    /// Keeps the mark of the outermost command that ended.
    fn keep(&mut self) {
        if self.open.is_empty() && !self.continued {
            self.marks.extend(self.current.take());
        }
    }

    /// Reads one token.
    fn token(&mut self) -> Result<(), Unsure> {
        let byte = self.bytes[self.at];
        match byte {
            b' ' | b'\t' => self.at += 1,
            b'\\' if self.starts_with("\\\n") => {
                self.at += 2;
                self.line += 1;
            }
            b'#' => {
                while self.peek().is_some_and(|byte| byte != b'\n') {
                    self.at += 1;
                }
            }
            b'\n' => self.newline()?,
            b';' | b'&' | b'|' => self.operator()?,
            b'(' => self.open_bracket()?,
            b')' => self.close_bracket()?,
            b'<' | b'>' => self.redirect()?,
            _ => self.word()?,
        }
        Ok(())
    }

    fn newline(&mut self) -> Result<(), Unsure> {
        self.at += 1;
        self.line += 1;
        for (delimiter, tabs) in std::mem::take(&mut self.documents) {
            self.skip_document(&delimiter, tabs)?;
        }
        self.keep();
        self.command = true;
        Ok(())
    }

    fn skip_document(&mut self, delimiter: &[u8], tabs: bool) -> Result<(), Unsure> {
        loop {
            let rest = self.bytes.get(self.at..).filter(|rest| !rest.is_empty()).ok_or(Unsure)?;
            let length = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
            let mut line = &rest[..length];
            self.at += (length + 1).min(rest.len());
            self.line += 1;
            while tabs && line.first() == Some(&b'\t') {
                line = &line[1..];
            }
            if line == delimiter {
                return Ok(());
            }
            // It may join the next line, and so hide the delimiter.
            if line.ends_with(b"\\") {
                return Err(Unsure);
            }
        }
    }

    fn operator(&mut self) -> Result<(), Unsure> {
        let two = &self.bytes[self.at..(self.at + 2).min(self.bytes.len())];
        let length = match two {
            b"&&" | b"||" | b";;" => 2,
            _ => 1,
        };
        match two {
            b";;" => match self.open.last_mut() {
                Some(Open::Case { pattern }) => *pattern = true,
                _ => return Err(Unsure),
            },
            // The commands of a pipeline and of the background are not run by the shell itself.
            [b'|' | b'&', ..] if length == 1 && !self.in_pattern() => self.current = None,
            [b';', ..] => self.keep(),
            _ => {}
        }
        self.continued = !matches!(two, [b';', ..]) && (length == 2 || two[0] == b'|');
        self.at += length;
        self.command = true;
        Ok(())
    }

    fn in_pattern(&self) -> bool {
        matches!(self.open.last(), Some(Open::Case { pattern: true }))
    }

    fn open_bracket(&mut self) -> Result<(), Unsure> {
        self.at += 1;
        if self.in_pattern() {
            return Ok(());
        }
        if !self.command {
            return Err(Unsure);
        }
        self.continued = false;
        self.open.push(Open::Subshell);
        Ok(())
    }

    fn close_bracket(&mut self) -> Result<(), Unsure> {
        self.at += 1;
        self.continued = false;
        match self.open.last_mut() {
            Some(Open::Case { pattern }) if *pattern => {
                *pattern = false;
                self.command = true;
            }
            Some(Open::Subshell) => {
                self.open.pop();
                self.command = false;
            }
            _ => return Err(Unsure),
        }
        Ok(())
    }

    fn redirect(&mut self) -> Result<(), Unsure> {
        if self.starts_with("<<<") || self.starts_with("<(") || self.starts_with(">(") {
            return Err(Unsure);
        }
        if self.starts_with("<<") {
            self.at += 2;
            let tabs = self.peek() == Some(b'-');
            self.at += usize::from(tabs);
            while matches!(self.peek(), Some(b' ' | b'\t')) {
                self.at += 1;
            }
            let word = self.skip_word()?;
            let delimiter = word.iter().copied().filter(|byte| !b"'\"\\".contains(byte)).collect();
            self.documents.push((delimiter, tabs));
            return Ok(());
        }
        self.at += 1;
        while matches!(self.peek(), Some(b'>' | b'&' | b'|' | b' ' | b'\t')) {
            self.at += 1;
        }
        self.skip_word()?;
        Ok(())
    }

    fn word(&mut self) -> Result<(), Unsure> {
        let (line, start) = (self.line, self.at);
        let line_start = start == 0 || self.bytes[start - 1] == b'\n';
        let word = self.skip_word()?;
        if word.is_empty() {
            return Err(Unsure);
        }
        if self.in_pattern() {
            if word == b"esac" {
                self.close("esac")?;
            }
            return Ok(());
        }
        // The number of a redirection is no word.
        if word.iter().all(u8::is_ascii_digit) && matches!(self.peek(), Some(b'<' | b'>')) {
            return Ok(());
        }
        if !self.command {
            self.argument(word);
            return Ok(());
        }
        let outermost = self.open.is_empty() && line_start && !self.continued;
        self.continued = false;
        if self.reserved(word)? {
            return Ok(());
        }
        if self.function()? {
            return Ok(());
        }
        self.command = is_assignment(word);
        if outermost {
            self.current = Some(line);
        }
        Ok(())
    }

    /// Takes a word that is no command: only `case WORD in` matters.
    fn argument(&mut self, word: &[u8]) {
        if self.open.last() == Some(&Open::Compound("in")) && word == b"in" {
            self.open.pop();
            self.open.push(Open::Case { pattern: true });
        }
    }

    /// Takes a reserved word and tells whether it was one.
    fn reserved(&mut self, word: &[u8]) -> Result<bool, Unsure> {
        match word {
            b"if" => self.open.push(Open::Compound("fi")),
            b"while" | b"until" => self.open.push(Open::Compound("done")),
            b"for" => {
                self.open.push(Open::Compound("done"));
                self.command = false;
                return Ok(true);
            }
            b"case" => {
                self.open.push(Open::Compound("in"));
                self.command = false;
                return Ok(true);
            }
            b"{" => self.open.push(Open::Compound("}")),
            b"then" | b"else" | b"elif" | b"do" | b"!" => {}
            b"in" if self.open.last() == Some(&Open::Compound("in")) => {
                self.argument(word);
                return Ok(true);
            }
            b"fi" => return self.close("fi").map(|()| true),
            b"done" => return self.close("done").map(|()| true),
            b"}" => return self.close("}").map(|()| true),
            b"esac" => return self.close("esac").map(|()| true),
            b"function" | b"time" | b"[[" | b"select" | b"coproc" => return Err(Unsure),
            _ => return Ok(false),
        }
        self.command = true;
        Ok(true)
    }

    fn close(&mut self, word: &str) -> Result<(), Unsure> {
        self.command = false;
        match self.open.pop() {
            Some(Open::Compound(end)) if end == word => Ok(()),
            Some(Open::Case { .. }) if word == "esac" => Ok(()),
            _ => Err(Unsure),
        }
    }

    /// Reads on over `()` when the word before it was a function's name.
    fn function(&mut self) -> Result<bool, Unsure> {
        let rest = &self.bytes[self.at..];
        let blank = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        if rest.get(blank) != Some(&b'(') {
            return Ok(false);
        }
        if rest.get(blank + 1) != Some(&b')') {
            return Err(Unsure);
        }
        self.at += blank + 2;
        self.command = true;
        Ok(true)
    }

    /// Reads over one word and returns it as written.
    fn skip_word(&mut self) -> Result<&'a [u8], Unsure> {
        let start = self.at;
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' | b'\n' | b';' | b'&' | b'|' | b'(' | b')' | b'<' | b'>' => break,
                b'`' => return Err(Unsure),
                b'\'' => self.skip_single_quotes()?,
                b'"' => self.skip_double_quotes()?,
                b'\\' => self.skip_escaped(),
                b'$' => self.skip_expansion(false)?,
                _ => self.at += 1,
            }
        }
        Ok(&self.bytes[start..self.at])
    }

    fn skip_escaped(&mut self) {
        self.line += usize::from(self.bytes.get(self.at + 1) == Some(&b'\n'));
        self.at = (self.at + 2).min(self.bytes.len());
    }

    fn skip_single_quotes(&mut self) -> Result<(), Unsure> {
        let rest = &self.bytes[self.at + 1..];
        let length = rest.iter().position(|byte| *byte == b'\'').ok_or(Unsure)?;
        self.line += rest[..length].split(|byte| *byte == b'\n').count() - 1;
        self.at += length + 2;
        Ok(())
    }

    fn skip_double_quotes(&mut self) -> Result<(), Unsure> {
        self.at += 1;
        loop {
            match self.peek().ok_or(Unsure)? {
                b'"' => break,
                b'`' => return Err(Unsure),
                b'\\' => self.skip_escaped(),
                b'$' if matches!(self.bytes.get(self.at + 1), Some(b'(' | b'{')) => {
                    self.skip_expansion(true)?;
                }
                byte => {
                    self.line += usize::from(byte == b'\n');
                    self.at += 1;
                }
            }
        }
        self.at += 1;
        Ok(())
    }

    /// Reads over `$name`, `${…}`, `$(…)` or `$((…))`; of the last three only what is plain.
    fn skip_expansion(&mut self, quoted: bool) -> Result<(), Unsure> {
        self.at += 1;
        let end = match self.peek() {
            Some(b'(') => b')',
            Some(b'{') => b'}',
            Some(b'\'' | b'"') => return Err(Unsure),
            _ => return Ok(()),
        };
        let begin = self.bytes[self.at];
        let mut depth = 0;
        loop {
            let byte = self.peek().ok_or(Unsure)?;
            let before = self.bytes[self.at - 1];
            match byte {
                // In `"${a:-it's}"` a quote is only a character, and `${a:-{}` has a lone bracket.
                b'\'' | b'"' if quoted && begin == b'{' => return Err(Unsure),
                b'{' if begin == b'{' && depth > 0 => return Err(Unsure),
                b'\'' => self.skip_single_quotes()?,
                b'"' => self.skip_double_quotes()?,
                b'\\' => self.skip_escaped(),
                b'$' if matches!(self.bytes.get(self.at + 1), Some(b'(' | b'{')) => {
                    self.skip_expansion(quoted && begin == b'{')?;
                }
                b'`' => return Err(Unsure),
                // `${a#b}` has no comment; `$(…)` may, with any brackets and quotes in it.
                b'#' if begin == b'(' && b" \t\n;(".contains(&before) => return Err(Unsure),
                b'c' if begin == b'(' && self.starts_with("case") => return Err(Unsure),
                b'<' if self.starts_with("<<") => return Err(Unsure),
                _ => {
                    depth += i32::from(byte == begin) - i32::from(byte == end);
                    self.line += usize::from(byte == b'\n');
                    self.at += 1;
                    if depth == 0 {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// Tells whether a word is an assignment, after which a command may follow.
fn is_assignment(word: &[u8]) -> bool {
    let name = word.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_').count();
    name > 0 && !word[0].is_ascii_digit() && word.get(name) == Some(&b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(script: &str) -> Vec<usize> {
        mark(script).lines
    }

    #[test]
    fn outermost_simple_commands_are_marked() {
        for (script, expected) in [
            ("#!/bin/sh\nset -eu\n\nfoo\n  bar\nbaz\n", &[2, 4, 6][..]),
            ("a && b\nc || d\ne; f\n", &[1, 2, 3]),
            ("a |\n b\nc | d\ne &\nf\n", &[5]),
            ("a &&\nb\nc \\\nd\ne\n", &[1, 3, 5]),
            ("if a; then\nb\nelse\nc\nfi\nd\n", &[6]),
            ("for x in a b; do\nb\ndone\nwhile a\ndo\nb\ndone <x\nd\n", &[8]),
            ("case $x in\na | if) b ;;\n(c) d;;\n*)\ne\nesac\nd\n", &[7]),
            ("case x in a) b;; esac\nd\n", &[2]),
            ("f() {\na\n}\ng ()\n{\na\n}\nf\n(\na\n)\nb\n", &[8, 12]),
            ("a <<E\nb\nE\nc <<-\t'F' <<G\nb\n\tF\nb\nG\nd\n", &[1, 4, 9]),
            ("a 'x\ny' \"\nz$(b \"\n\")\n\"\nc\n", &[1, 6]),
            ("x=1\nx=$(a\nb)\nexport y=${x#*(}\nc $((1 + 2)) # d '\ne\n", &[1, 2, 4, 5, 6]),
            ("! a\n2>x b\nc 2>&1 >x\nd\n", &[3, 4]),
            ("a \"b$\" 'c$'\nd\n", &[1, 2]),
            ("a && {\nb\n} &\nc\n", &[4]),
            ("a || {\nb\n}\nc\n", &[1, 4]),
        ] {
            assert_eq!(marks(script), expected, "{script}");
        }
    }

    #[test]
    fn where_it_is_not_sure_it_stops() {
        for (script, expected) in [
            ("a\nb `c`\nd\n", &[1][..]),
            ("a\nb $(case x in x) y;; esac)\nd\n", &[1]),
            ("a\nb $(c <<E\n)\nE\n)\nd\n", &[1]),
            ("a\nb \"${c:-it's}\"\nd\n", &[1]),
            ("a\nb <<E\nx\\\nE\nE\nd\n", &[1]),
            ("a\nb <<E\nx\n", &[1]),
            ("a\n)\nd\n", &[1]),
            ("a\n[[ x ]]\nd\n", &[1]),
            ("alias a=b\nd\n", &[]),
        ] {
            assert_eq!(marks(script), expected, "{script}");
        }
    }

    #[test]
    fn ranges_reach_from_mark_to_mark() {
        let script = "# head\na\n\nif b; then\n  c\nfi\n\n# end\nd\n";
        let marked = mark(script);
        assert_eq!(marked.lines, [2, 9]);
        assert_eq!(marked.range(script, 2), Some((2, 6)));
        assert_eq!(marked.range(script, 9), Some((9, 9)));
        assert_eq!(marked.range(script, 0), None);
        assert_eq!(marked.range(script, 3), None);
        assert_eq!(mark("if a\nthen b\nfi\nc\n").range("if a\nthen b\nfi\nc\n", 0), Some((1, 3)));
    }

    #[test]
    fn marked_text_keeps_its_lines() {
        let marked = mark("#!/bin/sh\nfoo\n");
        assert_eq!(marked.text, format!("{TRAP}#!/bin/sh\n_=$((forge_line=2)) foo\n"));
    }

    /// Tells whether `sh` accepts a text.
    fn parses(text: &str) -> bool {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        let sh = std::process::Command::new("sh").arg("-n").arg(file.path()).output().unwrap();
        sh.status.success()
    }

    /// The shell itself knows where commands begin: what stands before is complete, and not
    /// inside a here-document or a continued command, where a lone `;` would be fine.
    #[test]
    fn the_shell_agrees_on_real_scripts() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut marks = 0;
        for entry in std::fs::read_dir(root.join("hardening")).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let marked = mark(&text);
            assert!(parses(&marked.text), "{}", path.display());
            let lines: Vec<&str> = text.split_inclusive('\n').collect();
            for line in &marked.lines {
                let before = lines[..line - 1].concat();
                assert!(parses(&before), "{} before line {line}", path.display());
                assert!(!parses(&format!("{before};\n")), "{} line {line}", path.display());
            }
            marks += marked.lines.len();
        }
        assert!(marks > 60, "only {marks} marks in all scripts");
    }
}
