"""Where the answers come from: the order of places, and how each is read."""

import json
import os
import shlex

from .rules import Refusal, check_misplaced, unwrap_plain

ROOT_FILE = "/autoinstall.yaml"
CLOUD_FILE = "/run/subiquity/cloud.autoinstall.yaml"
MEDIUM_FILE = "/cdrom/autoinstall.yaml"
COMBINED = "/run/cloud-init/combined-cloud-config.json"
USER_DATA = "/var/lib/cloud/instance/user-data.txt"


def cmdline_words(text):
    """Splits a kernel command line; an unbalanced quote is fatal, as it is in the genuine installer."""
    return shlex.split(text)


def is_unattended(words):
    """Only the bare word counts: `autoinstall=1` does not."""
    return "autoinstall" in words


def arguments_for_target(words):
    """Returns the arguments after `---`, which the installed system inherits."""
    if "---" not in words:
        return []
    inherited = words[words.index("---") + 1:]
    dropped = ("BOOT_IMAGE=", "root=", "initrd=", "boot=", "autoinstall")
    return [word for word in inherited if not word.startswith(dropped)]


def first_source(words, exists=os.path.exists):
    """Returns the path of the first place that has an autoinstall file, or None."""
    named = [w.split("=", 1)[1] for w in words if w.startswith("subiquity.autoinstallpath=")]
    for path in [*named, ROOT_FILE, CLOUD_FILE, MEDIUM_FILE]:
        if exists(path):
            return path
    return None


def parse_plain(text):
    """Parses an autoinstall file, bare or wrapped."""
    import yaml

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Refusal(f"autoinstall file is not YAML: {error}") from error
    return unwrap_plain(document)


def take_from_cloud_config(combined=COMBINED, user_data=USER_DATA, target=CLOUD_FILE, valid_keys=frozenset()):
    """Writes the `autoinstall` part of the session's cloud-config to its file; returns whether there was one.

    A seed whose first line is not `#cloud-config` never gets this far:
    cloud-init does not take it for configuration.
    """
    import yaml

    raw = _load_yaml_mapping(user_data)
    check_misplaced(raw, valid_keys)
    try:
        with open(combined, encoding="utf-8") as file:
            config = json.load(file)
    except FileNotFoundError:
        return False
    if "autoinstall" not in config:
        return False
    part = config["autoinstall"]
    if isinstance(part, str):
        part = yaml.safe_load(part)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        yaml.safe_dump(part, file)
    return True


def _load_yaml_mapping(path):
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return {}
    if not text.startswith("#cloud-config"):
        return {}
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return document if isinstance(document, dict) else {}
