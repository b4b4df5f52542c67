"""The installed system: unpacking it, its boot loader, its packages, its settings."""

import os
import shutil
import subprocess
import time

from . import firstboot, network, sources, storage
from .rules import Refusal
from .shell import TARGET, Failed, in_target, run, write

SQUASHED = "/cdrom/casper/target.squashfs"
APT = ("apt-get", "--quiet", "--assume-yes", "--option=Dpkg::options::=--force-unsafe-io",
       "--option=Dpkg::Options::=--force-confold")
NO_QUESTIONS = {"DEBIAN_FRONTEND": "noninteractive"}


def extract():
    run("unsquashfs", "-quiet", "-no-progress", "-force", "-dest", TARGET, SQUASHED)


def codename():
    with open("/etc/os-release", encoding="utf-8") as file:
        facts = dict(line.strip().split("=", 1) for line in file if "=" in line)
    return facts["VERSION_CODENAME"].strip('"')


def configure_apt(uri, apt):
    """Lets the target use the chosen mirror alone; without one it has no source at all."""
    if uri:
        write(f"{TARGET}/etc/apt/sources.list.d/ubuntu.sources", network.sources_text(uri, codename()))
        in_target("apt-get", "update", "-q")
    stanzas = [
        f"Package: {p['package']}\nPin: {p['pin']}\nPin-Priority: {p['pin-priority']}\n"
        for p in apt.get("preferences", [])
    ]
    if stanzas:
        write(f"{TARGET}/etc/apt/preferences.d/90curtin.pref", "\n".join(stanzas))


def configure_proxy(proxy):
    if proxy:
        write(f"{TARGET}/etc/apt/apt.conf.d/90curtin-aptproxy",
              f'Acquire::http::Proxy "{proxy}";\nAcquire::https::Proxy "{proxy}";\n')


def install_bootloader(disk, uefi, words):
    """Installs GRUB; what stood after `---` on the medium's kernel line is copied to the target's."""
    inherited = " ".join(sources.arguments_for_target(words))
    write(f"{TARGET}/etc/default/grub.d/50-curtin-settings.cfg",
          f'# Written by the installer\nGRUB_CMDLINE_LINUX_DEFAULT="{inherited}"\n')
    if uefi:
        in_target("grub-install", "--target=x86_64-efi", "--efi-directory=/boot/efi", "--bootloader-id=ubuntu",
                  "--force-extra-removable", "--no-uefi-secure-boot", "--recheck")
    else:
        in_target("grub-install", "--target=i386-pc", "--recheck", disk)
    in_target("update-grub")


def settle_names(config):
    hostname = config.get("identity", {}).get("hostname")
    if not hostname:
        return
    write(f"{TARGET}/etc/hostname", hostname + "\n")
    write(f"{TARGET}/etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {hostname}\n\n"
          "# The following lines are desirable for IPv6 capable hosts\n"
          "::1     ip6-localhost ip6-loopback\nfe00::0 ip6-localnet\nff00::0 ip6-mcastprefix\n"
          "ff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n")


def configure_keyboard(keyboard):
    toggle = keyboard.get("toggle")
    options = f"grp:{toggle}" if toggle else ""
    write(f"{TARGET}/etc/default/keyboard",
          f'XKBMODEL="pc105"\nXKBLAYOUT="{keyboard["layout"]}"\nXKBVARIANT="{keyboard.get("variant", "")}"\n'
          f'XKBOPTIONS="{options}"\n\nBACKSPACE="guess"\n')
    in_target("setupcon", "--save-only")


def install_package(name, events, context, sleep=time.sleep):
    """One apt call for the download, three times at most, and one for the installation."""
    for pause in (1, 4, None):
        try:
            with events.span(f"{context}/retrieving", f"retrieving {name}"):
                in_target(*APT, "--download-only", "install", name, env=NO_QUESTIONS)
            break
        except Failed:
            if pause is None:
                raise
            sleep(pause)
    with events.span(f"{context}/unpacking", f"unpacking {name}"):
        in_target(*APT, "--no-download", "install", name, env=NO_QUESTIONS)


def settle_ssh(wanted):
    """Gives the server its first keys, or takes it away: without `install-server` there is none."""
    if wanted:
        in_target("ssh-keygen", "-A")
    else:
        in_target(*APT, "purge", "openssh-server", env=NO_QUESTIONS)


def groups():
    with open(f"{TARGET}/etc/group", encoding="utf-8") as file:
        return [line.split(":", 1)[0] for line in file]


def configure_cloud_init(config, netplan):
    minimal = config.get("source", {}).get("id") == "ubuntu-server-minimal"
    for path, (text, mode) in firstboot.files(config, groups(), not minimal, netplan).items():
        write(TARGET + path, text, mode)


def set_debconf(selections):
    if selections:
        write(f"{TARGET}/var/tmp/debconf-selections", selections, 0o600)
        in_target("debconf-set-selections", "/var/tmp/debconf-selections")
        os.unlink(f"{TARGET}/var/tmp/debconf-selections")


def copy_logs():
    """Comes last, after the late-commands: nothing in them can remove these files."""
    place = "/var/log/installer"
    with open(os.open(f"{place}/installer-journal.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        subprocess.run(["journalctl", "-b", "--no-pager"], stdout=file, check=False)
    for log in ("/var/log/cloud-init.log", "/var/log/cloud-init-output.log", "/run/casper-md5check.json",
                "/cdrom/.disk/info"):
        if os.path.exists(log):
            shutil.copy(log, f"{place}/{'media-info' if log.endswith('info') else os.path.basename(log)}")
    for name in os.listdir(place):
        os.chmod(f"{place}/{name}", 0o600)
    shutil.copytree(place, f"{TARGET}{place}", dirs_exist_ok=True)


def unmount():
    run("sync")
    run("umount", "--recursive", TARGET)


def lay_out(config, uefi):
    """Picks and partitions the disk; returns its path."""
    layout = config["storage"]["layout"]
    chosen = storage.choose_disk(storage.list_disks(), layout.get("match", {"size": "largest"}))
    if not chosen["path"]:
        raise Refusal("the chosen disk has no path")
    return chosen["path"]


def write_swap_and_fstab(config, disk, uefi):
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = shutil.disk_usage(TARGET).free
    storage.write_fstab(disk, uefi, storage.swap_bytes(config["storage"], memory, free))
