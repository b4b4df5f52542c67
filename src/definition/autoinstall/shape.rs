//! The keys that the installer knows, and the shapes of their values.
//!
//! Facts of subiquity 24.04.3 (`autoinstall-schema.json` of that tag, and what its code does with
//! keys that the schema lets pass: unknown ones are dropped with a warning, or silently).

use super::Finding;
use super::tree::{Entry, Node, Position, Value};

/// What a value must be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    Text,
    /// Text or nothing.
    OptionalText,
    Flag,
    Integer,
    /// One of these words.
    Word(&'static [&'static str]),
    /// `true`, `false` or this word.
    FlagOr(&'static str),
    /// A list of texts.
    Texts,
    /// A list of shell lines, or of lists of arguments.
    Commands,
    /// A list of mappings with these keys.
    Maps(&'static [Key]),
    List,
    /// A mapping with these keys.
    Map(&'static [Key]),
    /// A mapping with any keys.
    AnyMap,
    Any,
}

/// A key and the shape of its value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    pub(super) name: &'static str,
    shape: Shape,
    required: bool,
}

const fn key(name: &'static str, shape: Shape) -> Key {
    Key { name, shape, required: false }
}

const fn required(name: &'static str, shape: Shape) -> Key {
    Key { name, shape, required: true }
}

/// What stands under `autoinstall`.
pub(super) const AUTOINSTALL: &[Key] = &[
    required("version", Shape::Integer),
    key("active-directory", Shape::Map(&[key("admin-name", Shape::Text), key("domain-name", Shape::Text)])),
    key(
        "apt",
        Shape::Map(&[
            key("conf", Shape::Text),
            key("disable_components", Shape::Texts),
            key("disable_suites", Shape::Texts),
            key("fallback", Shape::Word(&["abort", "continue-anyway", "offline-install"])),
            key("geoip", Shape::Flag),
            key("http_proxy", Shape::OptionalText),
            key("https_proxy", Shape::OptionalText),
            key("mirror-selection", Shape::Map(&[key("primary", Shape::List)])),
            key("preferences", Shape::List),
            key("preserve_sources_list", Shape::Flag),
            key("primary", Shape::List),
            key("security", Shape::List),
            key("sources", Shape::AnyMap),
            key("sources_list", Shape::Text),
            key("debconf_selections", Shape::Any),
        ]),
    ),
    key("codecs", Shape::Map(&[key("install", Shape::Flag)])),
    key("debconf-selections", Shape::Text),
    key("drivers", Shape::Map(&[key("install", Shape::Flag)])),
    key("early-commands", Shape::Commands),
    key("error-commands", Shape::Commands),
    key(
        "identity",
        Shape::Map(&[
            required("username", Shape::Text),
            required("hostname", Shape::Text),
            required("password", Shape::Text),
            key("realname", Shape::Text),
        ]),
    ),
    key("interactive-sections", Shape::Texts),
    key("kernel", Shape::Map(&[key("package", Shape::Text), key("flavor", Shape::Text)])),
    key(
        "keyboard",
        Shape::Map(&[
            required("layout", Shape::Text),
            key("variant", Shape::Text),
            key("toggle", Shape::OptionalText),
        ]),
    ),
    key("late-commands", Shape::Commands),
    key("locale", Shape::Text),
    key("network", Shape::AnyMap),
    key("oem", Shape::Map(&[required("install", Shape::FlagOr("auto"))])),
    key("packages", Shape::Texts),
    key("proxy", Shape::OptionalText),
    key("refresh-installer", Shape::Map(&[key("update", Shape::Flag), key("channel", Shape::Text)])),
    key("reporting", Shape::AnyMap),
    key("shutdown", Shape::Word(&["reboot", "poweroff"])),
    key(
        "snaps",
        Shape::Maps(&[
            required("name", Shape::Text),
            key("channel", Shape::Text),
            key("classic", Shape::Flag),
        ]),
    ),
    key(
        "source",
        Shape::Map(&[
            key("id", Shape::Word(&["ubuntu-server", "ubuntu-server-minimal"])),
            key("search_drivers", Shape::Flag),
        ]),
    ),
    key(
        "ssh",
        Shape::Map(&[
            key("install-server", Shape::Flag),
            key("authorized-keys", Shape::Texts),
            key("allow-pw", Shape::Flag),
        ]),
    ),
    key(
        "storage",
        Shape::Map(&[
            key("config", Shape::List),
            key("grub", Shape::AnyMap),
            key(
                "layout",
                Shape::Map(&[
                    required("name", Shape::Word(&["direct", "lvm", "zfs"])),
                    key("match", Shape::Any),
                    key("mode", Shape::Word(&["reformat_disk", "use_gap"])),
                    key("password", Shape::Text),
                    key("ptable", Shape::Word(&["gpt", "msdos"])),
                    key("reset-partition", Shape::Any),
                    key("reset-partition-only", Shape::Flag),
                    key("sizing-policy", Shape::Word(&["scaled", "all"])),
                ]),
            ),
            key(
                "swap",
                Shape::Map(&[
                    key("filename", Shape::Text),
                    key("force", Shape::Flag),
                    key("maxsize", Shape::Any),
                    key("size", Shape::Any),
                ]),
            ),
            key("version", Shape::Integer),
        ]),
    ),
    key("timezone", Shape::Text),
    key("ubuntu-advantage", Shape::Map(&[key("token", Shape::Text)])),
    key("ubuntu-pro", Shape::Map(&[key("token", Shape::Text)])),
    key("updates", Shape::Word(&["security", "all"])),
    key("user-data", Shape::AnyMap),
    key("zdevs", Shape::List),
];

/// What may stand under `autoinstall.user-data`: what cloud-init (25.1.4, `schema-cloud-config-v1.json`) knows
/// at the top level, with blanks between. The installer validates it strictly, and fails at anything else.
pub(super) const CLOUD_CONFIG: &str = "\
    allow_public_ssh_keys ansible apk_repos apt apt_pipelining apt_reboot_if_required apt_update \
    apt_upgrade authkey_hash autoinstall bootcmd byobu_by_default ca-certs ca_certs chef chpasswd \
    cloud_config_modules cloud_final_modules cloud_init_modules create_hostname_file device_aliases \
    disable_ec2_metadata disable_root disable_root_opts disk_setup drivers fan final_message fqdn \
    fs_setup groups growpart grub-dpkg grub_dpkg hostname keyboard landscape launch-index locale \
    locale_configfile lxd manage_etc_hosts manage_resolv_conf mcollective merge_how merge_type migrate \
    mount_default_fields mounts no_ssh_fingerprints ntp output package_reboot_if_required package_update \
    package_upgrade packages password phone_home power_state prefer_fqdn_over_hostname preserve_hostname \
    puppet random_seed reporting resize_rootfs resolv_conf rh_subscription rsyslog runcmd salt_minion \
    snap spacewalk ssh ssh_authorized_keys ssh_deletekeys ssh_fp_console_blacklist ssh_genkeytypes \
    ssh_import_id ssh_key_console_blacklist ssh_keys ssh_publish_hostkeys ssh_pwauth ssh_quiet_keygen \
    swap system_info timezone ubuntu_advantage ubuntu_pro updates user users vendor_data version \
    wireguard write_files yum_repo_dir yum_repos zypper";

/// What a disk is matched by in `storage.layout.match`; the installer ignores anything else.
pub(super) const MATCH: &[&str] =
    &["devpath", "id_path", "install-media", "model", "path", "serial", "size", "ssd", "vendor"];

/// Checks a value and all below it; `path` is how a person names it, `at` where its key stands.
pub(super) fn check(at: Position, node: &Node, shape: Shape, path: &str, findings: &mut Vec<Finding>) {
    let mut wrong = |what: &str| findings.push(Finding::at(node.at, format!("`{path}` must be {what}")));
    match (shape, &node.value) {
        (Shape::Text | Shape::OptionalText, Value::Text(_))
        | (Shape::OptionalText, Value::Null)
        | (Shape::Flag | Shape::FlagOr(_), Value::Flag)
        | (Shape::Integer, Value::Integer(_))
        | (Shape::List, Value::List(_))
        | (Shape::AnyMap, Value::Map(_))
        | (Shape::Any, _) => {}
        (Shape::Word(words), Value::Text(text)) if words.contains(&text.as_str()) => {}
        (Shape::FlagOr(word), Value::Text(text)) if word == text => {}
        (Shape::Texts, Value::List(items)) => {
            for item in items.iter().filter(|item| item.text().is_none()) {
                findings.push(Finding::at(item.at, format!("an entry of `{path}` is not a string")));
            }
        }
        (Shape::Commands, Value::List(items)) => {
            for item in items.iter().filter(|item| !is_command(item)) {
                let message = format!("an entry of `{path}` is neither a string nor a list of strings");
                findings.push(Finding::at(item.at, message));
            }
        }
        (Shape::Maps(keys), Value::List(items)) => {
            for item in items {
                check(item.at, item, Shape::Map(keys), &format!("{path}[]"), findings);
            }
        }
        (Shape::Map(keys), Value::Map(entries)) => check_keys(at, entries, keys, path, findings),
        (Shape::Text, _) => wrong("a string; quote it if it looks like something else"),
        (Shape::OptionalText, _) => wrong("a string, or null"),
        (Shape::Flag, _) => wrong("true or false"),
        (Shape::FlagOr(word), _) => wrong(&format!("true, false or `{word}`")),
        (Shape::Integer, _) => wrong("a whole number"),
        (Shape::Word(words), _) => wrong(&format!("one of {}{}", list(words), suggestion_of(node, words))),
        (Shape::Texts, _) => wrong("a list of strings"),
        (Shape::Commands | Shape::List | Shape::Maps(_), _) => wrong("a list"),
        (Shape::Map(_) | Shape::AnyMap, _) => wrong("a mapping"),
    }
}

fn is_command(node: &Node) -> bool {
    match &node.value {
        Value::Text(_) => true,
        Value::List(items) => !items.is_empty() && items.iter().all(|item| item.text().is_some()),
        _ => false,
    }
}

fn check_keys(at: Position, entries: &[Entry], keys: &[Key], path: &str, findings: &mut Vec<Finding>) {
    for entry in entries {
        let inner = if path == "autoinstall" { entry.key.clone() } else { format!("{path}.{}", entry.key) };
        if let Some(key) = keys.iter().find(|key| key.name == entry.key) {
            check(entry.at, &entry.node, key.shape, &inner, findings);
        } else {
            let names: Vec<&str> = keys.iter().map(|key| key.name).collect();
            let advice = did_you_mean(&entry.key, &names);
            let message = format!("the installer does not know `{inner}` and would ignore it{advice}");
            findings.push(Finding::at(entry.at, message));
        }
    }
    for key in keys.iter().filter(|key| key.required) {
        if !entries.iter().any(|entry| entry.key == key.name) {
            findings.push(Finding::at(at, format!("`{path}` has no `{}`", key.name)));
        }
    }
}

fn list(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

fn suggestion_of(node: &Node, words: &[&str]) -> String {
    node.text().map(|text| did_you_mean(text, words)).unwrap_or_default()
}

/// Returns `; did you mean …?` when one of the words is close.
pub(super) fn did_you_mean(text: &str, words: &[&str]) -> String {
    let normal = |text: &str| text.to_lowercase().replace(['_', '-'], "");
    words
        .iter()
        .map(|word| (strsim::jaro_winkler(&normal(text), &normal(word)), word))
        .filter(|(likeness, _)| *likeness > 0.84)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, word)| format!("; did you mean `{word}`?"))
        .unwrap_or_default()
}
