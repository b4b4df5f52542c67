//! Arguments that several verbs share.

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context as _;

pub use super::Format;
use crate::definition::{Inputs, Root, stray_variables};
use crate::failure::{Failure, Kind, ResultExt as _};

/// Returns the root: the nearest folder with `templates/`, from the current one upwards.
///
/// # Errors
/// Kind `Usage` when there is none.
pub fn root() -> Result<Root, Failure> {
    Root::find(&std::env::current_dir().context("finding the current folder").kind(Kind::Unexpected)?)
}

/// The values of variables.
#[derive(Clone, Default, clap::Args)]
pub struct VarArgs {
    /// Set a variable; repeatable, the last one wins. A list is `a,b` or JSON, a map is JSON. The
    /// order, lowest first: the default, the variable's own environment variable,
    /// `FORGE_VAR_<NAME>`, --var-file, --var
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = parse_var)]
    pub vars: Vec<(String, String)>,
    /// Read variables from a TOML file, or from JSON if it ends in .json; repeatable
    #[arg(long = "var-file", value_name = "FILE")]
    pub var_files: Vec<PathBuf>,
}

impl fmt::Debug for VarArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inputs_with([].into()).fmt(f)
    }
}

impl VarArgs {
    /// Returns the values given here, with the environment.
    #[must_use]
    pub fn inputs(&self) -> Inputs {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        self.inputs_with(environment.collect())
    }

    fn inputs_with(&self, env: std::collections::BTreeMap<String, String>) -> Inputs {
        Inputs { vars: self.vars.clone(), var_files: self.var_files.clone(), env }
    }
}

/// Parses `NAME=VALUE`. The error does not repeat the text: it may be a secret.
fn parse_var(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

/// Warns of each `FORGE_VAR_…` that no template of the root declares: most likely it is misspelt.
pub fn warn_of_strays(root: &Root, inputs: &Inputs) {
    for (name, advice) in stray_variables(root, inputs) {
        let advice = advice.unwrap_or_else(|| "it has no effect".to_owned());
        say(&format!("warning: {name} names no variable of any template here; {advice}\n"));
    }
}

/// Writes to standard error; where that is closed, the exit code still tells.
pub fn say(text: &str) {
    io::stderr().write_all(text.as_bytes()).ok();
}

/// How a query answers.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct FormatArgs {
    /// How to write the answer
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub format: Format,
}

/// Writes an answer's text.
///
/// # Errors
/// Kind `Unexpected` when it cannot be written.
pub fn write_answer(out: &mut dyn Write, text: &str) -> Result<(), Failure> {
    out.write_all(text.as_bytes()).context("writing the answer").kind(Kind::Unexpected)
}

/// Writes an answer as one JSON document.
///
/// # Errors
/// As [`write_answer`].
pub fn write_json(out: &mut dyn Write, answer: &serde_json::Value) -> Result<(), Failure> {
    write_answer(out, &format!("{answer:#}\n"))
}

/// Lays out rows so that their columns stand below one another.
#[must_use]
pub fn columns(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| visible(cell)).collect()).collect();
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width_of =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|column| width_of(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// Returns a text with its control characters as `\u{1b}`: what stands in files must not steer a terminal.
fn visible(text: &str) -> String {
    let seen = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(seen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_split_at_the_first_sign() {
        assert_eq!(parse_var("a=b=c").unwrap(), ("a".to_owned(), "b=c".to_owned()));
        assert_eq!(parse_var("a=").unwrap(), ("a".to_owned(), String::new()));
        assert!(!parse_var("hunter2").unwrap_err().contains("hunter2"));
        assert!(parse_var("=x").is_err());
    }

    #[test]
    fn debug_does_not_show_values() {
        let args = VarArgs { vars: vec![("token".into(), "hunter2".into())], var_files: Vec::new() };
        let shown = format!("{args:?}");
        assert!(shown.contains("token") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "bb".to_owned()], vec!["ccc".to_owned(), "d".to_owned()]];
        assert_eq!(columns(&rows), "a    bb\nccc  d\n");
        assert_eq!(columns(&[vec!["a\u{1b}[31m\n".to_owned()]]), "a\\u{1b}[31m\\n\n");
    }
}
