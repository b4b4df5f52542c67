//! `forge build`: makes templates.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use tokio::runtime::Runtime;

use super::common::{VarArgs, root, warn_of_strays};
use super::plan::StepArgs;
use super::runs::{Body, OnErrorArgs, Runs, Work, runtime, tell_programs};
use crate::builder::{self, BuildOptions};
use crate::definition;
use crate::failure::{Failure, Kind};
use crate::plan::{self, Plan};
use crate::report::{Output, Verbosity};

/// What to build, and how.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  forge build ubuntu-noble                       on the local QEMU
  forge build ubuntu-noble --on asgard           on the builder of builders/asgard.toml
  forge build ubuntu-noble --var memory_mib=2048 with another value of a variable
  forge build ubuntu-noble --on asgard --promote and make it the template that users clone
  forge build ubuntu-noble --on-error keep       keep the machine of a failed build")]
pub struct Args {
    /// The templates to build
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// The values of variables.
    #[command(flatten)]
    vars: VarArgs,
    /// Build on this builder: a profile in builders/, or qemu for the local one
    #[arg(long, value_name = "BUILDER")]
    on: Option<String>,
    /// Put the artifact into DIR instead of artifacts/NAME/RELEASE
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Build up to N templates at the same time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    parallel: u8,
    /// The steps to leave out.
    #[command(flatten)]
    steps: StepArgs,
    /// What becomes of machines.
    #[command(flatten)]
    on_error: OnErrorArgs,
    /// Give the proven template its own VMID too, if no template has it yet (Proxmox only)
    #[arg(long)]
    promote: bool,
    /// How the build is shown
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Builds the templates.
///
/// # Errors
/// The first failure; that of every other template is shown before.
pub fn run(args: &Args, directory: Option<&Path>, verbosity: Verbosity) -> Result<(), Failure> {
    let (plans, runtime) =
        prepare(args, directory).inspect_err(|failure| tell_programs(args.output, failure))?;
    let result = runtime.block_on(build_all(args, plans, verbosity));
    // What still runs (a name look-up, say) must not delay the end.
    runtime.shutdown_background();
    result
}

fn prepare(args: &Args, directory: Option<&Path>) -> Result<(Vec<Plan>, Runtime), Failure> {
    super::change_to(directory)?;
    Ok((resolve(args)?, runtime()?))
}

fn resolve(args: &Args) -> Result<Vec<Plan>, Failure> {
    if args.out.is_some() && args.names.len() > 1 {
        return Err(Failure::new(Kind::Usage, anyhow!("--out takes the artifact of one template"))
            .hint("build the templates one by one, or leave --out away"));
    }
    if let Some(twice) = args.names.iter().enumerate().find(|(at, name)| args.names[..*at].contains(name)) {
        return Err(Failure::new(Kind::Usage, anyhow!("{} is named twice", twice.1)));
    }
    let root = root()?;
    let inputs = args.vars.inputs();
    warn_of_strays(&root, &inputs);
    let selection = args.steps.selection();
    let load = |name: &String| definition::load(&root, name, &inputs);
    let templates: Vec<_> = args.names.iter().map(load).collect::<Result<_, _>>()?;
    for (index, template) in templates.iter().enumerate() {
        let others: Vec<_> = templates[..index].iter().collect();
        if let Some(diagnostics) = definition::same_vmid(template, &others) {
            return Err(Failure::new(Kind::Definition, diagnostics));
        }
    }
    let mut plans = Vec::new();
    for loaded in templates {
        let builder = plan::choose_builder(args.on.as_deref(), &inputs.env, &loaded.definition);
        let plan = plan::resolve(&root, loaded, builder, &selection)?;
        if args.promote && plan.builder.profile.proxmox.is_none() {
            let error =
                anyhow!("--promote is for templates on a cluster, and {} builds here", plan.builder.name);
            return Err(Failure::new(Kind::Usage, error).hint("name the cluster's profile: --on asgard"));
        }
        plans.push(plan);
    }
    Ok(plans)
}

async fn build_all(args: &Args, plans: Vec<Plan>, verbosity: Verbosity) -> Result<(), Failure> {
    let runs = Runs::open(&args.names, args.output, verbosity, args.on_error)?;
    let work = plans.into_iter().map(|plan| {
        let keeper = runs.keeper().clone();
        let options = BuildOptions { out: args.out.clone(), keeper, promote: args.promote };
        let built = plan.clone();
        let body: Body = Box::new(move |workspace, run| {
            Box::pin(async move { builder::build(&built, &options, &workspace, &run).await })
        });
        Work { plan, contract: None, body }
    });
    runs.all(work.collect(), args.parallel).await
}
