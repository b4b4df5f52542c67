//! What the guest is asked: a shell script of probes, each of which prints facts as lines of
//! `KEY VALUE`, and the parser of its answers.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::definition::Check;
use crate::provision::{parse_base64, shell_quote};

/// How long after its deadline a probe is ended by force.
pub(super) const KILL_AFTER: Duration = Duration::from_secs(5);

/// The most bytes that one probe may print.
pub(super) const OUTPUT_MAX: usize = 256 * 1024;

/// Stands before the probes: `probe NUMBER SECONDS SCRIPT` prints `NUMBER CODE OUTPUT ERRORS`, the
/// last two as base64.
pub(super) const PRELUDE: &str = r#"
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL=C.UTF-8 SYSTEMD_PAGER= SYSTEMD_COLORS=0
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
probe() {
    timeout -k 5 "$2" sh -c "$3" </dev/null >"$work/out" 2>"$work/err"
    echo "$1 $? $(head -c 262144 "$work/out" | base64 -w 0) $(head -c 2000 "$work/err" | base64 -w 0)"
}
"#;

const FILE: &str = r#"
[ -e "$1" ] || [ -L "$1" ] || exit 0
echo 'exists yes'
# A link is followed, unless it leads nowhere.
stat -L -c 'mode %a
owner %U:%G
size %s' -- "$1" 2>/dev/null || stat -c 'mode %a
owner %U:%G
size %s' -- "$1"
[ "$2" = no ] || echo "sha256 $(sha256sum <"$1" | cut -d ' ' -f 1)"
[ "$3" = no ] || { echo content; cat -- "$1"; }
"#;

const PACKAGE: &str = r#"
dpkg-query --show --showformat='status ${db:Status-Status}\nversion ${Version}\n' -- "$1" 2>/dev/null
exit 0
"#;

const SERVICE: &str = r#"
systemctl show --property=LoadState,ActiveState,SubState -- "$1" | sed 's/=/ /'
echo "enabled $(systemctl is-enabled -- "$1" 2>/dev/null)"
"#;

/// The password's hash stays in the guest.
const USER: &str = r#"
entry=$(getent passwd -- "$1") || exit 0
echo 'exists yes'
echo "shell ${entry##*:}"
rest=${entry%:*}
home=${rest##*:}
echo "groups $(id -Gn -- "$1")"
if shadow=$(getent shadow -- "$1"); then
    hash=${shadow#*:}
    case ${hash%%:*} in
        '') echo 'password empty' ;;
        '!'* | '*'*) echo 'password locked' ;;
        '$6$'*) echo 'password sha512' ;;
        *) echo 'password other' ;;
    esac
fi
! grep -q '^[^#]' "$home/.ssh/authorized_keys" 2>/dev/null || echo 'keys yes'
[ "$2" = no ] || ! command -v sudo >/dev/null || sudo -n -l -U "$1" | sed 's/^/sudo /'
"#;

const GROUP: &str = r#"
entry=$(getent group -- "$1") || exit 0
rest=${entry#*:*:}
echo "gid ${rest%%:*}"
"#;

/// Without its runtime folder sshd prints nothing; a socket-activated one has none until the first
/// connection.
const SSHD: &str = r"
[ -d /run/sshd ] || mkdir -m 0755 /run/sshd
sshd -T
";

const LISTENING: &str = "ss -Hltn";

const TIMEZONE: &str = r#"
echo "localtime $(readlink /etc/localtime)"
[ ! -e /etc/timezone ] || echo "timezone $(cat /etc/timezone)"
"#;

const LOCALE: &str = r#"
for file in /etc/locale.conf /etc/default/locale; do
    [ ! -e "$file" ] || sed -n "s/^LANG=/lang /p" "$file"
done | tr -d "\"'" | sort -u
locale -a | sed 's/^/have /'
"#;

const SYSCTL: &str = r#"
for name; do
    file=/proc/sys/$(echo "$name" | tr . /)
    [ ! -e "$file" ] || echo "$name $(cat "$file")"
done
"#;

/// Returns the shell line that makes a check's probe.
pub(super) fn call(number: usize, check: &Check, timeout: Duration) -> String {
    let script = shell_quote(&script(check));
    format!("probe {number} {} {script}\n", timeout.as_secs().max(1))
}

fn script(check: &Check) -> String {
    let yes = |wanted: bool| if wanted { "yes" } else { "no" };
    if let Some(file) = &check.file {
        let content = file.contains.is_some() || file.lacks.is_some();
        with_arguments(FILE, &[&file.path, yes(file.sha256.is_some()), yes(content)])
    } else if let Some(package) = &check.package {
        with_arguments(PACKAGE, &[&package.name])
    } else if let Some(service) = &check.service {
        with_arguments(SERVICE, &[&service.name])
    } else if let Some(user) = &check.user {
        with_arguments(USER, &[&user.name, yes(user.sudo_nopasswd.is_some())])
    } else if let Some(group) = &check.group {
        with_arguments(GROUP, &[&group.name])
    } else if check.sshd.is_some() {
        SSHD.to_owned()
    } else if check.listening.is_some() {
        LISTENING.to_owned()
    } else if check.timezone.is_some() {
        TIMEZONE.to_owned()
    } else if check.locale.is_some() {
        LOCALE.to_owned()
    } else if let Some(parameters) = &check.sysctl {
        with_arguments(SYSCTL, &parameters.keys().map(String::as_str).collect::<Vec<_>>())
    } else if let Some(command) = &check.command {
        command.run.clone()
    } else {
        String::new()
    }
}

fn with_arguments(script: &str, arguments: &[&str]) -> String {
    let words: Vec<_> = arguments.iter().map(|argument| shell_quote(argument)).collect();
    format!("set -- {}{script}", words.join(" "))
}

/// What a probe answered.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    pub(super) code: i32,
    pub(super) output: String,
    pub(super) errors: String,
}

impl Answer {
    /// Returns the facts: what stands after each key, in order.
    pub(super) fn facts(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut facts: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for line in self.output.lines().take_while(|line| *line != "content") {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            facts.entry(key).or_default().push(value.trim());
        }
        facts
    }

    /// Returns what stands after the line `content`.
    pub(super) fn content(&self) -> &str {
        self.output.split_once("\ncontent\n").map_or("", |(_, content)| content)
    }
}

/// Parses what the probes printed, by their numbers; what is not an answer is left out.
pub(super) fn parse_answers(text: &[u8]) -> BTreeMap<usize, Answer> {
    String::from_utf8_lossy(text).lines().filter_map(parse_answer).collect()
}

fn parse_answer(line: &str) -> Option<(usize, Answer)> {
    let mut words = line.split(' ');
    let (number, code) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let mut text = || {
        let bytes = parse_base64(words.next()?.as_bytes())?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    Some((number, Answer { code, output: text()?, errors: text()? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_parsed_and_noise_is_left_out() {
        let answers = parse_answers(b"warning: x\n0 0 YSBiCmEgYwo= \n1 3  ZXJyCg==\n2 0 YQ\n");
        assert_eq!(answers.len(), 2);
        assert_eq!(answers[&0].facts(), BTreeMap::from([("a", vec!["b", "c"])]));
        assert_eq!(answers[&1], Answer { code: 3, output: String::new(), errors: "err\n".to_owned() });
    }

    #[test]
    fn the_prelude_knows_the_same_limits() {
        assert!(PRELUDE.contains(&format!("head -c {OUTPUT_MAX} ")));
        assert!(PRELUDE.contains(&format!("timeout -k {} ", KILL_AFTER.as_secs())));
    }
}
