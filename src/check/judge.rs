//! Decides what a probe's facts mean for a check.

use std::collections::BTreeMap;

use regex::{Regex, RegexBuilder};

use super::Finding;
use super::probe::{Answer, OUTPUT_MAX};
use crate::definition::{
    Check, CommandCheck, FileCheck, GroupCheck, PackageCheck, PasswordState, ServiceCheck, UserCheck,
};

type Facts<'a> = BTreeMap<&'a str, Vec<&'a str>>;

/// Collects what is as expected and what is not.
#[derive(Default)]
struct Verdict {
    good: Vec<String>,
    wrong: Vec<String>,
}

impl Verdict {
    fn note(&mut self, good: bool, as_expected: impl Into<String>, else_: impl Into<String>) {
        if good {
            self.good.push(as_expected.into());
        } else {
            self.wrong.push(else_.into());
        }
    }

    /// Compares a value with what it should be.
    fn compare(&mut self, what: &str, expected: &str, found: Option<&str>) {
        let shown = found.filter(|found| !found.is_empty()).unwrap_or("nothing");
        self.note(
            found == Some(expected),
            format!("{what} {expected}"),
            format!("expected {what} {expected}, found {shown}"),
        );
    }

    fn finding(self, name: &str) -> Finding {
        let passed = self.wrong.is_empty();
        let detail = if passed { self.good.join(", ") } else { self.wrong.join("; ") };
        Finding { name: name.to_owned(), passed, detail }
    }
}

/// Returns what a check found; without an answer, that there was none.
pub(super) fn judge(check: &Check, answer: Option<&Answer>) -> Finding {
    let mut verdict = Verdict::default();
    match answer {
        None => verdict.wrong.push("the guest gave no answer".to_owned()),
        Some(answer) if matches!(answer.code, 124 | 137) => {
            verdict.wrong.push("still running at its deadline, so it was ended".to_owned());
        }
        Some(answer) => judge_answer(check, answer, &mut verdict),
    }
    verdict.finding(&check.name)
}

fn judge_answer(check: &Check, answer: &Answer, verdict: &mut Verdict) {
    if let Some(command) = &check.command {
        return judge_command(command, answer, verdict);
    }
    if answer.code != 0 {
        let why = last_line(&answer.errors);
        return verdict.wrong.push(format!("could not be looked at, exit code {}: {why}", answer.code));
    }
    let facts = answer.facts();
    if let Some(file) = &check.file {
        judge_file(file, &facts, answer.content(), verdict);
    } else if let Some(package) = &check.package {
        judge_package(package, &facts, verdict);
    } else if let Some(service) = &check.service {
        judge_service(service, &facts, verdict);
    } else if let Some(user) = &check.user {
        judge_user(user, &facts, verdict);
    } else if let Some(group) = &check.group {
        judge_group(group, &facts, verdict);
    } else if let Some(settings) = check.sshd.as_ref().or(check.sysctl.as_ref()) {
        judge_settings(settings, &facts, verdict);
    } else if let Some(ports) = &check.listening {
        judge_listening(ports, &answer.output, verdict);
    } else if let Some(timezone) = &check.timezone {
        judge_timezone(timezone, &facts, verdict);
    } else if let Some(locale) = &check.locale {
        judge_locale(locale, &facts, verdict);
    } else {
        verdict.wrong.push("the check says nothing".to_owned());
    }
}

fn first<'a>(facts: &Facts<'a>, key: &str) -> Option<&'a str> {
    facts.get(key).and_then(|values| values.first().copied())
}

fn judge_file(file: &FileCheck, facts: &Facts<'_>, content: &str, verdict: &mut Verdict) {
    let exists = facts.contains_key("exists");
    if file.exists == Some(false) {
        return verdict.note(!exists, "not there", "expected no file, found one");
    }
    if !exists {
        return verdict.wrong.push("expected a file, found none".to_owned());
    }
    if let Some(mode) = &file.mode {
        let found = first(facts, "mode").map(full_mode);
        verdict.compare("mode", &full_mode(mode), found.as_deref());
    }
    if let Some(owner) = &file.owner {
        verdict.compare("owner", owner, first(facts, "owner"));
    }
    if let Some(sha256) = &file.sha256 {
        let found = first(facts, "sha256").and_then(|line| line.split_whitespace().next());
        verdict.compare("sha256", &sha256.to_lowercase(), found);
    }
    let size = first(facts, "size").and_then(|size| size.parse().ok()).unwrap_or(0_usize);
    if (file.contains.is_some() || file.lacks.is_some()) && size > OUTPUT_MAX / 2 {
        return verdict.wrong.push(format!("{size} bytes are more than a check reads of a file"));
    }
    judge_lines(file, content, verdict);
    if verdict.good.is_empty() {
        verdict.good.push("there".to_owned());
    }
}

fn judge_lines(file: &FileCheck, content: &str, verdict: &mut Verdict) {
    let mut find = |pattern: &str| {
        let Ok(regex) = Regex::new(pattern) else {
            verdict.wrong.push(format!("`{pattern}` is not a regular expression"));
            return None;
        };
        Some(content.lines().find(|line| regex.is_match(line)).map(short))
    };
    let contains = file.contains.as_deref().and_then(&mut find);
    let lacks = file.lacks.as_deref().and_then(&mut find);
    if let (Some(pattern), Some(found)) = (&file.contains, contains) {
        let line = found.unwrap_or_default();
        let missing = format!("expected a line to match `{pattern}`, found none");
        verdict.note(found.is_some(), format!("contains `{line}`"), missing);
    }
    if let (Some(pattern), Some(Some(line))) = (&file.lacks, lacks) {
        verdict.wrong.push(format!("expected no line to match `{pattern}`, found `{line}`"));
    }
}

/// Returns a mode with four digits.
fn full_mode(mode: &str) -> String {
    format!("{mode:0>4}")
}

fn judge_package(package: &PackageCheck, facts: &Facts<'_>, verdict: &mut Verdict) {
    let version = first(facts, "version").filter(|_| first(facts, "status") == Some("installed"));
    match (package.installed, version) {
        (true, Some(version)) => verdict.good.push(format!("installed, {version}")),
        (true, None) => verdict.wrong.push("expected to be installed, found not installed".to_owned()),
        (false, Some(version)) => {
            verdict.wrong.push(format!("expected not to be installed, found {version}"));
        }
        (false, None) => verdict.good.push("not installed".to_owned()),
    }
}

fn judge_service(service: &ServiceCheck, facts: &Facts<'_>, verdict: &mut Verdict) {
    let state = first(facts, "ActiveState").unwrap_or("unknown");
    let sub = first(facts, "SubState").unwrap_or("unknown");
    if let Some(active) = service.active {
        let wanted = if active { "active" } else { "inactive" };
        let found = format!("{state} ({sub})");
        verdict.note((state == "active") == active, &found, format!("expected {wanted}, found {found}"));
    }
    if let Some(enabled) = &service.enabled {
        let found = first(facts, "enabled").filter(|found| !found.is_empty()).unwrap_or("unknown");
        verdict.note(found == enabled, enabled, format!("expected {enabled}, found {found}"));
    }
    if service.active.is_none() && service.enabled.is_none() {
        let missing = first(facts, "LoadState").is_none_or(|state| state == "not-found");
        verdict.note(!missing, "there", "expected a unit, found none");
    }
}

fn judge_user(user: &UserCheck, facts: &Facts<'_>, verdict: &mut Verdict) {
    let exists = facts.contains_key("exists");
    if user.exists == Some(false) {
        return verdict.note(!exists, "not there", "expected no such user, found one");
    }
    if !exists {
        return verdict.wrong.push("expected a user, found none".to_owned());
    }
    let groups: Vec<_> = first(facts, "groups").unwrap_or_default().split(' ').collect();
    for group in &user.groups {
        let wrong = format!("expected a member of {group}, found a member of {}", groups.join(", "));
        verdict.note(groups.contains(&group.as_str()), format!("in {group}"), wrong);
    }
    if let Some(shell) = &user.shell {
        verdict.compare("shell", shell, first(facts, "shell"));
    }
    if let Some(password) = user.password {
        let expected = match password {
            PasswordState::Locked => "locked",
            PasswordState::Sha512 => "sha512",
        };
        verdict.compare("password", expected, first(facts, "password"));
    }
    if let Some(wanted) = user.sudo_nopasswd {
        judge_sudo(wanted, facts.get("sudo").map_or(&[], Vec::as_slice), verdict);
    }
    if let Some(wanted) = user.authorized_keys {
        let found = facts.contains_key("keys");
        let text = |keys| if keys { "SSH keys of its own" } else { "no SSH keys" };
        verdict.note(
            found == wanted,
            text(found),
            format!("expected {}, found {}", text(wanted), text(found)),
        );
    }
    if verdict.good.is_empty() {
        verdict.good.push("there".to_owned());
    }
}

fn judge_sudo(wanted: bool, listing: &[&str], verdict: &mut Verdict) {
    let found = match nopasswd(listing) {
        Nopasswd::Everything => "everything without a password",
        Nopasswd::Something => "some commands without a password",
        Nopasswd::Nothing => "nothing without a password",
    };
    let expected = if wanted { "everything without a password" } else { "nothing without a password" };
    verdict.note(
        found == expected,
        format!("may do {found}"),
        format!("expected that it may do {expected} with sudo, found that it may do {found}"),
    );
}

#[derive(Debug, PartialEq)]
enum Nopasswd {
    Everything,
    Something,
    Nothing,
}

/// Reads `sudo -l -U`: rules such as `(ALL : ALL) NOPASSWD: ALL`, of which the last that matches a
/// command decides (sudoers(5), "Sudoers file format").
fn nopasswd(listing: &[&str]) -> Nopasswd {
    let rules = listing.iter().filter(|line| line.starts_with('('));
    let mut found = Nopasswd::Nothing;
    for rule in rules {
        let commands = rule.split_once(')').map_or("", |(_, commands)| commands);
        let free = commands.contains("NOPASSWD:");
        let all = commands.split([' ', ',', ':']).any(|word| word == "ALL");
        found = match (free, all) {
            (true, true) => Nopasswd::Everything,
            (false, true) => Nopasswd::Nothing,
            (true, false) if found == Nopasswd::Nothing => Nopasswd::Something,
            (_, false) => found,
        };
    }
    found
}

fn judge_group(group: &GroupCheck, facts: &Facts<'_>, verdict: &mut Verdict) {
    let Some(found) = first(facts, "gid") else {
        return verdict.wrong.push("expected a group, found none".to_owned());
    };
    match group.gid {
        Some(gid) => verdict.compare("number", &gid.to_string(), Some(found)),
        None => verdict.good.push(format!("there, number {found}")),
    }
}

/// Compares `sshd -T` or kernel parameters; of a key that is there several times, all values
/// count, with commas between.
fn judge_settings(settings: &BTreeMap<String, String>, facts: &Facts<'_>, verdict: &mut Verdict) {
    for (key, expected) in settings {
        let found = facts.get(key.as_str()).map(|values| one_line(&values.join(",")));
        verdict.compare(key, &one_line(expected), found.as_deref());
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn judge_listening(ports: &[u16], listing: &str, verdict: &mut Verdict) {
    let mut expected = ports.to_vec();
    expected.sort_unstable();
    expected.dedup();
    let found = listening(listing);
    let text = |ports: &[u16]| match ports {
        [] => "none".to_owned(),
        _ => ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", "),
    };
    let wrong = format!("expected ports {}, found {}", text(&expected), text(&found));
    verdict.note(found == expected, format!("ports {}", text(&found)), wrong);
}

/// Returns the ports of `ss -Hltn` beyond loopback; the resolver listens on `127.0.0.53%lo`.
fn listening(listing: &str) -> Vec<u16> {
    let mut ports: Vec<u16> = listing
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3)?.rsplit_once(':'))
        .filter(|(address, _)| {
            let address = address.trim_start_matches("[::ffff:").trim_matches(['[', ']']);
            !address.starts_with("127.") && address != "::1"
        })
        .filter_map(|(_, port)| port.parse().ok())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn judge_timezone(expected: &str, facts: &Facts<'_>, verdict: &mut Verdict) {
    let link = first(facts, "localtime").unwrap_or_default();
    let zone = link.split_once("zoneinfo/").map(|(_, zone)| zone);
    verdict.compare("time zone", expected, zone);
    if let Some(written) = first(facts, "timezone").filter(|written| *written != expected) {
        verdict.wrong.push(format!("expected {expected} in /etc/timezone, found {written}"));
    }
}

fn judge_locale(expected: &str, facts: &Facts<'_>, verdict: &mut Verdict) {
    let set = facts.get("lang").map(|values| values.join(" and "));
    verdict.compare("locale", expected, set.as_deref());
    let generated = facts
        .get("have")
        .is_some_and(|have| have.iter().any(|locale| plain_locale(locale) == plain_locale(expected)));
    verdict.note(
        generated,
        "generated",
        format!("expected {expected} to be generated, found that it is not"),
    );
}

/// Returns a locale's name as `locale -a` writes it: `fr_FR.utf8` for `fr_FR.UTF-8`.
fn plain_locale(name: &str) -> String {
    match name.split_once('.') {
        Some((language, codeset)) => format!("{language}.{}", codeset.to_lowercase().replace('-', "")),
        None => name.to_owned(),
    }
}

fn judge_command(command: &CommandCheck, answer: &Answer, verdict: &mut Verdict) {
    if answer.code != command.exit_code {
        let said = if answer.errors.trim().is_empty() { &answer.output } else { &answer.errors };
        let said = last_line(said);
        let colon = if said.is_empty() { "" } else { ": " };
        let (expected, found) = (command.exit_code, answer.code);
        return verdict.wrong.push(format!("expected exit code {expected}, found {found}{colon}{said}"));
    }
    let output = answer.output.trim_end_matches('\n');
    let Some(pattern) = &command.stdout else {
        return verdict.good.push(first_and_last(output));
    };
    match RegexBuilder::new(pattern).multi_line(true).build() {
        Ok(regex) => {
            let found = first_and_last(output);
            let wrong = format!("expected output to match `{pattern}`, found {found}");
            verdict.note(regex.is_match(output), found, wrong);
        }
        Err(_) => verdict.wrong.push(format!("`{pattern}` is not a regular expression")),
    }
}

/// Returns text as a detail shows it: its first line, and its last.
fn first_and_last(text: &str) -> String {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(short);
    match (lines.next(), lines.next_back()) {
        (None, _) => "no output".to_owned(),
        (Some(only), None) => format!("`{only}`"),
        (Some(first), Some(last)) => format!("`{first}` … `{last}`"),
    }
}

fn last_line(text: &str) -> &str {
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).map_or("", short)
}

fn short(line: &str) -> &str {
    &line[..line.floor_char_boundary(120)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(output: &str) -> Answer {
        Answer { code: 0, output: output.to_owned(), errors: String::new() }
    }

    /// Judges a check written as TOML against a probe's output.
    fn found(check: &str, output: &str) -> (bool, String) {
        let check: Check = toml::from_str(&format!("name = 'x'\n{check}")).unwrap();
        let finding = judge(&check, Some(&answer(output)));
        (finding.passed, finding.detail)
    }

    #[test]
    fn facts_are_judged() {
        let odin = "exists yes\nshell /bin/bash\ngroups odin adm sudo\npassword locked\nkeys yes\n\
                    sudo User odin may run the following commands on x:\nsudo     (ALL : ALL) ALL\n\
                    sudo     (ALL) NOPASSWD: ALL\n";
        for (check, output, passed, detail) in [
            ("package.name = 'vim'", "status installed\nversion 2:9\n", true, "installed, 2:9"),
            (
                "package.name = 'vim'",
                "status config-files\nversion 2:9\n",
                false,
                "expected to be installed, found not installed",
            ),
            ("package = {name = 'vim', installed = false}", "", true, "not installed"),
            (
                "service = {name = 'a', active = true, enabled = 'enabled'}",
                "LoadState loaded\nActiveState active\nSubState listening\nenabled enabled\n",
                true,
                "active (listening), enabled",
            ),
            (
                "service = {name = 'a', active = false}",
                "LoadState loaded\nActiveState active\nSubState running\nenabled \n",
                false,
                "expected inactive, found active (running)",
            ),
            (
                "service.name = 'a'",
                "LoadState not-found\nActiveState inactive\nSubState dead\nenabled not-found\n",
                false,
                "expected a unit, found none",
            ),
            (
                "user = {name = 'odin', groups = ['sudo'], password = 'locked', sudo_nopasswd = true, authorized_keys = true, shell = '/bin/bash'}",
                odin,
                true,
                "in sudo, shell /bin/bash, password locked, may do everything without a password, SSH keys of its own",
            ),
            (
                "user = {name = 'odin', groups = ['wheel'], password = 'sha512'}",
                odin,
                false,
                "expected a member of wheel, found a member of odin, adm, sudo; expected password sha512, found locked",
            ),
            (
                "user = {name = 'odin', password = 'locked'}",
                "exists yes\npassword empty\n",
                false,
                "expected password locked, found empty",
            ),
            (
                "user = {name = 'odin', sudo_nopasswd = false}",
                "exists yes\n",
                true,
                "may do nothing without a password",
            ),
            ("user = {name = 'odin', exists = false}", "", true, "not there"),
            ("user.name = 'odin'", "", false, "expected a user, found none"),
            ("group = {name = 'x', gid = 5}", "gid 6\n", false, "expected number 5, found 6"),
            ("group.name = 'x'", "gid 6\n", true, "there, number 6"),
            (
                "sshd = {port = '2222', permitrootlogin = 'no'}",
                "port 2222\npermitrootlogin no\n",
                true,
                "permitrootlogin no, port 2222",
            ),
            ("sshd = {port = '2222'}", "port 22\nport 2222\n", false, "expected port 2222, found 22,2222"),
            ("sshd = {foo = 'x'}", "port 22\n", false, "expected foo x, found nothing"),
            ("sysctl = {'kernel.a' = '1 2'}", "kernel.a 1\t2\n", true, "kernel.a 1 2"),
            (
                "timezone = 'Europe/Paris'",
                "localtime /usr/share/zoneinfo/Europe/Paris\ntimezone Europe/Paris\n",
                true,
                "time zone Europe/Paris",
            ),
            (
                "timezone = 'Europe/Paris'",
                "localtime ../usr/share/zoneinfo/Etc/UTC\n",
                false,
                "expected time zone Europe/Paris, found Etc/UTC",
            ),
            (
                "locale = 'fr_FR.UTF-8'",
                "lang fr_FR.UTF-8\nhave C\nhave fr_FR.utf8\n",
                true,
                "locale fr_FR.UTF-8, generated",
            ),
            (
                "locale = 'fr_FR.UTF-8'",
                "lang fr_FR.UTF-8\nhave C\n",
                false,
                "expected fr_FR.UTF-8 to be generated, found that it is not",
            ),
        ] {
            assert_eq!(found(check, output), (passed, detail.to_owned()), "{check}");
        }
    }

    #[test]
    fn ports_beyond_loopback_count() {
        let listing = "LISTEN 0 4096 127.0.0.53%lo:53 0.0.0.0:*\nLISTEN 0 128 0.0.0.0:2222 0.0.0.0:*\n\
                       LISTEN 0 128 [::]:2222 [::]:*\nLISTEN 0 5 [::1]:631 [::]:*\n\
                       LISTEN 0 5 [::ffff:127.0.0.1]:8080 *:*\n";
        assert_eq!(listening(listing), [2222]);
        assert_eq!(listening("LISTEN 0 1 *:22 *:*\nLISTEN 0 1 10.0.0.1:80 0.0.0.0:*\n"), [22, 80]);
        let (passed, detail) = found("listening = [2222]", "LISTEN 0 1 *:22 *:*\n");
        assert_eq!((passed, detail.as_str()), (false, "expected ports 2222, found 22"));
    }

    #[test]
    fn the_last_sudo_rule_decides() {
        for (listing, expected) in [
            (&["(ALL : ALL) ALL", "(ALL) NOPASSWD: ALL"][..], Nopasswd::Everything),
            (&["(ALL) NOPASSWD: ALL", "(ALL : ALL) ALL"], Nopasswd::Nothing),
            (&["(ALL : ALL) ALL", "(root) NOPASSWD: /bin/true"], Nopasswd::Something),
            (&["(ALL : ALL) NOPASSWD:SETENV: ALL"], Nopasswd::Everything),
            (&["User odin is not allowed to run sudo on x."], Nopasswd::Nothing),
            (&[], Nopasswd::Nothing),
        ] {
            assert_eq!(nopasswd(listing), expected, "{listing:?}");
        }
    }

    #[test]
    fn no_answer_and_failed_probes_are_findings() {
        let check: Check = toml::from_str("name = 'x'\nsshd = {port = '22'}").unwrap();
        assert_eq!(judge(&check, None).detail, "the guest gave no answer");
        let answer =
            Answer { code: 255, output: String::new(), errors: "sshd: no hostkeys available\n".into() };
        let finding = judge(&check, Some(&answer));
        assert_eq!(finding.detail, "could not be looked at, exit code 255: sshd: no hostkeys available");
    }
}
