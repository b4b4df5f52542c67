//! Holds a template to its contracts: makes clones of it as a consumer does, boots them, looks at them.
//!
//! ```text
//! contract ─► shape ─► clone ─► first boot ─► looks ─┬──────────────────────────────────────────► destroyed
//!             scaled                                 └ in full: a second clone beside it, what the agent
//!                                                      can do, a reboot, a shutdown, another address
//! ```
//!
//! What differs between a local machine and one on a node is behind `Prover` and `Running`.

mod audit;
mod look;
pub mod outside;
pub mod seed;
mod shape;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::anyhow;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use self::look::{Findings, Subject};
pub use self::look::{Identity, identity, wait_for_cloud_init};
use self::outside::Key;
use self::seed::{Addressing, CloneSeed};
pub(super) use self::shape::{Limits, Shape};
use super::Patience;
use crate::artifact::{AuditResult, CheckResult, ContractProof};
use crate::communicator::{Exec, GuestAgent};
use crate::definition::{Audit, CloudInitDrive, Contract};
use crate::event::{Worker, human_duration};
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::plan::Plan;
use crate::run::{Run, Step, UndoId};

/// How long a clone may take to power off that its agent was asked to.
const SHUTDOWN: Duration = Duration::from_secs(30);

const FREEZE: &str = "the agent freezes and thaws the file systems";
const PASSWORD: &str = "the agent sets a user's password";
const REBOOT: &str = "the agent reboots the clone";
const POWER_OFF: &str = "the agent powers the clone off within 30 s";
const TWO_MACHINE_IDS: &str = "two clones have different machine-ids";
const TWO_HOST_KEYS: &str = "two clones have different host keys";

/// How much of a contract is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// One clone and its first boot.
    Quick,
    /// Two clones, and for the first of them a reboot and another address.
    Full,
}

/// What a clone goes through, as results name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    FirstBoot,
    SecondClone,
    Agent,
    Audit,
    Reboot,
    OtherAddress,
}

impl Phase {
    /// Returns where a finding was made: the contract's name, and after the first boot what came then.
    fn at(self, contract: &str) -> String {
        let part = match self {
            Self::FirstBoot => return contract.to_owned(),
            Self::SecondClone => "second clone",
            Self::Agent => "agent",
            Self::Audit => "audit",
            Self::Reboot => "reboot",
            Self::OtherAddress => "other address",
        };
        format!("{contract}, {part}")
    }
}

/// Where a clone's TCP port is reached from here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reached {
    pub(super) address: SocketAddr,
    /// Whether packets surely get there; else it is tried, and what is not reached, or is another machine's, is
    /// told as not proven.
    pub(super) is_routed: bool,
}

/// A machine that makes clones of one template.
pub(super) trait Prover: Send + Sync {
    /// Returns the patience that guests need there.
    fn patience(&self) -> Patience;

    /// Returns the shape of a contract's clones there.
    fn shape<'a>(&'a self, contract: &'a Contract) -> BoxFuture<'a, Result<Shape, Failure>>;

    /// Sees to it that no machine is in the way of clones at these addresses. What is registered to be undone for
    /// that is forgotten when they are gone.
    fn claim<'a>(
        &'a self,
        addresses: Vec<Ipv4Addr>,
        step: &'a Step<'a>,
    ) -> BoxFuture<'a, Result<Vec<UndoId>, Failure>>;

    /// Makes a clone and starts it. `name` is its own in this run; `seed` gets the clone's MAC address.
    fn start<'a: 'b, 'b>(
        &'a self,
        name: &'b str,
        shape: &'b Shape,
        seed: &'b mut CloneSeed,
        step: &'b Step<'b>,
    ) -> BoxFuture<'b, Result<Box<dyn Running + 'a>, Failure>>;
}

/// A clone that was started.
pub(super) trait Running: Send + Sync {
    /// Returns its guest agent.
    fn agent(&self) -> &dyn GuestAgent;

    /// Tells whether its network interface can have as many queues as are asked for.
    fn has_queues(&self) -> bool;

    /// Waits until the guest agent answers.
    fn wait_until_ready<'a>(
        &'a self,
        limit: Duration,
        step: &'a Step<'a>,
    ) -> BoxFuture<'a, Result<(), Failure>>;

    /// Returns where a TCP port of it is reached from here.
    fn reach<'a>(&'a self, port: u16, seed: &'a CloneSeed) -> BoxFuture<'a, Result<Reached, Failure>>;

    /// Asks the agent to reboot it; the answer may be lost.
    fn reboot(&self) -> BoxFuture<'_, Result<(), Failure>>;

    /// Has its agent power it off and returns how long that took.
    fn power_off(&mut self, limit: Duration) -> BoxFuture<'_, Result<Duration, Failure>>;

    /// Starts it again with another seed.
    fn start_again<'a>(&'a mut self, seed: &'a CloneSeed) -> BoxFuture<'a, Result<(), Failure>>;

    /// Ends it and removes it. Where its proof did not hold, evidence is kept first.
    fn end<'a>(self: Box<Self>, holds: bool, step: &'a Step<'a>) -> BoxFuture<'a, Result<(), Failure>>
    where
        Self: 'a;
}

/// Holds a template that was just built to the contracts of its build, each by one clone's first boot.
///
/// # Errors
/// Kind `Check` when a promise does not hold; else as [`prove`].
pub(super) async fn build(
    template: &dyn Prover,
    plan: &Plan,
    built: &Identity,
    worker: Worker,
    run: &Run,
) -> Result<(Vec<CheckResult>, Vec<ContractProof>), Failure> {
    let (mut all, mut proofs) = (Vec::new(), Vec::new());
    for contract in plan.build_contracts() {
        let (id, title) = (format!("prove:{}", contract.name), title(&contract));
        let proven = run
            .step(&id, &title, worker, async |step| {
                let proven = prove(template, plan, &contract, Depth::Quick, &[], Some(built), step).await?;
                judge(&proven.results, "promises of the proof")?;
                Ok(proven)
            })
            .await?;
        proofs.push(proven.proof);
        all.extend(proven.results);
    }
    Ok((all, proofs))
}

/// Returns what a person reads while a contract is tried.
pub(super) fn title(contract: &Contract) -> String {
    format!("proving a clone as {}", contract.name)
}

/// Holds a template to one contract; `audits` are made of its first clone. The results are returned whether or not they hold.
///
/// # Errors
/// When a clone does not come up, or cannot be asked.
pub(super) async fn prove(
    prover: &dyn Prover,
    plan: &Plan,
    contract: &Contract,
    depth: Depth,
    audits: &[Audit],
    built: Option<&Identity>,
    step: &Step<'_>,
) -> Result<Proven, Failure> {
    let shape = prover.shape(contract).await?;
    for scaled in &shape.scaled {
        step.note(format!("{}: {scaled}", contract.name));
    }
    let depth = if contract.drive == CloudInitDrive::ConfigDrive { Depth::Quick } else { depth };
    let mut addresses = shape.addresses();
    addresses.truncate(if depth == Depth::Full { 2 } else { 1 });
    let claims = prover.claim(addresses, step).await?;
    let key = outside::make_key().kind(Kind::Infrastructure)?;
    let proof = Proof { prover, plan, shape: &shape, built, key: &key, audits, step };
    let (results, audits) = match depth {
        Depth::Quick => proof.quick().await?,
        Depth::Full => proof.full().await?,
    };
    if !results.iter().any(CheckResult::has_failed) {
        for claim in claims {
            step.run().forget_undo(claim);
        }
    }
    let proof = ContractProof {
        contract: contract.name.clone(),
        full: depth == Depth::Full,
        run: step.run().id.clone(),
        proven_at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        cores: shape.cores,
        memory_mib: shape.memory_mib,
        disk_gib: shape.disk_bytes >> 30,
        scaled: shape.scaled,
    };
    Ok(Proven { proof, results, audits })
}

/// What was found of a contract.
#[derive(Debug)]
pub(super) struct Proven {
    pub(super) proof: ContractProof,
    pub(super) results: Vec<CheckResult>,
    pub(super) audits: Vec<AuditResult>,
}

/// One contract's proof.
struct Proof<'a> {
    prover: &'a dyn Prover,
    plan: &'a Plan,
    shape: &'a Shape,
    built: Option<&'a Identity>,
    key: &'a Key,
    audits: &'a [Audit],
    step: &'a Step<'a>,
}

/// What is found of a contract's clones.
type Found = (Vec<CheckResult>, Vec<AuditResult>);

/// A clone whose first boot was looked at.
struct Looked<'a> {
    running: Box<dyn Running + 'a>,
    seed: CloneSeed,
    results: Vec<CheckResult>,
}

impl<'a> Proof<'a> {
    fn name(&self) -> &'a str {
        &self.shape.contract.name
    }

    fn findings(&self, phase: Phase) -> Findings<'a> {
        Findings::new(self.step, self.name(), phase)
    }

    fn subject<'b>(&'b self, seed: &'b CloneSeed, clone: &'b dyn Running) -> Subject<'b> {
        let Self { plan, shape, key, .. } = self;
        Subject { plan, patience: self.prover.patience(), shape, seed, key, clone }
    }

    fn boot_limit(&self) -> Duration {
        self.prover.patience().scaled(self.plan.definition.timeouts.boot.duration())
    }

    async fn quick(&self) -> Result<Found, Failure> {
        let first = self.first_boot(self.name(), Phase::FirstBoot, self.shape.first.clone()).await?;
        let Looked { running, seed, mut results } = first;
        let audits = match self.audit(&*running, &seed, &mut results).await {
            Ok(audits) => audits,
            Err(failure) => return Err(self.given_up(running, failure).await),
        };
        self.end(running, &results).await?;
        Ok((results, audits))
    }

    /// Two clones at once, then the first one's further life.
    async fn full(&self) -> Result<Found, Failure> {
        let name = format!("{}-2", self.name());
        let addressing = self.shape.other.clone().unwrap_or_else(|| self.shape.first.clone());
        let (first, second) = tokio::try_join!(
            self.first_boot(self.name(), Phase::FirstBoot, self.shape.first.clone()),
            self.first_boot(&name, Phase::SecondClone, addressing),
        )?;
        let (one, two) = tokio::try_join!(identity(first.running.agent()), identity(second.running.agent()),)
            .kind(Kind::Guest)?;
        let mut findings = self.findings(Phase::SecondClone);
        findings.add(TWO_MACHINE_IDS, one.machine_id != two.machine_id, &two.machine_id);
        findings.add(TWO_HOST_KEYS, one.host_key != two.host_key, &two.host_key);
        let mut results = first.results;
        results.extend(second.results);
        results.extend(findings.into_results()?);
        self.end(second.running, &results).await?;

        let mut running = first.running;
        let audits = match self.later(&mut *running, first.seed, &one, &mut results).await {
            Ok(audits) => audits,
            Err(failure) => return Err(self.given_up(running, failure).await),
        };
        self.end(running, &results).await?;
        Ok((results, audits))
    }

    /// What a clone goes through after its first boot.
    async fn later(
        &self,
        running: &mut dyn Running,
        seed: CloneSeed,
        identity: &Identity,
        results: &mut Vec<CheckResult>,
    ) -> Result<Vec<AuditResult>, Failure> {
        let audits = self.audit(running, &seed, results).await?;
        self.agent(running, results).await?;
        self.reboot(running, &seed, identity, results).await?;
        self.move_away(running, seed, identity, results).await?;
        Ok(audits)
    }

    /// Ends a clone that could not be looked at, with evidence of how it stands.
    async fn given_up(&self, running: Box<dyn Running + '_>, failure: Failure) -> Failure {
        // The first failure is the one to tell.
        let _ended = running.end(false, self.step).await;
        failure
    }

    /// Has programs look at the clone that the definition names.
    async fn audit(
        &self,
        running: &dyn Running,
        seed: &CloneSeed,
        results: &mut Vec<CheckResult>,
    ) -> Result<Vec<AuditResult>, Failure> {
        let mut findings = self.findings(Phase::Audit);
        let mut audits = Vec::new();
        for audit in self.audits {
            let subject = audit::Subject {
                plan: self.plan,
                patience: self.prover.patience(),
                key: self.key,
                clone: running,
                seed,
            };
            audits.extend(
                audit::run(*audit, &subject, &mut findings)
                    .await?
                    .map(|found| AuditResult { contract: self.name().to_owned(), ..found }),
            );
        }
        results.extend(findings.into_results()?);
        Ok(audits)
    }

    async fn end(&self, running: Box<dyn Running + '_>, results: &[CheckResult]) -> Result<(), Failure> {
        running.end(!results.iter().any(CheckResult::has_failed), self.step).await
    }

    /// Starts a clone and looks at its first boot.
    async fn first_boot(
        &self,
        name: &str,
        phase: Phase,
        addressing: Addressing,
    ) -> Result<Looked<'a>, Failure> {
        let hostname = match phase {
            Phase::SecondClone => format!("{}-2", self.shape.hostname),
            _ => self.shape.hostname.clone(),
        };
        let mut seed =
            CloneSeed { hostname, public_key: self.key.public.clone(), mac: String::new(), addressing };
        let started = Instant::now();
        let running = self.prover.start(name, self.shape, &mut seed, self.step).await?;
        match self.look(&*running, name, phase, &seed, started).await {
            Ok(results) => Ok(Looked { running, seed, results }),
            Err(failure) => Err(self.given_up(running, failure).await),
        }
    }

    async fn look(
        &self,
        running: &dyn Running,
        name: &str,
        phase: Phase,
        seed: &CloneSeed,
        started: Instant,
    ) -> Result<Vec<CheckResult>, Failure> {
        self.wait_until_ready(running, name, started).await?;
        let mut findings = self.findings(phase);
        let subject = self.subject(seed, running);
        subject.first_boot(self.built, started, &mut findings).await?;
        // A second clone is there to be told from the first; what the template has, both have.
        if phase == Phase::FirstBoot && self.shape.contract.drive == CloudInitDrive::NoCloud {
            subject.template_checks(&mut findings).await?;
        }
        findings.explain(&subject).await;
        findings.into_results()
    }

    async fn wait_until_ready(
        &self,
        running: &dyn Running,
        name: &str,
        started: Instant,
    ) -> Result<(), Failure> {
        running.wait_until_ready(self.boot_limit(), self.step).await?;
        self.step.note(format!("{name}: its agent answers after {}", human_duration(started.elapsed())));
        Ok(())
    }

    /// Tries what the agent does besides running commands.
    async fn agent(&self, running: &dyn Running, results: &mut Vec<CheckResult>) -> Result<(), Failure> {
        let (agent, mut findings) = (running.agent(), self.findings(Phase::Agent));
        // Whatever becomes of the freezing: a frozen guest can do nothing, not even be asked.
        let (frozen, thawed) = (agent.freeze().await, agent.thaw().await);
        let told = match (&frozen, &thawed) {
            (Ok(frozen), Ok(thawed)) => format!("{frozen} frozen, {thawed} thawed"),
            (Err(error), _) | (_, Err(error)) => error.to_string(),
        };
        let is_frozen =
            matches!((frozen, thawed), (Ok(frozen), Ok(thawed)) if frozen > 0 && thawed == frozen);
        findings.add(FREEZE, is_frozen, &told);

        let user = &self.plan.definition.template.cloud_init.user;
        let read = || async {
            let command = Exec::new(["/bin/sh", "-c", "getent shadow \"$0\" | cut -d : -f 2", user.as_str()]);
            agent.exec(&command).await.map(|output| output.text())
        };
        let before = read().await.kind(Kind::Guest)?;
        // A throw-away one, of a clone that is removed.
        let password = uuid::Uuid::new_v4().simple().to_string();
        let told = match agent.set_user_password(user, &password).await {
            Ok(()) => None,
            Err(error) => Some(error.to_string()),
        };
        let after = read().await.kind(Kind::Guest)?;
        let is_set = told.is_none() && after != before && after.starts_with('$');
        let told = told.unwrap_or_else(|| if is_set { "it is set" } else { "it is what it was" }.to_owned());
        findings.add(PASSWORD, is_set, &told);
        results.extend(findings.into_results()?);
        Ok(())
    }

    async fn reboot(
        &self,
        running: &dyn Running,
        seed: &CloneSeed,
        before: &Identity,
        results: &mut Vec<CheckResult>,
    ) -> Result<(), Failure> {
        let guest = running.agent();
        let boot =
            guest.exec(&Exec::shell("cat /proc/sys/kernel/random/boot_id")).await.kind(Kind::Guest)?.text();
        let started = Instant::now();
        running.reboot().await?;
        let mut findings = self.findings(Phase::Reboot);
        guest.wait_for_reboot(&boot, self.boot_limit()).await.kind(Kind::Guest)?;
        let after = human_duration(started.elapsed());
        findings.add(REBOOT, true, &format!("it is back after {after}"));
        let subject = self.subject(seed, running);
        subject.later_boot(before, started, &mut findings).await?;
        findings.explain(&subject).await;
        results.extend(findings.into_results()?);
        Ok(())
    }

    /// Powers the clone off, and gives it another address where there is one.
    async fn move_away(
        &self,
        running: &mut dyn Running,
        seed: CloneSeed,
        before: &Identity,
        results: &mut Vec<CheckResult>,
    ) -> Result<(), Failure> {
        let limit = self.prover.patience().scaled(SHUTDOWN);
        let mut findings = self.findings(Phase::OtherAddress);
        let took = running.power_off(self.boot_limit()).await?;
        let scaled = if limit > SHUTDOWN { ", where guests are emulated and get more time" } else { "" };
        findings.add(POWER_OFF, took <= limit, &format!("it took {}{scaled}", human_duration(took)));
        if let Some(addressing) = self.shape.other.clone() {
            let seed = CloneSeed { addressing, ..seed };
            let started = Instant::now();
            running.start_again(&seed).await?;
            self.wait_until_ready(running, self.name(), started).await?;
            let subject = self.subject(&seed, running);
            subject.later_boot(before, started, &mut findings).await?;
            findings.explain(&subject).await;
        }
        results.extend(findings.into_results()?);
        Ok(())
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
