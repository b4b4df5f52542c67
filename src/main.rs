//! Parses the command line, runs it, prints the failure, sets the exit code: nothing else.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use forge::cli::{self, Cli};
use forge::report;

fn main() -> ExitCode {
    match cli::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = report::failure_text(&failure, report::stderr_look());
            // Where standard error is closed, the exit code still tells.
            std::io::stderr().write_all(text.as_bytes()).ok();
            ExitCode::from(failure.kind.exit_code())
        }
    }
}
