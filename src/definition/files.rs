//! The files a definition refers to: scripts, uploads, seed files and keys.

use std::path::{Component, Path, PathBuf};

use super::diagnostics::{Finding, Findings, Span, closest};
use super::expression::{self, Known, Place, Problem, Uses};
use super::root::Root;
use super::tree::Node;

/// What a referenced file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileRole {
    /// The installer's answers.
    Autoinstall,
    /// Another file served to the installer.
    Seed,
    /// A step's script.
    Script,
    /// A file that a step puts into the guest.
    Upload,
    /// The script that seals.
    Seal,
    /// The key that signs the ISO's checksums.
    Key,
    /// A hardening control.
    Control,
}

/// A file that a definition refers to.
#[derive(Debug, Clone)]
pub struct FileReference {
    /// Its path relative to the root, with `/` between the parts.
    pub path: String,
    /// What it is for.
    pub role: FileRole,
    /// The step that uses it.
    pub step: Option<String>,
    /// The name under which it is served, of seed files.
    pub served_as: Option<String>,
    /// The variables that it uses, when it is rendered.
    pub(crate) uses: Option<Uses>,
}

impl FileReference {
    pub(crate) fn key(path: String) -> Self {
        Self { path, role: FileRole::Key, step: None, served_as: None, uses: None }
    }

    pub(crate) fn control(path: String) -> Self {
        let step = Some(super::HARDENING_STEP.to_owned());
        Self { path, role: FileRole::Control, step, served_as: None, uses: None }
    }

    /// Tells whether it is rendered before it is used.
    #[must_use]
    pub fn is_rendered(&self) -> bool {
        self.uses.is_some()
    }
}

/// Tells whether a file is rendered before it is used.
pub(crate) fn is_template_file(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|ending| ending == "j2")
}

/// Why a file cannot be read as text.
#[derive(Debug)]
pub(crate) struct ReadProblem {
    pub(crate) message: String,
    /// What can be shown of it, and where in that it is wrong.
    pub(crate) shown: String,
    pub(crate) at: usize,
}

/// How large a file may be that people have written, in bytes: more is something else by mistake.
const TEXT_MAX: u64 = 4 << 20;

/// Reads a file that must be UTF-8.
pub(crate) fn read_text(path: &Path) -> Result<String, ReadProblem> {
    let problem = |message: &str| ReadProblem { message: message.to_owned(), shown: String::new(), at: 0 };
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => problem("no such file"),
        _ => problem(&error.to_string().to_lowercase()),
    };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if metadata.is_dir() {
        return Err(problem("it is a folder, not a file"));
    }
    if !metadata.is_file() {
        return Err(problem("it is a pipe, a socket or a device, not a file"));
    }
    if metadata.len() > TEXT_MAX {
        let mib = metadata.len() >> 20;
        return Err(problem(&format!("it has {mib} MiB, and forge reads at most {}", TEXT_MAX >> 20)));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let byte = error.as_bytes().get(at).copied().unwrap_or_default();
        ReadProblem {
            message: format!("not UTF-8: the byte 0x{byte:02x} is no part of a character"),
            shown: String::from_utf8_lossy(error.as_bytes()).into_owned(),
            at,
        }
    })
}

/// Why a path is refused.
struct Refused {
    message: String,
    help: Option<String>,
}

/// Returns the path of an existing file or folder inside the root, normalised.
fn inside(root: &Root, written: &str) -> Result<String, Refused> {
    let refuse =
        |message: String, help: Option<&str>| Err(Refused { message, help: help.map(str::to_owned) });
    let mut parts: Vec<&str> = Vec::new();
    for component in Path::new(written).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(part) => parts.push(part.to_str().unwrap_or_default()),
            Component::ParentDir if parts.pop().is_some() => {}
            Component::ParentDir => {
                return refuse(
                    format!("`{written}` leads out of the root"),
                    Some("move the file below the root"),
                );
            }
            Component::RootDir | Component::Prefix(_) => {
                return refuse(format!("`{written}` is absolute"), Some("paths are relative to the root"));
            }
        }
    }
    if parts.is_empty() {
        return refuse("a path is missing".to_owned(), None);
    }
    let path = parts.join("/");
    let full = root.path().join(&path);
    if !full.exists() {
        let help = similar(root, &path);
        return Err(Refused { message: format!("`{path}` does not exist"), help });
    }
    match full.canonicalize() {
        Ok(real) if real.starts_with(root.path()) => Ok(path),
        _ => refuse(format!("`{path}` is a symbolic link that leads out of the root"), None),
    }
}

/// Returns ``did you mean `…`?`` with the nearest name beside a path that is not there.
fn similar(root: &Root, path: &str) -> Option<String> {
    let mut missing = Path::new(path);
    let folder = loop {
        let parent = missing.parent()?;
        if root.path().join(parent).is_dir() {
            break parent;
        }
        missing = parent;
    };
    let names = file_names(&root.path().join(folder));
    let written = missing.file_name()?.to_str()?;
    let found = closest(written, names.iter().map(String::as_str))?;
    let rest = Path::new(path).strip_prefix(missing).ok().filter(|rest| rest.components().next().is_some());
    let mut meant = folder.join(found);
    if let Some(rest) = rest {
        meant.push(rest);
    }
    Some(format!("did you mean `{}`?", meant.display()))
}

fn file_names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Finds every file that a definition refers to and parses those that are rendered.
pub(crate) struct Gatherer<'a> {
    pub(crate) root: &'a Root,
    /// The template and those it extends, nearest first.
    pub(crate) chain: &'a [String],
    pub(crate) step_names: Known,
    pub(crate) seed_names: Known,
    pub(crate) findings: &'a mut Findings,
    pub(crate) files: Vec<FileReference>,
}

impl Gatherer<'_> {
    /// Gathers from a rendered tree.
    pub(crate) fn gather(&mut self, tree: &Node) {
        self.seed(tree);
        for step in tree.list("step") {
            let name = step.text_at("name").unwrap_or_default();
            if let Some(script) = step.get("shell").and_then(|shell| shell.get("script")) {
                self.file(script, FileRole::Script, Some(name));
            }
            if let Some(source) = step.get("upload").and_then(|upload| upload.get("source")) {
                self.upload(source, name);
            }
        }
        let seal = tree.get("seal");
        if let Some(script) = seal.and_then(|seal| seal.get("script")) {
            self.file(script, FileRole::Seal, None);
        } else {
            let span = seal.map_or(tree.span.within(&(0..0)), |seal| seal.span);
            self.path(&super::Seal::default().script, span, FileRole::Seal, None);
        }
    }

    fn file(&mut self, node: &Node, role: FileRole, step: Option<&str>) {
        if let Some(path) = node.text() {
            self.path(path, node.span, role, step);
        }
    }

    fn path(&mut self, written: &str, span: Span, role: FileRole, step: Option<&str>) {
        match inside(self.root, written) {
            Err(refused) => {
                let what = if role == FileRole::Seal { "seal script " } else { "" };
                let finding = Finding::new(span, format!("{what}{}", refused.message));
                self.findings.push(finding.maybe_help(refused.help));
            }
            Ok(path) if self.root.path().join(&path).is_dir() => {
                self.findings.push(Finding::new(span, format!("`{path}` is a folder, not a file")));
            }
            Ok(path) => self.add(path, span, role, step, None),
        }
    }

    fn add(
        &mut self,
        path: String,
        span: Span,
        role: FileRole,
        step: Option<&str>,
        served_as: Option<String>,
    ) {
        let is_seed = matches!(role, FileRole::Autoinstall | FileRole::Seed);
        let rendered = is_template_file(&path) && !matches!(role, FileRole::Key);
        let uses = rendered.then(|| self.inspect(&path, span, is_seed));
        if role == FileRole::Script && !rendered {
            self.script(&path);
        }
        self.files.push(FileReference { path, role, step: step.map(str::to_owned), served_as, uses });
    }

    fn inspect(&mut self, path: &str, span: Span, is_seed: bool) -> Uses {
        let text = match read_text(&self.root.path().join(path)) {
            Ok(text) => text,
            Err(problem) => {
                report_unreadable(path, span, problem, self.findings);
                return Uses::default();
            }
        };
        let (place, known) =
            if is_seed { (Place::SeedFile, &self.seed_names) } else { (Place::StepFile, &self.step_names) };
        match expression::inspect(&text, place, known) {
            Ok(inspection) => {
                report_problems(path, &text, inspection.problems, self.findings);
                inspection.uses
            }
            Err(problem) => {
                report_problems(path, &text, vec![problem], self.findings);
                Uses::default()
            }
        }
    }

    /// A carriage return makes `#!/bin/sh` name a program that no guest has.
    fn script(&mut self, path: &str) {
        let Ok(bytes) = std::fs::read(self.root.path().join(path)) else { return };
        let first_line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        if first_line.ends_with(b"\r") {
            let shown = String::from_utf8_lossy(&bytes).into_owned();
            let file = self.findings.add_text(path, shown);
            self.findings.push(
                Finding::new(Span::new(file, 0..first_line.len()), "script has Windows line ends")
                    .help("save it with line ends of one line feed"),
            );
        }
    }

    fn upload(&mut self, node: &Node, step: &str) {
        let Some(written) = node.text() else { return };
        match inside(self.root, written) {
            Ok(path) if self.root.path().join(&path).is_dir() => self.folder(&path, node.span, step),
            _ => self.path(written, node.span, FileRole::Upload, Some(step)),
        }
    }

    fn folder(&mut self, folder: &str, span: Span, step: &str) {
        for name in file_names(&self.root.path().join(folder)) {
            let path = format!("{folder}/{name}");
            match inside(self.root, &path) {
                Err(refused) => self.findings.push(Finding::new(span, refused.message)),
                Ok(path) if self.root.path().join(&path).is_dir() => self.folder(&path, span, step),
                Ok(path) => self.add(path, span, FileRole::Upload, Some(step), None),
            }
        }
    }

    fn seed(&mut self, tree: &Node) {
        let seed = tree.get("seed");
        if let Some(node) = seed.and_then(|seed| seed.get("autoinstall")) {
            if let Some(name) = node.text() {
                self.seed_file(name, node.span, FileRole::Autoinstall);
            }
        } else {
            let span = seed.map_or(tree.span.within(&(0..0)), |seed| seed.span);
            self.seed_file(&super::Seed::default().autoinstall, span, FileRole::Autoinstall);
        }
        for node in seed.map_or(&[][..], |seed| seed.list("files")) {
            if let Some(name) = node.text() {
                self.seed_file(name, node.span, FileRole::Seed);
            }
        }
    }

    /// Takes a seed file from the template's own folder, or from that of the nearest it extends.
    fn seed_file(&mut self, name: &str, span: Span, role: FileRole) {
        let served_as = name.strip_suffix(".j2").unwrap_or(name).to_owned();
        if self.files.iter().any(|file| file.served_as.as_ref() == Some(&served_as)) {
            self.findings.push(Finding::new(span, format!("two seed files are served as `{served_as}`")));
            return;
        }
        let found =
            self.chain.iter().find(|folder| self.root.path().join("http").join(folder).join(name).exists());
        let folder = found.unwrap_or(&self.chain[0]).clone();
        match inside(self.root, &format!("http/{folder}/{name}")) {
            Ok(path) if !path.starts_with(&format!("http/{folder}/")) => {
                let message = format!("seed file `{name}` leads out of http/{folder}/");
                self.findings.push(Finding::new(span, message));
            }
            Ok(path) if self.root.path().join(&path).is_dir() => {
                self.findings.push(Finding::new(span, format!("`{path}` is a folder, not a file")));
            }
            Ok(path) => self.add(path, span, role, None, Some(served_as)),
            Err(refused) => {
                let folders: Vec<String> = self.chain.iter().map(|name| format!("http/{name}/")).collect();
                let help = refused.help.or_else(|| Some(format!("looked in {}", folders.join(", "))));
                let message = format!("seed file {}", refused.message);
                self.findings.push(Finding::new(span, message).maybe_help(help));
            }
        }
    }
}

/// Reports what is wrong in a rendered file, in that file.
pub(crate) fn report_problems(path: &str, text: &str, problems: Vec<Problem>, findings: &mut Findings) {
    if problems.is_empty() {
        return;
    }
    let file = findings.add_text(path, text);
    for problem in problems {
        let span = Span::new(file, problem.range);
        findings.push(Finding::new(span, problem.message).maybe_help(problem.help));
    }
}

fn report_unreadable(path: &str, span: Span, problem: ReadProblem, findings: &mut Findings) {
    if problem.shown.is_empty() {
        findings.push(Finding::new(span, format!("`{path}`: {}", problem.message)));
    } else {
        let file = findings.add_text(path, problem.shown);
        findings.push(Finding::new(Span::new(file, problem.at..problem.at + 1), problem.message));
    }
}

/// Returns the key file of the ISO's checksums, relative to the root.
///
/// It is written relative to the folder of the definition that names it.
pub(crate) fn key_file(
    root: &Root,
    node: &Node,
    definition: &str,
    findings: &mut Findings,
) -> Option<String> {
    let folder = Path::new(definition).parent().map(Path::to_path_buf).unwrap_or_default();
    let written: PathBuf = folder.join(node.text()?);
    match inside(root, &written.to_string_lossy()) {
        Ok(path) => Some(path),
        Err(refused) => {
            let finding = Finding::new(node.span, format!("key {}", refused.message));
            findings.push(finding.maybe_help(refused.help));
            None
        }
    }
}
