//! `forge validate`: checks definitions and builder profiles without network or machine.

use std::collections::BTreeSet;
use std::io::Write;

use serde_json::json;

use super::common::{Format, FormatArgs, VarArgs, columns, root, warn_of_strays, write_answer, write_json};
use crate::definition::{
    Checked, Diagnostics, Loaded, Root, check, diagnostics, load_profile, same_vmid, variable_names,
};
use crate::failure::{Failure, Kind};

/// Check templates and builder profiles, offline
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  forge validate                 all templates and builder profiles
  forge validate ubuntu-noble    one template
  forge validate --format json   for programs")]
pub struct Args {
    /// The templates to check; default: all of them, and all builder profiles
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// The values of variables.
    #[command(flatten)]
    pub vars: VarArgs,
    /// How to answer.
    #[command(flatten)]
    pub format: FormatArgs,
}

/// One file's verdict.
struct Verdict {
    kind: &'static str,
    name: String,
    is_abstract: bool,
    errors: Option<Diagnostics>,
}

/// Checks and prints a line for each; what is wrong is the failure.
///
/// # Errors
/// Kind `Definition` with all diagnostics; kind `Usage` for a name that is not there.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let root = root()?;
    let mut verdicts = templates(args, &root)?;
    if args.names.is_empty() {
        verdicts.extend(profiles(&root)?);
    }
    match args.format.format {
        Format::Human => write_answer(out, &human(&verdicts))?,
        Format::Json => write_json(out, &answer(&verdicts))?,
    }
    let errors = verdicts.into_iter().filter_map(|verdict| verdict.errors);
    let all = errors.reduce(|mut all, more| {
        all.append(more);
        all
    });
    match all {
        None => Ok(()),
        Some(diagnostics) => Err(Failure::new(Kind::Definition, diagnostics)),
    }
}

fn templates(args: &Args, root: &Root) -> Result<Vec<Verdict>, Failure> {
    let names = if args.names.is_empty() { root.templates()? } else { args.names.clone() };
    let inputs = args.vars.inputs();
    warn_of_strays(root, &inputs);
    // Which of several templates a variable is for, its name says.
    let variables: BTreeSet<String> =
        if names.len() > 1 && !(args.vars.vars.is_empty() && args.vars.var_files.is_empty()) {
            names.iter().flat_map(|name| variable_names(root, name)).collect()
        } else {
            BTreeSet::new()
        };
    let mut good: Vec<Box<Loaded>> = Vec::new();
    let mut verdicts = Vec::new();
    for name in names {
        let (is_abstract, errors) = match check(root, &name, &inputs, &variables) {
            Ok(Checked::Complete(loaded)) => {
                let others: Vec<&Loaded> = good.iter().map(|it| &**it).filter(|it| it.name != name).collect();
                let errors = same_vmid(&loaded, &others);
                good.push(loaded);
                (false, errors)
            }
            Ok(Checked::Abstract) => (true, None),
            Err(failure) => (false, Some(errors_of(failure)?)),
        };
        verdicts.push(Verdict { kind: "template", name, is_abstract, errors });
    }
    Ok(verdicts)
}

fn profiles(root: &Root) -> Result<Vec<Verdict>, Failure> {
    let names = root.profiles()?.into_iter();
    names
        .map(|name| {
            let errors = match load_profile(root, &name) {
                Ok(_) => None,
                Err(failure) => Some(errors_of(failure)?),
            };
            Ok(Verdict { kind: "builder", name, is_abstract: false, errors })
        })
        .collect()
}

/// Keeps the diagnostics for the end; any other failure ends the command.
fn errors_of(failure: Failure) -> Result<Diagnostics, Failure> {
    diagnostics(&failure).cloned().ok_or(failure)
}

fn human(verdicts: &[Verdict]) -> String {
    if verdicts.is_empty() {
        return "no templates yet\n".to_owned();
    }
    let row = |verdict: &Verdict| {
        let (state, note) = match &verdict.errors {
            None if verdict.is_abstract => ("ok", "abstract: only serves to be extended".to_owned()),
            None => ("ok", String::new()),
            Some(errors) => ("wrong", errors.summary()),
        };
        vec![state.to_owned(), verdict.kind.to_owned(), verdict.name.clone(), note]
    };
    columns(&verdicts.iter().map(row).collect::<Vec<_>>())
}

fn answer(verdicts: &[Verdict]) -> serde_json::Value {
    let of_kind = |kind: &str| {
        let these = verdicts.iter().filter(|verdict| verdict.kind == kind);
        these
            .map(|verdict| {
                json!({
                    "name": verdict.name,
                    "valid": verdict.errors.is_none(),
                    "abstract": verdict.is_abstract,
                    "errors": verdict.errors.as_ref().map_or(&[][..], Diagnostics::list),
                })
            })
            .collect::<Vec<_>>()
    };
    json!({
        "format": 1,
        "valid": verdicts.iter().all(|verdict| verdict.errors.is_none()),
        "templates": of_kind("template"),
        "builders": of_kind("builder"),
    })
}
