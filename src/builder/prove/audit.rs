//! What other programs say of a clone: ssh-audit and Ansible from here, Lynis in it.
//!
//! None of them is part of forge: what is not installed here is told as not proven, and `forge doctor` says how to
//! get it. Each leaves a figure and its remarks in the manifest.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use tokio::process::Command;

use super::look::Findings;
use super::outside::Key;
use super::seed::CloneSeed;
use super::{Reached, Running};
use crate::artifact::AuditResult;
use crate::builder::Patience;
use crate::communicator::{Communicator, Exec, PUT_FILE_MAX};
use crate::definition::Audit;
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::plan::Plan;

/// How long an audit from here may take.
const OUTSIDE: Duration = Duration::from_mins(2);

/// How long Lynis may take in a guest that is not emulated.
const LYNIS: Duration = Duration::from_mins(5);

/// Where Debian's package has Lynis.
const LYNIS_PARTS: [&str; 2] = ["/usr/share/lynis", "/etc/lynis"];

/// Where it works in the clone.
const LYNIS_FOLDER: &str = "/run/forge-lynis";

/// A clone that is looked at.
pub(super) struct Subject<'a> {
    pub(super) plan: &'a Plan,
    pub(super) patience: Patience,
    pub(super) key: &'a Key,
    pub(super) clone: &'a dyn Running,
    pub(super) seed: &'a CloneSeed,
}

/// Why an audit tells nothing.
enum Nothing {
    /// It is not installed here, or cannot reach the clone.
    NotProven(String),
    /// It was there and failed.
    Failed(Failure),
}

impl From<Failure> for Nothing {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Runs an audit and returns what it found; nothing where it could not be made, which is told.
///
/// # Errors
/// When the clone cannot be asked, or the program fails.
pub(super) async fn run(
    audit: Audit,
    subject: &Subject<'_>,
    findings: &mut Findings<'_>,
) -> Result<Option<AuditResult>, Failure> {
    let name = promise(audit, subject.plan);
    let found = match audit {
        Audit::SshAudit => subject.ssh_audit().await,
        Audit::Lynis => subject.lynis().await,
        Audit::Ansible => subject.ansible().await,
    };
    match found {
        Ok(found) => {
            findings.add(&name, found.passed, &words(audit, &found));
            Ok(Some(found))
        }
        Err(Nothing::NotProven(reason)) => {
            findings.not_proven(&[&name], &reason);
            Ok(None)
        }
        Err(Nothing::Failed(failure)) => Err(failure),
    }
}

/// Returns what an audit must find.
fn promise(audit: Audit, plan: &Plan) -> String {
    let thresholds = &plan.definition.prove.thresholds;
    match audit {
        Audit::SshAudit => match thresholds.ssh_audit_failures {
            0 => "ssh-audit finds no failure".to_owned(),
            most => format!("ssh-audit finds {most} failures at the most"),
        },
        Audit::Lynis => format!("Lynis' hardening index is at least {}", thresholds.lynis_index),
        Audit::Ansible => "Ansible reaches the clone and becomes root".to_owned(),
    }
}

fn words(audit: Audit, found: &AuditResult) -> String {
    let remarks = found.remarks.len();
    match audit {
        Audit::SshAudit => {
            format!("{} {}: {} failures, {remarks} remarks", found.audit, found.version, found.figure)
        }
        Audit::Lynis => format!("{} {}: {}, {remarks} suggestions", found.audit, found.version, found.figure),
        Audit::Ansible => format!("{} {}: {}", found.audit, found.version, found.remarks.join(" ")),
    }
}

impl Subject<'_> {
    async fn reached(&self) -> Result<Reached, Failure> {
        self.clone.reach(self.plan.definition.prove.ssh_port, self.seed).await
    }

    async fn ssh_audit(&self) -> Result<AuditResult, Nothing> {
        let address = self.reached().await?.address;
        let version = version_of("ssh-audit", &["--help"]).await?;
        // Measuring how many connections a server bears says nothing about its settings.
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        let output =
            local("ssh-audit", &["--json", "--skip-rate-test", "--timeout", "30", "-p", &port, &host])
                .await?;
        let report: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("reading what ssh-audit says of {address}: {}", last_line(&output)))
            .kind(Kind::Infrastructure)?;
        let (failures, remarks) = read_ssh_audit(&report);
        let passed = failures <= self.plan.definition.prove.thresholds.ssh_audit_failures;
        Ok(result(Audit::SshAudit, version, failures, passed, remarks))
    }

    /// Pings the clone as Ansible does, with a key in a file that is gone afterwards.
    async fn ansible(&self) -> Result<AuditResult, Nothing> {
        let address = self.reached().await?.address;
        let version = version_of("ansible", &["--version"]).await?;
        let work = tempfile::tempdir().context("making a folder for Ansible").kind(Kind::Infrastructure)?;
        let key = work.path().join("key");
        self.key.write(&key).kind(Kind::Infrastructure)?;
        let (user, home) =
            (&self.plan.definition.template.cloud_init.user, work.path().display().to_string());
        let inventory = format!(
            "clone ansible_host={} ansible_port={} ansible_user={user} ansible_ssh_private_key_file={}\n",
            address.ip(),
            address.port(),
            key.display()
        );
        let hosts = work.path().join("hosts");
        std::fs::write(&hosts, inventory)
            .context("writing Ansible's inventory")
            .kind(Kind::Infrastructure)?;
        // Nobody's settings but these.
        let settings = work.path().join("ansible.cfg");
        std::fs::write(&settings, "").context("writing Ansible's settings").kind(Kind::Infrastructure)?;
        let settings = settings.display().to_string();
        let mut command = Command::new("ansible");
        command.args(["all", "--module-name", "ping", "--become", "--one-line", "--inventory"]).arg(&hosts);
        let timeout = (30 * self.patience.0).to_string();
        for (name, value) in [
            ("ANSIBLE_HOME", home.as_str()),
            ("ANSIBLE_LOCAL_TEMP", &home),
            ("ANSIBLE_HOST_KEY_CHECKING", "False"),
            ("ANSIBLE_NOCOLOR", "1"),
            ("ANSIBLE_TIMEOUT", &timeout),
            ("ANSIBLE_SSH_ARGS", "-o ControlMaster=no -o UserKnownHostsFile=/dev/null -o IdentitiesOnly=yes"),
            ("ANSIBLE_CONFIG", &settings),
        ] {
            command.env(name, value);
        }
        let output = finish(command, OUTSIDE * self.patience.0).await?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let passed = output.status.success() && said.contains("SUCCESS") && said.contains("pong");
        let said = if said.is_empty() { last_line(&output) } else { said };
        Ok(result(Audit::Ansible, version, u32::from(!passed), passed, vec![said]))
    }

    /// Brings Lynis into the clone's memory, runs it there, and takes it away again.
    async fn lynis(&self) -> Result<AuditResult, Nothing> {
        let missing = LYNIS_PARTS.iter().find(|part| !Path::new(part).exists());
        if let Some(missing) = missing {
            return Err(Nothing::NotProven(format!("Lynis is not installed here: there is no {missing}")));
        }
        let tree = pack_lynis().await?;
        let guest = self.clone.agent();
        exec(guest, Exec::shell(format!("rm -rf {LYNIS_FOLDER}; mkdir -m 0700 {LYNIS_FOLDER}"))).await?;
        let archive = format!("{LYNIS_FOLDER}/tree");
        for piece in tree.chunks(PUT_FILE_MAX) {
            let part = format!("{LYNIS_FOLDER}/part");
            guest.put_file(&part, piece).await.kind(Kind::Guest)?;
            exec(guest, Exec::shell(format!("cat {part} >>{archive} && rm {part}"))).await?;
        }
        let script = format!(
            "cd {LYNIS_FOLDER} && tar xzf tree && cd usr/share/lynis && chown -R root:root {LYNIS_FOLDER} && \
             sh ./lynis audit system --quick --no-colors --quiet --profile {LYNIS_FOLDER}/etc/lynis/default.prf \
             --logfile {LYNIS_FOLDER}/log --report-file {LYNIS_FOLDER}/report >{LYNIS_FOLDER}/out 2>&1; \
             cat {LYNIS_FOLDER}/report 2>/dev/null || tail -n 5 {LYNIS_FOLDER}/out; cd /; rm -rf {LYNIS_FOLDER}"
        );
        let report = exec(guest, Exec::shell(script).timeout(self.patience.scaled(LYNIS))).await?;
        let (index, version, remarks) = read_lynis(&report)
            .with_context(|| format!("reading Lynis' report: {report}"))
            .kind(Kind::Guest)?;
        let passed = index >= self.plan.definition.prove.thresholds.lynis_index;
        Ok(result(Audit::Lynis, version, index, passed, remarks))
    }
}

fn result(audit: Audit, version: String, figure: u32, passed: bool, remarks: Vec<String>) -> AuditResult {
    let audit = audit.as_str().to_owned();
    AuditResult { audit, contract: String::new(), version, figure, passed, remarks }
}

async fn exec(guest: &dyn Communicator, command: Exec) -> Result<String, Failure> {
    guest.exec(&command).await.map(|output| output.text()).kind(Kind::Guest)
}

/// Packs Debian's Lynis as it is installed here.
async fn pack_lynis() -> Result<Vec<u8>, Failure> {
    let mut command = Command::new("tar");
    command.args(["cz", "--directory", "/"]);
    command.args(LYNIS_PARTS.map(|part| part.trim_start_matches('/')));
    command.arg("--transform=s,^usr/sbin/lynis,usr/share/lynis/lynis,").arg("usr/sbin/lynis");
    let output = finish(command, OUTSIDE).await.map_err(|nothing| match nothing {
        Nothing::NotProven(reason) => Failure::new(Kind::Infrastructure, anyhow::anyhow!(reason)),
        Nothing::Failed(failure) => failure,
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let error = anyhow::anyhow!("packing Lynis: {}", last_line(&output));
    Err(Failure::new(Kind::Infrastructure, error))
}

/// Returns the first version number that a program tells.
async fn version_of(program: &str, arguments: &[&str]) -> Result<String, Nothing> {
    let output = local(program, arguments).await?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let pattern = regex::Regex::new(r"[0-9]+\.[0-9]+(\.[0-9]+)?").expect("the pattern compiles");
    Ok(pattern.find(&text).map_or("unknown", |found| found.as_str()).to_owned())
}

/// Runs a program of this machine.
async fn local(program: &str, arguments: &[&str]) -> Result<Output, Nothing> {
    let mut command = Command::new(program);
    command.args(arguments);
    finish(command, OUTSIDE).await
}

async fn finish(mut command: Command, limit: Duration) -> Result<Output, Nothing> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(limit, command.output()).await {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(Nothing::NotProven(format!("{program} is not installed here")))
        }
        Ok(Err(error)) => {
            let error = anyhow::Error::from(error).context(format!("starting {program}"));
            Err(Nothing::Failed(Failure::new(Kind::Infrastructure, error)))
        }
        Err(_) => {
            let after = crate::event::human_duration(limit);
            let error = anyhow::anyhow!("{program} did not end within {after}");
            Err(Nothing::Failed(Failure::new(Kind::Deadline, error)))
        }
    }
}

fn last_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing").trim().to_owned()
}

/// Returns how many failures ssh-audit tells, and those and its warnings, a line each.
fn read_ssh_audit(report: &Value) -> (u32, Vec<String>) {
    let (mut failures, mut remarks) = (0, Vec::new());
    for kind in ["kex", "key", "enc", "mac"] {
        for algorithm in report[kind].as_array().into_iter().flatten() {
            let name = algorithm["algorithm"].as_str().unwrap_or_default();
            for (level, word) in [("fail", "failure"), ("warn", "warning")] {
                for note in
                    algorithm["notes"][level].as_array().into_iter().flatten().filter_map(Value::as_str)
                {
                    failures += u32::from(level == "fail");
                    remarks.push(format!("{word}: {kind} {name}: {note}"));
                }
            }
        }
    }
    (failures, remarks)
}

/// Returns Lynis' index, its version and its suggestions from its report.
fn read_lynis(report: &str) -> Option<(u32, String, Vec<String>)> {
    let value = |key: &str| report.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let index = value("hardening_index")?.trim().parse().ok()?;
    let version = value("lynis_version").unwrap_or("unknown").trim().to_owned();
    let remarks = report.lines().filter_map(|line| {
        let text = line.strip_prefix("suggestion[]=").or_else(|| line.strip_prefix("warning[]="))?;
        let mut parts = text.split('|').filter(|part| !part.is_empty() && *part != "-");
        Some(format!("{}: {}", parts.next()?, parts.next()?))
    });
    Some((index, version, remarks.collect()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn failures_of_ssh_audit_are_counted_and_warnings_remembered() {
        let report = json!({
            "kex": [
                {"algorithm": "sntrup761x25519-sha512", "notes": {"info": ["available since 8.5"]}},
                {"algorithm": "ecdh-sha2-nistp256", "notes": {"fail": ["bad curve", "worse curve"]}}
            ],
            "key": [{"algorithm": "ssh-ed25519", "notes": {}}],
            "mac": [{"algorithm": "hmac-sha2-256", "notes": {"warn": ["encrypt-and-mac"]}}]
        });
        let (failures, remarks) = read_ssh_audit(&report);
        assert_eq!(failures, 2);
        assert_eq!(remarks[0], "failure: kex ecdh-sha2-nistp256: bad curve");
        assert_eq!(remarks[2], "warning: mac hmac-sha2-256: encrypt-and-mac");
        assert_eq!(read_ssh_audit(&json!({})), (0, Vec::new()));
    }

    #[test]
    fn the_index_and_the_suggestions_of_lynis_are_read() {
        let report = "lynis_version=3.0.8\nhardening_index=75\n\
                      suggestion[]=BOOT-5122|Set a password on GRUB boot loader|-|-|\nwarning[]=X-1|Look||\n";
        let (index, version, remarks) = read_lynis(report).unwrap();
        assert_eq!((index, version.as_str()), (75, "3.0.8"));
        assert_eq!(remarks, ["BOOT-5122: Set a password on GRUB boot loader", "X-1: Look"]);
        assert!(read_lynis("sh: 1: ./lynis: not found").is_none());
    }
}
