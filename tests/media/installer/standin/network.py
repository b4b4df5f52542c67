"""The network: the live session's, the target's, and the search for a mirror that works."""

import glob
import json
import os
import time

from .rules import Refusal, netplan_of
from .shell import Failed, run, write

LIVE = "/etc/netplan"


def apply_live(netplan):
    """Replaces the live session's DHCP by what the answers say."""
    import yaml

    for old in glob.glob(f"{LIVE}/*.yaml"):
        os.unlink(old)
    write(f"{LIVE}/00-installer-config.yaml", yaml.safe_dump({"network": netplan}), 0o600)
    # What `netplan apply` comes to for networkd, without its many seconds of Python.
    run("/usr/libexec/netplan/generate")
    run("networkctl", "reload")
    if addresses():
        run("networkctl", "reconfigure", *addresses())


def addresses():
    """Returns {interface: [global addresses]} of the NICs."""
    links = json.loads(run("ip", "-j", "addr"))
    return {
        link["ifname"]: [a["local"] for a in link.get("addr_info", []) if a["scope"] == "global"]
        for link in links
        if link["ifname"].startswith(("en", "eth"))
    }


def wait_for_lease(seconds=10):
    """Waits for an address as long as the genuine installer does; returns whether one came."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if any(addresses().values()):
            return True
        time.sleep(0.2)
    return False


def for_target(config):
    """Returns the netplan mapping that the installed system gets."""
    if "network" in config:
        return netplan_of(config["network"])
    leased = [name for name, found in sorted(addresses().items()) if found]
    return {"version": 2, "ethernets": {name: {"dhcp4": True} for name in leased}}


def candidates(apt):
    """Returns the mirrors to try, in order; None stands for a country mirror, which the stand-in has not."""
    if "primary" in apt:
        return [mirror["uri"] for mirror in apt["primary"]]
    listed = apt.get("mirror-selection", {}).get("primary", ["country-mirror"])
    return [
        None if mirror == "country-mirror" else mirror["uri"]
        for mirror in listed
        if mirror == "country-mirror" or "amd64" in mirror.get("arches", ["amd64"])
    ]


def sources_text(uri, codename):
    """The target's only source; a trailing slash makes no difference."""
    return f"Types: deb\nURIs: {uri.rstrip('/')}\nSuites: {codename}\nComponents: main\n"


def choose_mirror(apt, codename, events, sleep=time.sleep, test=None):
    """Returns the first mirror that a real `apt-get update` accepts, or None for an offline install."""
    test = test or try_mirror
    for uri in candidates(apt):
        for attempt in (1, 2):
            with events.span("subiquity/Mirror/try_mirror", f"{uri or 'country-mirror'} attempt {attempt}", "DEBUG"):
                reason = "the stand-in knows no country mirror" if uri is None else test(uri, codename)
            if reason is None:
                return uri
            events.log(f"mirror {uri}: {reason}")
            if uri is None:
                break
            if attempt == 1:
                sleep(10)
    fallback = apt.get("fallback", "offline-install")
    if fallback == "abort":
        raise Refusal("aborting install since no mirror is usable")
    if fallback == "continue-anyway":
        return next((uri for uri in candidates(apt) if uri), None)
    return None


def try_mirror(uri, codename):
    """Returns None if apt can use the mirror, else the reason."""
    place = "/run/subiquity/apt-test"
    os.makedirs(f"{place}/lists/partial", exist_ok=True)
    write(f"{place}/test.sources", sources_text(uri, codename))
    try:
        run("apt-get", "update", "-q", "-o", f"Dir::Etc::SourceList={place}/test.sources",
            "-o", "Dir::Etc::SourceParts=/dev/null", "-o", f"Dir::State::Lists={place}/lists",
            "-o", "APT::Sandbox::User=root", "-o", "APT::Update::Error-Mode=any",
            "-o", "Acquire::http::Timeout=10", "-o", "Acquire::Retries=0")
    except Failed as failed:
        return str(failed)
    return None
