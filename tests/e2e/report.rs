//! What a report of `ubuntu-noble` and its contracts has to say, promise by promise.

use std::collections::BTreeMap;

use forge::artifact::Manifest;

/// What the homelab's document promises: the area, where it is seen, and the check's name there.
const PROMISED: &[(&str, &str, &[&str])] = &[
    (
        "system",
        "build",
        &[
            "operating system",
            "root file system is ext4",
            "one root file system on a partition",
            "root file system fills the disk",
            "no swap",
            "kernel arguments are free of the build",
        ],
    ),
    (
        "user",
        "build",
        &[
            "user exists with bash and sudo",
            "user has no password",
            "sudo needs no password",
            "root has no password",
            "root has no SSH key that logs in",
            "no account has an empty password",
        ],
    ),
    (
        "SSH",
        "build",
        &[
            "SSH is all that listens",
            "SSH is set to its port",
            "SSH takes keys only, and no root",
            "SSH settings are valid",
            "SSH settings are not writable",
            "SSH has an ed25519 host key only",
            "SSH has no weak moduli",
        ],
    ),
    (
        "SSH",
        "valaskjalf-master",
        &[
            "odin logs in by key on port 2222 and has sudo",
            "password logins are refused",
            "root logins are refused",
            "nothing answers on port 22",
        ],
    ),
    (
        "cloud-init",
        "build",
        &[
            "cloud-init takes ConfigDrive and NoCloud",
            "cloud-init keeps SSH host keys",
            "cloud-init is installed",
        ],
    ),
    (
        "cloud-init",
        "valaskjalf-master",
        &[
            "cloud-init is on",
            "cloud-init is done",
            "cloud-init ends without error",
            "cloud-init took the clone's drive",
            "nothing of the installer is left",
        ],
    ),
    (
        "network",
        "valaskjalf-master",
        &[
            "the clone took its hostname",
            "the clone took its static address and no other",
            "the clone's default route leads to its gateway",
            "the clone asks its name servers",
            "network comes from cloud-init alone",
            "boot waits for no network",
        ],
    ),
    ("network", "k3s-server", &["the clone took an address from DHCP and no other"]),
    (
        "network",
        "config-drive",
        &["the ConfigDrive volume is accepted", "its hostname is taken", "its key is given to the user"],
    ),
    ("network", "valaskjalf-worker", &["the clone took its static address and no other"]),
    ("keys", "build", &["no secret is left in the guest", "no secret is left on the disk"]),
    ("keys", "valaskjalf-master", &["clone's key is accepted for the user"]),
    ("agent", "build", &["guest agent is installed", "guest agent runs"]),
    (
        "agent",
        "valaskjalf-master, agent",
        &["the agent freezes and thaws the file systems", "the agent sets a user's password"],
    ),
    ("agent", "valaskjalf-master, reboot", &["the agent reboots the clone", "machine-id and host key stay"]),
    ("agent", "valaskjalf-master, other address", &["the agent powers the clone off within 30 s"]),
    ("Ansible", "build", &["Python runs, for Ansible", "sudo needs no password"]),
    ("Ansible", "valaskjalf-master, audit", &["Ansible reaches the clone and becomes root"]),
    (
        "Kubernetes",
        "valaskjalf-master",
        &[
            "Kubernetes: kernel modules load",
            "Kubernetes: IP forwarding can be turned on",
            "Kubernetes: reverse paths are not filtered strictly",
            "Kubernetes: user namespaces are on",
            "Kubernetes: programs run from /tmp and /var",
            "Kubernetes: no firewall",
            "Kubernetes: cgroups have version 2",
            "Kubernetes: network namespaces reach each other through a bridge",
            "no swap",
        ],
    ),
    (
        "base",
        "build",
        &[
            "vim is installed",
            "zip is installed",
            "unzip is installed",
            "locale",
            "keyboard",
            "keyboard variant",
            "time zone",
            "time is synchronised",
        ],
    ),
    (
        "consumers",
        "valaskjalf-master",
        &[
            "the root file system grew to the clone's disk",
            "no unit has failed",
            "the clone's clock is right",
            "the clone has a machine-id of its own",
            "the clone has a host key of its own",
            "machine-id was made at first boot",
        ],
    ),
    (
        "consumers",
        "valaskjalf-master, second clone",
        &["two clones have different machine-ids", "two clones have different host keys"],
    ),
    (
        "consumers",
        "valaskjalf-master, other address",
        &["the clone took its static address and no other", "machine-id and host key stay"],
    ),
    ("security", "valaskjalf-master, audit", &["ssh-audit finds no failure"]),
];

/// Makes sure that each promise is in the report by name, and holds; says how many are of which area.
pub(crate) fn assert_promised(manifest: &Manifest) {
    let mut wrong = Vec::new();
    let mut areas: BTreeMap<&str, usize> = BTreeMap::new();
    for (area, at, names) in PROMISED {
        for name in *names {
            match manifest.checks.iter().find(|check| check.at == *at && check.name == *name) {
                Some(check) if check.passed && !check.not_proven => *areas.entry(area).or_default() += 1,
                Some(check) => wrong.push(format!("{at}: {name} does not hold: {}", check.detail)),
                None => wrong.push(format!("{at}: {name} is not in the report")),
            }
        }
    }
    println!("promises by area, each by its name in the report: {areas:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Makes sure that nothing in the report has failed, and says what could not be proven.
pub(crate) fn assert_holds(manifest: &Manifest) {
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for check in &manifest.checks {
        assert!(check.passed || check.not_proven, "{}: {}: {}", check.at, check.name, check.detail);
        if check.not_proven {
            println!("not proven at {}: {}: {}", check.at, check.name, check.detail);
        }
        *places.entry(&check.at).or_default() += 1;
    }
    println!("checks by place: {places:#?}");
}
