use super::*;

const GOOD: &str = "\
#cloud-config
autoinstall:
  version: 1
  refresh-installer: {update: false}
  locale: fr_FR.UTF-8
  keyboard: {layout: fr, variant: latin9}
  timezone: Europe/Paris
  source: {id: ubuntu-server, search_drivers: false}
  network: {version: 2, ethernets: {any: {match: {name: \"en*\"}, dhcp4: true, dhcp-identifier: mac}}}
  apt: {geoip: false, fallback: abort, mirror-selection: {primary: [{uri: \"http://a/ubuntu\"}, country-mirror]}}
  storage: {swap: {size: 0}, layout: {name: direct, match: {size: largest}}}
  identity: {hostname: tpl, username: odin, realname: odin, password: \"*\"}
  user-data: {users: [{name: odin, sudo: \"ALL=(ALL) NOPASSWD:ALL\"}]}
  ssh: {install-server: true, allow-pw: false, authorized-keys: [\"ssh-ed25519 AAAA\"]}
  packages: [qemu-guest-agent, vim, zip, unzip]
  updates: security
  shutdown: poweroff
  reporting: {forge: {type: webhook, endpoint: \"http://10.0.0.5:8080/e/x\"}}
  late-commands: [\"true\", [sh, -c, \"true\"]]
  error-commands: [\"tar cz -C / var/log/installer\"]
";

#[test]
fn the_reference_file_passes() {
    assert_eq!(lint(GOOD), []);
}

#[test]
fn the_shortest_file_passes() {
    assert_eq!(lint("#cloud-config\nautoinstall: {version: 1, user-data: {}, shutdown: poweroff}\n"), []);
}

/// Each change to the good file, with the line and a part of the one finding it must give.
#[test]
fn each_mistake_is_found_where_it_is() {
    for (good, bad, line, message) in [
        ("#cloud-config\n", "# cloud-config\n", 1, "first line must be `#cloud-config`"),
        ("  version: 1\n", "", 2, "`autoinstall` has no `version`"),
        ("version: 1", "version: 2", 3, "`version` is 2"),
        ("version: 1", "version: '1'", 3, "`version` must be a whole number"),
        (
            "  packages: [",
            "  package: [",
            15,
            "does not know `package` and would ignore it; did you mean `packages`?",
        ),
        ("  updates: security", "  updates: none", 16, "`updates` must be one of `security`, `all`"),
        ("late-commands", "late_commands", 19, "did you mean `late-commands`?"),
        (
            "authorized-keys",
            "authorized_keys",
            14,
            "`ssh.authorized_keys` and would ignore it; did you mean `authorized-keys`?",
        ),
        ("search_drivers", "search-drivers", 8, "did you mean `search_drivers`?"),
        ("id: ubuntu-server,", "id: ubuntu-servr,", 8, "did you mean `ubuntu-server`?"),
        ("fallback: abort", "fallback: fail", 10, "`apt.fallback` must be one of"),
        ("geoip: false", "geo_ip: false", 10, "did you mean `geoip`?"),
        ("{uri: \"http://a/ubuntu\"}", "{url: \"http://a/ubuntu\"}", 10, "a mirror must be"),
        ("name: direct", "name: flat", 11, "`storage.layout.name` must be one of `direct`, `lvm`, `zfs`"),
        ("swap: {", "config: [], swap: {", 11, "`storage.config` is ignored"),
        ("swap:", "swp:", 11, "did you mean `swap`?"),
        (
            "match: {size",
            "match: {sizes",
            11,
            "`storage.layout.match.sizes` and would ignore it; did you mean `size`?",
        ),
        ("match: {size: largest}", "match: [{ssd: true}, {seriel: x}]", 11, "did you mean `serial`?"),
        (
            "user-data: {users",
            "user-data: {usres",
            13,
            "refuses `user-data.usres`, which cloud-init does not know; did you mean `users`?",
        ),
        ("user-data: {users", "user-data: {hardening: 1, users", 13, "refuses `user-data.hardening`, which"),
        ("ssh-ed25519 AAAA", "~/.ssh/id_ed25519.pub", 14, "no public key"),
        ("password: \"*\"", "password: \"!\"", 12, "write \"*\" for no password"),
        ("password: \"*\"", "password: \"\"", 12, "write \"*\" for no password"),
        ("password: \"*\"", "password: secret", 12, "nobody could log in"),
        (", password: \"*\"", "", 12, "`identity` has no `password`"),
        ("username: odin", "username: root", 12, "other than root"),
        ("hostname: tpl", "hostname: t_pl", 12, "must be a host name"),
        ("realname", "real-name", 12, "did you mean `realname`?"),
        ("layout: fr,", "layout: fr-latin9,", 6, "a variant has its own key"),
        ("layout: fr, ", "", 6, "`keyboard` has no `layout`"),
        ("Europe/Paris", "paris", 7, "not a name such as `Europe/Paris`"),
        ("Europe/Paris", "Europe/ Paris", 7, "not a name such as"),
        ("shutdown: poweroff", "shutdown: reboot", 17, "must be `poweroff`"),
        ("shutdown: poweroff", "shutdown: halt", 17, "must be one of `reboot`, `poweroff`"),
        ("  shutdown: poweroff\n", "", 2, "`shutdown: poweroff` is missing"),
        ("  locale:", "  interactive-sections: [network]\n  locale:", 5, "asks questions"),
        ("  locale:", "  early-commands: [ls]\n  locale:", 5, "would not run"),
        ("  locale:", "  kernel: {package: a, flavor: b}\n  locale:", 5, "either `package` or `flavor`"),
        ("locale: fr_FR.UTF-8", "locale: 1", 5, "`locale` must be a string"),
        ("network: {version: 2,", "network: {version: 1,", 9, "`network.version` must be 2"),
        (
            "ethernets: {any: {match: {name: \"en*\"}, dhcp4: true, dhcp-identifier: mac}}",
            "renderer: networkd",
            9,
            "no interface",
        ),
        ("{type: webhook,", "{typ: webhook,", 18, "`reporting.forge` has no `type`"),
        ("endpoint", "url", 18, "has no `endpoint`"),
        ("[\"true\", [sh", "[1, [sh", 19, "neither a string nor a list of strings"),
        ("late-commands: [", "late-commands: [[], ", 19, "neither a string nor a list of strings"),
        ("  error-commands:", "error-commands:", 20, "belongs under `autoinstall`"),
        (
            "autoinstall:\n",
            "package_update: true\nautoinstall:\n",
            2,
            "belongs under `autoinstall.user-data`",
        ),
        ("autoinstall:\n", "autoinstal:\n", 2, "refuses `autoinstal`"),
    ] {
        assert!(GOOD.contains(good), "{good}");
        let findings = lint(&GOOD.replacen(good, bad, 1));
        let found = findings.iter().any(|finding| finding.line == line && finding.message.contains(message));
        assert!(found, "{bad}: {findings:#?}");
    }
}

#[test]
fn one_mistake_gives_one_finding() {
    for (good, bad) in [
        ("password: \"*\"", "password: \"!\""),
        ("updates: security", "updates: none"),
        ("shutdown: poweroff", "shutdown: reboot"),
        ("  packages: [", "  package: ["),
    ] {
        assert_eq!(lint(&GOOD.replacen(good, bad, 1)).len(), 1, "{bad}");
    }
}

#[test]
fn neither_identity_nor_user_data_is_found() {
    let findings = lint("#cloud-config\nautoinstall: {version: 1, shutdown: poweroff}\n");
    assert_eq!(findings.len(), 1);
    assert!(findings[0].message.contains("`identity` or `user-data`"));
}

#[test]
fn hashes_of_all_kinds_pass() {
    for hash in ["$6$salt$hash", "$6$rounds=5000$salt$hash", "$y$j9T$salt$hash"] {
        assert_eq!(lint(&GOOD.replacen("\"*\"", &format!("\"{hash}\""), 1)), [], "{hash}");
    }
}

#[test]
fn what_is_no_mapping_is_one_finding() {
    for text in
        ["#cloud-config\n", "#cloud-config\n- a\n", "#cloud-config\nautoinstall: [}\n", "#cloud-config\n{}\n"]
    {
        assert_eq!(lint(text).len(), 1, "{text}: {:?}", lint(text));
    }
    assert!(lint("\u{feff}#cloud-config\n")[0].message.contains("byte order mark"));
}

#[test]
fn windows_line_ends_are_found_where_they_begin() {
    let findings = lint(&GOOD.replace('\n', "\r\n"));
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!((findings[0].line, findings[0].column), (1, "#cloud-config\r".len()));
    assert!(findings[0].message.contains("Windows line ends"), "{findings:?}");
    // As when a variable brings one along.
    let findings = lint(&GOOD.replace("Paris\n", "Paris\r\n"));
    assert_eq!((findings.len(), findings[0].line, findings[0].column), (1, 7, 25), "{findings:?}");
}

/// Returns the top-level keys of a schema of the installer's or cloud-init's, where that is at hand.
fn keys_of(schema: &str) -> Vec<String> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut places = root.ancestors().map(|folder| folder.join("shared/autoinstall").join(schema));
    let Some(text) = places.find_map(|place| std::fs::read_to_string(place).ok()) else {
        eprintln!("shared/autoinstall/{schema} is not here: its keys are not compared");
        return Vec::new();
    };
    let schema: serde_json::Value = serde_json::from_str(&text).unwrap();
    schema["properties"].as_object().unwrap().keys().cloned().collect()
}

/// The tables against the schemas that the installer itself uses, where those are at hand.
#[test]
fn the_top_level_keys_are_the_installers() {
    for name in keys_of("schema.json") {
        assert!(AUTOINSTALL.iter().any(|key| key.name == name), "{name}");
    }
    for name in keys_of("cloud-config-schema.json") {
        assert!(shape::CLOUD_CONFIG.split(' ').any(|known| known == name), "{name}");
    }
}

#[test]
fn what_a_file_installs_is_found() {
    let other = GOOD.replace("qemu-guest-agent, ", "");
    assert!(installs(GOOD, "qemu-guest-agent") && !installs(&other, "qemu-guest-agent"));
    for (place, text) in [
        ("user-data: {", "user-data: {packages: [qemu-guest-agent], "),
        ("user-data: {", "user-data: {runcmd: [[apt-get, install, qemu-guest-agent]], "),
        ("late-commands: [", "late-commands: [curtin in-target -- apt-get -y install qemu-guest-agent, "),
    ] {
        assert!(installs(&other.replace(place, text), "qemu-guest-agent"), "{text}");
    }
    for command in ["systemctl enable qemu-guest-agent", "apt-get install qemu-guest-agent-tools"] {
        let text = other.replace("late-commands: [", &format!("late-commands: [{command}, "));
        assert!(!installs(&text, "qemu-guest-agent"), "{command}");
    }
    assert!(!installs("[}", "x") && !installs("a: b", "x"));
}

#[test]
fn whether_a_mirror_is_wanted_is_found() {
    assert!(wants_mirror(GOOD));
    for text in [&GOOD.replace("abort", "offline-install"), &GOOD.replace("fallback: abort, ", ""), "[}"] {
        assert!(!wants_mirror(text), "{text}");
    }
}
