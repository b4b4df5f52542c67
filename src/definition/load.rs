//! The way from files to a checked definition.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::anyhow;
use serde_json::{Value as Json, json};

use super::autoinstall;
use super::controls::{self, NamedControl};
use super::diagnostics::{self, Diagnostics, Finding, Findings, Span, closest, did_you_mean};
use super::expression::{self, Known, Place};
use super::files::{FileReference, FileRole, Gatherer, ReadProblem, key_file, read_text, report_problems};
use super::model::{
    CONTROL_VERSION, Control, DEFINITION_VERSION, Definition, PROFILE_VERSION, Profile, QemuProfile,
};
use super::render::{Renderer, context, file_context, variables_json};
use super::root::Root;
use super::shape::{CONTROL, Checker, DEFINITION, PROFILE};
use super::tree::{Entry, Node, Value, merge, parse_toml};
use super::variables::{
    Declared, Inputs, Resolved, ResolvedVariable, VARIABLE_PREFIX, VariableValue, declare, environment_name,
    mask, resolve,
};
use super::{Secret, rules};
use crate::failure::{Failure, Kind};

/// The name of the builder profile that is there without a file.
pub const LOCAL_PROFILE: &str = "qemu";

/// A definition that holds, with what it was made of.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The name of its folder in `templates/`.
    pub name: String,
    /// The definition with every value in its place, secrets too: never show or write it.
    pub definition: Definition,
    /// The same with secrets masked, for people, manifests and digests.
    pub shown: Definition,
    /// The variables with their values.
    pub variables: BTreeMap<String, ResolvedVariable>,
    /// The files that it refers to.
    pub files: Vec<FileReference>,
    /// All hardening controls there are, where the definition has to do with them.
    pub controls: Vec<NamedControl>,
    /// Where its VMID stands.
    vmid: diagnostics::Place,
}

impl Loaded {
    /// Returns the secrets that are set, for hiding them in what guests print.
    pub fn secrets(&self) -> impl Iterator<Item = &Secret> {
        self.variables.values().filter_map(|variable| match &variable.value {
            VariableValue::Secret(secret) if secret.is_set() => Some(secret),
            _ => None,
        })
    }
}

/// What helps against most broken YAML in rendered files.
const QUOTED: &str = "write values as `{{ … | toyaml }}`, which quotes them";

/// How many templates may stand in a row, each extending the next.
const CHAIN_MAX: usize = 16;

/// What a folder in `templates/` turned out to be.
#[derive(Debug)]
pub enum Checked {
    /// A template that can be built.
    Complete(Box<Loaded>),
    /// A template that only serves to be extended.
    Abstract,
}

/// Loads a template that is to be built.
///
/// # Errors
/// Kind `Definition` with [`Diagnostics`] when something is wrong in its files; kind `Usage` when
/// there is no such template, or it is abstract.
pub fn load(root: &Root, name: &str, inputs: &Inputs) -> Result<Loaded, Failure> {
    match check(root, name, inputs, &BTreeSet::new())? {
        Checked::Complete(loaded) => Ok(*loaded),
        Checked::Abstract => {
            let error = anyhow!("template `{name}` is abstract: it only serves to be extended");
            Err(Failure::new(Kind::Usage, error).hint("name a template that extends it"))
        }
    }
}

/// Checks a template. `elsewhere` are variables that other templates of the same run declare, so
/// that `--var` may name them.
///
/// # Errors
/// As [`load`].
pub fn check(
    root: &Root,
    name: &str,
    inputs: &Inputs,
    elsewhere: &BTreeSet<String>,
) -> Result<Checked, Failure> {
    if !root.templates()?.iter().any(|template| template == name) {
        return Err(root.no_template(name));
    }
    let mut loader = Loader { root, findings: Findings::default(), texts: BTreeMap::new() };
    let checked = loader.check(name, inputs, elsewhere);
    match (loader.findings.into_diagnostics(), checked) {
        (None, Some(checked)) => Ok(checked),
        (Some(diagnostics), _) => Err(Failure::new(Kind::Definition, diagnostics)),
        (None, None) => {
            Err(Failure::new(Kind::Unexpected, anyhow!("template `{name}` was refused without a reason")))
        }
    }
}

/// Returns the names of the variables that a template and those it extends declare.
///
/// What cannot be read counts as none: [`check`] says what is wrong with it.
#[must_use]
pub fn variable_names(root: &Root, name: &str) -> BTreeSet<String> {
    declared_entries(root, name).unwrap_or_default().into_iter().map(|entry| entry.key).collect()
}

/// Returns what stands in the tables `[variables]` of a template and those it extends; `None` when
/// one of them cannot be read.
fn declared_entries(root: &Root, name: &str) -> Option<Vec<Entry>> {
    let mut loader = Loader { root, findings: Findings::default(), texts: BTreeMap::new() };
    let chain = loader.chain(name)?;
    let tables = chain.iter().filter_map(|link| link.node.get("variables"));
    Some(tables.flat_map(|table| table.entries().to_vec()).collect())
}

/// Returns the environment's `FORGE_VAR_…` that no template of the root takes, each with what was
/// meant perhaps. There are none while a template cannot be read: it may be the one that takes them.
#[must_use]
pub fn stray_variables(root: &Root, inputs: &Inputs) -> Vec<(String, Option<String>)> {
    let given: Vec<&String> = inputs.env.keys().filter(|name| name.starts_with(VARIABLE_PREFIX)).collect();
    if given.is_empty() {
        return Vec::new();
    }
    let names = root.templates().unwrap_or_default();
    let entries: Option<Vec<_>> = names.iter().map(|name| declared_entries(root, name)).collect();
    let Some(entries) = entries else { return Vec::new() };
    let taken: BTreeSet<String> = entries
        .iter()
        .flatten()
        .flat_map(|entry| {
            let own = entry.node.text_at("env").map(str::to_owned);
            own.into_iter().chain([environment_name(&entry.key)])
        })
        .collect();
    let strays = given.into_iter().filter(|name| !taken.contains(*name));
    strays.map(|name| (name.clone(), meant(name, &taken))).collect()
}

/// Returns ``did you mean `FORGE_VAR_…`?``, by what follows the prefix: that all have in common.
fn meant(name: &str, taken: &BTreeSet<String>) -> Option<String> {
    let bare = |name: &'_ str| name.strip_prefix(VARIABLE_PREFIX).map(str::to_owned);
    let names: Vec<String> = taken.iter().filter_map(|name| bare(name)).collect();
    let found = closest(&bare(name)?, names.iter().map(String::as_str))?;
    Some(format!("did you mean `{VARIABLE_PREFIX}{found}`?"))
}

/// Refuses a template that takes the VMID of one of the others, which are validated together.
#[must_use]
pub fn same_vmid(template: &Loaded, others: &[&Loaded]) -> Option<Diagnostics> {
    let vmid = template.definition.template.vmid;
    let other = others.iter().find(|other| other.definition.template.vmid == vmid)?;
    let message = format!("`{}` and `{}` have the same VMID {vmid}", other.name, template.name);
    let help = if template.vmid.is(&other.vmid) {
        format!("both take it from here: set `template.vmid` in {}", definition_path(&template.name))
    } else {
        format!("that of `{}` stands at {}; each template needs its own", other.name, other.vmid)
    };
    Some(template.vmid.refuse(|span| Finding::new(span, message).help(help)))
}

/// Loads a builder profile; `qemu` is there even without a file.
///
/// # Errors
/// Kind `Definition` with [`Diagnostics`] when something is wrong in it; kind `Usage` when there
/// is none of that name.
pub fn load_profile(root: &Root, name: &str) -> Result<Profile, Failure> {
    let names = root.profiles()?;
    if !names.iter().any(|profile| profile == name) {
        return if name == LOCAL_PROFILE { Ok(local_profile()) } else { Err(no_profile(name, &names)) };
    }
    let mut loader = Loader { root, findings: Findings::default(), texts: BTreeMap::new() };
    let profile = loader.profile(name);
    match (loader.findings.into_diagnostics(), profile) {
        (None, Some(profile)) => Ok(profile),
        (Some(diagnostics), _) => Err(Failure::new(Kind::Definition, diagnostics)),
        (None, None) => {
            Err(Failure::new(Kind::Unexpected, anyhow!("profile `{name}` was refused without a reason")))
        }
    }
}

/// Loads all hardening controls.
///
/// # Errors
/// Kind `Definition` with [`Diagnostics`] when something is wrong in one.
pub fn load_controls(root: &Root) -> Result<Vec<NamedControl>, Failure> {
    let mut loader = Loader { root, findings: Findings::default(), texts: BTreeMap::new() };
    let controls = loader.controls();
    match loader.findings.into_diagnostics() {
        None => Ok(controls),
        Some(diagnostics) => Err(Failure::new(Kind::Definition, diagnostics)),
    }
}

fn local_profile() -> Profile {
    Profile {
        schema: PROFILE_VERSION,
        description: Some("a local QEMU".to_owned()),
        qemu: Some(QemuProfile::default()),
        proxmox: None,
        machine: super::MachineOverride::default(),
        http: super::HttpProfile::default(),
    }
}

fn no_profile(name: &str, names: &[String]) -> Failure {
    let all = names.iter().map(String::as_str).chain([LOCAL_PROFILE]);
    let hint = did_you_mean(name, all.clone())
        .unwrap_or_else(|| format!("there are: {}", all.collect::<Vec<_>>().join(", ")));
    Failure::new(Kind::Usage, anyhow!("no builder profile `{name}`: there is no file builders/{name}.toml"))
        .hint(hint)
}

/// A definition's file.
struct Link {
    name: String,
    node: Node,
}

fn definition_path(name: &str) -> String {
    format!("templates/{name}/template.toml")
}

/// Reports a circle at the one of its files that sorts first, so that it is the same one whichever
/// template was asked for.
fn circle(links: &[Link]) -> Finding {
    let first = (0..links.len()).min_by_key(|index| &links[*index].name).unwrap_or(0);
    let around = links.iter().cycle().skip(first).take(links.len() + 1);
    let files: Vec<String> = around.map(|link| definition_path(&link.name)).collect();
    let link = &links[first];
    let span = link.node.get("extends").map_or(link.node.span, |extends| extends.span);
    if links.len() == 1 {
        return Finding::new(span, format!("`{}` extends itself", link.name))
            .help("remove `extends`, or name another template");
    }
    Finding::new(span, "`extends` goes round in a circle").help(files.join(" → "))
}

/// Says why a definition or profile cannot be read; most often it was never written.
fn unreadable(root: &Root, path: &str, span: Span, problem: &ReadProblem) -> Finding {
    match path.rsplit_once('/') {
        Some((folder, name)) if !root.path().join(path).exists() => {
            Finding::new(span, format!("there is no {name} in {folder}/"))
                .help(format!("write {path}, or remove the folder: each one in templates/ is a template"))
        }
        _ => Finding::new(span, format!("{path}: {}", problem.message)),
    }
}

/// One file's way through reading and checking.
struct Loader<'a> {
    root: &'a Root,
    findings: Findings,
    /// The texts as written, for finding places in strings.
    texts: BTreeMap<usize, String>,
}

impl Loader<'_> {
    fn check(&mut self, name: &str, inputs: &Inputs, elsewhere: &BTreeSet<String>) -> Option<Checked> {
        let chain = self.chain(name)?;
        let is_abstract = chain[0].node.bool_at("abstract") == Some(true);
        let names: Vec<String> = chain.iter().map(|link| link.name.clone()).collect();
        let mut tree = chain.into_iter().map(|link| link.node).rev().reduce(merge)?;

        let mut variables = tree.remove("variables");
        let declared = variables.as_mut().map(|entry| self.declare(&mut entry.node)).unwrap_or_default();
        let known: BTreeSet<String> = declared.iter().map(|variable| variable.name.clone()).collect();
        let resolved = if is_abstract {
            Resolved { values: BTreeMap::new(), unknown: known.clone() }
        } else {
            resolve(&declared, inputs, elsewhere, &mut self.findings)
        };

        Renderer::new(&known, &resolved, &self.texts, &mut self.findings).definition(&mut tree);
        Checker::new(&DEFINITION, !is_abstract, &mut self.findings).check_at(&mut tree, &[]);
        if is_abstract {
            return (self.findings.count() == 0).then_some(Checked::Abstract);
        }
        rules::check(&tree, &mut self.findings);
        self.check_builder(&tree);
        let controls = if tree.has("hardening") { self.controls() } else { Vec::new() };
        controls::check_choice(&tree, self.root, &controls, &mut self.findings);
        let files = self.gather(&mut tree, &names, &known);
        if self.findings.count() > 0 {
            return None;
        }
        without_impossible_iothreads(&mut tree);
        if let (Some(entry), Value::Table(entries)) = (variables, &mut tree.value) {
            entries.push(entry);
        }
        let mut loaded = self.finish(name, &tree, resolved, files)?;
        let applied = controls.iter().filter(|it| loaded.definition.hardening.state(it).is_on());
        loaded.files.extend(applied.map(|control| FileReference::control(control.path())));
        loaded.controls = controls;
        self.try_files(&loaded);
        (self.findings.count() == 0).then(|| Checked::Complete(Box::new(loaded)))
    }

    /// Reads the variables, which are checked before all else and are not rendered.
    fn declare(&mut self, variables: &mut Node) -> Vec<Declared> {
        let Value::Table(entries) = &mut variables.value else {
            Checker::new(&DEFINITION, true, &mut self.findings).check_at(variables, &["variables"]);
            return Vec::new();
        };
        entries
            .iter_mut()
            .map(|entry| {
                let before = self.findings.count();
                Checker::new(&DEFINITION, true, &mut self.findings)
                    .check_at(&mut entry.node, &["variables", &entry.key]);
                let fits = self.findings.count() == before;
                declare(entry, fits, &mut self.findings)
            })
            .collect()
    }

    /// Reads a template and those it extends, nearest first; `None` when one cannot be used.
    fn chain(&mut self, name: &str) -> Option<Vec<Link>> {
        let mut chain: Vec<Link> = Vec::new();
        let mut next = name.to_owned();
        let mut whole = true;
        loop {
            let file = self.read(&definition_path(&next), DEFINITION_VERSION);
            let Some(node) = file else {
                whole = false;
                break;
            };
            let parent = node.get("extends").cloned();
            chain.push(Link { name: next, node });
            let Some(parent) = parent else { break };
            let Some(parent_name) = parent.text() else { break };
            if let Some(finding) = self.refuse_parent(parent_name, parent.span, &chain) {
                self.findings.push(finding);
                whole = false;
                break;
            }
            next = String::from(parent_name);
        }
        whole.then_some(chain)
    }

    fn refuse_parent(&self, parent: &str, span: Span, chain: &[Link]) -> Option<Finding> {
        if expression::is_template(parent) {
            let finding = Finding::new(span, "`extends` must be a plain name");
            return Some(finding.help("it is read before variables have values"));
        }
        if let Some(start) = chain.iter().position(|link| link.name == parent) {
            return Some(circle(&chain[start..]));
        }
        if chain.len() == CHAIN_MAX {
            let message = format!("this is the {CHAIN_MAX}th template in a row that extends another");
            return Some(Finding::new(span, message).help("put what they share into fewer templates"));
        }
        let names = self.root.templates().unwrap_or_default();
        if names.iter().any(|name| name == parent) {
            return None;
        }
        let others = names.iter().map(String::as_str).filter(|name| *name != chain[0].name);
        let help = did_you_mean(parent, others.clone()).unwrap_or_else(|| {
            let others: Vec<&str> = others.collect();
            if others.is_empty() {
                "there is no other template yet".to_owned()
            } else {
                format!("there are: {}", others.join(", "))
            }
        });
        Some(Finding::new(span, format!("there is no template `{parent}` to extend")).help(help))
    }

    /// Reads a TOML file of a format version that this forge knows.
    fn read(&mut self, path: &str, version: u32) -> Option<Node> {
        let text = match read_text(&self.root.path().join(path)) {
            Ok(text) => text,
            Err(problem) => {
                let file = self.findings.add_text(path, problem.shown.as_str());
                let span = Span::new(file, problem.at..problem.at + 1);
                self.findings.push(unreadable(self.root, path, span, &problem));
                return None;
            }
        };
        let file = self.findings.add_text(path, text.clone());
        let mut node = parse_toml(&text, file, &mut self.findings)?;
        self.texts.insert(file, text);
        let start = Span::new(file, 0..0);
        if node.entries().is_empty() {
            let which = if path.starts_with("builders/") { " profile" } else { "" };
            let help = format!(
                "it begins with `schema = {version}`; `forge schema{which}` prints all that can follow"
            );
            self.findings.push(Finding::new(start, "the file is empty").help(help));
            return None;
        }
        self.check_version(&mut node, version, start)
    }

    /// Refuses a format that this forge does not know: everything else in it may mean something else.
    fn check_version(&mut self, node: &mut Node, version: u32, start: Span) -> Option<Node> {
        let finding = match node.get("schema") {
            None => {
                let finding = Finding::new(start, "missing key `schema` at the top level");
                self.findings.push(finding.help(format!("`schema = {version}`, the version of this format")));
                let schema = Entry {
                    key: "schema".to_owned(),
                    key_span: start,
                    node: Node::new(Value::Unknown, start),
                };
                if let Value::Table(entries) = &mut node.value {
                    entries.push(schema);
                }
                return Some(node.clone());
            }
            Some(Node { value: Value::Integer(given), .. }) if *given == i64::from(version) => {
                return Some(node.clone());
            }
            Some(schema @ Node { value: Value::Integer(given), .. }) if *given > i64::from(version) => {
                let message = format!("this is format {given}, and this forge reads format {version}");
                Finding::new(schema.span, message).help("a newer forge reads it")
            }
            Some(schema @ Node { value: Value::Integer(given), .. }) => Finding::new(
                schema.span,
                format!("there is no format {given}: this forge reads format {version}"),
            ),
            Some(_) => return Some(node.clone()),
        };
        self.findings.push(finding);
        None
    }

    /// The profile that the template asks for must be there.
    fn check_builder(&mut self, tree: &Node) {
        let Some(builder) = tree.get("builder") else { return };
        let Some(name) = builder.text() else { return };
        let names = self.root.profiles().unwrap_or_default();
        if name == LOCAL_PROFILE || names.iter().any(|profile| profile == name) {
            return;
        }
        let all = names.iter().map(String::as_str).chain([LOCAL_PROFILE]);
        let help = did_you_mean(name, all.clone())
            .unwrap_or_else(|| format!("there are: {}", all.collect::<Vec<_>>().join(", ")));
        let message = format!("there is no builder profile `{name}`");
        self.findings.push(Finding::new(builder.span, message).help(help));
    }

    fn gather(
        &mut self,
        tree: &mut Node,
        chain: &[String],
        variables: &BTreeSet<String>,
    ) -> Vec<FileReference> {
        let mut gatherer = Gatherer {
            root: self.root,
            chain,
            step_names: Known::new(Place::StepFile, variables),
            seed_names: Known::new(Place::SeedFile, variables),
            findings: &mut self.findings,
            files: Vec::new(),
        };
        gatherer.gather(tree);
        let mut files = gatherer.files;
        if let Some(key) = node_at(tree, &["source", "checksums", "key"]) {
            let definition = self.findings.name(key.span.file).to_owned();
            if let Some(path) = key_file(self.root, key, &definition, &mut self.findings) {
                key.value = Value::String(path.clone());
                files.push(FileReference::key(path));
            }
        }
        files
    }

    fn finish(
        &mut self,
        name: &str,
        tree: &Node,
        resolved: Resolved,
        files: Vec<FileReference>,
    ) -> Option<Loaded> {
        let real: Result<Definition, _> = serde_json::from_value(tree.to_json(false));
        let shown: Result<Definition, _> = serde_json::from_value(tree.to_json(true));
        match (real, shown) {
            (Ok(definition), Ok(shown)) => {
                let vmid = tree.get("template").and_then(|template| template.get("vmid"));
                let vmid = self.findings.place(vmid.map_or(tree.span, |vmid| vmid.span));
                let (name, variables) = (name.to_owned(), resolved.values);
                Some(Loaded { name, definition, shown, variables, files, controls: Vec::new(), vmid })
            }
            // The shape comes from the same structs, so this is a gap in the checks above.
            (Err(error), _) | (_, Err(error)) => {
                self.findings.push(Finding::new(tree.span.within(&(0..0)), error.to_string()));
                None
            }
        }
    }

    /// Renders every `*.j2` file once, with secrets masked and made-up addresses: what breaks
    /// then would break in the middle of a build.
    fn try_files(&mut self, loaded: &Loaded) {
        let variables = variables_json(&loaded.variables, true);
        let forge = json!({
            "url": "http://192.0.2.1:8000/token/",
            "report_url": "http://192.0.2.1:8000/token/report",
            "logs_url": "http://192.0.2.1:8000/token/logs",
            "ready_url": "http://192.0.2.1:8000/token/ready",
        });
        let seed = context(&file_context(&loaded.definition, &variables, Some(&forge)));
        let step = context(&file_context(&loaded.definition, &variables, None));
        for file in &loaded.files {
            let Ok(text) = read_text(&self.root.path().join(&file.path)) else { continue };
            let (place, values) = match file.served_as {
                Some(_) => (Place::SeedFile, &seed),
                None => (Place::StepFile, &step),
            };
            if !file.is_rendered() {
                self.check_seed(file, &file.path, &text, loaded);
                continue;
            }
            match expression::render(&text, place, values) {
                Ok(rendered) => {
                    self.check_seed(file, &format!("{} (rendered)", file.path), &rendered, loaded);
                }
                Err(problem) => report_problems(&file.path, &text, vec![problem], &mut self.findings),
            }
        }
    }

    /// The installer must take its answers; other seed files that call themselves YAML must be.
    fn check_seed(&mut self, file: &FileReference, name: &str, text: &str, loaded: &Loaded) {
        let is_yaml = file.served_as.as_deref().is_some_and(|name| {
            Path::new(name).extension().is_some_and(|ending| ending == "yaml" || ending == "yml")
        });
        let before = self.findings.count();
        if is_yaml {
            self.check_yaml(file, name, text);
        }
        if file.role == FileRole::Autoinstall && self.findings.count() == before {
            self.check_autoinstall(name, text, &loaded.variables);
        }
    }

    fn check_autoinstall(&mut self, name: &str, text: &str, variables: &BTreeMap<String, ResolvedVariable>) {
        let lines: Vec<&str> = text.lines().collect();
        // What stands for a secret here says nothing about it; a build checks the real one.
        let is_masked = |finding: &autoinstall::Finding| {
            let line = lines.get(finding.line - 1).copied().unwrap_or_default();
            variables.keys().any(|name| line.contains(&mask(name)))
        };
        let mut found: Vec<_> = autoinstall::lint(text);
        found.retain(|finding| !is_masked(finding));
        if found.is_empty() {
            return;
        }
        let file = self.findings.add_text(name, text);
        for finding in found {
            let at = offset(text, finding.line, finding.column);
            self.findings.push(Finding::new(Span::new(file, at..at + 1), finding.message));
        }
    }

    fn check_yaml(&mut self, file: &FileReference, name: &str, text: &str) {
        let Err(error) = serde_saphyr::from_str::<Json>(text) else { return };
        let error = error.without_snippet();
        let location = error.location();
        let line = location.as_ref().map_or(1, serde_saphyr::Location::line) as usize;
        let column = location.as_ref().map_or(1, serde_saphyr::Location::column) as usize;
        let at = offset(text, line, column);
        let reason = error.to_string();
        let reason = reason.split(" at line ").next().unwrap_or_default().to_owned();
        let number = self.findings.add_text(name, text);
        let finding = Finding::new(Span::new(number, at..at + 1), format!("not valid YAML: {reason}"));
        self.findings.push(finding.maybe_help(file.is_rendered().then(|| QUOTED.to_owned())));
    }

    /// The certificate that a profile trusts must be there.
    fn check_ca_file(&mut self, profile: &Node) {
        let Some(node) = profile.get("proxmox").and_then(|table| table.get("ca_file")) else { return };
        let Some(path) = node.text() else { return };
        if let Err(problem) = read_text(&self.root.path().join(path)) {
            let finding = Finding::new(node.span, format!("`{path}`: {}", problem.message));
            let help = "a PEM file, relative to the root; a node has its own in /etc/pve/pve-root-ca.pem";
            self.findings.push(finding.help(help));
        }
    }

    /// Reads all controls; what is wrong in one is reported, and it is left out.
    fn controls(&mut self) -> Vec<NamedControl> {
        let names = match self.root.controls() {
            Ok(names) => names,
            Err(failure) => {
                let file = self.findings.add_text(controls::FOLDER, "");
                self.findings.push(Finding::new(Span::new(file, 0..0), failure.to_string()));
                Vec::new()
            }
        };
        names
            .into_iter()
            .filter_map(|name| self.control(&name).map(|control| NamedControl { name, control }))
            .collect()
    }

    fn control(&mut self, name: &str) -> Option<Control> {
        let before = self.findings.count();
        let mut tree = self.read(&controls::path(name), CONTROL_VERSION)?;
        Checker::new(&CONTROL, true, &mut self.findings).check_at(&mut tree, &[]);
        rules::check_control(&tree, &mut self.findings);
        if self.findings.count() > before {
            return None;
        }
        match serde_json::from_value(tree.to_json(false)) {
            Ok(control) => Some(control),
            Err(error) => {
                self.findings.push(Finding::new(tree.span.within(&(0..0)), error.to_string()));
                None
            }
        }
    }

    fn profile(&mut self, name: &str) -> Option<Profile> {
        let mut tree = self.read(&format!("builders/{name}.toml"), PROFILE_VERSION)?;
        Checker::new(&PROFILE, true, &mut self.findings).check_at(&mut tree, &[]);
        rules::check_profile(&tree, &mut self.findings);
        self.check_ca_file(&tree);
        if self.findings.count() > 0 {
            return None;
        }
        match serde_json::from_value(tree.to_json(false)) {
            Ok(profile) => Some(profile),
            Err(error) => {
                self.findings.push(Finding::new(tree.span.within(&(0..0)), error.to_string()));
                None
            }
        }
    }
}

/// Returns where a line and column, both counted from 1, are in a text.
fn offset(text: &str, line: usize, column: usize) -> usize {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    start + text[start..].chars().take(column.saturating_sub(1)).map(char::len_utf8).sum::<usize>()
}

fn node_at<'a>(tree: &'a mut Node, path: &[&str]) -> Option<&'a mut Node> {
    path.iter().try_fold(tree, |node, key| match &mut node.value {
        Value::Table(entries) => {
            entries.iter_mut().find(|entry| entry.key == *key).map(|entry| &mut entry.node)
        }
        _ => None,
    })
}

/// Disks have an I/O thread by default, but for those that cannot.
fn without_impossible_iothreads(tree: &mut Node) {
    let single = tree.get("machine").and_then(|machine| machine.text_at("scsi_controller"))
        == Some("virtio-scsi-single");
    let Some(Node { value: Value::Array(disks), .. }) = node_at(tree, &["machine", "disk"]) else { return };
    for disk in disks {
        let can = match disk.text_at("bus") {
            Some("sata") => false,
            Some("scsi") => single,
            _ => true,
        };
        let span = disk.span;
        if !can
            && !disk.has("iothread")
            && let Value::Table(entries) = &mut disk.value
        {
            let node = Node::new(Value::Bool(false), span);
            entries.push(Entry { key: "iothread".to_owned(), key_span: span, node });
        }
    }
}

/// Returns the diagnostics in a failure, when it is one of a definition.
#[must_use]
pub fn diagnostics(failure: &Failure) -> Option<&Diagnostics> {
    failure.error.downcast_ref::<Diagnostics>()
}
