//! What is wrong in the files a user wrote: each finding with its place, reason and way out.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

/// A stretch of one file's text, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub(crate) file: usize,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Span {
    pub(crate) fn new(file: usize, range: Range<usize>) -> Self {
        Self { file, start: range.start, end: range.end.max(range.start) }
    }

    /// Returns the part of this span that a range inside it names.
    pub(crate) fn within(self, range: &Range<usize>) -> Self {
        let start = (self.start + range.start).min(self.end);
        Self { file: self.file, start, end: (self.start + range.end).clamp(start, self.end) }
    }
}

/// A text that can be wrong: a file, the command line or an environment variable.
#[derive(Debug, Clone)]
pub(crate) struct SourceText {
    /// How messages call it: a path relative to the root where it lies below it.
    pub(crate) name: String,
    /// The text as it may be shown: secrets are masked, byte for byte.
    pub(crate) shown: String,
}

/// How messages call the text of an option.
pub(crate) const COMMAND_LINE: &str = "command line";

/// How messages call the text of an environment variable.
pub(crate) const ENVIRONMENT: &str = "environment";

/// A place in a text that stays when the findings have gone.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    text: Arc<SourceText>,
    span: Span,
}

impl Place {
    /// Tells whether both are the same stretch of the same file.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let of = |place: &Self| (place.text.name.clone(), place.span.start, place.span.end);
        of(self) == of(other)
    }

    /// Returns what is wrong there, alone.
    pub(crate) fn refuse(&self, finding: impl FnOnce(Span) -> Finding) -> Diagnostics {
        let mut finding = finding(self.span);
        finding.span.file = 0;
        Diagnostics { list: vec![Diagnostic::new(std::slice::from_ref(&self.text), finding)] }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = shown_range(&self.text.shown, self.span.start, self.span.end).start;
        let (line, column) = line_column(&self.text.shown, start);
        write!(f, "{}:{}:{}", self.text.name, line + 1, column + 1)
    }
}

/// One finding.
#[derive(Debug, Clone)]
pub(crate) struct Finding {
    pub(crate) span: Span,
    pub(crate) message: String,
    pub(crate) label: Option<String>,
    pub(crate) help: Option<String>,
}

impl Finding {
    pub(crate) fn new(span: Span, message: impl Into<String>) -> Self {
        Self { span, message: message.into(), label: None, help: None }
    }

    pub(crate) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub(crate) fn maybe_help(mut self, help: Option<String>) -> Self {
        self.help = help.or(self.help);
        self
    }
}

/// The texts read so far and what is wrong in them.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    texts: Vec<SourceText>,
    list: Vec<Finding>,
}

/// Tells whether a byte of UTF-8 is a control character that is neither white space nor the end of a line.
fn is_steering(byte: u8) -> bool {
    byte.is_ascii_control() && !matches!(byte, b'\n' | b'\r' | b'\t')
}

impl Findings {
    /// Adds a text and returns its number, for [`Span::file`].
    pub(crate) fn add_text(&mut self, name: impl Into<String>, shown: impl Into<String>) -> usize {
        let mut shown = shown.into();
        // What stands in a file must not steer a terminal; a byte for a byte, so that spans stay true.
        if shown.bytes().any(is_steering) {
            let plain = shown.bytes().map(|byte| if is_steering(byte) { b'?' } else { byte }).collect();
            shown = String::from_utf8(plain).unwrap_or_default();
        }
        self.texts.push(SourceText { name: name.into(), shown });
        self.texts.len() - 1
    }

    /// Hides a stretch of a text in everything that is shown of it.
    pub(crate) fn mask(&mut self, span: Span) {
        let shown = &mut self.texts[span.file].shown;
        let (start, end) = (span.start.min(shown.len()), span.end.min(shown.len()));
        if !(shown.is_char_boundary(start) && shown.is_char_boundary(end)) {
            return;
        }
        let masked: String = shown[start..end]
            .bytes()
            .map(|byte| if byte == b'\n' || byte == b'\r' { char::from(byte) } else { '*' })
            .collect();
        shown.replace_range(start..end, &masked);
    }

    pub(crate) fn name(&self, file: usize) -> &str {
        &self.texts[file].name
    }

    /// Returns a span with its text.
    pub(crate) fn place(&self, span: Span) -> Place {
        Place { text: Arc::new(self.texts[span.file].clone()), span }
    }

    pub(crate) fn push(&mut self, finding: Finding) {
        self.list.push(finding);
    }

    pub(crate) fn count(&self) -> usize {
        self.list.len()
    }

    /// Returns what was found, in file order; `None` when nothing is wrong.
    pub(crate) fn into_diagnostics(mut self) -> Option<Diagnostics> {
        if self.list.is_empty() {
            return None;
        }
        self.list.sort_by_key(|finding| (finding.span.file, finding.span.start));
        let texts: Vec<Arc<SourceText>> = self.texts.into_iter().map(Arc::new).collect();
        let list = self.list.into_iter().map(|finding| Diagnostic::new(&texts, finding)).collect();
        let mut diagnostics = Diagnostics { list };
        diagnostics.drop_repeated();
        Some(diagnostics)
    }
}

/// Returns ``did you mean `x`?`` for the candidate that is close enough to what was written.
pub(crate) fn did_you_mean<'a>(
    written: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    closest(written, candidates).map(|name| format!("did you mean `{name}`?"))
}

/// Returns the candidate that is close enough to what was written to have been meant.
pub(crate) fn closest<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['-', ' '], "_");
    let wanted = plain(written);
    candidates
        .into_iter()
        .map(|name| {
            let name_plain = plain(name);
            let extends =
                wanted.len() >= 3 && (name_plain.starts_with(&wanted) || wanted.starts_with(&name_plain));
            let swapped = strsim::osa_distance(&wanted, &name_plain) <= (wanted.len() / 4).max(1);
            let score = strsim::jaro_winkler(&wanted, &name_plain);
            (if extends || (swapped && wanted.len() > 1) { score.max(0.85) } else { score }, name)
        })
        .filter(|(score, _)| *score >= 0.82)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// Returns names as a person lists them: `` `a`, `b` or `c` ``.
pub(crate) fn one_of<S: AsRef<str>>(names: &[S]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{}`", name.as_ref())).collect();
    match quoted.split_last() {
        None => "nothing".to_owned(),
        Some((only, [])) => only.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
    }
}

/// How findings are drawn.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Whether colours may be used.
    pub color: bool,
    /// Whether box-drawing characters may be used.
    pub unicode: bool,
    /// How wide a line of prose may be, in columns.
    pub width: usize,
}

impl Style {
    /// The style of files and pipes.
    pub const PLAIN: Self = Self { color: false, unicode: false, width: 100 };
}

/// One thing that is wrong in a definition, profile, variable or seed file.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Diagnostic {
    /// The file, relative to the root where it lies below it.
    pub file: String,
    /// The line, counting from 1.
    pub line: usize,
    /// The column in characters, counting from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What the marked place is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    #[serde(skip)]
    text: Arc<SourceText>,
    #[serde(skip)]
    range: Range<usize>,
}

impl Diagnostic {
    fn new(texts: &[Arc<SourceText>], finding: Finding) -> Self {
        let text = Arc::clone(&texts[finding.span.file]);
        let range = shown_range(&text.shown, finding.span.start, finding.span.end);
        let (line, column) = line_column(&text.shown, range.start);
        Self {
            file: text.name.clone(),
            line: line + 1,
            column: column + 1,
            message: finding.message,
            label: finding.label,
            help: finding.help,
            text,
            range,
        }
    }
}

impl Diagnostic {
    /// Returns where it is, as a person names it: `FILE:LINE:COLUMN`, or the command line.
    #[must_use]
    pub fn place(&self) -> String {
        match self.file.as_str() {
            COMMAND_LINE | ENVIRONMENT => self.file.clone(),
            file => format!("{file}:{}:{}", self.line, self.column),
        }
    }
}

/// Moves a span onto characters of the text and ends it with its first line.
fn shown_range(text: &str, start: usize, end: usize) -> Range<usize> {
    let floor = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let start = floor(start);
    let end = floor(end).max(start);
    let line_end = text[start..].find(['\n', '\r']).map_or(text.len(), |length| start + length);
    start..end.min(line_end)
}

/// Returns the line and the column in characters of a place, both counting from 0.
fn line_column(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..at];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count(), before[line_start..].trim_start_matches('\u{feff}').chars().count())
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Diagnostic {}

impl miette::Diagnostic for Diagnostic {
    fn help(&self) -> Option<Box<dyn fmt::Display + '_>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        Some(&*self.text)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = miette::LabeledSpan> + '_>> {
        let span = (self.range.start, self.range.len());
        let label = miette::LabeledSpan::new_primary_with_span(self.label.clone(), span);
        Some(Box::new(std::iter::once(label)))
    }
}

/// miette's own texts count columns in bytes and lines at a lone `\r`; people and editors do not.
impl miette::SourceCode for SourceText {
    fn read_span<'a>(
        &'a self,
        span: &miette::SourceSpan,
        context_lines_before: usize,
        context_lines_after: usize,
    ) -> Result<Box<dyn miette::SpanContents<'a> + 'a>, miette::MietteError> {
        let text = &self.shown;
        let (line, column) = line_column(text, span.offset());
        let mut start = text[..span.offset()].rfind('\n').map_or(0, |newline| newline + 1);
        let mut first_line = line;
        for _ in 0..context_lines_before.min(line) {
            start = text[..start - 1].rfind('\n').map_or(0, |newline| newline + 1);
            first_line -= 1;
        }
        let mut end = span.offset() + span.len();
        for _ in 0..=context_lines_after {
            end = text[end..].find('\n').map_or(text.len(), |newline| end + newline + 1);
        }
        let whole_line = context_lines_before > 0;
        let start = if whole_line || context_lines_after > 0 { start } else { span.offset() };
        Ok(Box::new(miette::MietteSpanContents::new_named(
            self.name.clone(),
            &text.as_bytes()[start..end],
            (start, end - start).into(),
            first_line,
            if whole_line { 0 } else { column },
            text[start..end].matches('\n').count() + 1,
        )))
    }
}

/// All that is wrong, in file order.
#[derive(Debug, Clone)]
pub struct Diagnostics {
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// Returns the findings one by one.
    #[must_use]
    pub fn list(&self) -> &[Diagnostic] {
        &self.list
    }

    /// Adds what was found elsewhere, each finding once: templates share their parents.
    pub fn append(&mut self, other: Self) {
        self.list.extend(other.list);
        self.drop_repeated();
    }

    fn drop_repeated(&mut self) {
        let mut seen = BTreeSet::new();
        self.list.retain(|found| {
            seen.insert((found.file.clone(), found.line, found.column, found.message.clone()))
        });
    }

    /// Draws every finding with its source line, then how many there are.
    #[must_use]
    pub fn render(&self, style: Style) -> String {
        let theme = miette::GraphicalTheme {
            characters: if style.unicode {
                miette::ThemeCharacters::unicode()
            } else {
                miette::ThemeCharacters::ascii()
            },
            styles: if style.color { miette::ThemeStyles::ansi() } else { miette::ThemeStyles::none() },
        };
        let handler = miette::GraphicalReportHandler::new_themed(theme)
            .with_width(style.width)
            .with_links(false)
            .with_break_words(false);
        let mut out = String::new();
        for diagnostic in &self.list {
            let mut drawn = String::new();
            if handler.render_report(&mut drawn, diagnostic).is_err() {
                // miette could not read the place; the finding itself must not be lost.
                drawn = format!(
                    "{}:{}:{}: {}",
                    diagnostic.file, diagnostic.line, diagnostic.column, diagnostic.message
                );
            }
            for line in drawn.trim_matches('\n').lines() {
                out.push_str(line.trim_end());
                out.push('\n');
            }
            out.push('\n');
        }
        out.push_str(&self.summary());
        out.push('\n');
        out
    }

    /// Returns `3 errors in 2 files`.
    #[must_use]
    pub fn summary(&self) -> String {
        let files: BTreeSet<&str> = self.list.iter().map(|found| found.file.as_str()).collect();
        let count = |number: usize, word: &str| {
            if number == 1 { format!("1 {word}") } else { format!("{number} {word}s") }
        };
        format!("{} in {}", count(self.list.len(), "error"), count(files.len(), "file"))
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(Style::PLAIN).trim_end())
    }
}

impl std::error::Error for Diagnostics {}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str, range: Range<usize>) -> Diagnostics {
        let mut findings = Findings::default();
        let file = findings.add_text("a.toml", text);
        findings.push(Finding::new(Span::new(file, range), "it is wrong").label("here"));
        findings.into_diagnostics().unwrap()
    }

    #[test]
    fn places_count_characters_and_never_split_one() {
        let text = "é = 1\nnaïve = \"é\"\n";
        let found = one(text, 16..20);
        assert_eq!((found.list[0].line, found.list[0].column), (2, 9));
        assert!(found.render(Style::PLAIN).contains("a.toml:2:9"), "{}", found.render(Style::PLAIN));
        for start in 0..text.len() + 3 {
            for end in start..text.len() + 3 {
                let found = one(text, start..end);
                assert!(found.render(Style::PLAIN).contains("it is wrong"));
            }
        }
    }

    #[test]
    fn colours_and_boxes_are_drawn_only_when_allowed() {
        let found = one("a = 1\n", 4..5);
        let terminal = found.render(Style { color: true, unicode: true, width: 80 });
        assert!(terminal.contains('\u{1b}') && terminal.contains('╭'), "{terminal}");
        assert!(found.render(Style::PLAIN).is_ascii());
    }

    #[test]
    fn an_empty_text_can_be_wrong() {
        assert!(one("", 0..0).render(Style::PLAIN).contains("a.toml:1:1"));
        assert!(one("\r\n\r", 0..9).render(Style::PLAIN).contains("a.toml:1:1"));
    }

    #[test]
    fn masked_text_is_not_shown() {
        let mut findings = Findings::default();
        let file = findings.add_text("a.toml", "token = \"hunter2\"\n");
        findings.mask(Span::new(file, 8..17));
        findings.push(Finding::new(Span::new(file, 0..5), "no"));
        let shown = findings.into_diagnostics().unwrap().render(Style::PLAIN);
        assert!(shown.contains("token = *********") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn what_steers_a_terminal_is_not_shown() {
        let mut findings = Findings::default();
        let file = findings.add_text("a.toml", "a = 'é\u{1b}[31m\u{7}'\t\n");
        assert_eq!(findings.texts[file].shown, "a = 'é?[31m?'\t\n");
    }

    #[test]
    fn close_names_are_offered_and_far_ones_are_not() {
        let names = ["memory_mib", "cores", "firmware", "disk"];
        assert_eq!(closest("memory", names), Some("memory_mib"));
        assert_eq!(closest("core", names), Some("cores"));
        assert_eq!(closest("disks", names), Some("disk"));
        assert_eq!(closest("firmwear", names), Some("firmware"));
        assert_eq!(closest("colour", names), None);
        assert_eq!(closest("wbe", ["web", "base"]), Some("web"));
    }
}
