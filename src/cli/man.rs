//! `forge man`: a manual page for each command.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap_mangen::Man;

use crate::failure::{Failure, Kind, ResultExt};

/// The arguments of `forge man`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  forge man ~/.local/share/man/man1
  man forge")]
pub struct Args {
    /// The folder to write to; it is made if it is not there
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

/// Writes the pages.
///
/// # Errors
/// The folder cannot be made or written to.
pub fn run(args: &Args) -> Result<(), Failure> {
    let folder = &args.folder;
    std::fs::create_dir_all(folder)
        .with_context(|| format!("creating the folder {}", folder.display()))
        .kind(Kind::Usage)?;
    let mut command = super::command().disable_help_subcommand(true);
    command.build();
    write_pages(&command, folder)
        .with_context(|| format!("writing manual pages to {}", folder.display()))
        .kind(Kind::Infrastructure)
}

fn write_pages(command: &clap::Command, folder: &Path) -> std::io::Result<()> {
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        write_pages(inner, folder)?;
    }
    let version = format!("forge {}", env!("CARGO_PKG_VERSION"));
    Man::new(command.clone()).source(version).manual("forge").generate_to(folder).map(drop)
}
