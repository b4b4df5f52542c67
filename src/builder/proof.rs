//! Proves a finished disk: clones of it boot as Proxmox's clones do and are looked at from inside
//! and outside.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};

use super::clone::{self, CloneSeed};
use super::host::{Host, Launch};
use super::outside::{self, Key, Login, Method, Target};
use crate::artifact::CheckResult;
use crate::check;
use crate::communicator::socket_agent::SocketAgent;
use crate::communicator::{Communicator, CommunicatorError, Exec};
use crate::definition::{CheckAt, DiskFormat};
use crate::event::Worker;
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::plan::Plan;
use crate::qemu::spec::{Boot, Forward, OnReset, UserNet};
use crate::qemu::{Machine, img};
use crate::run::Step;
use crate::seed;

/// Who a machine is: what must differ between a template's guest and each of its clones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The content of `/etc/machine-id`.
    pub machine_id: String,
    /// The public ed25519 host key, `ssh-ed25519 AAAA…`; empty where there is none.
    pub host_key: String,
}

/// Reads a guest's identity.
///
/// # Errors
/// When the guest cannot be asked.
pub async fn identity(guest: &dyn Communicator) -> Result<Identity, CommunicatorError> {
    let script = "cat /etc/machine-id; cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub 2>/dev/null || echo";
    let text = guest.exec(&Exec::shell(script)).await?.text();
    let mut lines = text.lines().map(|line| line.trim().to_owned());
    Ok(Identity { machine_id: lines.next().unwrap_or_default(), host_key: lines.next().unwrap_or_default() })
}

/// What is proven.
#[derive(Debug)]
pub struct Subject<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// This host.
    pub host: &'a Host,
    /// The finished disks, each with the size that a guest sees in bytes; the system's first.
    pub disks: Vec<(PathBuf, u64)>,
    /// Their format.
    pub format: DiskFormat,
    /// The build's guest, before it was sealed.
    pub built: &'a Identity,
    /// A folder for the clone's logs.
    pub logs: PathBuf,
    /// A folder for the clone's disk, seed and key; gone when the run ends.
    pub work: PathBuf,
}

/// How a clone gets its seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drive {
    /// Proxmox's default for Linux guests.
    NoCloud,
    /// On demand.
    ConfigDrive,
}

impl Drive {
    /// Returns where a check's result says it was made.
    #[must_use]
    pub const fn at(self) -> &'static str {
        match self {
            Self::NoCloud => "proof",
            Self::ConfigDrive => "config-drive",
        }
    }
}

/// Boots a clone, looks at it and ends it. The results are returned whether or not they hold.
///
/// # Errors
/// When the clone does not come up or cannot be asked.
pub async fn prove(
    subject: &Subject<'_>,
    drive: Drive,
    step: &Step<'_>,
) -> Result<Vec<CheckResult>, Failure> {
    std::fs::create_dir_all(&subject.work).context("making the clone's folder").kind(Kind::Infrastructure)?;
    let key = outside::make_key(&subject.work).await.kind(Kind::Infrastructure)?;
    let seed = clone_seed(subject, &key, drive)?;
    step.worker(Worker::Qemu);
    let machine = launch(subject, drive, &seed).await?;
    step.worker(Worker::Guest);
    let result = look(subject, drive, step, &machine, &seed, &key).await;
    step.worker(Worker::Qemu);
    if !result.as_ref().is_ok_and(|results| results.iter().all(|result| result.passed)) {
        // Evidence, as far as it can be had.
        let _taken = machine.screenshot(&step.run().path(format!("{}.png", drive.at()))).await;
    }
    machine.kill().await;
    result
}

async fn look(
    subject: &Subject<'_>,
    drive: Drive,
    step: &Step<'_>,
    machine: &Machine,
    seed: &CloneSeed,
    key: &Key,
) -> Result<Vec<CheckResult>, Failure> {
    let deadline = subject.host.scaled(subject.plan.definition.timeouts.boot.duration());
    let agent = SocketAgent::new(machine.agent_socket(), machine.state());
    let started = tokio::time::Instant::now();
    agent.wait_until_ready(deadline).await.kind(super::silence(machine))?;
    step.note(format!("the clone's agent answers after {}", crate::event::human_duration(started.elapsed())));
    let mut findings = Findings { at: drive.at(), step, list: Vec::new() };
    let cloud_init = wait_for_cloud_init(&agent, deadline).await.kind(Kind::Guest)?;
    step.note(format!(
        "the clone's first boot has ended after {}",
        crate::event::human_duration(started.elapsed())
    ));
    findings.add(
        "cloud-init ends its first boot without error",
        matches!(cloud_init.0, 0 | 2),
        &cloud_init.1,
    );
    match drive {
        Drive::NoCloud => {
            inside(subject, seed, &agent, &mut findings).await.kind(Kind::Guest)?;
            from_outside(subject, machine, &agent, key, &mut findings).await?;
            template_checks(subject, &agent, &mut findings).await?;
        }
        Drive::ConfigDrive => config_drive(subject, seed, &agent, &mut findings).await.kind(Kind::Guest)?,
    }
    let found: Vec<_> = findings.list.iter().map(finding).collect();
    super::write_findings(step.run(), drive.at(), &found).kind(Kind::Infrastructure)?;
    Ok(findings.list)
}

fn finding(result: &CheckResult) -> check::Finding {
    check::Finding { name: result.name.clone(), passed: result.passed, detail: result.detail.clone() }
}

struct Findings<'a> {
    at: &'static str,
    step: &'a Step<'a>,
    list: Vec<CheckResult>,
}

impl Findings<'_> {
    fn add(&mut self, name: &str, passed: bool, detail: &str) {
        self.step.check(name, passed, detail);
        self.list.push(CheckResult {
            at: self.at.to_owned(),
            name: name.to_owned(),
            passed,
            detail: detail.to_owned(),
        });
    }
}

fn clone_seed(subject: &Subject<'_>, key: &Key, drive: Drive) -> Result<CloneSeed, Failure> {
    let proof = &subject.plan.definition.proof;
    let (address, prefix) = clone::parse_address(&proof.address).kind(Kind::Definition)?;
    let gateway: Ipv4Addr = proof
        .gateway
        .parse()
        .with_context(|| format!("reading proof.gateway `{}`", proof.gateway))
        .kind(Kind::Definition)?;
    Ok(CloneSeed {
        hostname: match drive {
            Drive::NoCloud => proof.hostname.clone(),
            Drive::ConfigDrive => format!("{}-2", proof.hostname),
        },
        public_key: key.public.clone(),
        // Proxmox's own prefix for the MAC addresses it makes up.
        mac: "bc:24:11:f0:f0:01".to_owned(),
        address,
        prefix,
        gateway,
    })
}

async fn launch(subject: &Subject<'_>, drive: Drive, seed: &CloneSeed) -> Result<Machine, Failure> {
    let proof = &subject.plan.definition.proof;
    let mut disks = Vec::new();
    for (index, (disk, bytes)) in subject.disks.iter().enumerate() {
        // Only the system's disk is larger, as Proxmox users have it.
        let grown = (index == 0).then(|| bytes + u64::from(proof.grow_gib) * (1 << 30));
        let overlay = subject.work.join(format!("clone{index}.qcow2"));
        img::create_overlay(disk, subject.format, &overlay, grown).await.kind(Kind::Infrastructure)?;
        disks.push((overlay, DiskFormat::Qcow2));
    }
    let volume = match drive {
        Drive::NoCloud => seed::nocloud_volume(&seed.user_data(), &seed.meta_data(), &seed.network_config()),
        Drive::ConfigDrive => {
            seed::config_drive_volume(&seed.user_data(), &seed.instance(), &seed.interfaces())
        }
    };
    let volume = volume.kind(Kind::Unexpected)?;
    let cdrom = subject.work.join("cloudinit.iso");
    std::fs::write(&cdrom, volume)
        .context("writing the clone's cloud-init drive")
        .kind(Kind::Infrastructure)?;
    let network = UserNet {
        net: Some(clone::network(seed.address, seed.prefix)),
        // Nobody gets an address that was not asked for: it would hide a static one not taken.
        dhcp_start: None,
        forwards: vec![Forward { address: Some(seed.address), port: proof.ssh_port }],
        restrict: false,
    };
    let mut machine = subject.plan.machine.clone();
    if let Some(nic) = machine.nics.first_mut() {
        nic.mac = Some(seed.mac.clone());
    }
    let spec = subject
        .host
        .spec(
            &machine,
            Launch {
                folder: &subject.logs,
                disks,
                cdroms: vec![cdrom],
                network,
                serial: None,
                boot: Boot::Disk,
                on_reset: OnReset::Restart,
            },
        )
        .kind(Kind::Infrastructure)?;
    Machine::launch(&spec, &subject.logs).await.kind(Kind::Infrastructure)
}

/// Waits for cloud-init's end and returns its exit code (0 done, 2 done with deprecations, 1 error)
/// with what it says.
///
/// # Errors
/// When the guest cannot be asked, or cloud-init does not end in time.
pub async fn wait_for_cloud_init(
    guest: &dyn Communicator,
    deadline: Duration,
) -> Result<(i32, String), CommunicatorError> {
    let script = "cloud-init status --wait >/dev/null 2>&1; code=$?; \
                  cloud-init status --long 2>&1 | tr -s '\\n.' ' '; exit $code";
    let output = guest.exec(&Exec::shell(script).timeout(deadline)).await?;
    Ok((output.code.unwrap_or(-1), output.text()))
}

async fn inside(
    subject: &Subject<'_>,
    seed: &CloneSeed,
    agent: &SocketAgent,
    findings: &mut Findings<'_>,
) -> Result<(), CommunicatorError> {
    let script = "hostname; ip -4 -o addr show scope global | awk '{print $4}' | tr '\\n' ' '; echo; \
                  df -B1 --output=size / | tail -n 1; findmnt -no SOURCE,FSTYPE / | tr -s ' '";
    let text = agent.exec(&Exec::shell(script)).await?.text();
    let mut lines = text.lines().map(str::trim);
    let mut next = || lines.next().unwrap_or_default().to_owned();
    let (hostname, addresses, size, root) = (next(), next(), next(), next());
    findings.add("the clone took its hostname", hostname == seed.hostname, &format!("it is {hostname}"));
    let wanted = format!("{}/{}", seed.address, seed.prefix);
    findings.add(
        "the clone took its static address and no other",
        addresses == wanted,
        &format!("it has {addresses}"),
    );
    let size: u64 = size.parse().unwrap_or(0);
    let built = subject.disks.first().map_or(0, |(_, bytes)| *bytes);
    let grown = built + u64::from(subject.plan.definition.proof.grow_gib) * (1 << 30);
    findings.add(
        "the root file system grew to the clone's disk",
        // What ext4 keeps for itself is about two percent.
        size > built && size as f64 > 0.93 * grown as f64,
        &format!("{root} has {size} bytes on a disk of {grown}"),
    );
    let clone = identity(agent).await?;
    let real = clone.machine_id.len() == 32 && clone.machine_id.bytes().all(|it| it.is_ascii_hexdigit());
    findings.add(
        "the clone has a machine-id of its own",
        real && clone.machine_id != subject.built.machine_id,
        &clone.machine_id,
    );
    findings.add(
        "the clone has a host key of its own",
        clone.host_key.starts_with("ssh-ed25519 ") && clone.host_key != subject.built.host_key,
        &clone.host_key,
    );
    Ok(())
}

async fn from_outside(
    subject: &Subject<'_>,
    machine: &Machine,
    agent: &SocketAgent,
    key: &Key,
    findings: &mut Findings<'_>,
) -> Result<(), Failure> {
    let (user, guest_port) =
        (&subject.plan.definition.template.cloud_init.user, subject.plan.definition.proof.ssh_port);
    let port = machine.forwarded_port(guest_port).await.kind(Kind::Infrastructure)?;
    let host_key = identity(agent).await.kind(Kind::Guest)?.host_key;
    let target = Target { port, host_key, folder: subject.work.clone() };
    let login =
        target.login(user, key, Method::Key, "id -un && sudo -n id -un").await.kind(Kind::Infrastructure)?;
    findings.add(
        &format!("{user} logs in by key on port {guest_port} and has sudo"),
        login == Login::Accepted(format!("{user}\nroot")),
        &describe(&login),
    );
    let refused = Login::Refused(vec!["publickey".to_owned()]);
    let login = target.login(user, key, Method::Password, "true").await.kind(Kind::Infrastructure)?;
    findings.add("password logins are refused", login == refused, &describe(&login));
    let login = target.login("root", key, Method::Key, "true").await.kind(Kind::Infrastructure)?;
    findings.add("root logins are refused", login == refused, &describe(&login));
    Ok(())
}

fn describe(login: &Login) -> String {
    match login {
        Login::Accepted(output) => format!("logged in: {}", output.replace('\n', ", ")),
        Login::Refused(methods) => format!("refused; the server offers {}", methods.join(", ")),
        Login::Failed(reason) => reason.clone(),
    }
}

async fn template_checks(
    subject: &Subject<'_>,
    agent: &SocketAgent,
    findings: &mut Findings<'_>,
) -> Result<(), Failure> {
    let checks = super::checks_at(subject.plan, subject.host, CheckAt::Proof);
    let timeout = subject.host.scaled(subject.plan.definition.timeouts.check.duration());
    let found =
        check::run(&checks.iter().collect::<Vec<_>>(), agent, timeout, &|_| ()).await.kind(Kind::Guest)?;
    for finding in found {
        findings.add(&finding.name, finding.passed, &finding.detail);
    }
    Ok(())
}

async fn config_drive(
    subject: &Subject<'_>,
    seed: &CloneSeed,
    agent: &SocketAgent,
    findings: &mut Findings<'_>,
) -> Result<(), CommunicatorError> {
    let user = &subject.plan.definition.template.cloud_init.user;
    let script = "hostname; grep -o 'DataSource[A-Za-z]*' /run/cloud-init/result.json | head -n 1; \
                  cat \"$(getent passwd \"$0\" | cut -d: -f6)/.ssh/authorized_keys\"";
    let command = Exec::new(["/bin/sh", "-c", script, user.as_str()]);
    let text = agent.exec(&command).await?.text();
    let mut lines = text.lines().map(str::trim);
    let (hostname, source) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let source_is = source == "DataSourceConfigDrive";
    findings.add("the ConfigDrive volume is accepted", source_is, &format!("the data source is {source}"));
    findings.add("its hostname is taken", hostname == seed.hostname, &format!("it is {hostname}"));
    let has_key = lines.any(|line| line == seed.public_key);
    findings.add(
        "its key is given to the user",
        has_key,
        if has_key { "it is there" } else { "it is missing" },
    );
    Ok(())
}

/// Turns results that do not hold into the failure that the run ends with.
///
/// # Errors
/// A failure of kind `Check` that names them.
pub fn judge(results: &[CheckResult], what: &str) -> Result<(), Failure> {
    let failed: Vec<_> = results.iter().filter(|result| !result.passed).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let list: Vec<_> = failed.iter().map(|result| format!("{} ({})", result.name, result.detail)).collect();
    Err(Failure::new(
        Kind::Check,
        anyhow!("{} of {} {what} do not hold: {}", failed.len(), results.len(), list.join("; ")),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_hold_is_named() {
        let result = |name: &str, passed| CheckResult {
            at: "proof".into(),
            name: name.into(),
            passed,
            detail: "found x".into(),
        };
        assert!(judge(&[result("a", true)], "checks").is_ok());
        let failure = judge(&[result("a", true), result("b", false)], "checks").unwrap_err();
        assert_eq!(failure.kind, Kind::Check);
        assert_eq!(failure.to_string(), "1 of 2 checks do not hold: b (found x)");
    }
}
