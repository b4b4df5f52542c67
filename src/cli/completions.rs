//! `forge completions`: the completion script of a shell.

use std::io::Write;

use clap_complete::Shell;

use super::common::write_answer;
use crate::failure::Failure;

/// The arguments of `forge completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  forge completions bash > ~/.local/share/bash-completion/completions/forge
  forge completions zsh > ~/.zfunc/_forge
  forge completions fish > ~/.config/fish/completions/forge.fish")]
pub struct Args {
    /// The shell
    pub shell: Shell,
}

/// Prints the script.
///
/// # Errors
/// The script cannot be written.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "forge", &mut script);
    write_answer(out, &String::from_utf8_lossy(&script))
}
