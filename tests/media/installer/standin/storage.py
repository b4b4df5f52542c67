"""Choosing a disk and laying it out: GPT, one ext4 root, `layout: direct`."""

import fnmatch
import glob
import json
import os
import re

from .rules import Refusal, parse_size
from .shell import TARGET, run, write

GIB = 1 << 30
MIN_DISK = 4 * GIB


def list_disks():
    """Returns the whole disks as dictionaries with the keys that `match` knows."""
    found = json.loads(run("lsblk", "-J", "-b", "-d", "-o", "NAME,PATH,TYPE,SIZE,MODEL,VENDOR,SERIAL,ROTA,RO"))
    disks = []
    for device in found["blockdevices"]:
        if device["type"] != "disk" or device["ro"] or not int(device["size"] or 0):
            continue
        if device["name"].startswith(("loop", "ram", "zram", "fd")):
            continue
        facts = dict(
            line.split("=", 1)
            for line in run("udevadm", "info", "--query=property", "--name", device["path"]).splitlines()
            if "=" in line
        )
        disks.append({
            "path": device["path"],
            "size": int(device["size"]),
            "model": facts.get("ID_MODEL") or (device["model"] or "").strip(),
            "vendor": facts.get("ID_VENDOR") or (device["vendor"] or "").strip(),
            "serial": facts.get("ID_SERIAL_SHORT") or facts.get("ID_SERIAL") or (device["serial"] or ""),
            "id_path": facts.get("ID_PATH", ""),
            "devpath": facts.get("DEVPATH", ""),
            "ssd": not device["rota"],
            "install-media": _holds_medium(device["path"]),
        })
    return disks


def _holds_medium(path):
    with open("/proc/mounts", encoding="utf-8") as file:
        return any(line.split()[1] == "/cdrom" and line.startswith(path) for line in file)


def choose_disk(disks, match):
    """Returns the disk that a match, or the first of a list of matches that fits, picks."""
    for candidate in match if isinstance(match, list) else [match]:
        fitting = [disk for disk in disks if _fits(disk, candidate)]
        if "size" in candidate:
            fitting.sort(key=lambda disk: disk["size"], reverse=candidate["size"] == "largest")
        if fitting:
            return fitting[0]
    raise Refusal(f"Failed to find matching device for {match!r}")


def _fits(disk, match):
    if disk["install-media"] != match.get("install-media", False):
        return False
    if disk["size"] < MIN_DISK:
        return False
    for key in ("model", "vendor", "path", "id_path", "devpath", "serial"):
        if key in match and not fnmatch.fnmatchcase(disk[key] or "", str(match[key])):
            return False
    return "ssd" not in match or disk["ssd"] == match["ssd"]


def is_uefi():
    return os.path.isdir("/sys/firmware/efi")


def partition_args(uefi, disk):
    """Returns the sgdisk arguments: a BIOS disk has no ESP, so it cannot boot under UEFI, and the reverse."""
    first = ["-n", "1:0:+1075M", "-t", "1:ef00"] if uefi else ["-n", "1:0:+1M", "-t", "1:ef02"]
    return ["--clear", *first, "-n", "2:0:0", "-t", "2:8300", disk]


def partition_path(disk, number):
    """`/dev/vda` → `/dev/vda2`, `/dev/nvme0n1` → `/dev/nvme0n1p2`."""
    return f"{disk}p{number}" if re.search(r"\d$", disk) else f"{disk}{number}"


def partition(disk, uefi):
    run("wipefs", "--all", "--force", *glob.glob(disk + "*[0-9]"), disk)
    run("sgdisk", "--zap-all", disk)
    run("sgdisk", *partition_args(uefi, disk))
    run("udevadm", "settle", "--timeout=60")


def make_filesystems(disk, uefi):
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1", partition_path(disk, 2))
    if uefi:
        run("mkfs.vfat", "-F", "32", partition_path(disk, 1))
    run("udevadm", "settle", "--timeout=60")


def mount(disk, uefi):
    os.makedirs(TARGET, exist_ok=True)
    run("mount", partition_path(disk, 2), TARGET)
    if uefi:
        os.makedirs(f"{TARGET}/boot/efi", exist_ok=True)
        run("mount", partition_path(disk, 1), f"{TARGET}/boot/efi")


def uuid_of(device):
    return run("blkid", "-o", "value", "-s", "UUID", device).strip()


def swap_bytes(storage, memory, free):
    """Returns the size of /swap.img: as asked, else by memory, at most a quarter of what is free and 8 GiB."""
    size = storage.get("swap", {}).get("size")
    if size is not None:
        return parse_size(size)
    wanted = memory if memory <= 4 * GIB else 4 * GIB
    return min(wanted, free // 4, 8 * GIB) // (1 << 20) << 20


def write_fstab(disk, uefi, swap):
    lines = [f"/dev/disk/by-uuid/{uuid_of(partition_path(disk, 2))} / ext4 defaults 0 1"]
    if uefi:
        lines.append(f"/dev/disk/by-uuid/{uuid_of(partition_path(disk, 1))} /boot/efi vfat defaults 0 1")
    if swap:
        run("fallocate", "-l", str(swap), f"{TARGET}/swap.img")
        os.chmod(f"{TARGET}/swap.img", 0o600)
        run("mkswap", f"{TARGET}/swap.img")
        lines.append("/swap.img\tnone\tswap\tsw\t0\t0")
    write(f"{TARGET}/etc/fstab", "\n".join(lines) + "\n")
