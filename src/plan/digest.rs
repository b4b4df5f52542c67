//! The plan digest: equal for builds whose guest and hardware come out alike.
//!
//! It covers the template's facts and hardware, the seed, the steps that run, the hardening controls, the
//! checks, the seal and what the proof looks at, each referenced file's content, the ISO's digest, and the
//! variables that `*.j2` files use (all others act through the definition). Of a secret it covers
//! the name and whether it is set.
//!
//! It leaves out endpoint, node, storage, addresses, timeouts, retries, where the ISO lies and
//! where the checkout lies. It also leaves out the profile's machine overrides: the template gets
//! the definition's hardware wherever it is built; the manifest records them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value as Json, json};
use sha2::{Digest as _, Sha256};

use super::{Input, InputRole, Plan};
use crate::definition::{FileReference, HARDENING_STEP, Source, VariableValue};

/// The version of what the digest covers; another version, another digest.
const VERSION: u32 = 2;

/// Returns the plan's digest.
pub(super) fn of(plan: &Plan) -> String {
    let mut text = String::new();
    canonical(&covered(plan), &mut text);
    format!("sha256:{}", hex(text.as_bytes()))
}

/// Returns everything that shapes guest and hardware.
fn covered(plan: &Plan) -> Json {
    let definition = &plan.shown;
    let active: BTreeSet<&str> = plan.active_steps().map(|step| step.name.as_str()).collect();
    let files: Vec<&FileReference> = plan
        .files
        .iter()
        .filter(|file| file.step.as_deref().is_none_or(|step| active.contains(step)))
        .collect();
    let steps = definition.steps.iter().filter(|step| active.contains(step.name.as_str()));
    let checks: BTreeSet<&str> = plan.active_checks().map(|check| check.name.as_str()).collect();
    let checks = definition.checks.iter().filter(|check| checks.contains(check.name.as_str()));
    json!({
        "version": VERSION,
        "template": definition.template,
        "source": source(&definition.source),
        "seed": {"transport": definition.seed.transport, "files": served(&files)},
        "machine": machine(plan),
        "steps": steps.map(|step| without(step, &["timeout", "retries", "when"])).collect::<Vec<_>>(),
        "checks": checks.map(|check| without(check, &["timeout", "when"])).collect::<Vec<_>>(),
        "controls": controls(plan),
        "seal": definition.seal,
        "prove": {"ssh_port": definition.prove.ssh_port, "contracts": contracts(plan)},
        "variables": variables(plan, &files),
        "secrets": secrets(plan),
        "files": contents(plan, &files),
    })
}

/// The controls that are applied, whose files are among the contents, and what they are told.
fn controls(plan: &Plan) -> Json {
    if !plan.active_steps().any(|step| step.name == HARDENING_STEP) {
        return Json::Null;
    }
    let applied = plan.controls.iter().filter(|it| it.state.is_on()).map(|it| it.control.name.as_str());
    json!({"applied": applied.collect::<Vec<_>>(), "env": plan.shown.hardening.env})
}

/// What a build holds the template to. Where that is tried in a network makes no difference.
fn contracts(plan: &Plan) -> Vec<Json> {
    let apart = ["address", "other_address", "gateway", "dns", "description"];
    plan.build_contracts().iter().map(|contract| without(contract, &apart)).collect()
}

/// The ISO is its digest, or who must have signed for which name.
fn source(source: &Source) -> Json {
    if let Some(sha256) = &source.sha256 {
        return json!({"sha256": sha256.to_ascii_lowercase()});
    }
    let checksums = source.checksums.as_ref();
    let last_part = source.iso.rsplit('/').next().unwrap_or_default();
    json!({
        "fingerprint": checksums.map(|checksums| checksums.fingerprint.to_ascii_lowercase()),
        "name": checksums.and_then(|checksums| checksums.name.as_deref()).unwrap_or(last_part),
    })
}

fn served<'a>(files: &[&'a FileReference]) -> BTreeMap<&'a str, &'a str> {
    let served =
        files.iter().filter_map(|file| file.served_as.as_deref().map(|name| (name, file.path.as_str())));
    served.collect()
}

fn machine(plan: &Plan) -> Json {
    let mut machine = without(&plan.shown.machine, &["tags"]);
    if let Some(cdroms) = machine.get_mut("cdrom").and_then(Json::as_array_mut) {
        for cdrom in cdroms {
            let sha256 = cdrom["sha256"].as_str().unwrap_or_default().to_ascii_lowercase();
            *cdrom = json!({"sha256": sha256});
        }
    }
    machine
}

/// The values of the variables that the files use.
fn variables<'a>(plan: &'a Plan, files: &[&FileReference]) -> BTreeMap<&'a str, &'a Json> {
    let uses: Vec<_> = files.iter().filter_map(|file| file.uses.as_ref()).collect();
    let all = uses.iter().any(|uses| uses.all);
    let values = plan.variables.iter().filter_map(|(name, variable)| match &variable.value {
        VariableValue::Plain(value) => Some((name, value)),
        VariableValue::Secret(_) => None,
    });
    values
        .filter(|(name, _)| all || uses.iter().any(|uses| uses.names.contains(*name)))
        .map(|(name, value)| (name.as_str(), value))
        .collect()
}

fn secrets(plan: &Plan) -> BTreeMap<&str, bool> {
    let secrets = plan.variables.iter().filter_map(|(name, variable)| match &variable.value {
        VariableValue::Secret(secret) => Some((name.as_str(), secret.is_set())),
        VariableValue::Plain(_) => None,
    });
    secrets.collect()
}

fn contents<'a>(plan: &'a Plan, files: &[&FileReference]) -> BTreeMap<&'a str, Option<&'a str>> {
    let is_file = |input: &&Input| !matches!(input.role, InputRole::Iso | InputRole::Cdrom);
    let used = |input: &&Input| files.iter().any(|file| file.path == input.location);
    let inputs = plan.inputs.iter().filter(is_file).filter(used);
    inputs.map(|input| (input.location.as_str(), input.sha256.as_deref())).collect()
}

/// Returns a value as JSON without some keys, wherever they stand.
fn without<T: Serialize>(value: &T, keys: &[&str]) -> Json {
    let mut json = serde_json::to_value(value).expect("the model is JSON");
    remove_keys(&mut json, keys);
    json
}

fn remove_keys(json: &mut Json, keys: &[&str]) {
    let Json::Object(entries) = json else { return };
    entries.retain(|key, _| !keys.contains(&key.as_str()));
    for (key, value) in entries.iter_mut() {
        // A user's own names are not ours: `env` may have a `timeout`.
        if !matches!(key.as_str(), "env" | "sshd" | "sysctl") {
            remove_keys(value, keys);
        }
    }
}

/// Writes JSON in the one way that equal values have: keys sorted, no white space.
fn canonical(value: &Json, out: &mut String) {
    match value {
        Json::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                canonical(item, out);
            }
            out.push(']');
        }
        Json::Object(entries) => canonical_object(entries, out),
        scalar => write!(out, "{scalar}").expect("writing to a string succeeds"),
    }
}

fn canonical_object(entries: &Map<String, Json>, out: &mut String) {
    let sorted: BTreeMap<&String, &Json> = entries.iter().collect();
    out.push('{');
    for (index, (key, value)) in sorted.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write!(out, "{}:", Json::from(key.as_str())).expect("writing to a string succeeds");
        canonical(value, out);
    }
    out.push('}');
}

/// Returns a file's SHA-256 and size.
pub(super) fn of_file(path: &Path) -> std::io::Result<(String, u64)> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut size = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((hex_digits(&hasher.finalize()), size));
        }
        hasher.update(&buffer[..read]);
        size += read as u64;
    }
}

/// Returns the SHA-256 of bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    hex_digits(&Sha256::digest(bytes))
}

fn hex_digits(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        write!(out, "{byte:02x}").expect("writing to a string succeeds");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_json_does_not_depend_on_the_order_of_keys() {
        let mut out = String::new();
        canonical(&json!({"b": [1, {"z": null, "a": "x\"y"}], "a": true}), &mut out);
        assert_eq!(out, r#"{"a":true,"b":[1,{"a":"x\"y","z":null}]}"#);
    }

    #[test]
    fn digests_are_sha256() {
        assert_eq!(hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn users_keys_are_kept() {
        let step = json!({"timeout": 1, "shell": {"env": {"timeout": "2"}, "timeout": 3}});
        assert_eq!(without(&step, &["timeout"]), json!({"shell": {"env": {"timeout": "2"}}}));
    }
}
