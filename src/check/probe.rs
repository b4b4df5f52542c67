//! What the guest is asked: a shell script of probes, each of which prints facts as lines of
//! `KEY VALUE`, and the parser of its answers.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::definition::Check;
use crate::provision::shell_quote;

/// How long after its deadline a probe is ended by force.
pub(super) const KILL_AFTER: Duration = Duration::from_secs(5);

/// The most bytes that one probe may print.
pub(super) const OUTPUT_MAX: usize = 256 * 1024;

/// Stands before the probes: `probe NUMBER SECONDS SCRIPT` keeps a script's output, errors and exit code in files.
/// Each process costs an emulated guest some 20 ms, so there are as few as can be.
pub(super) const PRELUDE: &str = r#"
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL=C.UTF-8 SYSTEMD_PAGER= SYSTEMD_COLORS=0
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
probe() {
    timeout -k 5 "$2" sh -c "$3" </dev/null >"$work/$1.out" 2>"$work/$1.err"
    echo $? >"$work/$1.code"
}
"#;

/// Stands after the probes: prints each file's size and name, an empty line, and all files one after another.
pub(super) const ENDING: &str = r#"
cd "$work" && find . -type f -size +512 -exec truncate -s 262144 {} + && wc -c -- * && echo && cat -- *
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
[ "$2" = no ] || { printf 'sha256 '; sha256sum <"$1"; }
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
    IFS=.
    # The parts of the name, to be put together again with other signs between them.
    set -- $name
    IFS=/
    # By `read` alone it cannot be done: that asks byte by byte, and the kernel answers once.
    value=$(cat "/proc/sys/$*") && echo "$name $value"
done 2>/dev/null
:
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

/// Parses what the probes have left, by their numbers; a probe whose files are not all there has no answer.
pub(super) fn parse_answers(text: &[u8]) -> BTreeMap<usize, Answer> {
    let Some(end) = text.windows(2).position(|pair| pair == b"\n\n") else { return BTreeMap::new() };
    let (listing, mut rest) = (String::from_utf8_lossy(&text[..end]), &text[end + 2..]);
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    let sizes = listing.lines().filter_map(|line| line.trim().split_once(' '));
    for (size, name) in sizes.filter(|(_, name)| *name != "total") {
        let size = size.parse().unwrap_or(usize::MAX).min(rest.len());
        let (content, after) = rest.split_at(size);
        files.insert(name, String::from_utf8_lossy(content).into_owned());
        rest = after;
    }
    let numbers = files.keys().filter_map(|name| name.strip_suffix(".code")?.parse().ok());
    let answer = |number: usize| {
        let part = |ending: &str| files.get(format!("{number}.{ending}").as_str()).cloned();
        let code = part("code")?.trim().parse().ok()?;
        Some((number, Answer { code, output: part("out")?, errors: part("err")? }))
    };
    numbers.filter_map(answer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_parsed_and_what_is_not_whole_is_left_out() {
        let listing =
            " 2 0.code\n 0 0.err\n 8 0.out\n 2 1.code\n 4 1.err\n 0 1.out\n 2 2.code\n 18 total\n\n";
        let content = "0\na b\na c\n3\nerr\n0\n";
        let answers = parse_answers(format!("{listing}{content}").as_bytes());
        assert_eq!(answers.len(), 2, "the third has no output");
        assert_eq!(answers[&0].facts(), BTreeMap::from([("a", vec!["b", "c"])]));
        assert_eq!(answers[&1], Answer { code: 3, output: String::new(), errors: "err\n".to_owned() });
    }

    #[test]
    fn the_prelude_knows_the_same_limits() {
        assert!(ENDING.contains(&format!("-size +{} -exec truncate -s {OUTPUT_MAX} ", OUTPUT_MAX / 512)));
        assert!(PRELUDE.contains(&format!("timeout -k {} ", KILL_AFTER.as_secs())));
    }
}
