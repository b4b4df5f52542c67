//! The folder that holds `templates/`, `builders/`, `http/` and what they refer to.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};

use super::diagnostics::did_you_mean;
use crate::failure::{Failure, Kind, ResultExt as _};

/// The root: the nearest folder upwards that has a `templates/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// Finds the root from a folder upwards.
    ///
    /// # Errors
    /// When no folder upwards has a `templates/`.
    pub fn find(start: &Path) -> Result<Self, Failure> {
        let start = absolute(start)?;
        start
            .ancestors()
            .find(|folder| folder.join("templates").is_dir())
            .map(|folder| Self(folder.into()))
            .ok_or_else(|| {
                let error = anyhow!("no folder `templates` in {} or above it", start.display());
                Failure::new(Kind::Usage, error).hint("change to the repository, or name it with `-C DIR`")
            })
    }

    /// Takes a folder as the root.
    ///
    /// # Errors
    /// When it has no `templates/`.
    pub fn at(folder: &Path) -> Result<Self, Failure> {
        let folder = absolute(folder)?;
        if folder.join("templates").is_dir() {
            return Ok(Self(folder));
        }
        let error = anyhow!("no folder `templates` in {}", folder.display());
        Err(Failure::new(Kind::Usage, error).hint("`-C` takes the folder that holds `templates/`"))
    }

    /// Returns the folder, absolute and without symbolic links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the names of the folders in `templates/`, sorted.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn templates(&self) -> Result<Vec<String>, Failure> {
        self.names("templates", |path| path.is_dir().then(|| path.file_name()).flatten())
    }

    /// Returns the names of the files `builders/*.toml`, sorted; none without that folder.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn profiles(&self) -> Result<Vec<String>, Failure> {
        self.toml_files("builders")
    }

    /// Returns the names of the files `hardening/controls/*.toml`, sorted; none without that folder.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn controls(&self) -> Result<Vec<String>, Failure> {
        self.toml_files(super::controls::FOLDER)
    }

    fn toml_files(&self, folder: &str) -> Result<Vec<String>, Failure> {
        if !self.0.join(folder).is_dir() {
            return Ok(Vec::new());
        }
        self.names(folder, |path| {
            path.extension().is_some_and(|ending| ending == "toml").then(|| path.file_stem()).flatten()
        })
    }

    fn names(&self, folder: &str, name_of: impl Fn(&Path) -> Option<&OsStr>) -> Result<Vec<String>, Failure> {
        let folder = self.0.join(folder);
        let reading = || format!("reading {}", folder.display());
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&folder).with_context(reading).kind(Kind::Definition)? {
            let path = entry.with_context(reading).kind(Kind::Definition)?.path();
            match name_of(&path).and_then(OsStr::to_str) {
                Some(name) if !name.starts_with('.') => names.push(name.to_owned()),
                _ => {}
            }
        }
        names.sort();
        Ok(names)
    }

    /// Returns the failure of naming a template that is not there.
    pub(crate) fn no_template(&self, name: &str) -> Failure {
        let names = self.templates().unwrap_or_default();
        let hint = did_you_mean(name, names.iter().map(String::as_str)).unwrap_or_else(|| {
            if names.is_empty() {
                "there are none yet: make templates/<name>/template.toml".to_owned()
            } else {
                format!("there are: {}", names.join(", "))
            }
        });
        Failure::new(Kind::Usage, anyhow!("no template `{name}` in {}", self.0.join("templates").display()))
            .hint(hint)
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    path.canonicalize().with_context(|| format!("opening {}", path.display())).kind(Kind::Usage)
}
