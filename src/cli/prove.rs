//! `forge prove`: holds a template that was built to its contracts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use tokio::runtime::Runtime;

use super::common::{VarArgs, root, say, warn_of_strays};
use super::runs::{Body, OnErrorArgs, Runs, Work, runtime, tell_programs};
use crate::artifact::{MANIFEST_FILE, Manifest};
use crate::builder::prove::Depth;
use crate::builder::{self, BuildOptions, ProveOptions, Target};
use crate::definition::diagnostics::did_you_mean;
use crate::definition::{self, Contract};
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::plan::{self, Plan, Selection};
use crate::report::{Output, Verbosity};

/// What to prove, and how.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  forge prove ubuntu-noble                                    the contracts of its build, in full
  forge prove ubuntu-noble --all                              every contract
  forge prove ubuntu-noble --contract k3s-server --quick      one, by one clone's first boot
  forge prove ubuntu-noble --on asgard --vmid 90001           the template that users clone")]
pub struct Args {
    /// The template
    #[arg(value_name = "NAME")]
    name: String,
    /// Hold it to this contract; several with commas, or repeated
    #[arg(long = "contract", value_name = "CONTRACT", value_delimiter = ',', conflicts_with = "all")]
    contracts: Vec<String>,
    /// Hold it to all its contracts
    #[arg(long)]
    all: bool,
    /// One clone's first boot only, without a second clone, a reboot and another address
    #[arg(long)]
    quick: bool,
    /// The artifact's folder instead of artifacts/NAME/RELEASE
    #[arg(long, value_name = "DIR", conflicts_with = "vmid")]
    artifact: Option<PathBuf>,
    /// The template on a Proxmox builder, by its VMID, whoever has its manifest
    #[arg(long, value_name = "VMID", value_parser = clap::value_parser!(u32).range(100..=999_999_999))]
    vmid: Option<u32>,
    /// Prove on this builder; the one that built it by default
    #[arg(long, value_name = "BUILDER")]
    on: Option<String>,
    /// Prove up to N contracts at the same time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    parallel: u8,
    /// The values of variables.
    #[command(flatten)]
    vars: VarArgs,
    /// What becomes of machines.
    #[command(flatten)]
    on_error: OnErrorArgs,
    /// How the proof is shown
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Proves the template.
///
/// # Errors
/// Kind `Check` when a promise does not hold.
pub fn run(args: &Args, directory: Option<&Path>, verbosity: Verbosity) -> Result<(), Failure> {
    let (order, runtime) =
        prepare(args, directory).inspect_err(|failure| tell_programs(args.output, failure))?;
    let result = runtime.block_on(prove_all(args, order, verbosity));
    runtime.shutdown_background();
    result
}

/// What is proven.
struct Order {
    plan: Plan,
    contracts: Vec<Contract>,
    target: Target,
}

fn prepare(args: &Args, directory: Option<&Path>) -> Result<(Order, Runtime), Failure> {
    super::change_to(directory)?;
    let root = root()?;
    let inputs = args.vars.inputs();
    warn_of_strays(&root, &inputs);
    let loaded = definition::load(&root, &args.name, &inputs)?;
    let target = match args.vmid {
        Some(vmid) => Target::Vmid(vmid),
        None => artifact(args, root.path(), &loaded.definition.template.release)?,
    };
    let builder = builder_of(args, &inputs.env, &loaded.definition, &target);
    let plan = plan::resolve(&root, loaded, builder, &Selection::default())?;
    check_place(&plan, &target)?;
    if let Target::Artifact { manifest, .. } = &target
        && manifest.plan != plan.digest
    {
        say(&format!(
            "warning: the artifact was built of another plan ({}); what is checked is what the definition says now\n",
            manifest.plan
        ));
    }
    let contracts = choose(args, &plan)?;
    Ok((Order { plan, contracts, target }, runtime()?))
}

/// Reads the manifest of the artifact to prove.
fn artifact(args: &Args, root: &Path, release: &str) -> Result<Target, Failure> {
    let own = || root.join("artifacts").join(&args.name).join(release);
    let folder = args.artifact.clone().unwrap_or_else(own);
    let path = folder.join(MANIFEST_FILE);
    let text = std::fs::read(&path).map_err(|error| {
        let failure = Failure::new(Kind::Usage, anyhow!("reading {}: {error}", path.display()));
        match error.kind() {
            std::io::ErrorKind::NotFound => failure
                .hint(format!("build it first: forge build {}", args.name))
                .hint("or name another: --artifact DIR, or --on BUILDER --vmid VMID"),
            _ => failure,
        }
    })?;
    let manifest =
        Manifest::parse(&text).with_context(|| format!("reading {}", path.display())).kind(Kind::Usage)?;
    Ok(Target::Artifact { folder, manifest: Box::new(manifest) })
}

/// The builder that was named, else the one that built the artifact.
fn builder_of(
    args: &Args,
    env: &BTreeMap<String, String>,
    definition: &definition::Definition,
    target: &Target,
) -> (String, &'static str) {
    let (name, from) = plan::choose_builder(args.on.as_deref(), env, definition);
    match target {
        Target::Artifact { manifest, .. } if from != "--on" && from != "FORGE_BUILDER" => {
            (manifest.builder.name.clone(), "the manifest")
        }
        _ => (name, from),
    }
}

/// A template on a cluster is proven there, and a disk here is proven here.
fn check_place(plan: &Plan, target: &Target) -> Result<(), Failure> {
    let (name, on_node) = (&plan.builder.name, plan.builder.profile.proxmox.is_some());
    match target {
        Target::Vmid(vmid) if !on_node => {
            let error = anyhow!("{name} has no VMs: {vmid} is on a cluster");
            Err(Failure::new(Kind::Usage, error).hint("name the cluster's profile: --on asgard"))
        }
        Target::Artifact { manifest, .. } if on_node && manifest.place.is_none() => {
            let error = anyhow!("the artifact is a disk here, and {name} proves templates on its cluster");
            Err(Failure::new(Kind::Usage, error).hint("leave --on away, or name the template: --vmid VMID"))
        }
        Target::Artifact { manifest, .. } if !on_node && manifest.place.is_some() => {
            let error = anyhow!("the template is on a cluster, and {name} proves disks here");
            let hint = format!("name the cluster's profile: --on {}", manifest.builder.name);
            Err(Failure::new(Kind::Usage, error).hint(hint))
        }
        _ => Ok(()),
    }
}

fn choose(args: &Args, plan: &Plan) -> Result<Vec<Contract>, Failure> {
    let all = plan.contracts();
    if args.all {
        return Ok(all);
    }
    if args.contracts.is_empty() {
        return Ok(plan.build_contracts());
    }
    for name in &args.contracts {
        if !all.iter().any(|contract| contract.name == *name) {
            let names: Vec<&str> = all.iter().map(|contract| contract.name.as_str()).collect();
            let hint = did_you_mean(name, names.iter().copied())
                .unwrap_or_else(|| format!("there are: {}", names.join(", ")));
            return Err(
                Failure::new(Kind::Usage, anyhow!("{} has no contract `{name}`", args.name)).hint(hint)
            );
        }
    }
    Ok(all.into_iter().filter(|contract| args.contracts.contains(&contract.name)).collect())
}

async fn prove_all(args: &Args, order: Order, verbosity: Verbosity) -> Result<(), Failure> {
    let Order { plan, contracts, target } = order;
    let labels: Vec<String> =
        contracts.iter().map(|contract| format!("{} as {}", plan.template, contract.name)).collect();
    let runs = Runs::open(&labels, args.output, verbosity, args.on_error)?;
    let target = Arc::new(target);
    let depth = if args.quick { Depth::Quick } else { Depth::Full };
    let work = contracts.into_iter().enumerate().map(|(index, contract)| {
        let keeper = runs.keeper().clone();
        // They look at the template, so one of its clones is enough.
        let audits = if index == 0 { plan.definition.prove.audits.clone() } else { Vec::new() };
        let options =
            ProveOptions { depth, audits, build: BuildOptions { keeper, ..BuildOptions::default() } };
        let (proven, target, name) = (plan.clone(), Arc::clone(&target), contract.name.clone());
        let body: Body = Box::new(move |workspace, run| {
            Box::pin(
                async move { builder::prove(&proven, &target, &contract, &options, &workspace, &run).await },
            )
        });
        Work { plan: plan.clone(), contract: Some(name), body }
    });
    runs.all(work.collect(), args.parallel).await
}
