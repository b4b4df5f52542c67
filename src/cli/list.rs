//! `forge list`: says which templates there are.

use std::io::Write;

use serde_json::json;

use super::common::{Format, FormatArgs, VarArgs, columns, root, warn_of_strays, write_answer, write_json};
use crate::definition::{Checked, Diagnostics, Inputs, Loaded, check, diagnostics, variable_names};
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
    Wrong(Diagnostics),
}

/// Prints a line for each template; one with errors says so and hides no other.
///
/// # Errors
/// Kind `Usage` when there is no root.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let root = root()?;
    let names = root.templates()?;
    let inputs = args.vars.inputs();
    warn_of_strays(&root, &inputs);
    let variables = names.iter().flat_map(|name| variable_names(&root, name)).collect();
    let mut templates = Vec::new();
    for name in names {
        let listed = match check(&root, &name, &inputs, &variables) {
            Ok(Checked::Complete(loaded)) => Listed::Complete(loaded),
            Ok(Checked::Abstract) => Listed::Abstract,
            Err(failure) => match diagnostics(&failure) {
                Some(errors) => Listed::Wrong(errors.clone()),
                None => return Err(failure),
            },
        };
        templates.push((name, listed));
    }
    match args.format.format {
        Format::Human => write_answer(out, &human(&templates, &inputs)),
        Format::Json => write_json(out, &json!({"format": 1, "templates": answer(&templates, &inputs)})),
    }
}

/// Returns the builder that a build without `--on` takes.
fn builder(loaded: &Loaded, inputs: &Inputs) -> String {
    choose_builder(None, &inputs.env, &loaded.shown).0
}

/// Returns the first error whole; a command could only be named with all of this one's arguments.
fn first_of(errors: &Diagnostics) -> String {
    let Some(first) = errors.list().first() else { return errors.summary() };
    let more = match errors.list().len() - 1 {
        0 => String::new(),
        1 => ", and 1 more error".to_owned(),
        more => format!(", and {more} more errors"),
    };
    format!("{}: {}{more}", first.place(), first.message)
}

fn human(templates: &[(String, Listed)], inputs: &Inputs) -> String {
    if templates.is_empty() {
        return "no templates yet\n".to_owned();
    }
    let title = ["TEMPLATE", "RELEASE", "VMID", "BUILDER", "DESCRIPTION"].map(str::to_owned).to_vec();
    let empty = |name: &str, note: String| vec![name.to_owned(), "-".into(), "-".into(), "-".into(), note];
    let row = |(name, listed): &(String, Listed)| match listed {
        Listed::Abstract => empty(name, "abstract: only serves to be extended".to_owned()),
        Listed::Wrong(errors) => empty(name, first_of(errors)),
        Listed::Complete(loaded) => {
            let template = &loaded.shown.template;
            let description = template.description.as_deref().and_then(|text| text.lines().next());
            vec![
                name.clone(),
                template.release.clone(),
                template.vmid.to_string(),
                builder(loaded, inputs),
                description.unwrap_or_default().to_owned(),
            ]
        }
    };
    columns(&std::iter::once(title).chain(templates.iter().map(row)).collect::<Vec<_>>())
}

fn answer(templates: &[(String, Listed)], inputs: &Inputs) -> Vec<serde_json::Value> {
    let one = |(name, listed): &(String, Listed)| match listed {
        Listed::Abstract => json!({"name": name, "abstract": true}),
        Listed::Wrong(errors) => json!({"name": name, "errors": errors.list()}),
        Listed::Complete(loaded) => {
            let template = &loaded.shown.template;
            json!({
                "name": name,
                "release": template.release,
                "vmid": template.vmid,
                "builder": builder(loaded, inputs),
                "description": template.description,
            })
        }
    };
    templates.iter().map(one).collect()
}
