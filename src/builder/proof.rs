//! Proves a template: its clone is looked at from inside and outside, on whatever machine it runs.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::time::Instant;

use super::Patience;
use super::clone::{self, CloneSeed};
use super::outside::{self, Key, Login, Method, Target};
use crate::artifact::CheckResult;
use crate::check::{self, Finding};
use crate::communicator::{Communicator, CommunicatorError, Exec};
use crate::definition::CheckAt;
use crate::event::human_duration;
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::plan::Plan;
use crate::run::{Run, Step};

const NO_PASSWORDS: &str = "password logins are refused";
const NO_ROOT: &str = "root logins are refused";
const CONFIG_DRIVE: &str = "the ConfigDrive volume is accepted";
const CONFIG_DRIVE_HOSTNAME: &str = "its hostname is taken";
const CONFIG_DRIVE_KEY: &str = "its key is given to the user";

const EMPTY_VENDOR_DATA: &str = "the volume that the hypervisor made has an empty vendor_data.json, for which \
                                 cloud-init refuses it whole; a local build proves it with a good one";

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

/// Returns what a clone is told at its first boot.
pub(super) fn clone_seed(plan: &Plan, key: &Key, mac: &str, drive: Drive) -> Result<CloneSeed, Failure> {
    let proof = &plan.definition.proof;
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
        mac: mac.to_owned(),
        address,
        prefix,
        gateway,
    })
}

/// A clone whose guest agent answers, and what it must be.
pub(super) struct Subject<'a> {
    pub(super) plan: &'a Plan,
    pub(super) patience: Patience,
    /// The build's guest, before it was sealed.
    pub(super) built: &'a Identity,
    /// The size of the template's system disk in bytes; the clone's is larger.
    pub(super) disk_size: u64,
    /// What the clone was told at its first boot, and how.
    pub(super) seed: &'a CloneSeed,
    pub(super) drive: Drive,
    /// The key that its user was given.
    pub(super) key: &'a Key,
    pub(super) communicator: &'a dyn Communicator,
    /// Where its SSH server is reached.
    pub(super) ssh: SocketAddr,
    /// Whether packets from here surely get there; else it is tried, and what is not reached, or is another
    /// machine's, is told as not proven.
    pub(super) is_routed: bool,
}

impl Subject<'_> {
    /// Waits for the clone's first boot, begun at `started`, to end and looks at the clone. The
    /// results are returned whether or not they hold.
    ///
    /// # Errors
    /// When the clone cannot be asked.
    pub(super) async fn look(&self, step: &Step<'_>, started: Instant) -> Result<Vec<CheckResult>, Failure> {
        let deadline = self.patience.scaled(self.plan.definition.timeouts.boot.duration());
        let mut findings = Findings { step, list: Vec::new(), not_proven: Vec::new() };
        if self.drive == Drive::ConfigDrive && self.has_empty_vendor_data().await.kind(Kind::Guest)? {
            findings.not_proven(&[CONFIG_DRIVE, CONFIG_DRIVE_HOSTNAME, CONFIG_DRIVE_KEY], EMPTY_VENDOR_DATA);
            return findings.into_results(step.run(), self.drive);
        }
        let cloud_init = wait_for_cloud_init(self.communicator, deadline).await.kind(Kind::Guest)?;
        step.note(format!("the clone's first boot has ended after {}", human_duration(started.elapsed())));
        findings.add(
            "cloud-init ends its first boot without error",
            matches!(cloud_init.0, 0 | 2),
            &cloud_init.1,
        );
        match self.drive {
            Drive::NoCloud => {
                self.inside(&mut findings).await.kind(Kind::Guest)?;
                self.over_ssh(&mut findings).await?;
                self.template_checks(&mut findings).await?;
            }
            Drive::ConfigDrive => self.config_drive(&mut findings).await.kind(Kind::Guest)?,
        }
        findings.into_results(step.run(), self.drive)
    }

    async fn inside(&self, findings: &mut Findings<'_>) -> Result<(), CommunicatorError> {
        let script = "hostname; ip -4 -o addr show scope global | awk '{print $4}' | tr '\\n' ' '; echo; \
                      df -B1 --output=size / | tail -n 1; findmnt -no SOURCE,FSTYPE / | tr -s ' '";
        let text = self.communicator.exec(&Exec::shell(script)).await?.text();
        let mut lines = text.lines().map(str::trim);
        let mut next = || lines.next().unwrap_or_default().to_owned();
        let (hostname, addresses, size, root) = (next(), next(), next(), next());
        findings.add(
            "the clone took its hostname",
            hostname == self.seed.hostname,
            &format!("it is {hostname}"),
        );
        let wanted = format!("{}/{}", self.seed.address, self.seed.prefix);
        findings.add(
            "the clone took its static address and no other",
            addresses == wanted,
            &format!("it has {addresses}"),
        );
        let size: u64 = size.parse().unwrap_or(0);
        let built = self.disk_size;
        let grown = built + u64::from(self.plan.definition.proof.grow_gib) * (1 << 30);
        findings.add(
            "the root file system grew to the clone's disk",
            // What ext4 keeps for itself is about two percent.
            size > built && size as f64 > 0.93 * grown as f64,
            &format!("{root} has {size} bytes on a disk of {grown}"),
        );
        let clone = identity(self.communicator).await?;
        let real = clone.machine_id.len() == 32 && clone.machine_id.bytes().all(|it| it.is_ascii_hexdigit());
        findings.add(
            "the clone has a machine-id of its own",
            real && clone.machine_id != self.built.machine_id,
            &own_or_not(&clone.machine_id, &self.built.machine_id),
        );
        findings.add(
            "the clone has a host key of its own",
            clone.host_key.starts_with("ssh-ed25519 ") && clone.host_key != self.built.host_key,
            &own_or_not(&clone.host_key, &self.built.host_key),
        );
        Ok(())
    }

    async fn over_ssh(&self, findings: &mut Findings<'_>) -> Result<(), Failure> {
        let (user, guest_port) =
            (&self.plan.definition.template.cloud_init.user, self.plan.definition.proof.ssh_port);
        let by_key = format!("{user} logs in by key on port {guest_port} and has sudo");
        if !self.is_routed
            && let Err(reason) = outside::route(self.ssh).await
        {
            findings.not_proven(&[by_key.as_str(), NO_PASSWORDS, NO_ROOT], &reason);
            return Ok(());
        }
        let host_key = identity(self.communicator).await.kind(Kind::Guest)?.host_key;
        let target = Target { address: self.ssh, host_key };
        let by_key_login = target.login(user, self.key, Method::Key, "id -un && sudo -n id -un").await;
        let by_password = target.login(user, self.key, Method::Password, "true").await;
        let as_root = target.login("root", self.key, Method::Key, "true").await;
        let is_strange = |login: &&Login| matches!(login, Login::Stranger(_));
        if !self.is_routed
            && let Some(strange) = [&by_key_login, &by_password, &as_root].into_iter().find(is_strange)
        {
            let reason = format!("another machine answers at {}: {}", self.ssh.ip(), describe(strange));
            findings.not_proven(&[&*by_key, NO_PASSWORDS, NO_ROOT], &reason);
            return Ok(());
        }
        let accepted = Login::Accepted(format!("{user}\nroot"));
        findings.add(&by_key, by_key_login == accepted, &describe(&by_key_login));
        let refused = Login::Refused(vec!["publickey".to_owned()]);
        findings.add(NO_PASSWORDS, by_password == refused, &describe(&by_password));
        findings.add(NO_ROOT, as_root == refused, &describe(&as_root));
        Ok(())
    }

    async fn template_checks(&self, findings: &mut Findings<'_>) -> Result<(), Failure> {
        let checks = super::checks_at(self.plan, self.patience, CheckAt::Proof);
        let timeout = self.patience.scaled(self.plan.definition.timeouts.check.duration());
        let found = check::run(&checks.iter().collect::<Vec<_>>(), self.communicator, timeout, &|_| ())
            .await
            .kind(Kind::Guest)?;
        for finding in found {
            findings.add(&finding.name, finding.passed, &finding.detail);
        }
        Ok(())
    }

    /// Tells whether the clone's `ConfigDrive` volume is one that cloud-init refuses whole: Proxmox leaves
    /// `vendor_data.json` empty, which is no JSON.
    async fn has_empty_vendor_data(&self) -> Result<bool, CommunicatorError> {
        let script = "d=$(mktemp -d) && mount -o ro /dev/disk/by-label/config-2 \"$d\" || exit 2; \
                      f=$d/openstack/latest/vendor_data.json; test -e \"$f\" && test ! -s \"$f\"; r=$?; \
                      umount \"$d\"; rmdir \"$d\"; exit $r";
        Ok(self.communicator.exec(&Exec::shell(script)).await?.success())
    }

    async fn config_drive(&self, findings: &mut Findings<'_>) -> Result<(), CommunicatorError> {
        let user = &self.plan.definition.template.cloud_init.user;
        let script = "hostname; grep -o 'DataSource[A-Za-z]*' /run/cloud-init/result.json | head -n 1; \
                      cat \"$(getent passwd \"$0\" | cut -d: -f6)/.ssh/authorized_keys\"";
        let command = Exec::new(["/bin/sh", "-c", script, user.as_str()]);
        let text = self.communicator.exec(&command).await?.text();
        let mut lines = text.lines().map(str::trim);
        let (hostname, source) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let source_is = source == "DataSourceConfigDrive";
        findings.add(CONFIG_DRIVE, source_is, &format!("the data source is {source}"));
        findings.add(CONFIG_DRIVE_HOSTNAME, hostname == self.seed.hostname, &format!("it is {hostname}"));
        let has_key = lines.any(|line| line == self.seed.public_key);
        findings.add(CONFIG_DRIVE_KEY, has_key, if has_key { "it is there" } else { "it is missing" });
        Ok(())
    }
}

struct Findings<'a> {
    step: &'a Step<'a>,
    list: Vec<Finding>,
    /// What could not be looked at, with why.
    not_proven: Vec<(String, String)>,
}

impl Findings<'_> {
    fn add(&mut self, name: &str, passed: bool, detail: &str) {
        self.step.check(name, passed, detail);
        self.list.push(Finding { name: name.to_owned(), passed, detail: detail.to_owned() });
    }

    /// Writes down what was found and returns it as an artifact has it.
    fn into_results(self, run: &Run, drive: Drive) -> Result<Vec<CheckResult>, Failure> {
        let mut results = super::record_findings(run, drive.at(), self.list).kind(Kind::Infrastructure)?;
        results.extend(self.not_proven.into_iter().map(|(name, detail)| CheckResult {
            at: drive.at().to_owned(),
            name,
            passed: false,
            not_proven: true,
            detail,
        }));
        Ok(results)
    }

    /// Says that something could not be looked at, so that nobody takes it for proven.
    fn not_proven(&mut self, names: &[&str], reason: &str) {
        self.step.not_proven(names, reason);
        self.not_proven.extend(names.iter().map(|name| ((*name).to_owned(), reason.to_owned())));
    }
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

/// Returns a part of a clone's identity, with a word where it is the template's.
fn own_or_not(found: &str, built: &str) -> String {
    match found {
        "" => "there is none".to_owned(),
        found if found == built => format!("{found} is that of the machine the template was made from"),
        found => found.to_owned(),
    }
}

fn describe(login: &Login) -> String {
    match login {
        Login::Accepted(output) => format!("logged in: {}", output.replace('\n', ", ")),
        Login::Refused(methods) => format!("refused; the server offers {}", methods.join(", ")),
        Login::Stranger(reason) | Login::Failed(reason) => reason.clone(),
    }
}

/// Turns results that do not hold into the failure that the run ends with.
///
/// # Errors
/// A failure of kind `Check` that names them.
pub fn judge(results: &[CheckResult], what: &str) -> Result<(), Failure> {
    let failed: Vec<_> = results.iter().filter(|result| result.has_failed()).collect();
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
            not_proven: false,
            detail: "found x".into(),
        };
        assert!(judge(&[result("a", true)], "checks").is_ok());
        let unknown = CheckResult { not_proven: true, ..result("c", false) };
        assert!(judge(&[result("a", true), unknown], "checks").is_ok());
        let failure = judge(&[result("a", true), result("b", false)], "checks").unwrap_err();
        assert_eq!(failure.kind, Kind::Check);
        assert_eq!(failure.to_string(), "1 of 2 checks do not hold: b (found x)");
    }
}
