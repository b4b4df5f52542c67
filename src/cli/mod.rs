//! The command line: one file a verb.

pub mod build;
pub mod common;
pub mod completions;
pub mod controls;
pub mod doctor;
pub mod leftovers;
pub mod list;
pub mod man;
pub mod plan;
pub mod prove;
mod runs;
pub mod schema;
pub mod signals;
pub mod validate;

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::failure::{Failure, Kind, ResultExt};
use crate::report::{FailedCommand, Verbosity};

/// Build, test and promote machine templates for Proxmox VE
#[derive(Debug, Parser)]
#[command(
    name = "forge",
    version = crate::VERSION,
    long_about = "Build, test and promote machine templates for Proxmox VE\n\n\
        A template is defined in templates/<name>/template.toml. forge installs it in a machine, \
        hardens, checks and seals it, boots a clone to prove it, and leaves an artifact with a manifest.",
    after_long_help = after_long_help(),
    arg_required_else_help = true,
    help_expected = true,
    max_term_width = 100
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Run as if started in DIR: the root is the nearest folder with templates/, from there upwards
    #[arg(short = 'C', value_name = "DIR", global = true)]
    pub directory: Option<PathBuf>,
    /// Show all output of guests and each check
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub verbose: bool,
    /// Show only warnings, failures and the result
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

impl Global {
    /// Returns how much a build shows.
    #[must_use]
    pub const fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (false, true) => Verbosity::Verbose,
            (false, false) => Verbosity::Normal,
        }
    }
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build templates: install, provision, check, seal and prove them
    Build(build::Args),
    /// Hold a template that was built to its contracts, by clones of it
    Prove(prove::Args),
    /// Check definitions and builder profiles, offline
    Validate(validate::Args),
    /// Show what a build would do, with its inputs and its digest
    Plan(plan::Args),
    /// List the templates
    List(list::Args),
    /// List the hardening controls, and which of them a template applies
    Controls(controls::Args),
    /// Print the JSON Schema of a file format
    Schema(schema::Args),
    /// Tell whether this machine or a builder can build, and what to do if not
    Doctor(doctor::Args),
    /// List or remove what dead runs have left on a Proxmox builder
    Leftovers(leftovers::Args),
    /// Print the completion script of a shell
    Completions(completions::Args),
    /// Write a manual page for each command
    Man(man::Args),
}

/// The format of a query's answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Human,
    /// For programs
    Json,
}

/// Runs a command line.
///
/// # Errors
/// What the command failed with: `main` prints it and exits with its kind's code.
pub fn run(cli: Cli) -> Result<(), Failure> {
    let (verbosity, directory) = (cli.global.verbosity(), cli.global.directory.as_deref());
    match cli.command {
        Command::Build(args) => build::run(&args, directory, verbosity),
        Command::Prove(args) => prove::run(&args, directory, verbosity),
        Command::Validate(args) => answer(args.format.format, directory, |out| validate::run(&args, out)),
        Command::Plan(args) => answer(args.format.format, directory, |out| plan::run(&args, out)),
        Command::List(args) => answer(args.format.format, directory, |out| list::run(&args, out)),
        Command::Controls(args) => answer(args.format.format, directory, |out| controls::run(&args, out)),
        Command::Schema(args) => answer(Format::Human, directory, |out| schema::run(&args, out)),
        Command::Doctor(args) => answer(args.format, directory, |out| doctor::run(&args, out)),
        Command::Leftovers(args) => answer(args.format.format, directory, |out| leftovers::run(&args, out)),
        Command::Completions(args) => answer(Format::Human, directory, |out| completions::run(&args, out)),
        Command::Man(args) => change_to(directory).and_then(|()| man::run(&args)),
    }
}

/// Changes to the folder that `-C` names.
fn change_to(directory: Option<&Path>) -> Result<(), Failure> {
    let Some(directory) = directory else { return Ok(()) };
    std::env::set_current_dir(directory)
        .with_context(|| format!("changing to the folder {} (-C)", directory.display()))
        .kind(Kind::Usage)
}

/// Returns the command line's description, for help, completions and manual pages.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Prints what a query writes, also when it fails: the failure then stands below. A program that
/// gets no answer gets the failure instead.
fn answer(
    format: Format,
    directory: Option<&Path>,
    query: impl FnOnce(&mut dyn io::Write) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut text = Vec::new();
    let result = change_to(directory).and_then(|()| query(&mut text));
    match &result {
        Err(failure) if text.is_empty() && format == Format::Json => {
            print(&format!("{:#}\n", FailedCommand::new(failure).to_json()))?;
        }
        _ => print(&String::from_utf8_lossy(&text))?,
    }
    result
}

/// Writes to standard output; a reader that has gone (`forge list | head`) is no failure.
///
/// # Errors
/// Standard output cannot be written, such as on a full disk.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("writing to standard output").kind(Kind::Infrastructure)
        }
        _ => Ok(()),
    }
}

fn after_long_help() -> String {
    let mut text = String::from(
        "Examples:\n  \
           forge doctor                 what this machine lacks for building\n  \
           forge doctor --on asgard     what a Proxmox builder lacks, and what to type there\n  \
           forge validate               whether the definitions hold together\n  \
           forge build ubuntu-noble     the template, on the local QEMU\n  \
           forge -C ~/homelab list      the templates of another folder\n\n\
         Exit codes:\n    0  all went well\n",
    );
    for kind in Kind::ALL {
        // Writing to a string cannot fail.
        writeln!(text, "  {:>3}  {}", kind.exit_code(), kind.meaning()).ok();
    }
    text + "\nEnvironment:\n  \
        FORGE_BUILDER     the builder of list, plan and build, where --on names none\n  \
        FORGE_CACHE       the folder for downloads; else forge/ in XDG_CACHE_HOME or ~/.cache\n  \
        FORGE_PVE_TOKEN   the API token of a Proxmox builder, USER@REALM!NAME=SECRET; else the user\n                    \
                          and password in FORGE_PVE_USER and FORGE_PVE_PASSWORD\n  \
        FORGE_VAR_<NAME>  a variable's value, its name in upper case; --var and --var-file win\n  \
        NO_COLOR          no colour when set and not empty"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn verbosity_follows_the_flags() {
        for (args, expected) in [
            (&["forge", "doctor"][..], Verbosity::Normal),
            (&["forge", "-q", "doctor"], Verbosity::Quiet),
            (&["forge", "doctor", "--verbose"], Verbosity::Verbose),
        ] {
            assert_eq!(Cli::parse_from(args).global.verbosity(), expected);
        }
        assert!(Cli::try_parse_from(["forge", "doctor", "-q", "-v"]).is_err());
    }

    #[test]
    fn the_help_holds_the_whole_table_of_exit_codes() {
        let help = after_long_help();
        for kind in Kind::ALL {
            assert!(help.contains(&format!("{:>3}  {}", kind.exit_code(), kind.meaning())), "{kind:?}");
        }
    }
}
