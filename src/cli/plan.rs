//! `forge plan`: shows what a build would do, and the plan digest.

use std::fmt::Write as _;
use std::io::Write;

use super::common::{Format, FormatArgs, VarArgs, columns, root, warn_of_strays, write_answer, write_json};
use crate::definition::{CloudInitDrive, Contract, Disk, DiskBus, Machine, Nic, Step, VariableValue, load};
use crate::failure::Failure;
use crate::plan::{Input, InputRole, Plan, Selection, choose_builder, resolve};

/// Show what a build would do, resolved, with the plan digest
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  forge plan ubuntu-noble                      what a build would do, and its digest
  forge plan ubuntu-noble --var ssh_port=22    with another value of a variable
  forge plan ubuntu-noble --format json        for programs")]
pub struct Args {
    /// The template
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Use this builder profile
    #[arg(long, value_name = "PROFILE")]
    pub on: Option<String>,
    /// The steps to leave out.
    #[command(flatten)]
    pub steps: StepArgs,
    /// The values of variables.
    #[command(flatten)]
    pub vars: VarArgs,
    /// How to answer.
    #[command(flatten)]
    pub format: FormatArgs,
}

/// The steps to leave out.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct StepArgs {
    /// Run only these steps of the template; several with commas, or repeated
    #[arg(long, value_name = "STEP", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Leave these steps of the template out; several with commas, or repeated
    #[arg(long, value_name = "STEP", value_delimiter = ',')]
    pub skip: Vec<String>,
}

impl StepArgs {
    /// Returns the steps to leave out.
    #[must_use]
    pub fn selection(&self) -> Selection {
        Selection { only: self.only.clone(), skip: self.skip.clone() }
    }
}

/// Prints the plan.
///
/// # Errors
/// As [`load`] and [`resolve`].
pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let root = root()?;
    let inputs = args.vars.inputs();
    warn_of_strays(&root, &inputs);
    let loaded = load(&root, &args.name, &inputs)?;
    let builder = choose_builder(args.on.as_deref(), &inputs.env, &loaded.definition);
    let plan = resolve(&root, loaded, builder, &args.steps.selection())?;
    match args.format.format {
        Format::Human => write_answer(out, &human(&plan)),
        Format::Json => write_json(out, &plan.to_json()),
    }
}

/// Returns the plan as a person reads it.
#[must_use]
pub fn human(plan: &Plan) -> String {
    let template = &plan.shown.template;
    let mut out = format!(
        "{}: template {}, VMID {}, release {}\n",
        plan.template, template.name, template.vmid, template.release
    );
    writeln!(out, "built on {} ({})", plan.builder.name, from_words(plan.builder.from))
        .expect("writing to a string succeeds");
    section(&mut out, "builder", &builder_rows(plan));
    section(&mut out, "inputs", &plan.inputs.iter().map(input_row).collect::<Vec<_>>());
    section(&mut out, "machine", &machine_rows(plan));
    section(&mut out, "variables", &variable_rows(plan));
    section(&mut out, "steps", &step_rows(plan));
    section(&mut out, "checks", &check_rows(plan));
    section(&mut out, "then", &last_rows(plan));
    writeln!(out, "\nplan {}", plan.digest).expect("writing to a string succeeds");
    out
}

fn from_words(from: &str) -> String {
    match from {
        "the template" => "the template says so".to_owned(),
        "the default" => "the default: the template names no builder".to_owned(),
        flag => format!("{flag} says so"),
    }
}

/// Returns where on a cluster it is built; of the local builder there is nothing to tell.
fn builder_rows(plan: &Plan) -> Vec<Vec<String>> {
    let Some(proxmox) = &plan.builder.profile.proxmox else { return Vec::new() };
    let node = match proxmox.node.as_str() {
        "auto" => "the one with the most free memory".to_owned(),
        name => name.to_owned(),
    };
    let vlan = proxmox.vlan.map(|vlan| format!(", VLAN {vlan}")).unwrap_or_default();
    let row = |key: &str, value: String| vec![key.to_owned(), value];
    let mut rows = vec![
        row("API", proxmox.endpoints.join(", ")),
        row("node", node),
        row("storages", format!("{} for disks, {} for media", proxmox.vm_storage, proxmox.iso_storage)),
        row("bridge", format!("{}{vlan}", proxmox.bridge)),
        row("VMIDs", format!("{} while building and for candidates", proxmox.vmids)),
    ];
    rows.extend(proxmox.pool.clone().map(|pool| row("pool", pool)));
    rows
}

fn section(out: &mut String, title: &str, rows: &[Vec<String>]) {
    if rows.is_empty() {
        return;
    }
    write!(out, "\n{title}\n").expect("writing to a string succeeds");
    for line in columns(rows).lines() {
        writeln!(out, "  {line}").expect("writing to a string succeeds");
    }
}

fn input_row(input: &Input) -> Vec<String> {
    let role = match input.role {
        InputRole::Iso => "ISO",
        InputRole::Cdrom => "CD",
        InputRole::Autoinstall => "autoinstall",
        InputRole::Seed => "seed",
        InputRole::Script => "script",
        InputRole::Upload => "upload",
        InputRole::Seal => "seal",
        InputRole::Key => "key",
        InputRole::Control => "control",
    };
    let digest = match (&input.sha256, &input.checksums) {
        (Some(sha256), _) => format!("sha256:{sha256}"),
        (None, Some(list)) => format!("as signed in {list}"),
        (None, None) => String::new(),
    };
    let size = match input.size {
        Some(size) => format!("{size} bytes{}", if input.rendered { ", rendered" } else { "" }),
        None => String::new(),
    };
    vec![role.to_owned(), input.location.clone(), digest, size]
}

fn machine_rows(plan: &Plan) -> Vec<Vec<String>> {
    let machine = &plan.shown.machine;
    let mut traits = vec![
        word(&machine.kind),
        word(&machine.firmware),
        format!("cpu {}", machine.cpu),
        format!("{} cores", machine.cores),
        format!("{} MiB", machine.memory_mib),
    ];
    for (there, name) in [(machine.agent, "agent"), (machine.serial, "serial"), (machine.tpm, "TPM")] {
        if there {
            traits.push(name.to_owned());
        }
    }
    let mut rows = vec![vec!["hardware".to_owned(), traits.join(", ")]];
    for (index, disk) in machine.disks.iter().enumerate() {
        rows.push(vec![format!("disk {index}"), disk_words(machine, disk)]);
    }
    for (index, nic) in machine.nics.iter().enumerate() {
        rows.push(vec![format!("nic {index}"), nic_words(nic)]);
    }
    let overrides = override_words(plan);
    if !overrides.is_empty() {
        rows.push(vec![
            "while building".to_owned(),
            format!("{}, as the profile says", overrides.join(", ")),
        ]);
    }
    rows
}

/// Returns a value's word in the definition's vocabulary.
fn word<T: serde::Serialize>(value: &T) -> String {
    let json = serde_json::to_value(value).unwrap_or_default();
    json.as_str().unwrap_or_default().to_owned()
}

fn disk_words(machine: &Machine, disk: &Disk) -> String {
    let mut words = vec![word(&disk.bus), format!("{} GiB", disk.size_gib), word(&disk.format)];
    if disk.bus == DiskBus::Scsi {
        words.push(word(&machine.scsi_controller));
    }
    for (there, name) in [(disk.iothread, "iothread"), (disk.discard, "discard"), (disk.ssd, "ssd")] {
        if there {
            words.push(name.to_owned());
        }
    }
    words.join(", ")
}

fn nic_words(nic: &Nic) -> String {
    let mut words = vec![word(&nic.model)];
    words.extend(nic.mac.clone());
    if nic.queues > 0 {
        words.push(format!("{} queues", nic.queues));
    }
    words.join(", ")
}

fn override_words(plan: &Plan) -> Vec<String> {
    let overrides = &plan.builder.profile.machine;
    let words = [
        overrides.cpu.as_ref().map(|cpu| format!("cpu {cpu}")),
        overrides.cores.map(|cores| format!("{cores} cores")),
        overrides.memory_mib.map(|memory| format!("{memory} MiB")),
        overrides.kvm.map(|kvm| if kvm { "KVM".to_owned() } else { "no KVM".to_owned() }),
    ];
    words.into_iter().flatten().collect()
}

fn variable_rows(plan: &Plan) -> Vec<Vec<String>> {
    let row = |(name, variable): (&String, &crate::definition::ResolvedVariable)| {
        let value = match &variable.value {
            VariableValue::Plain(value) => value.to_string(),
            VariableValue::Secret(secret) if secret.is_set() => "secret, set".to_owned(),
            VariableValue::Secret(_) => "secret, not set".to_owned(),
        };
        let from = match variable.from.as_str() {
            "not set" => String::new(),
            from => format!("({from})"),
        };
        vec![name.clone(), value, from]
    };
    plan.variables.iter().map(row).collect()
}

fn step_rows(plan: &Plan) -> Vec<Vec<String>> {
    let row = |(index, planned): (usize, &crate::plan::PlannedStep)| {
        let what = match &planned.skipped {
            Some(reason) => format!("left out: {reason}"),
            None => planned.title.clone().unwrap_or_else(|| step_words(&planned.step)),
        };
        vec![format!("{}", index + 1), planned.step.name.clone(), what]
    };
    plan.steps.iter().enumerate().map(row).collect()
}

fn step_words(step: &Step) -> String {
    if let Some(shell) = &step.shell {
        return match &shell.script {
            Some(script) => format!("runs {script}"),
            None => "runs an inline script".to_owned(),
        };
    }
    if let Some(upload) = &step.upload {
        return format!("uploads {} to {}", upload.source, upload.destination);
    }
    match &step.packages {
        Some(packages) if packages.install.is_empty() => "upgrades all packages".to_owned(),
        Some(packages) => format!("installs {}", packages.install.join(" ")),
        None => "reboots".to_owned(),
    }
}

fn check_rows(plan: &Plan) -> Vec<Vec<String>> {
    let row = |planned: &crate::plan::PlannedCheck| {
        let what = planned.skipped.as_ref().map(|reason| format!("left out: {reason}")).unwrap_or_default();
        vec![planned.check.name.clone(), what]
    };
    plan.checks.iter().map(row).collect()
}

fn last_rows(plan: &Plan) -> Vec<Vec<String>> {
    let mut rows = vec![vec!["seal".to_owned(), format!("runs {}", plan.shown.seal.script)]];
    let in_build = plan.build_contracts();
    for contract in plan.contracts() {
        let when = if in_build.iter().any(|it| it.name == contract.name) { "" } else { ", by forge prove" };
        let what = format!("boots a clone as {}{when}", contract_words(&contract));
        rows.push(vec!["proof".to_owned(), what]);
    }
    rows
}

fn contract_words(contract: &Contract) -> String {
    let mut words = vec![format!("{} at {}", contract.name, contract.address)];
    words.extend(contract.cores.map(|cores| format!("{cores} cores")));
    words.extend(contract.memory_mib.map(|memory| format!("{memory} MiB")));
    words.extend(contract.disk_gib.map(|disk| format!("a disk of {disk} GiB")));
    if contract.drive == CloudInitDrive::ConfigDrive {
        words.push("a ConfigDrive".to_owned());
    }
    words.join(", ")
}
