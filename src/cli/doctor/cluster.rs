//! What a Proxmox cluster has of all that building needs.

use std::time::Duration;

use anyhow::Context as _;

use super::{Finding, Level, Report};
use crate::builder::proxmox::survey::Wish;
use crate::builder::proxmox::{access, site};
use crate::definition::{
    Checked, Inputs, Profile, ProxmoxProfile, Root, Secret, Transport, check, variable_names,
};
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::pve::{Client, Credentials, Error, Pace, Settings, Trust};

/// Looks at the cluster of a profile; nothing is changed.
///
/// # Errors
/// Only where nothing can be found out at all: the profile's addresses or certificates are unusable.
pub(super) fn report(root: &Root, profile: &Profile, inputs: &Inputs) -> Result<Report, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")
        .kind(Kind::Unexpected)?;
    let wish = wish(root, inputs);
    runtime.block_on(look(root, profile, inputs, &wish))
}

/// Returns the failure of a cluster on which no build is possible.
pub(super) fn cannot_build(name: &str, missing: &[&Finding], has_commands: bool) -> Failure {
    let names: Vec<&str> = missing.iter().map(|finding| finding.name.as_str()).collect();
    let error = anyhow::anyhow!("no build is possible on {name}, for want of {}", names.join(", "));
    let failure = Failure::new(Kind::Infrastructure, error);
    if !has_commands {
        failure
    } else if names.contains(&CREDENTIALS) {
        failure.hint("the commands above make a token with the rights that builds need")
    } else if names.iter().any(|name| name.starts_with(RIGHTS)) {
        failure.hint("the commands above give the missing rights")
    } else {
        failure
    }
}

/// Returns what the templates of a root need; those with errors are `forge validate`'s.
fn wish(root: &Root, inputs: &Inputs) -> Wish {
    let names = root.templates().unwrap_or_default();
    let variables = names.iter().flat_map(|name| variable_names(root, name)).collect();
    let mut wish = Wish::default();
    for name in &names {
        if let Ok(Checked::Complete(loaded)) = check(root, name, inputs, &variables) {
            wish.templates.push(loaded.shown.template.vmid);
            wish.uploads_answers |= loaded.shown.seed.transport == Transport::Cdrom;
        }
    }
    wish.templates.sort_unstable();
    wish.templates.dedup();
    wish
}

async fn look(root: &Root, profile: &Profile, inputs: &Inputs, wish: &Wish) -> Result<Report, Failure> {
    let place = profile.proxmox.clone().unwrap_or_default();
    let settings = match site::settings(&place, root.path(), &inputs.env).await {
        Ok(settings) => settings,
        Err(failure) if failure.kind == Kind::Infrastructure => {
            return without_credentials(root, &place, wish, &failure).await;
        }
        Err(failure) => return Err(failure),
    };
    let mut report = Report::default();
    let mut who_is_refused = None;
    for endpoint in &settings.endpoints {
        let alone = Settings { endpoints: vec![endpoint.clone()], pace: hasty(), ..settings.clone() };
        let client = Client::new(alone).map_err(site::failed)?;
        let answer = client.version().await.map(drop);
        let finding = match answer {
            Err(Error::Unauthorized { .. }) => {
                who_is_refused = answer.err();
                reached(&endpoint.to_string(), &settings, &mut report.pins).await
            }
            Ok(()) => reached(&endpoint.to_string(), &settings, &mut report.pins).await,
            Err(error) => unreached(&endpoint.to_string(), &error, &mut report.pins),
        };
        report.findings.push(finding);
    }
    if report.findings.iter().all(|finding| finding.level == Level::Missing) {
        return Ok(report);
    }
    // A node of a cluster may be down; one that cannot be trusted must not be passed over.
    for finding in report.findings.iter_mut().filter(|it| it.found.starts_with(SILENT)) {
        finding.level = Level::Warn;
    }
    if let Some(error) = who_is_refused {
        let advice = error.hints().join("; ");
        report.findings.push(Finding::bad(CREDENTIALS, Level::Missing, error.to_string(), advice));
        return Ok(report);
    }
    let client = Client::new(settings).map_err(site::failed)?;
    match site::look(&client, profile, wish).await {
        Ok(survey) => {
            report.findings.extend(survey.findings().into_iter().map(Finding::from));
            report.commands = survey.commands();
        }
        Err(error) => {
            let advice = error.hints().join("; ");
            report.findings.push(Finding::bad("cluster", Level::Missing, error.to_string(), advice));
        }
    }
    Ok(report)
}

/// The finding of the token, or of user and password.
const CREDENTIALS: &str = "credentials";

/// How the findings of rights begin.
const RIGHTS: &str = "rights on ";

/// How the finding of an endpoint begins that did not answer.
const SILENT: &str = "no answer: ";

/// Returns a pace at which nothing is repeated: somebody is waiting for the screen.
fn hasty() -> Pace {
    Pace { patience: Duration::ZERO, ..Pace::default() }
}

/// Says what can be said without credentials: who answers with which certificate, and what root types to
/// make a token.
async fn without_credentials(
    root: &Root,
    place: &ProxmoxProfile,
    wish: &Wish,
    failure: &Failure,
) -> Result<Report, Failure> {
    // Of no use to anybody: a server that is not trusted is never sent it.
    let nobody = Credentials::Token { id: "nobody@pve!doctor".to_owned(), secret: Secret::new("none") };
    let settings = site::settings_with(place, root.path(), nobody)?;
    let mut report = Report::default();
    for endpoint in &settings.endpoints {
        report.findings.push(match shown(&endpoint.to_string(), &settings).await {
            Ok(seen) => {
                shown_to_nobody(&title(&endpoint.to_string()), &seen, &settings.trust, &mut report.pins)
            }
            Err(reason) => unreachable(&endpoint.to_string(), &reason),
        });
    }
    let advice = failure.hints.join("; ");
    report.findings.push(Finding::bad(CREDENTIALS, Level::Missing, failure.to_string(), advice));
    report.commands = access::setup(place, &wish.templates, wish.uploads_answers);
    Ok(report)
}

/// Says of an endpoint what its certificate alone says.
fn shown_to_nobody(title: &str, seen: &str, trust: &Trust, pins: &mut Vec<String>) -> Finding {
    if let Trust::Pinned(pinned) = trust {
        if pinned.iter().any(|it| it.to_string() == seen) {
            return Finding::ok(title, "answers, trusted by its fingerprint".to_owned());
        }
        pins.push(pin(seen));
        let found =
            "not trusted: its certificate is not the pinned one: it was renewed, or somebody is in between";
        return Finding::bad(title, Level::Missing, found, PIN_ADVICE);
    }
    pins.push(pin(seen));
    Finding::bad(title, Level::Note, "answers; whether it is trusted is seen with credentials", PIN_ADVICE)
}

/// Returns the fingerprint of the certificate that an endpoint shows, which nothing is sent to.
async fn shown(endpoint: &str, settings: &Settings) -> Result<String, String> {
    let one = endpoint.parse().map_err(|error: Error| error.to_string())?;
    let probe = Settings {
        endpoints: vec![one],
        trust: Trust::Pinned(Vec::new()),
        pace: hasty(),
        ..settings.clone()
    };
    match Client::new(probe).map_err(|error| error.to_string())?.version().await {
        Err(Error::Tls { seen: Some(seen), .. }) => Ok(seen),
        Err(error) => Err(error.to_string()),
        Ok(_) => Err("it does not speak TLS".to_owned()),
    }
}

fn title(endpoint: &str) -> String {
    format!("endpoint {}", endpoint.trim_start_matches("https://"))
}

async fn reached(endpoint: &str, settings: &Settings, pins: &mut Vec<String>) -> Finding {
    let how = match &settings.trust {
        Trust::Anything => {
            pins.extend(shown(endpoint, settings).await.ok().map(|seen| pin(&seen)));
            let found = "answers; its certificate is not verified (`verify_tls = false`)";
            let advice = format!("anybody on the way can read the credentials: {PIN_ADVICE}");
            return Finding::bad(&title(endpoint), Level::Warn, found, advice);
        }
        Trust::System => "this system".to_owned(),
        Trust::CaFile(path) => path.display().to_string(),
        Trust::Pinned(_) => "its fingerprint".to_owned(),
    };
    Finding::ok(&title(endpoint), format!("answers, trusted by {how}"))
}

fn unreached(endpoint: &str, error: &Error, pins: &mut Vec<String>) -> Finding {
    match error {
        Error::Tls { reason, seen: Some(seen), .. } => {
            pins.push(pin(seen));
            Finding::bad(&title(endpoint), Level::Missing, format!("not trusted: {reason}"), PIN_ADVICE)
        }
        error => unreachable(endpoint, &error.to_string()),
    }
}

fn unreachable(endpoint: &str, reason: &str) -> Finding {
    let advice = "see that the address is right, the node is up, and its port is open from here";
    Finding::bad(&title(endpoint), Level::Missing, format!("{SILENT}{reason}"), advice)
}

/// What to do about a certificate that is not trusted; the line itself is told below, to be copied.
const PIN_ADVICE: &str =
    "pin it with the line below, or name the cluster's /etc/pve/pve-root-ca.pem as `ca_file`";

fn pin(seen: &str) -> String {
    format!("fingerprint = \"{seen}\"")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::builder::proxmox::fake::Fake;

    struct Setting {
        folder: tempfile::TempDir,
        profile: Profile,
    }

    impl Setting {
        fn new(endpoints: &[&str]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir(folder.path().join("templates")).unwrap();
            let mut profile: Profile = toml::from_str("schema = 1\n[proxmox]\n").unwrap();
            let endpoints = endpoints.iter().map(ToString::to_string).collect();
            profile.proxmox =
                Some(ProxmoxProfile { endpoints, verify_tls: false, ..ProxmoxProfile::default() });
            Self { folder, profile }
        }

        async fn look(&self, token: Option<&str>) -> Report {
            let env: BTreeMap<_, _> =
                token.map(|token| (site::TOKEN.to_owned(), token.to_owned())).into_iter().collect();
            let inputs = Inputs { vars: Vec::new(), var_files: Vec::new(), env };
            let root = Root::at(self.folder.path()).unwrap();
            look(&root, &self.profile, &inputs, &Wish::default()).await.unwrap()
        }
    }

    const TOKEN: &str = "forge@pve!ci=secret";
    const NOBODY_THERE: &str = "http://127.0.0.1:9";

    fn levels(report: &Report) -> Vec<(String, Level)> {
        let shorten = |name: &str| name.split([' ', ':']).next().unwrap_or_default().to_owned();
        report.findings.iter().map(|finding| (shorten(&finding.name), finding.level)).collect()
    }

    #[tokio::test]
    async fn a_server_that_is_not_reached_is_all_that_is_told() {
        let report = Setting::new(&[NOBODY_THERE]).look(Some(TOKEN)).await;
        assert_eq!(levels(&report), [("endpoint".to_owned(), Level::Missing)]);
        assert!(report.findings[0].found.starts_with(SILENT) && report.commands.is_empty());
    }

    #[tokio::test]
    async fn one_node_of_several_may_be_silent() {
        let fake = Fake::start(|request| match request {
            "GET /version" => (200, serde_json::json!({ "version": "8.4.21" })),
            _ => (403, serde_json::json!("Permission check failed (/, Sys.Audit)")),
        })
        .await;
        let report = Setting::new(&[NOBODY_THERE, &fake.endpoint]).look(Some(TOKEN)).await;
        assert_eq!(
            levels(&report),
            [
                ("endpoint".to_owned(), Level::Warn),
                ("endpoint".to_owned(), Level::Warn),
                ("cluster".to_owned(), Level::Missing),
            ]
        );
        assert!(report.findings[1].found.contains("not verified"), "{:?}", report.findings[1]);
    }

    #[tokio::test]
    async fn a_token_that_is_not_let_in_is_told_once() {
        let fake = Fake::start(|_| (401, serde_json::json!("invalid token value!"))).await;
        let report = Setting::new(&[&fake.endpoint]).look(Some(TOKEN)).await;
        let last = report.findings.last().unwrap();
        assert_eq!((last.name.as_str(), last.level), ("credentials", Level::Missing));
        assert!(last.found.contains("forge@pve!ci is not let in") && !last.found.contains("secret"));
    }

    #[test]
    fn without_credentials_a_pin_is_compared_all_the_same() {
        let (ours, other) = (["AA"; 32].join(":"), ["BB"; 32].join(":"));
        let trust = Trust::Pinned(vec![ours.parse().unwrap()]);
        for (seen, trust, level, pinned) in [
            (&ours, &trust, Level::Ok, 0),
            (&other, &trust, Level::Missing, 1),
            (&ours, &Trust::System, Level::Note, 1),
        ] {
            let mut pins = Vec::new();
            let finding = shown_to_nobody("endpoint", seen, trust, &mut pins);
            assert_eq!((finding.level, pins.len()), (level, pinned), "{}", finding.found);
        }
    }

    #[test]
    fn the_commands_are_named_where_they_help() {
        let finding = |name: &str| Finding::bad(name, Level::Missing, "x", "y");
        let hints = |name: &str| cannot_build("sim", &[&finding(name)], true).hints.len();
        assert_eq!((hints("rights on /vms/9000"), hints("node"), hints(CREDENTIALS)), (1, 0, 1));
    }

    #[tokio::test]
    async fn without_credentials_the_way_to_a_token_is_told() {
        let report = Setting::new(&[NOBODY_THERE]).look(None).await;
        let last = report.findings.last().unwrap();
        assert_eq!((last.name.as_str(), last.level), ("credentials", Level::Missing));
        for command in ["pveum user token add forge@pve forge --privsep 1", "pveum user add forge@pve"] {
            assert!(report.commands.iter().any(|it| it == command), "{:#?}", report.commands);
        }
    }
}
