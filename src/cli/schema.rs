//! `forge schema`: prints the JSON Schema of the files a user writes.

use std::io::Write;

use super::common::write_json;
use crate::definition::schema;
use crate::failure::Failure;

/// Print the JSON Schema of definitions or builder profiles, for editors
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which file's schema
    #[arg(value_enum, value_name = "FILE", default_value_t)]
    pub file: File,
}

/// A file that a user writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum File {
    /// templates/NAME/template.toml
    #[default]
    Definition,
    /// builders/NAME.toml
    Profile,
}

/// Prints the schema.
///
/// # Errors
/// Kind `Unexpected` when it cannot be written.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let schema = match args.file {
        File::Definition => schema::definition(),
        File::Profile => schema::profile(),
    };
    write_json(out, &schema)
}
