//! `forge completions`: the completion script of a shell.

use clap_complete::Shell;

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
/// Standard output cannot be written.
pub fn run(args: &Args) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "forge", &mut script);
    super::print(&String::from_utf8_lossy(&script))
}
