//! What a clone must be, seen from inside through its guest agent, and from outside over SSH.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::outside::{self, Key, Login, Method, Target};
use super::seed::{Addressing, CloneSeed};
use super::shape::Shape;
use super::{Phase, Reached, Running};
use crate::artifact::CheckResult;
use crate::builder::{Patience, checks_at, record_findings};
use crate::check::{self, Finding};
use crate::communicator::{Communicator, CommunicatorError, Exec};
use crate::definition::{CheckAt, CloudInitDrive};
use crate::diagnosis::{self, Symptoms};
use crate::event::human_duration;
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::plan::Plan;
use crate::run::Step;

const CLOUD_INIT: &str = "cloud-init ends without error";
const HOSTNAME: &str = "the clone took its hostname";
const STATIC_ADDRESS: &str = "the clone took its static address and no other";
const DHCP_ADDRESS: &str = "the clone took an address from DHCP and no other";
const ROUTE: &str = "the clone's default route leads to its gateway";
const RESOLVER: &str = "the clone asks its name servers";
const NO_FAILED_UNIT: &str = "no unit has failed";
const CLOCK: &str = "the clone's clock is right";
const DISK: &str = "the root file system grew to the clone's disk";
const QUEUES: &str = "the network interface has its packet queues";
const MACHINE_ID: &str = "the clone has a machine-id of its own";
const HOST_KEY: &str = "the clone has a host key of its own";
const SAME_IDENTITY: &str = "machine-id and host key stay";
const NO_PASSWORDS: &str = "password logins are refused";
const NO_ROOT: &str = "root logins are refused";
const NOTHING_ON_22: &str = "nothing answers on port 22";
const CONFIG_DRIVE: &str = "the ConfigDrive volume is accepted";
const CONFIG_DRIVE_HOSTNAME: &str = "its hostname is taken";
const CONFIG_DRIVE_KEY: &str = "its key is given to the user";

const EMPTY_VENDOR_DATA: &str = "the volume that the hypervisor made has an empty vendor_data.json, for which \
                                 cloud-init refuses it whole; a local build proves it with a good one";

/// The port that an SSH server has which nobody moved.
const SSH_PORT: u16 = 22;

/// How far a clone's clock may be from this machine's.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(10);

/// How much of a disk no partition may have, in bytes: partition tables and alignment.
const UNUSED: u64 = 16 << 20;

/// The part of a partition that its file system has for files at the least: ext4 keeps up to six percent.
const FILE_SYSTEM: f64 = 0.93;

/// Prints facts about the guest, a line each.
const FACTS: &str = r#"
echo "hostname $(hostname)"
ip -4 -o addr show scope global | while read -r _ name _ address rest; do
    case $rest in *dynamic*) echo "address $address dynamic" ;; *) echo "address $address" ;; esac
    echo "queues $(ls -d "/sys/class/net/$name/queues/rx-"* | wc -l)"
done
echo "size $(df -B1 --output=size / | tail -n 1)"
root=$(findmnt -no SOURCE /)
echo "root $root"
lsblk -bnro TYPE,SIZE "/dev/$(lsblk -snro NAME,TYPE "$root" | sed -n 's/ disk$//p' | head -n 1)" | sed 's/^/of-disk /'
ip -4 route show default | sed 's/^/route /'
servers=/run/systemd/resolve/resolv.conf
[ -e "$servers" ] || servers=/etc/resolv.conf
sed -n 's/^nameserver /server /p' "$servers"
systemctl list-units --failed --plain --no-legend --no-pager | sed 's/^/failed /'
echo "time $(date +%s)"
"#;

/// Who a machine is: what must differ between a template's guest and each of its clones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The content of `/etc/machine-id`.
    pub machine_id: String,
    /// The public ed25519 host key, `ssh-ed25519 AAAA…`; empty where there is none.
    pub host_key: String,
}

impl Identity {
    fn has_machine_id(&self) -> bool {
        self.machine_id.len() == 32 && self.machine_id.bytes().all(|it| it.is_ascii_hexdigit())
    }

    fn has_host_key(&self) -> bool {
        self.host_key.starts_with("ssh-ed25519 ")
    }
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

/// A clone whose guest agent answers, and what it must be.
pub(super) struct Subject<'a> {
    pub(super) plan: &'a Plan,
    pub(super) patience: Patience,
    pub(super) shape: &'a Shape,
    /// What it was told at this boot's first start.
    pub(super) seed: &'a CloneSeed,
    /// The key that its user was given.
    pub(super) key: &'a Key,
    pub(super) clone: &'a dyn Running,
}

impl Subject<'_> {
    fn guest(&self) -> &dyn Communicator {
        self.clone.agent()
    }

    fn user(&self) -> &str {
        &self.plan.definition.template.cloud_init.user
    }

    /// Waits for the first boot, begun at `started`, to end and looks at the clone. `built` is the build's
    /// guest before it was sealed, where that is known.
    ///
    /// # Errors
    /// When the clone cannot be asked.
    pub(super) async fn first_boot(
        &self,
        built: Option<&Identity>,
        started: Instant,
        findings: &mut Findings<'_>,
    ) -> Result<(), Failure> {
        if self.shape.contract.drive == CloudInitDrive::ConfigDrive
            && self.has_empty_vendor_data().await.kind(Kind::Guest)?
        {
            let names = [CONFIG_DRIVE, CONFIG_DRIVE_HOSTNAME, CONFIG_DRIVE_KEY];
            findings.not_proven(&names, EMPTY_VENDOR_DATA);
            return Ok(());
        }
        self.cloud_init(started, findings).await?;
        if self.shape.contract.drive == CloudInitDrive::ConfigDrive {
            return self.config_drive(findings).await.kind(Kind::Guest);
        }
        self.inside(findings).await.kind(Kind::Guest)?;
        self.own_identity(built, findings).await.kind(Kind::Guest)?;
        self.over_ssh(findings).await
    }

    /// Makes the template's checks in the clone.
    ///
    /// # Errors
    /// When the clone cannot be asked.
    pub(super) async fn template_checks(&self, findings: &mut Findings<'_>) -> Result<(), Failure> {
        let checks = checks_at(self.plan, self.patience, CheckAt::Proof);
        let timeout = self.patience.scaled(self.plan.definition.timeouts.check.duration());
        let found = check::run(&checks.iter().collect::<Vec<_>>(), self.guest(), timeout, &|_| ())
            .await
            .kind(Kind::Guest)?;
        for finding in found {
            findings.add(&finding.name, finding.passed, &finding.detail);
        }
        Ok(())
    }

    /// Looks at a clone that has booted again, and must be who it was.
    ///
    /// # Errors
    /// When the clone cannot be asked.
    pub(super) async fn later_boot(
        &self,
        before: &Identity,
        started: Instant,
        findings: &mut Findings<'_>,
    ) -> Result<(), Failure> {
        self.cloud_init(started, findings).await?;
        self.inside(findings).await.kind(Kind::Guest)?;
        let now = identity(self.guest()).await.kind(Kind::Guest)?;
        let detail = match (now.machine_id == before.machine_id, now.host_key == before.host_key) {
            (true, true) => format!("both are what they were: {}", now.machine_id),
            (false, true) => "the machine-id is another one".to_owned(),
            (true, false) => "the host key is another one".to_owned(),
            (false, false) => "both are other ones".to_owned(),
        };
        findings.add(SAME_IDENTITY, now == *before, &detail);
        self.over_ssh(findings).await
    }

    async fn cloud_init(&self, started: Instant, findings: &mut Findings<'_>) -> Result<(), Failure> {
        let deadline = self.patience.scaled(self.plan.definition.timeouts.boot.duration());
        let (code, words) = wait_for_cloud_init(self.guest(), deadline).await.kind(Kind::Guest)?;
        let after = human_duration(started.elapsed());
        findings.step.note(format!("{}: its boot has ended after {after}", findings.at));
        findings.add(CLOUD_INIT, matches!(code, 0 | 2), &words);
        Ok(())
    }

    async fn inside(&self, findings: &mut Findings<'_>) -> Result<(), CommunicatorError> {
        let asked = SystemTime::now();
        let text = self.guest().exec(&Exec::shell(FACTS)).await?.text();
        let facts = Facts::parse(&text);
        let hostname = facts.first("hostname");
        findings.add(HOSTNAME, hostname == self.seed.hostname, &format!("it is {hostname}"));
        self.network(&facts, findings);
        let failed = facts.all("failed");
        let names: Vec<_> = failed.iter().filter_map(|line| line.split_whitespace().next()).collect();
        let told = if names.is_empty() { "there is none".to_owned() } else { names.join(", ") };
        findings.add(NO_FAILED_UNIT, names.is_empty(), &told);
        clock(facts.first("time"), asked, findings);
        let (grew, detail) = growth(&facts, self.shape.disk_bytes);
        findings.add(DISK, grew, &detail);
        Ok(())
    }

    fn network(&self, facts: &Facts<'_>, findings: &mut Findings<'_>) {
        let addresses = facts.all("address");
        let had = match addresses.as_slice() {
            [] => "it has none".to_owned(),
            some => format!("it has {}", some.join(", ")),
        };
        let (routes, servers) = (facts.all("route"), facts.all("server"));
        let (route, asked) = (routes.join(", "), servers.join(", "));
        match &self.seed.addressing {
            Addressing::Dhcp => {
                let dynamic = matches!(addresses.as_slice(), [one] if one.ends_with(" dynamic"));
                findings.add(DHCP_ADDRESS, dynamic, &had);
                findings.add(ROUTE, !routes.is_empty(), &route);
                findings.add(RESOLVER, !servers.is_empty(), &asked);
            }
            Addressing::Static { address, prefix, gateway, dns } => {
                let wanted = format!("{address}/{prefix}");
                findings.add(STATIC_ADDRESS, addresses == [wanted.as_str()], &had);
                let via = format!("default via {gateway} ");
                let is_alone = matches!(routes.as_slice(), [one] if format!("{one} ").starts_with(&via));
                findings.add(ROUTE, is_alone, &route);
                let all = dns.iter().all(|server| servers.contains(&server.to_string().as_str()));
                findings.add(RESOLVER, all && servers.len() == dns.len(), &asked);
            }
        }
        let wanted = self.shape.contract.queues;
        if wanted > 1 && self.clone.has_queues() {
            // The driver uses one a core at the most.
            let used = wanted.min(self.shape.cores).to_string();
            let found = facts.first("queues");
            findings.add(QUEUES, found == used, &format!("it has {found} of {wanted}, one a core"));
        } else if wanted > 1 {
            findings.not_proven(
                &[QUEUES],
                "QEMU's own user network has one queue; a node has as many as are asked for",
            );
        }
    }

    /// The clone must be somebody, and not who the template's guest was.
    async fn own_identity(
        &self,
        built: Option<&Identity>,
        findings: &mut Findings<'_>,
    ) -> Result<(), CommunicatorError> {
        let clone = identity(self.guest()).await?;
        let old = |part: fn(&Identity) -> &String| built.map(part).map_or("", String::as_str);
        let (old_id, old_key) = (old(|it| &it.machine_id), old(|it| &it.host_key));
        findings.add(
            MACHINE_ID,
            clone.has_machine_id() && clone.machine_id != old_id,
            &own_or_not(&clone.machine_id, old_id),
        );
        findings.add(
            HOST_KEY,
            clone.has_host_key() && clone.host_key != old_key,
            &own_or_not(&clone.host_key, old_key),
        );
        Ok(())
    }

    async fn over_ssh(&self, findings: &mut Findings<'_>) -> Result<(), Failure> {
        let (user, port) = (self.user(), self.plan.definition.prove.ssh_port);
        let by_key = format!("{user} logs in by key on port {port} and has sudo");
        let is_moved = port != SSH_PORT;
        let mut names = vec![by_key.as_str(), NO_PASSWORDS, NO_ROOT];
        names.extend(is_moved.then_some(NOTHING_ON_22));
        let Reached { address, is_routed } = self.clone.reach(port, self.seed).await?;
        if !is_routed && let Err(reason) = outside::route(address).await {
            findings.not_proven(&names, &reason);
            return Ok(());
        }
        let host_key = identity(self.guest()).await.kind(Kind::Guest)?.host_key;
        let target = Target { address, host_key };
        let by_key_login = target.login(user, self.key, Method::Key, "id -un && sudo -n id -un").await;
        let by_password = target.login(user, self.key, Method::Password, "true").await;
        let as_root = target.login("root", self.key, Method::Key, "true").await;
        let is_strange = |login: &&Login| matches!(login, Login::Stranger(_));
        if !is_routed
            && let Some(strange) = [&by_key_login, &by_password, &as_root].into_iter().find(is_strange)
        {
            let reason = format!("another machine answers at {}: {}", address.ip(), describe(strange));
            findings.not_proven(&names, &reason);
            return Ok(());
        }
        let accepted = Login::Accepted(format!("{user}\nroot"));
        findings.add(&by_key, by_key_login == accepted, &describe(&by_key_login));
        let refused = Login::Refused(vec!["publickey".to_owned()]);
        findings.add(NO_PASSWORDS, by_password == refused, &describe(&by_password));
        findings.add(NO_ROOT, as_root == refused, &describe(&as_root));
        if is_moved {
            let old_port = self.clone.reach(SSH_PORT, self.seed).await?.address;
            let silent = outside::is_silent(old_port).await;
            let told = silent.as_ref().err().map_or("it is closed", String::as_str);
            findings.add(NOTHING_ON_22, silent.is_ok(), told);
        }
        Ok(())
    }

    /// Tells whether the clone's `ConfigDrive` volume is one that cloud-init refuses whole: Proxmox leaves
    /// `vendor_data.json` empty, which is no JSON.
    async fn has_empty_vendor_data(&self) -> Result<bool, CommunicatorError> {
        let script = "d=$(mktemp -d) && mount -o ro /dev/disk/by-label/config-2 \"$d\" || exit 2; \
                      f=$d/openstack/latest/vendor_data.json; test -e \"$f\" && test ! -s \"$f\"; r=$?; \
                      umount \"$d\"; rmdir \"$d\"; exit $r";
        Ok(self.guest().exec(&Exec::shell(script)).await?.success())
    }

    async fn config_drive(&self, findings: &mut Findings<'_>) -> Result<(), CommunicatorError> {
        let script = "hostname; grep -o 'DataSource[A-Za-z]*' /run/cloud-init/result.json | head -n 1; \
                      cat \"$(getent passwd \"$0\" | cut -d: -f6)/.ssh/authorized_keys\"";
        let command = Exec::new(["/bin/sh", "-c", script, self.user()]);
        let text = self.guest().exec(&command).await?.text();
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

fn clock(time: &str, asked: SystemTime, findings: &mut Findings<'_>) {
    let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (from, until) = (since(asked), since(SystemTime::now()));
    let Ok(found) = time.parse::<u64>().map(Duration::from_secs) else {
        return findings.add(CLOCK, false, "it tells no time");
    };
    let is_right = found + CLOCK_TOLERANCE >= from && found <= until + CLOCK_TOLERANCE;
    let off = found.saturating_sub(until).max(from.saturating_sub(found));
    findings.add(CLOCK, is_right, &format!("it is {} off at the most", human_duration(off)));
}

/// Tells whether partitions fill a disk of so many bytes, and the root file system the largest of them.
fn growth(facts: &Facts<'_>, whole: u64) -> (bool, String) {
    let size: u64 = facts.first("size").parse().unwrap_or(0);
    let of_disk = facts.all("of-disk");
    let partitions: Vec<u64> =
        of_disk.iter().filter_map(|line| line.strip_prefix("part ")?.parse().ok()).collect();
    let (used, largest) = match partitions.iter().max() {
        Some(largest) => (partitions.iter().sum(), *largest),
        None => (whole, whole),
    };
    let is_filled = used + UNUSED >= whole && size as f64 > FILE_SYSTEM * largest as f64;
    let detail = format!(
        "{} has {size} bytes on a disk of {whole}, of which partitions have {used}",
        facts.first("root")
    );
    (is_filled, detail)
}

/// What [`FACTS`] printed.
struct Facts<'a>(BTreeMap<&'a str, Vec<&'a str>>);

impl<'a> Facts<'a> {
    fn parse(text: &'a str) -> Self {
        let mut facts: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for line in text.lines() {
            let (key, value) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
            facts.entry(key).or_default().push(value.trim());
        }
        Self(facts)
    }

    fn all(&self, key: &str) -> Vec<&'a str> {
        self.0.get(key).cloned().unwrap_or_default()
    }

    fn first(&self, key: &str) -> &'a str {
        self.0.get(key).and_then(|values| values.first().copied()).unwrap_or_default()
    }
}

/// What is found of a clone in one phase of its proof.
pub(super) struct Findings<'a> {
    pub(super) step: &'a Step<'a>,
    /// Where they are made, as results name it.
    at: String,
    list: Vec<Finding>,
    /// What could not be looked at, with why.
    not_proven: Vec<(String, String)>,
}

impl<'a> Findings<'a> {
    pub(super) fn new(step: &'a Step<'a>, contract: &str, phase: Phase) -> Self {
        Self { step, at: phase.at(contract), list: Vec::new(), not_proven: Vec::new() }
    }

    pub(super) fn add(&mut self, name: &str, passed: bool, detail: &str) {
        self.step.check(name, passed, detail);
        self.list.push(Finding { name: name.to_owned(), passed, detail: detail.to_owned() });
    }

    /// Says that something could not be looked at, so that nobody takes it for proven.
    pub(super) fn not_proven(&mut self, names: &[&str], reason: &str) {
        self.step.not_proven(names, reason);
        self.not_proven.extend(names.iter().map(|name| ((*name).to_owned(), reason.to_owned())));
    }

    /// Says beside what does not hold why that is, as far as a look into the clone tells.
    pub(super) async fn explain(&mut self, clone: &Subject<'_>) {
        let failed: Vec<_> = (0..self.list.len()).filter(|at| !self.list[*at].passed).collect();
        if failed.is_empty() {
            return;
        }
        // Without an answer the findings stand as they are.
        let look = Exec::new(["/bin/sh", "-c", diagnosis::LOOK, clone.user()]);
        let Ok(output) = clone.guest().exec(&look).await else { return };
        let symptoms = Symptoms::parse(&output.text());
        let names: Vec<_> = failed.iter().map(|at| self.list[*at].name.as_str()).collect();
        let ssh_port = clone.plan.definition.prove.ssh_port;
        for explanation in diagnosis::explain(&names, &symptoms, clone.user(), ssh_port) {
            let finding = &mut self.list[failed[explanation.of]];
            finding.detail = format!("{}; {}", finding.detail, explanation.text);
        }
    }

    /// Writes down what was found and returns it as an artifact has it.
    ///
    /// # Errors
    /// Kind `Infrastructure` when it cannot be written.
    pub(super) fn into_results(self) -> Result<Vec<CheckResult>, Failure> {
        let mut results = match self.list.as_slice() {
            [] => Vec::new(),
            _ => record_findings(self.step.run(), &self.at, self.list).kind(Kind::Infrastructure)?,
        };
        results.extend(self.not_proven.into_iter().map(|(name, detail)| CheckResult {
            at: self.at.clone(),
            name,
            passed: false,
            not_proven: true,
            detail,
        }));
        Ok(results)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_file_system_fills_its_disk_or_not() {
        const GIB: u64 = 1 << 30;
        let filled = |parts: &[u64], size: u64| {
            let mut lines = vec![format!("size {size}"), format!("of-disk disk {}", 24 * GIB)];
            lines.extend(parts.iter().map(|size| format!("of-disk part {size}")));
            growth(&Facts::parse(&lines.join("\n")), 24 * GIB).0
        };
        let boot = GIB;
        assert!(filled(&[24 * GIB - (2 << 20), 1 << 20], 23 * GIB));
        assert!(filled(&[boot, 23 * GIB - (2 << 20)], 22 * GIB));
        assert!(filled(&[], 23 * GIB), "a disk without partitions");
        assert!(!filled(&[boot, 22 * GIB], 21 * GIB), "the partition did not grow");
        assert!(!filled(&[boot, 23 * GIB], 20 * GIB), "the file system did not grow");
        assert!(!filled(&[boot, 23 * GIB], 11 * GIB), "a logical volume did not grow");
    }
}
