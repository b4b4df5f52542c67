//! Installs packages with apt.

use std::time::Duration;

use super::{Context, ProvisionError, Script, script};
use crate::definition::Packages;

const INSTALL: &str = include_str!("guest/packages.sh");

/// Installs packages, and upgrades the others if asked to.
pub(super) async fn install(
    name: &str,
    packages: &Packages,
    timeout: Duration,
    cx: &Context<'_>,
) -> Result<(), ProvisionError> {
    if let Some(wrong) = packages.install.iter().find(|package| !is_package(package)) {
        return Err(ProvisionError::Invalid(format!("step `{name}`: `{wrong}` is not a package's name")));
    }
    let wait = (timeout.as_secs() / 2).max(1);
    let env = [
        ("packages", packages.install.join(" ")),
        ("upgrade", packages.upgrade.to_string()),
        ("lock_wait", wait.to_string()),
    ];
    let interpreter = ["/bin/sh", "-eu"].map(str::to_owned);
    let what = Script {
        name,
        text: INSTALL,
        interpreter: &interpreter,
        env: &env.map(|(key, value)| (key.to_owned(), value)).into_iter().collect(),
        exit_codes: &[0],
    };
    script(&what, timeout, cx).await
}

/// Tells whether a word names a package for apt-get: `name`, `name:arch`, `name=version`,
/// `name/release` or `task^`.
fn is_package(word: &str) -> bool {
    let first = word.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    first && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.:=/~^".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::is_package;

    #[test]
    fn package_names_are_no_options() {
        for (word, good) in [
            ("vim", true),
            ("libc6:amd64", true),
            ("g++", true),
            ("vim=2:9.1.0016-1ubuntu7~24.04", true),
            ("vim/noble-updates", true),
            ("--reinstall", false),
            ("-y", false),
            ("a b", false),
            ("a;b", false),
            ("$(a)", false),
            ("", false),
        ] {
            assert_eq!(is_package(word), good, "{word}");
        }
    }
}
