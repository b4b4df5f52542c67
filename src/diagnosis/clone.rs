//! Why a clone is not what its drive says: what a look into it shows, and what that means.

use super::Cause;

/// The script that looks into a clone, by `sh -c`; its `$0` is the clone's user. Each line that it prints is a
/// word and what it is about, see [`Symptoms`].
pub const LOOK: &str = include_str!("clone.sh");

/// What a look into a clone has shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Symptoms(Vec<(String, String)>);

impl Symptoms {
    /// Reads what [`LOOK`] prints.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let (word, about) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
            (word.to_owned(), about.trim().to_owned())
        };
        Self(text.lines().map(line).collect())
    }

    fn all<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(found, _)| found == word).map(|(_, about)| about.as_str())
    }

    fn first(&self, word: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == word).map(|(_, about)| about.as_str())
    }

    fn has(&self, word: &str) -> bool {
        self.first(word).is_some()
    }
}

/// What a promise of the proof is about, as its name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Topic {
    /// What the drive brings, whatever it is.
    Drive,
    Address,
    Identity,
    Login,
    Disk,
    Wait,
    Password,
}

fn topic(promise: &str) -> Option<Topic> {
    let says = |words: &[&str]| words.iter().any(|word| promise.contains(word));
    let topics = [
        (Topic::Login, &["logs in", "logins", "SSH", "key is ", "its key"][..]),
        (Topic::Identity, &["a machine-id of its own", "a host key of its own"]),
        (Topic::Address, &["address", "network comes"]),
        (Topic::Disk, &["grew", "fills the disk"]),
        (Topic::Wait, &["wait"]),
        (Topic::Password, &["password"]),
        (Topic::Drive, &["hostname", "cloud-init", "ConfigDrive", "drive"]),
    ];
    topics.into_iter().find(|(_, words)| says(words)).map(|(topic, _)| topic)
}

/// Why a promise of the proof does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Its place among those that do not.
    pub of: usize,
    /// The reason's name.
    pub cause: Cause,
    /// What was seen, and what to do.
    pub text: String,
}

/// Returns why promises of the proof do not hold, each reason with the first promise that it is about. `failed`
/// are their names; `port` is that of SSH.
#[must_use]
pub fn explain(failed: &[&str], symptoms: &Symptoms, user: &str, port: u16) -> Vec<Explanation> {
    let topics: Vec<_> = failed.iter().map(|name| topic(name)).collect();
    let place = |about: &[Topic]| topics.iter().position(|it| it.is_some_and(|topic| about.contains(&topic)));
    let explained = |(about, cause, text): Reason| Some(Explanation { of: place(about)?, cause, text });
    reasons(symptoms, &topics, user, port).into_iter().filter_map(explained).collect()
}

/// What a reason is about, its name and its text.
type Reason = (&'static [Topic], Cause, String);

/// Returns what the symptoms mean, the causes of others first.
fn reasons(it: &Symptoms, failed: &[Option<Topic>], user: &str, port: u16) -> Vec<Reason> {
    use Topic::{Address, Disk, Drive, Identity, Login, Password, Wait};
    const OF_THE_DRIVE: &[Topic] = &[Drive, Address, Login, Disk];
    let mut found: Vec<Reason> = Vec::new();
    if let Some(why) = it.first("off") {
        let text = format!("cloud-init is off, because {why}: the seal has to take that away");
        found.push((OF_THE_DRIVE, Cause::CloudInitOff, text));
    } else if !it.has("drive") {
        let text = "no cloud-init drive is seen, no volume labelled cidata or config-2: a clone has to have its \
                    drive before its first start";
        found.push((OF_THE_DRIVE, Cause::NoDriveSeen, text.to_owned()));
    }
    if let Some(file) = it.first("left") {
        let text = format!(
            "{file} is left, by which the installer tells cloud-init what to use and what to leave alone: \
             the seal has to remove it"
        );
        found.push((OF_THE_DRIVE, Cause::InstallerSettingsLeft, text));
    }
    if let Some(file) = it.first("network").filter(|_| failed.contains(&Some(Address))) {
        let text = format!(
            "{file} is left, which sets up the network beside the drive, or instead of it: the seal has to \
             remove it"
        );
        found.push((&[Address], Cause::NetworkLeft, text));
    }
    let source = it.first("source").map(str::to_lowercase);
    let is_taken = found.is_empty() && matches!(source.as_deref(), Some("nocloud" | "configdrive"));
    if found.is_empty() && !is_taken {
        let text = format!(
            "cloud-init took the data source {}: `datasource_list: [ConfigDrive, NoCloud]` has to be in \
             /etc/cloud/cloud.cfg.d, on one line",
            source.as_deref().unwrap_or("none")
        );
        found.push((OF_THE_DRIVE, Cause::OtherDataSource, text));
    }
    if is_taken {
        let text = "what cloud-init says of it is in the clone's /var/log/cloud-init.log: look with --keep";
        found.push((&[Drive], Cause::CloudInitFailed, text.to_owned()));
        let links: Vec<_> = it.all("link").collect();
        let links = if links.is_empty() { "none".to_owned() } else { links.join(", ") };
        let text = format!(
            "cloud-init took the drive, and the interfaces are: {links}; look with --keep at what brings them up"
        );
        found.push((&[Address], Cause::NetworkDown, text));
    }
    let text = "the seal has to empty /etc/machine-id and to remove /etc/ssh/ssh_host_*: clones with one machine-id \
                get one DHCP lease";
    if it.has("machine-id") && it.has("hostkey") {
        found.push((&[Identity], Cause::IdentityShared, text.to_owned()));
    }
    // What the drive would have brought is missed for want of it.
    let own = |cause: &Cause| is_taken || *cause != Cause::KeysNotTaken;
    let login = ssh(it, user, port).filter(|(cause, _)| own(cause));
    found.extend(login.map(|(cause, text)| (&[Login][..], cause, text)));
    found.extend(is_taken.then(|| (&[Disk][..], Cause::DiskNotGrown, disk(it))));
    if let Some(unit) = it.first("waited") {
        let text = format!(
            "{unit} waited for an interface until it gave up: each needs a configuration, or `optional: true`"
        );
        found.push((&[Wait], Cause::NetworkWaitedFor, text));
    }
    if it.first("password") == Some("L") {
        let text = format!(
            "{user}'s password is locked: with `lock_passwd: false` for cloud-init's default user it stays \
             as it is"
        );
        found.push((&[Password], Cause::PasswordLocked, text));
    }
    found
}

/// Returns why nobody logs in.
fn ssh(it: &Symptoms, user: &str, port: u16) -> Option<(Cause, String)> {
    let ports: Vec<_> = it.all("port").collect();
    if let Some(error) = it.first("sshd") {
        return Some((Cause::SshDown, format!("sshd does not start: {error}")));
    }
    if ports.is_empty() {
        let text = if it.has("hostkey") {
            "no SSH server listens: is ssh.socket or ssh.service enabled in the template?"
        } else {
            "no SSH server listens and there is no host key: sealing removes them, and something has to \
             make new ones at the first boot"
        };
        return Some((Cause::SshDown, text.to_owned()));
    }
    if !ports.contains(&port.to_string().as_str()) {
        let text = format!(
            "SSH listens on port {} and not on {port}: `Port` in /etc/ssh/sshd_config.d says which, \
             `proof.ssh_port` what the proof expects",
            ports.join(", ")
        );
        return Some((Cause::SshElsewhere, text));
    }
    if let Some(user) = it.first("nobody") {
        return Some((
            Cause::KeysNotTaken,
            format!(
                "there is no user {user}: `template.cloud_init.user` is whom cloud-init's default user has \
                 to be"
            ),
        ));
    }
    (!it.has("key")).then(|| {
        let text = format!(
            "the clone's key is not in {user}'s authorized_keys: cloud-init gives it to \
             `system_info.default_user`, which has to be {user}"
        );
        (Cause::KeysNotTaken, text)
    })
}

/// Returns why the root file system did not grow.
fn disk(it: &Symptoms) -> String {
    match (it.first("root"), it.first("nogrow")) {
        (Some(root), _) if root.starts_with("/dev/mapper/") || root.starts_with("/dev/dm-") => format!(
            "the root file system is on {root}, a logical volume, which cloud-init does not grow: say \
             `name: direct` under `storage.layout`"
        ),
        (_, Some(reason)) => format!("nothing grows its partition: {reason}"),
        _ => "growpart grows a partition that is the last on its disk: look with --keep at \
              /var/log/cloud-init.log"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const HOSTNAME: &str = "the clone took its hostname";
    const ADDRESS: &str = "the clone took its static address and no other";
    const LOGIN: &str = "odin logs in by key on port 2222 and has sudo";
    const DISK: &str = "the root file system grew to the clone's disk";
    const MACHINE_ID: &str = "the clone has a machine-id of its own";
    const PASSWORD: &str = "user has the console password";
    const WAIT: &str = "boot waits for no network";

    /// What a clone shows that is as it should be.
    const GOOD: &str = "drive cidata\nsource nocloud\nlink eth0 up\nmachine-id\nhostkey /etc/ssh/ssh_host_ed25519_key\n\
                        port 2222\nkey\npassword P\nroot /dev/vda1\n";

    fn causes(failed: &[&str], symptoms: &str) -> Vec<(usize, Cause)> {
        let found = explain(failed, &Symptoms::parse(symptoms), "odin", 2222);
        found.into_iter().map(|it| (it.of, it.cause)).collect()
    }

    #[test]
    fn symptoms_have_their_cause() {
        let all = [HOSTNAME, ADDRESS, LOGIN];
        let good = |from: &str, to: &str| {
            assert!(GOOD.contains(from), "{from}");
            GOOD.replace(from, to)
        };
        for (failed, symptoms, expected) in [
            (
                &all[..],
                good("source", "off /etc/cloud/cloud-init.disabled is there\nx"),
                (0, Cause::CloudInitOff),
            ),
            (&all, good("drive cidata\nsource nocloud", ""), (0, Cause::NoDriveSeen)),
            (
                &all,
                good("link", "left /etc/cloud/cloud.cfg.d/99-installer.cfg\nx"),
                (0, Cause::InstallerSettingsLeft),
            ),
            (&[ADDRESS], good("link", "network /etc/netplan/00-x.yaml\nx"), (0, Cause::NetworkLeft)),
            (&all, good("nocloud", "none"), (0, Cause::OtherDataSource)),
            // As when it is switched off for want of a data source that it knows.
            (&all, good("source nocloud\n", ""), (0, Cause::OtherDataSource)),
            (&["cloud-init ends its first boot without error"], GOOD.to_owned(), (0, Cause::CloudInitFailed)),
            (&[DISK, ADDRESS], good("up", "down"), (1, Cause::NetworkDown)),
            (&[MACHINE_ID], GOOD.to_owned(), (0, Cause::IdentityShared)),
            (&[LOGIN], good("port 2222", "sshd x: line 3: Bad configuration option"), (0, Cause::SshDown)),
            (&[LOGIN], good("port 2222", ""), (0, Cause::SshDown)),
            (&[LOGIN], good("2222", "22"), (0, Cause::SshElsewhere)),
            (&[MACHINE_ID, LOGIN], good("\nkey", ""), (1, Cause::KeysNotTaken)),
            (&[LOGIN], good("\nkey", "\nnobody odin"), (0, Cause::KeysNotTaken)),
            (&[DISK], good("/dev/vda1", "/dev/mapper/ubuntu--vg-ubuntu--lv"), (0, Cause::DiskNotGrown)),
            (&[DISK], good("root", "nogrow growpart is not installed\nroot"), (0, Cause::DiskNotGrown)),
            (&[WAIT], good("link", "waited systemd-networkd-wait-online\nx"), (0, Cause::NetworkWaitedFor)),
            (&[PASSWORD], good("password P", "password L"), (0, Cause::PasswordLocked)),
        ] {
            assert!(causes(failed, &symptoms).contains(&expected), "{failed:?} {symptoms}");
        }
    }

    #[test]
    fn only_what_does_not_hold_is_explained_and_once() {
        assert_eq!(
            causes(&[HOSTNAME], "off x\nleft y\nnetwork z\n"),
            [(0, Cause::CloudInitOff), (0, Cause::InstallerSettingsLeft)]
        );
        assert_eq!(causes(&[PASSWORD], GOOD), []);
        assert_eq!(
            causes(&[MACHINE_ID, LOGIN, DISK], &GOOD.replace("hostkey", "off x")),
            [(1, Cause::CloudInitOff)]
        );
        assert_eq!(causes(&["zip is installed"], ""), []);
        assert_eq!(causes(&[], "off x"), []);
        assert_eq!(causes(&["password logins are refused"], GOOD), [], "which is a login, not a password");
    }

    #[test]
    fn explanations_say_what_was_seen_and_what_to_do() {
        for (failed, symptoms, words) in [
            (
                ADDRESS,
                "off /etc/cloud/cloud-init.disabled is there",
                vec!["cloud-init.disabled", "the seal has to"],
            ),
            (
                ADDRESS,
                "drive cidata\nsource nocloud\nlink eth0 down\nlink eth1 up",
                vec!["eth0 down, eth1 up"],
            ),
            (
                LOGIN,
                "drive cidata\nsource nocloud\nport 22",
                vec!["on port 22 and not on 2222", "proof.ssh_port"],
            ),
            (LOGIN, "drive cidata\nsource nocloud", vec!["no host key", "at the first boot"]),
            (
                LOGIN,
                "drive cidata\nsource nocloud\nsshd x: Bad option",
                vec!["sshd does not start: x: Bad option"],
            ),
        ] {
            let found = explain(&[failed], &Symptoms::parse(symptoms), "odin", 2222);
            let text: Vec<_> = found.into_iter().map(|it| it.text).collect();
            let text = text.join("\n");
            for word in words {
                assert!(text.contains(word), "`{word}` is not in {text}");
            }
            assert!(!text.contains("  ") && !text.ends_with('.'), "{text}");
        }
    }

    #[test]
    fn the_look_prints_symptoms_on_any_system() {
        let output = Command::new("/bin/sh").args(["-c", LOOK, "root"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let symptoms = Symptoms::parse(&String::from_utf8(output.stdout).unwrap());
        assert!(symptoms.has("root") && symptoms.has("password") && !symptoms.has("nobody"), "{symptoms:?}");
        let output = Command::new("/bin/sh").args(["-c", LOOK, "no-such-user"]).output().unwrap();
        let symptoms = Symptoms::parse(&String::from_utf8(output.stdout).unwrap());
        assert_eq!((output.status.success(), symptoms.first("nobody")), (true, Some("no-such-user")));
    }
}
