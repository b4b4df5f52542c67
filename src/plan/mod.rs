//! The plan: a definition with every default, variable and digest resolved.
//!
//! Making one reads the files that the definition refers to, for their digests, and touches
//! neither network nor machine.

mod digest;
mod hardening;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::definition::diagnostics::{did_you_mean, one_of};
use crate::definition::expression::{self, Place};
use crate::definition::files::read_text;
use crate::definition::render::{context, file_context, variables_json};
use crate::definition::{
    Check, Contract, Definition, FileReference, FileRole, HARDENING_STEP, HardeningProfile, LOCAL_PROFILE,
    Loaded, Machine, Profile, ResolvedVariable, Root, Secret, Step, VariableValue, load_profile,
};
use crate::failure::{Failure, Kind, ResultExt as _};

pub use hardening::{PlannedControl, control_checks, hardening_step};

/// Everything a build needs to know, and the digest that says whether two builds are alike.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The root that every path is relative to.
    pub root: PathBuf,
    /// The template: the name of its folder.
    pub template: String,
    /// The definition with every value in its place, secrets too: never show or write it.
    pub definition: Definition,
    /// The same with secrets masked, for people and manifests.
    pub shown: Definition,
    /// Where it is built.
    pub builder: Builder,
    /// The machine while building: the definition's with the profile's overrides. The template
    /// gets the definition's.
    pub machine: Machine,
    /// The steps in order, those left out too.
    pub steps: Vec<PlannedStep>,
    /// The checks in order, those left out too, and last those of the hardening controls.
    pub checks: Vec<PlannedCheck>,
    /// All hardening controls, those that are not applied too.
    pub controls: Vec<PlannedControl>,
    /// What goes in: media and files, with their digests.
    pub inputs: Vec<Input>,
    /// The variables with their values.
    pub variables: BTreeMap<String, ResolvedVariable>,
    /// The plan digest, `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    files: Vec<FileReference>,
}

/// The builder profile of a plan.
#[derive(Debug, Clone)]
pub struct Builder {
    /// The profile's name.
    pub name: String,
    /// Who named it: `--on`, `FORGE_BUILDER`, `the template` or `the default`.
    pub from: &'static str,
    /// The profile.
    pub profile: Profile,
}

/// A step with whether it runs.
#[derive(Debug, Clone)]
pub struct PlannedStep {
    /// The step, with secrets in its `env`.
    pub step: Step,
    /// What a person reads while it runs, where the step's kind does not say it.
    pub title: Option<String>,
    /// Why it is left out, if it is.
    pub skipped: Option<String>,
}

/// A check with whether it is made.
#[derive(Debug, Clone)]
pub struct PlannedCheck {
    /// The check.
    pub check: Check,
    /// Why it is left out, if it is.
    pub skipped: Option<String>,
}

/// What an input is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum InputRole {
    /// The installer medium.
    Iso,
    /// Another CD.
    Cdrom,
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

/// Something that goes into a build.
#[derive(Debug, Clone, Serialize)]
pub struct Input {
    /// What it is for.
    pub role: InputRole,
    /// A URL, or a path: relative to the root for files, as written for media.
    pub location: String,
    /// Its SHA-256 in lower case; `None` for an ISO whose digest a signed list gives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The signed list that names the digest, for such an ISO.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksums: Option<String>,
    /// Its size in bytes, for files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Whether it is rendered before it is used; the digest is that of the source.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rendered: bool,
    /// The step that uses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
}

/// The steps to leave out.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Steps to run, all others being left out; all when empty.
    pub only: Vec<String>,
    /// Steps to leave out.
    pub skip: Vec<String>,
}

/// Where a guest reaches forge during a build.
#[derive(Clone)]
pub struct ForgeUrls {
    /// This build's base URL; ends with `/`.
    pub url: String,
    /// Takes the installer's reports.
    pub report_url: String,
    /// Takes a log archive by PUT or POST.
    pub logs_url: String,
    /// Takes the installed system's word, by POST, that its guest agent runs.
    pub ready_url: String,
}

impl fmt::Debug for ForgeUrls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URLs hold the build's token.
        f.write_str("ForgeUrls(…)")
    }
}

/// A seed file as the guest gets it. It may hold secrets.
#[derive(Clone)]
pub struct SeedFile {
    /// The name under which it is served.
    pub name: String,
    /// Its content.
    pub content: Vec<u8>,
    /// Whether it holds the installer's answers.
    pub is_autoinstall: bool,
}

impl fmt::Debug for SeedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SeedFile")
            .field("name", &self.name)
            .field("size", &self.content.len())
            .field("is_autoinstall", &self.is_autoinstall)
            .finish_non_exhaustive()
    }
}

/// The builder profile's name with who named it: `--on`, else `FORGE_BUILDER`, else the template,
/// else the local QEMU.
#[must_use]
pub fn choose_builder(
    on: Option<&str>,
    env: &BTreeMap<String, String>,
    definition: &Definition,
) -> (String, &'static str) {
    let from_env = env.get("FORGE_BUILDER").map(String::as_str).filter(|name| !name.is_empty());
    let (name, from) = match (on, from_env, definition.builder.as_deref()) {
        (Some(name), _, _) => (name, "--on"),
        (None, Some(name), _) => (name, "FORGE_BUILDER"),
        (None, None, Some(name)) => (name, "the template"),
        (None, None, None) => (LOCAL_PROFILE, "the default"),
    };
    (name.to_owned(), from)
}

/// Makes the plan of a build.
///
/// # Errors
/// Kind `Usage` for a step or profile that is not there, `Definition` for a wrong profile, `Plan`
/// for a file that cannot be read.
pub fn resolve(
    root: &Root,
    loaded: Loaded,
    (name, from): (String, &'static str),
    selection: &Selection,
) -> Result<Plan, Failure> {
    let profile = load_profile(root, &name)?;
    let machine = effective_machine(&loaded.definition.machine, &profile);
    let inputs = gather_inputs(root, &loaded)?;
    let controls = hardening::choose(&loaded.definition.hardening, loaded.controls);
    let hardening = hardening::step(&loaded.definition.hardening, &controls);
    let steps = select_steps(&loaded.definition.steps, hardening, selection)?;
    let is_hardened = steps.iter().any(|it| it.step.name == HARDENING_STEP && it.skipped.is_none());
    let mut checks: Vec<_> = loaded.definition.checks.iter().map(planned_check).collect();
    checks.extend(hardening::checks(&controls).map(|check| PlannedCheck {
        check,
        skipped: (!is_hardened).then(|| format!("the step {HARDENING_STEP} is left out")),
    }));
    let mut plan = Plan {
        root: root.path().to_owned(),
        template: loaded.name,
        definition: loaded.definition,
        shown: loaded.shown,
        builder: Builder { name, from, profile },
        machine,
        steps,
        checks,
        controls,
        inputs,
        variables: loaded.variables,
        digest: String::new(),
        files: loaded.files,
    };
    plan.digest = digest::of(&plan);
    Ok(plan)
}

fn effective_machine(machine: &Machine, profile: &Profile) -> Machine {
    let mut machine = machine.clone();
    let overrides = &profile.machine;
    machine.cpu = overrides.cpu.clone().unwrap_or(machine.cpu);
    machine.cores = overrides.cores.unwrap_or(machine.cores);
    machine.memory_mib = overrides.memory_mib.unwrap_or(machine.memory_mib);
    machine
}

/// Returns the definition's steps and the one that hardens, last.
fn select_steps(
    steps: &[Step],
    hardening: Option<(Step, String)>,
    selection: &Selection,
) -> Result<Vec<PlannedStep>, Failure> {
    let planned = |step: Step, title| {
        let skipped = why_skipped(&step, selection);
        PlannedStep { step, title, skipped }
    };
    let mut all: Vec<_> = steps.iter().map(|step| planned(step.clone(), None)).collect();
    all.extend(hardening.map(|(step, title)| planned(step, Some(title))));
    for (flag, names) in [("--only", &selection.only), ("--skip", &selection.skip)] {
        for name in names {
            if !all.iter().any(|it| it.step.name == *name) {
                return Err(no_step(flag, name, &all));
            }
        }
    }
    Ok(all)
}

fn why_skipped(step: &Step, selection: &Selection) -> Option<String> {
    if step.when == Some(false) {
        Some("`when` is false".to_owned())
    } else if selection.skip.contains(&step.name) {
        Some("left out by --skip".to_owned())
    } else if !selection.only.is_empty() && !selection.only.contains(&step.name) {
        Some("not named by --only".to_owned())
    } else {
        None
    }
}

fn no_step(flag: &str, name: &str, steps: &[PlannedStep]) -> Failure {
    let names: Vec<&str> = steps.iter().map(|it| it.step.name.as_str()).collect();
    let hint = did_you_mean(name, names.iter().copied()).unwrap_or_else(|| match names.as_slice() {
        [] => "the template has no steps".to_owned(),
        names => format!("its steps are {}", one_of(names).replace(" or ", " and ")),
    });
    Failure::new(Kind::Usage, anyhow!("{flag} names the step `{name}`, which the template does not have"))
        .hint(hint)
}

fn planned_check(check: &Check) -> PlannedCheck {
    let skipped = (check.when == Some(false)).then(|| "`when` is false".to_owned());
    PlannedCheck { check: check.clone(), skipped }
}

fn gather_inputs(root: &Root, loaded: &Loaded) -> Result<Vec<Input>, Failure> {
    let source = &loaded.shown.source;
    let medium = |role, location: &str, sha256: Option<&String>| Input {
        role,
        location: location.to_owned(),
        sha256: sha256.map(|digits| digits.to_ascii_lowercase()),
        checksums: None,
        size: None,
        rendered: false,
        step: None,
    };
    let mut inputs = vec![Input {
        checksums: source.checksums.as_ref().map(|checksums| checksums.file.clone()),
        ..medium(InputRole::Iso, &source.iso, source.sha256.as_ref())
    }];
    for cdrom in &loaded.shown.machine.cdroms {
        inputs.push(medium(InputRole::Cdrom, &cdrom.iso, Some(&cdrom.sha256)));
    }
    for file in &loaded.files {
        inputs.push(file_input(root, file)?);
    }
    Ok(inputs)
}

fn file_input(root: &Root, file: &FileReference) -> Result<Input, Failure> {
    let path = root.path().join(&file.path);
    let (sha256, size) =
        digest::of_file(&path).with_context(|| format!("reading {}", file.path)).kind(Kind::Plan)?;
    let role = match file.role {
        FileRole::Autoinstall => InputRole::Autoinstall,
        FileRole::Seed => InputRole::Seed,
        FileRole::Script => InputRole::Script,
        FileRole::Upload => InputRole::Upload,
        FileRole::Seal => InputRole::Seal,
        FileRole::Key => InputRole::Key,
        FileRole::Control => InputRole::Control,
    };
    Ok(Input {
        role,
        location: file.path.clone(),
        sha256: Some(sha256),
        checksums: None,
        size: Some(size),
        rendered: file.is_rendered(),
        step: file.step.clone(),
    })
}

impl Plan {
    /// Returns the steps that run, in order.
    pub fn active_steps(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|planned| planned.skipped.is_none()).map(|planned| &planned.step)
    }

    /// Returns the checks that are made, in order.
    pub fn active_checks(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|planned| planned.skipped.is_none()).map(|planned| &planned.check)
    }

    /// Returns the contracts: the definition's, or the one that holds where it has none.
    #[must_use]
    pub fn contracts(&self) -> Vec<Contract> {
        match self.definition.contracts.as_slice() {
            [] => vec![Contract::default()],
            some => some.to_vec(),
        }
    }

    /// Returns the contracts that a build holds the template to: those it names, or the first one.
    #[must_use]
    pub fn build_contracts(&self) -> Vec<Contract> {
        let (mut all, named) = (self.contracts(), &self.definition.prove.contracts);
        if named.is_empty() {
            all.truncate(1);
        } else {
            all.retain(|contract| named.contains(&contract.name));
        }
        all
    }

    /// Returns the secrets that are set, for hiding them in what guests print.
    pub fn secrets(&self) -> impl Iterator<Item = &Secret> {
        self.variables.values().filter_map(|variable| match &variable.value {
            VariableValue::Secret(secret) if secret.is_set() => Some(secret),
            _ => None,
        })
    }

    /// Returns the seed files as this build's guest gets them, the installer's answers first.
    ///
    /// # Errors
    /// Kind `Plan` when a file is gone or differs from what was planned; kind `Definition` when
    /// it does not render.
    pub fn render_seed(&self, forge: &ForgeUrls) -> Result<Vec<SeedFile>, Failure> {
        let forge = json!({
            "url": forge.url,
            "report_url": forge.report_url,
            "logs_url": forge.logs_url,
            "ready_url": forge.ready_url,
        });
        let seeds = self.files.iter().filter_map(|file| file.served_as.as_ref().map(|name| (file, name)));
        seeds
            .map(|(file, name)| {
                let content = self.content(file, Place::SeedFile, Some(&forge))?;
                let is_autoinstall = file.role == FileRole::Autoinstall;
                Ok(SeedFile { name: name.clone(), content, is_autoinstall })
            })
            .collect()
    }

    /// Returns a script's or upload's content: rendered when it is a `*.j2` file, else as it is.
    ///
    /// `path` is relative to the root, as in the definition.
    ///
    /// # Errors
    /// As [`Self::render_seed`].
    pub fn render_file(&self, path: &str) -> Result<Vec<u8>, Failure> {
        let wanted = normal(path);
        let file = self.files.iter().find(|file| file.path == wanted && file.served_as.is_none());
        let file = file.ok_or_else(|| {
            Failure::new(Kind::Unexpected, anyhow!("the plan does not list the file {path}"))
        })?;
        self.content(file, Place::StepFile, None)
    }

    /// Returns the files that a step's upload puts into the guest, each with its path below the
    /// upload's source: empty when the source is a single file.
    pub fn upload_files<'a>(&'a self, step: &'a Step) -> impl Iterator<Item = (&'a str, &'a str)> {
        let source = step.upload.as_ref().map(|upload| normal(&upload.source)).unwrap_or_default();
        self.files
            .iter()
            .filter(|file| file.role == FileRole::Upload && file.step.as_deref() == Some(step.name.as_str()))
            .map(move |file| {
                let below = file.path.strip_prefix(source.as_str()).unwrap_or_default();
                (file.path.as_str(), below.trim_start_matches('/'))
            })
    }

    fn content(&self, file: &FileReference, place: Place, forge: Option<&Json>) -> Result<Vec<u8>, Failure> {
        let path = self.root.join(&file.path);
        let bytes =
            std::fs::read(&path).with_context(|| format!("reading {}", file.path)).kind(Kind::Plan)?;
        let planned = self.inputs.iter().find(|input| input.location == file.path);
        if planned.and_then(|input| input.sha256.as_deref()) != Some(digest::hex(&bytes).as_str()) {
            let error = anyhow!("{} was changed after the plan was made", file.path);
            return Err(Failure::new(Kind::Plan, error).hint("start the build again"));
        }
        if !file.is_rendered() {
            return Ok(bytes);
        }
        let text = read_text(&path).map_err(|problem| {
            Failure::new(Kind::Plan, anyhow!("reading {}: {}", file.path, problem.message))
        })?;
        let values = file_context(&self.definition, &variables_json(&self.variables, false), forge);
        match expression::render(&text, place, &context(&values)) {
            Ok(rendered) => Ok(rendered.into_bytes()),
            // What minijinja says may quote a value, and with it a secret.
            Err(problem) => {
                let line = text[..problem.range.start.min(text.len())].matches('\n').count() + 1;
                let error = anyhow!("rendering {}:{line} failed with this build's values", file.path);
                Err(Failure::new(Kind::Definition, error))
            }
        }
    }

    /// Returns the plan for people's programs: what `forge plan --format json` prints.
    #[must_use]
    pub fn to_json(&self) -> Json {
        let skipped = |name: &str, skipped: &Option<String>| match skipped {
            None => json!({"name": name}),
            Some(reason) => json!({"name": name, "skipped": reason}),
        };
        json!({
            "format": 1,
            "template": self.template,
            "digest": self.digest,
            "builder": {
                "name": self.builder.name,
                "from": self.builder.from,
                "profile": self.builder.profile,
            },
            "definition": self.shown,
            "machine": self.machine,
            "inputs": self.inputs,
            "variables": self.variables.iter().map(|(name, variable)| (name, variable_json(variable))).collect::<BTreeMap<_, _>>(),
            "steps": self.steps.iter().map(|step| skipped(&step.step.name, &step.skipped)).collect::<Vec<_>>(),
            "checks": self.checks.iter().map(|check| skipped(&check.check.name, &check.skipped)).collect::<Vec<_>>(),
            "controls": self.controls.iter().map(control_json).collect::<Vec<_>>(),
        })
    }
}

/// Returns a control as `forge plan` and `forge controls` print it.
#[must_use]
pub fn control_json(planned: &PlannedControl) -> Json {
    let mut json = json!(planned.state);
    let control = &planned.control.control;
    json["name"] = planned.control.name.clone().into();
    json["title"] = control.title.clone().into();
    json["profile"] = control.profile.map(HardeningProfile::as_str).into();
    json["references"] = control.references.clone().into();
    json
}

fn variable_json(variable: &ResolvedVariable) -> Json {
    match &variable.value {
        VariableValue::Plain(value) => json!({"value": value, "from": variable.from}),
        VariableValue::Secret(secret) => {
            json!({"secret": true, "set": secret.is_set(), "from": variable.from})
        }
    }
}

/// Returns a path without `.` and empty parts, as [`FileReference`] names it.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join("/")
}
