//! `forge leftovers`: what dead runs have left on a cluster, and its removal.

use std::io::Write;

use anyhow::Context as _;
use serde_json::json;

use super::common::{Format, FormatArgs, VarArgs, columns, root, say, write_answer, write_json};
use crate::builder::proxmox::leftovers::{Leftover, Search};
use crate::builder::proxmox::site;
use crate::builder::workspace;
use crate::definition::load_profile;
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::pve::Client;

/// List or remove what dead runs have left on a Proxmox builder
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  forge leftovers --on asgard                              what dead runs have left there
  forge leftovers --on asgard --remove                     and remove it
  forge leftovers --on asgard --run 20261121-142109-a1b2c3 what that run has left

A leftover is a VM that a run was building or proving when it died: the VM's own VMID and UUID stand in
its description, or in the run's journal in .forge/runs here, and its lease is over or its process is
gone. Templates, candidates, clones and kept machines never are; installer media are a cache and stay.")]
pub struct Args {
    /// Look on this builder: a profile in builders/
    #[arg(long, value_name = "BUILDER")]
    pub on: String,
    /// Only what this run has left
    #[arg(long, value_name = "ID")]
    pub run: Option<String>,
    /// Stop and destroy them, each looked at again right before
    #[arg(long)]
    pub remove: bool,
    /// How to answer.
    #[command(flatten)]
    pub format: FormatArgs,
}

/// What became of a leftover.
struct Told {
    leftover: Leftover,
    /// Why it is still there, after it was to be removed.
    failure: Option<Failure>,
    is_removed: bool,
}

/// Prints what is left over, and removes it where that is wanted.
///
/// # Errors
/// Kind `Infrastructure` when the cluster does not answer, or something could not be removed.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    if let Some(run) = args.run.as_ref().filter(|run| !workspace::is_run_id(run)) {
        let error = anyhow::anyhow!("`{run}` is no run's ID");
        return Err(Failure::new(Kind::Usage, error).hint("IDs look like 20261121-142109-a1b2c3"));
    }
    let root = root()?;
    let profile = load_profile(&root, &args.on)?;
    let Some(place) = profile.proxmox else {
        let error =
            anyhow::anyhow!("`{}` is no Proxmox builder: nothing of its runs outlives forge", args.on);
        return Err(Failure::new(Kind::Usage, error));
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")
        .kind(Kind::Unexpected)?;
    let told = runtime.block_on(async {
        if !place.verify_tls {
            say(&format!("warning: {}\n", site::UNVERIFIED));
        }
        let settings = site::settings(&place, root.path(), &VarArgs::default().inputs().env).await?;
        let client = Client::new(settings).map_err(site::failed)?;
        let search = Search::new(&client, &place, root.path(), args.run.as_deref());
        sweep(&search, args.remove).await
    })?;
    match args.format.format {
        Format::Human => write_answer(out, &human(&told, args))?,
        Format::Json => write_json(out, &answer(&told))?,
    }
    verdict(told, args)
}

async fn sweep(search: &Search<'_>, removes: bool) -> Result<Vec<Told>, Failure> {
    let mut told = Vec::new();
    for leftover in search.find().await? {
        let result = if removes && leftover.removable { Some(search.remove(&leftover).await) } else { None };
        let is_removed = matches!(result, Some(Ok(())));
        told.push(Told { leftover, failure: result.and_then(Result::err), is_removed });
    }
    if removes {
        search.tidy().await?;
    }
    Ok(told)
}

fn human(told: &[Told], args: &Args) -> String {
    if told.is_empty() {
        let of = args.run.as_ref().map(|run| format!(" of the run {run}")).unwrap_or_default();
        return format!("nothing{of} is left over on {}\n", args.on);
    }
    let title = ["VMID", "NODE", "NAME", "RUN", "WHAT"].map(str::to_owned).to_vec();
    let dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let row = |told: &Told| {
        let Told { leftover, failure, is_removed } = told;
        let what = match failure {
            Some(failure) => format!("not removed: {failure}"),
            None if *is_removed => format!("removed ({})", leftover.why),
            None => leftover.why.clone(),
        };
        let Leftover { vmid, volume, node, name, run, .. } = leftover;
        let (vmid, name) = (vmid.map(|vmid| vmid.to_string()), name.clone().or_else(|| volume.clone()));
        vec![dash(&vmid), node.clone(), dash(&name), dash(run), what]
    };
    let rows: Vec<_> = std::iter::once(title).chain(told.iter().map(row)).collect();
    let advice = told.iter().filter_map(|told| {
        told.leftover.advice.as_ref().map(|advice| format!("{}: {advice}\n", told.leftover.called()))
    });
    let mut text = columns(&rows);
    text.extend(advice);
    if !args.remove && told.iter().any(|told| told.leftover.removable) {
        text.extend(["remove with: ", &command(args), "\n"]);
    }
    text
}

fn command(args: &Args) -> String {
    let run = args.run.as_ref().map(|run| format!(" --run {run}")).unwrap_or_default();
    format!("forge leftovers --on {}{run} --remove", args.on)
}

fn answer(told: &[Told]) -> serde_json::Value {
    let one = |told: &Told| {
        let mut value = json!(told.leftover);
        value["removed"] = told.is_removed.into();
        value["error"] = told.failure.as_ref().map(ToString::to_string).into();
        value
    };
    json!({"format": 1, "leftovers": told.iter().map(one).collect::<Vec<_>>()})
}

/// Returns the failure of a removal that has left something.
fn verdict(told: Vec<Told>, args: &Args) -> Result<(), Failure> {
    let left: Vec<String> = told
        .iter()
        .filter(|told| args.remove && !told.is_removed)
        .map(|told| told.leftover.called())
        .collect();
    if left.is_empty() {
        return Ok(());
    }
    let error = anyhow::anyhow!("still left over on {}: {}", args.on, left.join(", "));
    let hints = told.into_iter().flat_map(|told| {
        told.failure.map(|failure| failure.hints).unwrap_or_default().into_iter().chain(told.leftover.advice)
    });
    Err(hints.fold(Failure::new(Kind::Infrastructure, error), Failure::hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pve::Vmid;

    fn args(remove: bool) -> Args {
        Args { on: "asgard".into(), run: None, remove, format: FormatArgs::default() }
    }

    fn told(vmid: u32, removable: bool, is_removed: bool, failure: Option<Failure>) -> Told {
        let leftover = Leftover {
            vmid: Vmid::new(vmid),
            volume: None,
            node: "asgard".into(),
            name: Some("pkr-ubuntu".into()),
            run: removable.then(|| "r1".to_owned()),
            template: None,
            state: None,
            why: "building; its lease ended 5 min ago".into(),
            removable,
            advice: (!removable).then(|| "ask root".to_owned()),
        };
        Told { leftover, failure, is_removed }
    }

    #[test]
    fn a_list_says_how_to_remove_it() {
        assert_eq!(human(&[], &args(true)), "nothing is left over on asgard\n");
        let text = human(&[told(9000, true, false, None), told(9001, false, false, None)], &args(false));
        assert_eq!(
            text,
            "VMID  NODE    NAME        RUN  WHAT\n\
             9000  asgard  pkr-ubuntu  r1   building; its lease ended 5 min ago\n\
             9001  asgard  pkr-ubuntu  -    building; its lease ended 5 min ago\n\
             9001: ask root\n\
             remove with: forge leftovers --on asgard --remove\n"
        );
        assert!(verdict(vec![told(9000, true, false, None)], &args(false)).is_ok());
    }

    #[test]
    fn a_removal_that_leaves_something_fails() {
        let held = Failure::new(Kind::Infrastructure, anyhow::anyhow!("locked")).hint("wait");
        let all = vec![
            told(9000, true, true, None),
            told(9001, true, false, Some(held)),
            told(9002, false, false, None),
        ];
        let text = human(&all, &args(true));
        assert!(text.contains("removed (building") && text.contains("not removed: locked"), "{text}");
        let answer = answer(&all);
        assert_eq!(answer["leftovers"][0]["removed"], true);
        assert_eq!(answer["leftovers"][1]["error"], "locked");
        let failure = verdict(all, &args(true)).unwrap_err();
        assert_eq!(failure.to_string(), "still left over on asgard: 9001, 9002");
        assert_eq!(failure.hints, ["wait", "ask root"]);
        assert!(verdict(vec![told(9000, true, true, None)], &args(true)).is_ok());
    }
}
