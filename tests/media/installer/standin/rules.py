"""What an autoinstall file may say: pure rules, no input or output.

Where the genuine installer is stricter than its published schema, these rules
are too. Where the stand-in cannot do what the genuine one can, it refuses
with a message that says so, rather than pretend.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Callable


class Refusal(Exception):
    """The autoinstall data cannot be used; the text is what the event carries."""


class CannotDo(Refusal):
    """The genuine installer could do this, the stand-in cannot."""

    def __init__(self, what):
        super().__init__(f"the stand-in cannot do {what} (the genuine installer can)")


@dataclass
class World:
    """What the rules need to know of the session they run in."""

    timezones: frozenset = frozenset()
    layouts: dict = field(default_factory=dict)  # layout → set of variants
    source_ids: tuple = ("ubuntu-server", "ubuntu-server-minimal")
    check_cloud_config: Callable[[dict], None] = lambda data: None


KNOWN_KEYS = frozenset(
    """version interactive-sections early-commands reporting error-commands user-data
    packages debconf-selections locale refresh-installer kernel keyboard source network
    ubuntu-pro ubuntu-advantage proxy apt storage identity ssh snaps active-directory
    codecs drivers oem timezone updates late-commands shutdown""".split()
)

KERNELS_IN_POOL = ("linux-generic", "linux-generic-hwe-24.04", "linux-image-amd64")
KERNEL_FLAVORS = ("generic", "hwe", "generic-hwe")


# ── shapes ──────────────────────────────────────────────────────────────────


def _kind(value):
    return {bool: "boolean", int: "integer", str: "string", list: "array", dict: "object",
            float: "number", type(None): "null"}.get(type(value), type(value).__name__)


def _is(value, *kinds):
    return _kind(value) in kinds


def _need(section, value, *kinds):
    if not _is(value, *kinds):
        wanted = " or ".join(kinds)
        raise Refusal(f"Malformed autoinstall in '{section}' section: {value!r} is not of type {wanted}")
    return value


def _keys(section, value, allowed=None, required=(), **kinds):
    """Checks a mapping: types of the keys named, required ones, and others if `allowed` is closed."""
    _need(section, value, "object")
    for key in required:
        if key not in value:
            raise Refusal(f"Malformed autoinstall in '{section}' section: '{key}' is a required property")
    for key, kind in kinds.items():
        key = key.replace("_", "-")
        if key in value:
            _need(f"{section}.{key}", value[key], *(kind if isinstance(kind, tuple) else (kind,)))
    if allowed == "closed":
        extra = sorted(str(k) for k in value if str(k).replace("-", "_") not in kinds)
        if extra:
            raise Refusal(
                f"Malformed autoinstall in '{section}' section: additional properties are not allowed "
                f"({', '.join(map(repr, extra))} unexpected)"
            )


def _strings(section, value):
    for item in _need(section, value, "array"):
        _need(section, item, "string")


def _one_of(section, value, *choices):
    _need(section, value, "string")
    if value not in choices:
        raise Refusal(f"Malformed autoinstall in '{section}' section: {value!r} is not one of {list(choices)}")


# ── whole file ──────────────────────────────────────────────────────────────


def unwrap_plain(document):
    """Returns the directives of a plain autoinstall.yaml, bare or under a lone `autoinstall` key."""
    if not _is(document, "object"):
        raise Refusal("autoinstall file is not a mapping")
    if "autoinstall" not in document:
        return document
    others = sorted(str(key) for key in document if key != "autoinstall")
    if others:
        raise Refusal(f"autoinstall.yaml is not a valid cloud config datasource: keys beside 'autoinstall': {others}")
    return _need("autoinstall", document["autoinstall"], "object")


def check_misplaced(user_data, valid_cloud_config_keys):
    """Refuses a seed that has autoinstall directives beside `autoinstall` instead of under it."""
    misplaced = sorted(
        key for key in user_data
        if key in KNOWN_KEYS and key != "autoinstall" and key not in valid_cloud_config_keys
    )
    if misplaced:
        raise Refusal(f"Misplaced autoinstall directives in the cloud-config: {misplaced}")


def check_core(config):
    """What is checked each time the file is read, before anything else."""
    _need("autoinstall", config, "object")
    if "version" not in config:
        raise Refusal("Malformed autoinstall in 'version' section: 'version' is a required property")
    version = _need("version", config["version"], "integer")
    if version != 1:
        raise Refusal(f"Malformed autoinstall in 'version' section: {version} is not 1")


def drop_unknown(config):
    """Returns the known keys and the names of the others, which only cause a warning."""
    unknown = sorted(str(key) for key in config if key not in KNOWN_KEYS)
    return {key: value for key, value in config.items() if key in KNOWN_KEYS}, unknown


# ── sections ────────────────────────────────────────────────────────────────


def check_commands(section, value):
    for command in _need(section, value, "array"):
        _need(section, command, "string", "array")
        if isinstance(command, list):
            _strings(section, command)
            if not command:
                raise Refusal(f"Malformed autoinstall in '{section}' section: an empty command")


def check_reporting(value, world=None):
    for name, handler in _need("reporting", value, "object").items():
        _keys(f"reporting.{name}", handler, required=["type"], type="string")
        kind = handler["type"]
        if kind not in ("webhook", "print", "log", "none", "rsyslog", "syslog", "journald"):
            raise Refusal(f"Malformed autoinstall in 'reporting' section: unknown type {kind!r} of {name!r}")
        if kind == "webhook" and not _is(handler.get("endpoint"), "string"):
            raise Refusal(f"Malformed autoinstall in 'reporting' section: webhook {name!r} needs an 'endpoint'")
        oauth = [k for k in ("consumer_key", "token_key", "token_secret") if handler.get(k)]
        if oauth and len(oauth) != 3:
            raise Refusal(f"Malformed autoinstall in 'reporting' section: {name!r} has only {oauth} of its OAuth keys")


def check_user_data(value, world):
    _need("user-data", value, "object")
    if value:
        world.check_cloud_config(value)


def check_locale(value, world):
    _need("locale", value, "string")


def check_refresh(value, world):
    _keys("refresh-installer", value, "closed", update="boolean", channel="string")
    if value.get("update"):
        raise CannotDo("refresh-installer: update")


def check_kernel(value, world):
    _keys("kernel", value, package="string", flavor="string")
    if ("package" in value) == ("flavor" in value):
        raise Refusal("Malformed autoinstall in 'kernel' section: exactly one of 'package' and 'flavor' is needed")
    if "flavor" in value and value["flavor"] not in KERNEL_FLAVORS:
        raise CannotDo(f"kernel flavor {value['flavor']!r}; it knows {list(KERNEL_FLAVORS)}")
    if "package" in value and value["package"] not in KERNELS_IN_POOL:
        raise CannotDo(f"kernel package {value['package']!r}; it knows {list(KERNELS_IN_POOL)}")


def check_keyboard(value, world):
    _keys("keyboard", value, "closed", required=["layout"], layout="string", variant="string", toggle=("string", "null"))
    layout, variant = value["layout"], value.get("variant", "")
    if layout not in world.layouts:
        raise Refusal(f"Unknown keyboard layout {layout!r}")
    if variant and variant not in world.layouts[layout]:
        raise Refusal(f"Unknown keyboard variant {variant!r} of layout {layout!r}")


def check_source(value, world):
    _keys("source", value, id="string", search_drivers="boolean")
    if "search_drivers" in value:
        _need("source.search_drivers", value["search_drivers"], "boolean")
    if "id" in value and value["id"] not in world.source_ids:
        raise Refusal("")  # the genuine installer fails here without a word


def netplan_of(value):
    """Returns the netplan mapping, with the tolerated outer `network:` taken off."""
    return value["network"] if "version" not in value and _is(value.get("network"), "object") else value


def check_network(value, world):
    _need("network", value, "object")
    netplan = netplan_of(value)
    _keys("network", netplan, required=["version"], version="integer", ethernets="object", wifis="object",
          bridges="object", bonds="object", tunnels="object", vlans="object")
    if netplan["version"] != 2:
        raise Refusal(f"Malformed autoinstall in 'network' section: version {netplan['version']} is not 2")
    for name, device in netplan.get("ethernets", {}).items():
        _need(f"network.ethernets.{name}", device, "object")
        if "match" in device:
            _keys(f"network.ethernets.{name}.match", device["match"], "closed",
                  name="string", macaddress="string", driver=("string", "array"))


def check_pro(value, world):
    _keys("ubuntu-pro", value, token="string")
    if "token" in value:
        if not re.fullmatch(r"C[1-9A-HJ-NP-Za-km-z]{23,29}", value["token"]):
            raise Refusal("Malformed autoinstall in 'ubuntu-pro' section: the token has not the form of one")
        raise CannotDo("ubuntu-pro")


def check_proxy(value, world):
    _need("proxy", value, "string", "null")


def check_apt(value, world):
    _keys("apt", value, preserve_sources_list="boolean", primary="array", mirror_selection="object",
          geoip="boolean", sources="object", disable_components="array", preferences="array", fallback="string")
    _need("apt.preserve_sources_list", value.get("preserve_sources_list", False), "boolean")
    for component in value.get("disable_components", []):
        _one_of("apt.disable_components", component, "universe", "multiverse", "restricted", "contrib", "non-free")
    for preference in value.get("preferences", []):
        _keys("apt.preferences", preference, required=["package", "pin", "pin-priority"],
              package="string", pin="string", pin_priority="integer")
    if "fallback" in value:
        _one_of("apt.fallback", value["fallback"], "abort", "continue-anyway", "offline-install")
    if "primary" in value and "mirror-selection" in value:
        raise Refusal("Malformed autoinstall in 'apt' section: 'primary' and 'mirror-selection' exclude each other")
    for candidate in value.get("mirror-selection", {}).get("primary", []):
        if candidate != "country-mirror":
            _keys("apt.mirror-selection.primary", candidate, required=["uri"], uri="string", arches="array")
            _strings("apt.mirror-selection.primary.arches", candidate.get("arches", []))
    _need("apt.mirror-selection.primary", value.get("mirror-selection", {}).get("primary", []), "array")
    for mirror in value.get("primary", []):
        _keys("apt.primary", mirror, required=["uri", "arches"], uri="string", arches="array")
    if value.get("sources"):
        raise CannotDo("apt.sources")


MATCH_KEYS = ("model", "vendor", "path", "id_path", "devpath", "serial", "ssd", "size", "install-media")


def check_match(value):
    matches = value if isinstance(value, list) else [value]
    if not matches:
        raise Refusal("Malformed autoinstall in 'storage' section: an empty list of matches")
    for match in matches:
        _need("storage.layout.match", match, "object")
        unknown = sorted(str(key) for key in match if key not in MATCH_KEYS)
        if unknown:
            raise Refusal(f"Malformed autoinstall in 'storage' section: unknown match keys {unknown}")
        if "size" in match:
            _one_of("storage.layout.match.size", match["size"], "largest", "smallest")
        for key in ("ssd", "install-media"):
            if key in match:
                _need(f"storage.layout.match.{key}", match[key], "boolean")


def check_storage(value, world):
    _keys("storage", value, layout="object", config="array", swap="object", version="integer", grub="object")
    if "layout" not in value:
        if "config" in value:
            raise CannotDo("storage.config")
        raise CannotDo("the default storage layout (lvm); say `layout: {name: direct}`")
    layout = value["layout"]
    _keys("storage.layout", layout, name="string", mode="string", ptable="string", match=("object", "array"))
    name = layout.get("name", "lvm")
    if name != "direct":
        raise CannotDo(f"storage layout {name!r}, only 'direct'")
    if layout.get("mode", "reformat_disk") != "reformat_disk":
        raise CannotDo(f"storage layout mode {layout['mode']!r}, only 'reformat_disk'")
    if layout.get("ptable", "gpt") != "gpt":
        raise CannotDo(f"partition table {layout['ptable']!r}, only 'gpt'")
    for key in ("password", "reset-partition", "encrypted"):
        if layout.get(key):
            raise CannotDo(f"storage.layout.{key}")
    check_match(layout.get("match", {"size": "largest"}))
    size = value.get("swap", {}).get("size")
    if size is not None and not _is(size, "integer", "string"):
        raise Refusal("Malformed autoinstall in 'storage' section: swap.size is neither a number nor a size")
    if isinstance(size, str):
        parse_size(size)


def parse_size(text):
    """Returns the bytes of `2G`, `512M`, `0`."""
    found = re.fullmatch(r"(\d+)\s*([KMGT]?)i?B?", str(text).strip(), re.IGNORECASE)
    if not found:
        raise Refusal(f"Malformed autoinstall in 'storage' section: {text!r} is not a size")
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[found[2].upper()]


def check_identity(value, world):
    _keys("identity", value, "closed", required=["username", "hostname", "password"],
          realname="string", username="string", hostname="string", password="string")


def check_ssh(value, world):
    _keys("ssh", value, install_server="boolean", authorized_keys="array", allow_pw="boolean")
    _strings("ssh.authorized-keys", value.get("authorized-keys", []))


def check_snaps(value, world):
    for snap in _need("snaps", value, "array"):
        _keys("snaps", snap, "closed", required=["name"], name="string", channel="string", classic="boolean")
    if value:
        raise CannotDo("snaps")


def check_active_directory(value, world):
    _keys("active-directory", value, "closed", admin_name="string", domain_name="string")
    if value:
        raise CannotDo("active-directory")


def check_install_flag(section):
    def check(value, world):
        _keys(section, value, install="boolean")

    return check


def check_oem(value, world):
    _keys("oem", value, required=["install"])
    if not _is(value["install"], "boolean") and value["install"] != "auto":
        raise Refusal("Malformed autoinstall in 'oem' section: install is neither a boolean nor 'auto'")


def check_timezone(value, world):
    _need("timezone", value, "string")
    if value not in ("", "geoip") and value not in world.timezones:
        raise Refusal(f"Unrecognized time zone request {value!r}")


def check_packages(value, world):
    _strings("packages", value)


def check_debconf(value, world):
    _need("debconf-selections", value, "string")


# Controller (its name is in the events), key, check: in the order in which
# the genuine installer loads them.
SECTIONS: list[tuple[str, str, Callable[[Any, World], None]]] = [
    ("Early", "early-commands", lambda v, w: check_commands("early-commands", v)),
    ("Reporting", "reporting", check_reporting),
    ("Error", "error-commands", lambda v, w: check_commands("error-commands", v)),
    ("Userdata", "user-data", check_user_data),
    ("Package", "packages", check_packages),
    ("Debconf", "debconf-selections", check_debconf),
    ("Locale", "locale", check_locale),
    ("Refresh", "refresh-installer", check_refresh),
    ("Kernel", "kernel", check_kernel),
    ("Keyboard", "keyboard", check_keyboard),
    ("Source", "source", check_source),
    ("Network", "network", check_network),
    ("UbuntuPro", "ubuntu-pro", check_pro),
    ("UbuntuPro", "ubuntu-advantage", check_pro),
    ("Proxy", "proxy", check_proxy),
    ("Mirror", "apt", check_apt),
    ("Filesystem", "storage", check_storage),
    ("Identity", "identity", check_identity),
    ("SSH", "ssh", check_ssh),
    ("SnapList", "snaps", check_snaps),
    ("Ad", "active-directory", check_active_directory),
    ("Codecs", "codecs", check_install_flag("codecs")),
    ("Drivers", "drivers", check_install_flag("drivers")),
    ("OEM", "oem", check_oem),
    ("TimeZone", "timezone", check_timezone),
    ("Updates", "updates", lambda v, w: _one_of("updates", v, "security", "all")),
    ("Late", "late-commands", lambda v, w: check_commands("late-commands", v)),
    ("Shutdown", "shutdown", lambda v, w: _one_of("shutdown", v, "reboot", "poweroff")),
]


def check_someone_can_log_in(config):
    """Refuses a file with neither identity nor user-data (an empty user-data counts)."""
    if "identity" not in config and "user-data" not in config:
        raise Refusal("neither identity nor user-data provided")


def check_storage_is_given(config):
    """The genuine default is LVM, which the stand-in cannot lay out."""
    if "storage" not in config:
        raise CannotDo("the default storage layout (lvm); say `storage: {layout: {name: direct}}`")
