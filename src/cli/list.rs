//! `forge list`: says which templates there are.

use std::io::Write;

use serde_json::json;

use super::common::{Format, FormatArgs, VarArgs, columns, root, write_answer, write_json};
use crate::definition::{Checked, Loaded, check, diagnostics, variable_names};
use crate::failure::Failure;
use crate::plan::choose_builder;

/// List the templates
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  forge list                 the templates of this folder
  forge list --format json   for programs")]
pub struct Args {
    /// The values of variables.
    #[command(flatten)]
    pub vars: VarArgs,
    /// How to answer.
    #[command(flatten)]
    pub format: FormatArgs,
}

/// What is known of a template.
enum Listed {
    Complete(Box<Loaded>),
    Abstract,
    Wrong(String),
}

/// Prints a line for each template; one with errors says so and hides no other.
///
/// # Errors
/// Kind `Usage` when there is no root.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let root = root()?;
    let names = root.templates()?;
    let inputs = args.vars.inputs();
    let variables = names.iter().flat_map(|name| variable_names(&root, name)).collect();
    let mut templates = Vec::new();
    for name in names {
        let listed = match check(&root, &name, &inputs, &variables) {
            Ok(Checked::Complete(loaded)) => Listed::Complete(loaded),
            Ok(Checked::Abstract) => Listed::Abstract,
            Err(failure) => match diagnostics(&failure) {
                Some(errors) => Listed::Wrong(errors.summary()),
                None => return Err(failure),
            },
        };
        templates.push((name, listed));
    }
    match args.format.format {
        Format::Human => write_answer(out, &human(&templates)),
        Format::Json => write_json(out, &json!({"format": 1, "templates": answer(&templates)})),
    }
}

fn default_builder(loaded: &Loaded) -> String {
    choose_builder(None, &[].into(), &loaded.shown).0
}

fn human(templates: &[(String, Listed)]) -> String {
    if templates.is_empty() {
        return "no templates yet\n".to_owned();
    }
    let title = ["TEMPLATE", "RELEASE", "VMID", "BUILDER", "DESCRIPTION"].map(str::to_owned).to_vec();
    let empty = |name: &str, note: String| vec![name.to_owned(), "-".into(), "-".into(), "-".into(), note];
    let row = |(name, listed): &(String, Listed)| match listed {
        Listed::Abstract => empty(name, "abstract: only serves to be extended".to_owned()),
        Listed::Wrong(errors) => empty(name, format!("{errors}: see forge validate {name}")),
        Listed::Complete(loaded) => {
            let template = &loaded.shown.template;
            let description = template.description.as_deref().and_then(|text| text.lines().next());
            vec![
                name.clone(),
                template.release.clone(),
                template.vmid.to_string(),
                default_builder(loaded),
                description.unwrap_or_default().to_owned(),
            ]
        }
    };
    columns(&std::iter::once(title).chain(templates.iter().map(row)).collect::<Vec<_>>())
}

fn answer(templates: &[(String, Listed)]) -> Vec<serde_json::Value> {
    let one = |(name, listed): &(String, Listed)| match listed {
        Listed::Abstract => json!({"name": name, "abstract": true}),
        Listed::Wrong(errors) => json!({"name": name, "errors": errors}),
        Listed::Complete(loaded) => {
            let template = &loaded.shown.template;
            json!({
                "name": name,
                "release": template.release,
                "vmid": template.vmid,
                "builder": default_builder(loaded),
                "description": template.description,
            })
        }
    };
    templates.iter().map(one).collect()
}
