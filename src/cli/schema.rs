//! `forge schema`: prints the JSON Schema of the files a user writes.

use std::io::Write;

use super::common::write_json;
use crate::definition::schema;
use crate::failure::Failure;

/// Print the JSON Schema of a file format
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  forge schema              of templates/NAME/template.toml
  forge schema profile      of builders/NAME.toml
  forge schema control      of hardening/controls/NAME.toml
  forge schema events       of the lines of --output json
  forge schema failure      of what --format json prints when there is no answer")]
pub struct Args {
    /// Which file's schema
    #[arg(value_enum, value_name = "FILE", default_value_t)]
    pub file: File,
}

/// A format that forge reads or writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum File {
    /// templates/NAME/template.toml
    #[default]
    Definition,
    /// builders/NAME.toml
    Profile,
    /// hardening/controls/NAME.toml
    Control,
    /// One line of `--output json` and of a run's events.jsonl
    Events,
    /// What `--format json` prints when there is no answer, and `--output json` before a run begins
    Failure,
}

/// Prints the schema.
///
/// # Errors
/// Kind `Unexpected` when it cannot be written.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let schema = match args.file {
        File::Definition => schema::definition(),
        File::Profile => schema::profile(),
        File::Control => schema::control(),
        File::Events => crate::report::events_schema(),
        File::Failure => crate::report::failure_schema(),
    };
    write_json(out, &schema)
}
