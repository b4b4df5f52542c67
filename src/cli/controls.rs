//! `forge controls`: lists the hardening controls, and which of them a template applies.

use std::fmt::Write as _;
use std::io::Write;

use anyhow::anyhow;
use serde_json::json;

use super::common::{Format, FormatArgs, VarArgs, columns, root, warn_of_strays, write_answer, write_json};
use crate::definition::diagnostics::did_you_mean;
use crate::definition::{
    Control, ControlState, Hardening, HardeningProfile, NamedControl, load, load_controls,
};
use crate::failure::{Failure, Kind};
use crate::plan::{PlannedControl, control_checks, control_json};

/// List the hardening controls, and which of them a template applies
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  forge controls                            all there are, with the lowest profile that has each
  forge controls ubuntu-noble               which of them the template applies
  forge controls ubuntu-noble core-dumps    what one does, why, who asks for it, how it is checked")]
pub struct Args {
    /// The template
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Show this control whole
    #[arg(value_name = "CONTROL")]
    control: Option<String>,
    /// The values of variables.
    #[command(flatten)]
    vars: VarArgs,
    /// How to answer.
    #[command(flatten)]
    pub(super) format: FormatArgs,
}

/// Prints the controls.
///
/// # Errors
/// As [`load`] and [`load_controls`]; kind `Usage` for a control that is not there.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let root = root()?;
    let (hardening, controls) = match &args.name {
        None => (Hardening::default(), load_controls(&root)?),
        Some(name) => {
            let inputs = args.vars.inputs();
            warn_of_strays(&root, &inputs);
            let hardening = load(&root, name, &inputs)?.shown.hardening;
            (hardening, load_controls(&root)?)
        }
    };
    let planned = controls.into_iter().map(|control| {
        let state = hardening.state(&control);
        PlannedControl { control, state }
    });
    let mut planned: Vec<_> = planned.collect();
    if let Some(wanted) = &args.control {
        planned = vec![find(planned, wanted)?];
    }
    match args.format.format {
        Format::Json => {
            let mut answer = json!({"format": 1, "template": args.name});
            answer["profile"] = hardening.profile.map(HardeningProfile::as_str).into();
            answer["controls"] = planned.iter().map(|it| to_json(it, args.name.is_some())).collect();
            write_json(out, &answer)
        }
        Format::Human if args.control.is_some() => {
            let whole = planned.iter().map(|it| whole(it, &hardening));
            write_answer(out, &whole.collect::<String>())
        }
        Format::Human => write_answer(out, &listing(&planned, args.name.as_ref().map(|_| &hardening))),
    }
}

fn find(planned: Vec<PlannedControl>, wanted: &str) -> Result<PlannedControl, Failure> {
    let names: Vec<String> = planned.iter().map(|it| it.control.name.clone()).collect();
    planned.into_iter().find(|it| it.control.name == wanted).ok_or_else(|| {
        let hint = did_you_mean(wanted, names.iter().map(String::as_str))
            .unwrap_or_else(|| "`forge controls` lists them".to_owned());
        Failure::new(Kind::Usage, anyhow!("no control `{wanted}` in hardening/controls/")).hint(hint)
    })
}

/// Returns a control for programs; without a template it has no state.
fn to_json(planned: &PlannedControl, of_template: bool) -> serde_json::Value {
    let NamedControl { control, .. } = &planned.control;
    let mut json = control_json(planned);
    if !of_template && let Some(entries) = json.as_object_mut() {
        entries.remove("state");
    }
    json["why"] = control.why.clone().into();
    json["not_in_container"] = control.not_in_container.clone().into();
    json["checks"] = check_names(planned).into();
    json
}

fn check_names(planned: &PlannedControl) -> Vec<String> {
    control_checks(&planned.control).into_iter().map(|check| check.name).collect()
}

/// Returns the table of controls; with a template's choice, which of them it applies.
fn listing(planned: &[PlannedControl], hardening: Option<&Hardening>) -> String {
    let second = if hardening.is_some() { "STATE" } else { "PROFILE" };
    let mut rows = vec![["CONTROL", second, "WHAT IT DOES"].map(str::to_owned).to_vec()];
    rows.extend(planned.iter().map(|it| {
        let word = match hardening {
            None => profile_word(&it.control.control).to_owned(),
            Some(hardening) => state_words(it, hardening),
        };
        vec![it.control.name.clone(), word, it.control.control.title.clone()]
    }));
    let mut text = columns(&rows);
    if hardening.is_some() {
        let on = planned.iter().filter(|it| it.state.is_on()).count();
        writeln!(text, "\n{on} of {} are applied", planned.len()).expect("writing to a string succeeds");
    }
    text
}

fn profile_word(control: &Control) -> &'static str {
    control.profile.map_or("none", HardeningProfile::as_str)
}

fn state_words(planned: &PlannedControl, hardening: &Hardening) -> String {
    match &planned.state {
        ControlState::On => "on".to_owned(),
        ControlState::Added { reason } => format!("on: {reason}"),
        ControlState::Off { reason } => format!("off: {reason}"),
        ControlState::Beyond => match (planned.control.control.profile, hardening.profile) {
            (None, _) => "not asked for".to_owned(),
            (Some(lowest), None) => format!("not asked for, in {}", lowest.as_str()),
            (Some(lowest), Some(profile)) => format!("not in {}, in {}", profile.as_str(), lowest.as_str()),
        },
    }
}

/// Returns all there is to read of a control.
fn whole(planned: &PlannedControl, hardening: &Hardening) -> String {
    let NamedControl { name, control } = &planned.control;
    let mut text = format!("{name}: {}\n\n{}\n\n", control.title, control.why.trim());
    let mut row = |what: &str, value: &str| {
        writeln!(text, "{what:<13}  {value}").expect("writing to a string succeeds");
    };
    row("state", &state_words(planned, hardening));
    row("profile", profile_word(control));
    for (index, reference) in control.references.iter().enumerate() {
        row(if index == 0 { "asked for by" } else { "" }, reference);
    }
    row("containers", control.not_in_container.as_deref().unwrap_or("apply it, too"));
    for (index, check) in check_names(planned).iter().enumerate() {
        row(if index == 0 { "checked as" } else { "" }, check);
    }
    row("file", &planned.control.path());
    text
}
