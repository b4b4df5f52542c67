//! What people read of a VM: its name and its description.

use crate::artifact::CheckResult;
use crate::plan::Plan;

/// The longest part of a DNS name.
const LABEL_MAX: usize = 63;

/// Returns the name of a proven template that is not the one in use: `NAME-RELEASE`, as a DNS name.
pub(super) fn candidate_name(name: &str, release: &str) -> String {
    dns_name(&format!("{name}-{release}"))
}

/// Returns the name of the machine that a run builds in.
pub(super) fn build_name(run: &str) -> String {
    dns_name(&format!("forge-{run}"))
}

/// Returns a text as the DNS name that Proxmox takes (pve-common, `src/PVE/JSONSchema.pm`): parts of
/// letters, digits and inner hyphens, with dots between them.
fn dns_name(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    let text: String = text.chars().map(plain).collect();
    let parts = text.split('.').map(|part| part.trim_matches('-')).filter(|part| !part.is_empty());
    let cut = |part: &str| part[..part.len().min(LABEL_MAX)].trim_end_matches('-').to_owned();
    parts.map(cut).collect::<Vec<_>>().join(".")
}

/// What a template's description says of its making.
#[derive(Debug)]
pub(super) struct Made<'a> {
    /// When, in UTC.
    pub(super) built_at: &'a str,
    /// How many packages it has.
    pub(super) packages: usize,
    /// What was found of its clone, once that was looked at.
    pub(super) proof: Option<&'a [CheckResult]>,
    /// Where the manifest is going to be.
    pub(super) manifest: &'a str,
}

/// Returns a template's description without the block that says whose it is; Markdown.
pub(super) fn description(plan: &Plan, made: &Made<'_>) -> String {
    let template = &plan.definition.template;
    let heading = template.description.as_deref().unwrap_or(&template.name).trim();
    let proof = made.proof.map_or_else(|| "not yet".to_owned(), proof_words);
    format!(
        "{heading}\n\n- release: {}\n- built: {} by forge {} (`templates/{}`)\n- plan: {}\n- packages: {}\n\
         - proof: {proof}\n- manifest: {}",
        template.release,
        made.built_at,
        env!("CARGO_PKG_VERSION"),
        plan.template,
        plan.digest,
        made.packages,
        made.manifest,
    )
}

fn proof_words(results: &[CheckResult]) -> String {
    let held = results.iter().filter(|result| result.passed).count();
    let failed = results.iter().filter(|result| result.has_failed()).count();
    let unknown = results.len() - held - failed;
    let part = |count: usize, what: &str| if count > 0 { format!(", {count} {what}") } else { String::new() };
    let held = format!("{held} of {} promises hold", results.len());
    held + &part(failed, "do not") + &part(unknown, "not proven")
}

/// Returns keys as Proxmox takes them: percent-encoded, with line ends between them.
pub(super) fn encoded_keys(keys: &str) -> String {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    utf8_percent_encode(keys, NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_names() {
        for (name, release, expected) in [
            ("pkr-ubuntu-noble-1", "24.04.3", "pkr-ubuntu-noble-1-24.04.3"),
            ("a", "2026_11_21", "a-2026-11-21"),
            ("a", "1.-2-..3_", "a-1.2.3"),
            ("a.b", "v1", "a.b-v1"),
        ] {
            assert_eq!(candidate_name(name, release), expected);
        }
        let long = candidate_name(&"x".repeat(62), "1.2");
        assert_eq!(long, format!("{}.2", "x".repeat(62)));
        assert_eq!(build_name("20261121-142109-a1b2c3"), "forge-20261121-142109-a1b2c3");
    }

    #[test]
    fn keys_are_sent_as_the_api_takes_them() {
        assert_eq!(encoded_keys("ssh-ed25519 A+/= x\n"), "ssh%2Ded25519%20A%2B%2F%3D%20x%0A");
    }

    #[test]
    fn a_proof_is_told_in_numbers() {
        let result = |passed, not_proven| CheckResult {
            at: "proof".into(),
            name: "a".into(),
            passed,
            not_proven,
            detail: String::new(),
        };
        assert_eq!(proof_words(&[result(true, false)]), "1 of 1 promises hold");
        let all = [result(true, false), result(false, false), result(false, true)];
        assert_eq!(proof_words(&all), "1 of 3 promises hold, 1 do not, 1 not proven");
    }
}
