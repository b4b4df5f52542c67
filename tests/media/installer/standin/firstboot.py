"""What the installed system's own cloud-init does at its first boot, and the files that tell it to.

All of it has to be gone before the disk is a template; the clean-up hook
removes it when `cloud-init clean` runs.
"""

import uuid

GROUPS = ("adm", "cdrom", "dip", "lpadmin", "plugdev", "sambashare", "debian-tor", "libvirtd", "users", "sudo")

CLEAN_HOOK = """#!/bin/sh
# Written by the installer: removes what was meant for the first boot only.
rm -f /etc/cloud/cloud.cfg.d/99-installer.cfg \\
    /etc/cloud/cloud.cfg.d/90-installer-network.cfg \\
    /etc/cloud/cloud.cfg.d/20-disable-cc-dpkg-grub.cfg \\
    /etc/cloud/ds-identify.cfg \\
    /etc/cloud/cloud-init.disabled
"""


def merge(base, over):
    """Mappings recurse, lists append, other values are replaced."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        elif isinstance(value, list) and isinstance(merged.get(key), list):
            merged[key] = merged[key] + value
        else:
            merged[key] = value
    return merged


def cloud_config(config, groups_in_target, locale_supported):
    """Returns the first boot's cloud-config for a checked autoinstall mapping."""
    ssh = config.get("ssh", {})
    keys = ssh.get("authorized-keys", [])
    made = {"growpart": {"mode": "off"}, "resize_rootfs": False}
    identity = config.get("identity")
    if identity:
        made["preserve_hostname"] = True
        user = {
            "name": identity["username"],
            "gecos": identity.get("realname", ""),
            "passwd": identity["password"],
            "shell": "/bin/bash",
            "groups": ",".join(sorted(set(GROUPS) & set(groups_in_target))),
            "lock_passwd": False,
        }
        if keys:
            user["ssh_authorized_keys"] = list(keys)
        made["users"] = [user]
    elif keys:
        made["ssh_authorized_keys"] = list(keys)
    if ssh.get("install-server"):
        made["ssh_pwauth"] = ssh.get("allow-pw", not keys)
    if config.get("locale") and locale_supported:
        made["locale"] = full_locale(config["locale"])
    if config.get("timezone"):
        made["timezone"] = config["timezone"]
    made["write_files"] = [{
        "path": "/etc/cloud/cloud-init.disabled",
        "content": "Disabled by the installer (a stand-in for Ubuntu's) after first boot.\n",
        "defer": True,
    }]
    return merge(made, config.get("user-data") or {})


def full_locale(name):
    """`fr_FR` → `fr_FR.UTF-8`; a name with a charset stays."""
    return name if "." in name or name in ("C", "POSIX") else f"{name}.UTF-8"


def files(config, groups_in_target, locale_supported, network):
    """Returns {path: (text, mode)} for the target."""
    import yaml

    userdata = "#cloud-config\n" + yaml.safe_dump(cloud_config(config, groups_in_target, locale_supported))
    datasource = {
        "datasource_list": ["None"],
        "datasource": {"None": {"metadata": {"instance-id": str(uuid.uuid4())}, "userdata_raw": userdata}},
    }
    made = {
        "/etc/cloud/cloud.cfg.d/99-installer.cfg": (yaml.safe_dump(datasource), 0o600),
        "/etc/cloud/cloud.cfg.d/20-disable-cc-dpkg-grub.cfg": ("grub_dpkg:\n  enabled: false\n", 0o644),
        "/etc/cloud/ds-identify.cfg": ("policy: enabled\n", 0o644),
        "/etc/cloud/clean.d/99-installer": (CLEAN_HOOK, 0o755),
    }
    if network is not None:
        text = "# This is the network config written by the installer\n" + yaml.safe_dump({"network": network})
        made["/etc/cloud/cloud.cfg.d/90-installer-network.cfg"] = (text, 0o600)
    return made
