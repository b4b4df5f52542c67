"""The installer's course, in the genuine one's order.

    STARTING_UP → CLOUD_INIT_WAIT → EARLY_COMMANDS → WAITING
      → NEEDS_CONFIRMATION (only without the bare word `autoinstall`)
      → RUNNING → UU_RUNNING → LATE_COMMANDS → DONE → power off or reboot
    any of them → ERROR, which never powers off
"""

import glob
import os
import subprocess
import sys
import threading
import time
import traceback

from . import api, network, rules, sources, storage, target
from .console import Console
from .report import Events
from .rules import Refusal
from .shell import TARGET, run, write

INSTALL = "subiquity/Install/install"
POSTINSTALL = f"{INSTALL}/postinstall"
STEP = f"{INSTALL}/curtin_install/run_curtin_step/cmd-install"


class Installer:
    """One run: the answers, the state, and who is told about it."""

    def __init__(self):
        self.console = Console()
        self.events = Events(self.console.log)
        self.state = api.State(self.console.say)
        self.words = sources.cmdline_words(_read("/proc/cmdline"))
        self.config = {}
        self.uefi = storage.is_uefi()
        self.disk = self.mirror = None

    # ── the answers ─────────────────────────────────────────────────────────

    def world(self):
        return rules.World(time_zones(), keyboard_layouts(), check_cloud_config=check_cloud_config)

    def find_answers(self):
        """Copies the first source to /autoinstall.yaml; False means nobody has answers."""
        self.state.set("CLOUD_INIT_WAIT")
        self.console.say("waiting for cloud-init")
        threading.Thread(target=import_slow_modules, daemon=True).start()
        subprocess.run(["cloud-init", "status", "--wait"], timeout=600, check=False,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        sources.take_from_cloud_config(valid_keys=cloud_config_keys())
        path = sources.first_source(self.words)
        if path is None:
            return False
        self.console.say(f"autoinstall file: {path}")
        if path != sources.ROOT_FILE:
            write(sources.ROOT_FILE, _read(path), 0o600)
        return True

    def load(self):
        """Reads the file and checks what is needed before anything else: done before and after the early commands."""
        document = sources.parse_plain(_read(sources.ROOT_FILE))
        if isinstance(document.get("reporting", {}), dict):
            rules.check_reporting(document.get("reporting", {}))
            self.events.configure(document.get("reporting"))
        with self.events.span("subiquity/load_autoinstall_config"):
            with self.events.span("subiquity/core_validation"):
                rules.check_core(document)
            for key in ("early-commands", "error-commands"):
                rules.check_commands(key, document.get(key, []))
            self.config, unknown = rules.drop_unknown(document)
        for key in unknown:
            self.events.emit("warning", "subiquity/load_autoinstall_config", f"Unrecognized top-level key {key!r}", "WARNING")
            self.console.say(f"warning: unknown autoinstall key {key!r} dropped")

    def check_sections(self):
        world = self.world()
        for controller, key, check in rules.SECTIONS:
            with self.events.span(f"subiquity/{controller}/load_autoinstall_data", level="DEBUG"):
                if key in self.config:
                    check(self.config[key], world)
        with self.events.span("subiquity/Identity/load_autoinstall_data", level="DEBUG"):
            rules.check_someone_can_log_in(self.config)
        with self.events.span("subiquity/Filesystem/load_autoinstall_data", level="DEBUG"):
            rules.check_storage_is_given(self.config)

    # ── commands of the answers ─────────────────────────────────────────────

    def run_commands(self, controller, commands, env=None, ignore=False):
        """Runs commands as the genuine installer does: a string by sh, a list as it is, output to the journal."""
        with self.events.span(f"subiquity/{controller}/run"):
            for number, command in enumerate(commands):
                argv = ["sh", "-c", command] if isinstance(command, str) else command
                shown = command if isinstance(command, str) else " ".join(command)
                self.console.say(f"{controller.lower()} command {number}: {shown[:70].splitlines()[0]}")
                with self.events.span(f"subiquity/{controller}/run/command_{number}", shown):
                    done = subprocess.run(
                        ["systemd-cat", "--level-prefix=false", "--identifier=subiquity_log", *argv],
                        stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})}, check=False,
                    )
                    if done.returncode != 0 and not ignore:
                        raise Refusal(f"command {number} of {controller} exited with {done.returncode}: {shown}")

    # ── the course ──────────────────────────────────────────────────────────

    def run(self):
        self.state.set("STARTING_UP")
        api.serve(self.state, self.events)
        if not self.find_answers():
            self.state.set("WAITING")
            self.console.say("no autoinstall answers found: here the language screen waits for a person, for ever")
            return sleep_for_ever()
        self.load()
        if self.config.get("interactive-sections"):
            self.events.configure(None)
            self.state.set("WAITING")
            self.console.say("interactive-sections: here a prompt waits for a person, for ever")
            return sleep_for_ever()
        write("/run/casper-no-prompt", "")
        write("/run/casper-md5check.json", '{"result": "skip", "checksum_missmatch": []}\n')
        self.early()
        self.check_sections()
        self.apply()
        self.confirm()
        self.install()
        self.late()
        return self.shut_down()

    def early(self):
        self.state.set("EARLY_COMMANDS")
        if self.config.get("early-commands"):
            self.run_commands("Early", self.config["early-commands"])
            time.sleep(1)
            self.load()
            if self.config.get("interactive-sections"):
                self.events.configure(None)
                self.console.say("interactive-sections: here a prompt waits for a person, for ever")
                sleep_for_ever()

    def apply(self):
        """Everything before the disk is touched: the live network, a mirror that works, a disk that fits."""
        self.state.set("WAITING")
        apply = "apply_autoinstall_config"
        with self.events.span(f"subiquity/{apply}"):
            for controller in ("Reporting", "Userdata", "Package", "Debconf", "Kernel", "Zdev", "Source"):
                self.quick_step(f"subiquity/{controller}/{apply}")
            with self.events.span(f"subiquity/Network/{apply}"):
                if "network" in self.config:
                    network.apply_live(rules.netplan_of(self.config["network"]))
                if not network.wait_for_lease():
                    self.console.say("no network address within 10 s")
            if self.config.get("proxy"):
                os.environ["http_proxy"] = os.environ["https_proxy"] = self.config["proxy"]
            with self.events.span(f"subiquity/Mirror/{apply}"):
                self.mirror = network.choose_mirror(self.config.get("apt", {}), target.codename(), self.events)
                self.console.say(f"mirror: {self.mirror or 'none, offline install'}")
            with self.events.span(f"subiquity/Filesystem/{apply}"):
                self.disk = target.lay_out(self.config, self.uefi)
            for controller in ("Identity", "SSH", "SnapList", "Ad", "Codecs", "Drivers", "OEM", "TimeZone"):
                self.quick_step(f"subiquity/{controller}/{apply}")

    def quick_step(self, name):
        with self.events.span(name, level="DEBUG"):
            pass

    def confirm(self):
        if sources.is_unattended(self.words):
            return
        self.state.set("NEEDS_CONFIRMATION")
        self.console.say("Continue with autoinstall? (yes|no)")
        self.console.on_line(lambda line: line == "yes" and self.state.confirm("/dev/tty1"))
        self.state.wait_for_confirmation()
        self.console.say(f"confirmed by {self.state.confirming_tty}")

    def install(self):
        self.state.set("RUNNING")
        with self.events.span(INSTALL, "installing system"):
            with self.events.span(f"{INSTALL}/configure_apt", "configuring apt"):
                pass
            with self.events.span(f"{INSTALL}/curtin_install", "installing system"):
                self.curtin()
            with self.events.span(POSTINSTALL, "final system configuration"):
                self.postinstall()

    def stage(self, name, description, *steps):
        """One of curtin's stages, with an event for each of its steps."""
        self.console.say(description)
        with self.events.span(f"{STEP}/stage-{name}", description):
            for part, does, step in steps:
                with self.events.span(f"{STEP}/stage-{name}/{part}", does):
                    step()

    def curtin(self):
        disk, uefi = self.disk, self.uefi
        self.stage(
            "partitioning", f"configuring storage on {disk}",
            ("builtin/cmd-block-meta", "curtin command block-meta", lambda: storage.partition(disk, uefi)),
            ("builtin/cmd-block-meta/format", "making file systems", lambda: storage.make_filesystems(disk, uefi)),
            ("builtin/cmd-block-meta/mount", "mounting them", lambda: storage.mount(disk, uefi)),
        )
        self.stage(
            "extract", "writing install sources to disk",
            ("builtin/cmd-extract", f"acquiring and extracting image from {target.SQUASHED}", target.extract),
        )
        hooks = "builtin/cmd-curthooks"
        self.stage(
            "curthooks", "configuring installed system",
            (f"{hooks}/writing-apt-config", "configuring apt configuring apt",
             lambda: target.configure_apt(self.mirror, self.config.get("apt", {}))),
            (f"{hooks}/proxy", "configuring proxy", lambda: target.configure_proxy(self.config.get("proxy"))),
            (f"{hooks}/installing-kernel", "installing kernel", lambda: None),
            (f"{hooks}/configuring-fstab", "configuring fstab",
             lambda: target.write_swap_and_fstab(self.config, disk, uefi)),
            (f"{hooks}/install-grub", "installing grub to target devices",
             lambda: target.install_bootloader(disk, uefi, self.words)),
        )

    def postinstall(self):
        config = self.config
        self.write_autoinstall_user_data()
        steps = [
            ("settle_names", "setting the host name", lambda: target.settle_names(config)),
            ("configure_keyboard", "setting the keyboard", lambda: target.configure_keyboard(
                config.get("keyboard", {"layout": "us"}))),
            ("debconf_selections", "taking debconf answers", lambda: target.set_debconf(
                config.get("debconf-selections"))),
        ]
        for name, description, step in steps:
            with self.events.span(f"{POSTINSTALL}/{name}", description):
                step()
        for package in config.get("packages", []):
            self.console.say(f"installing package {package}")
            with self.events.span(f"{POSTINSTALL}/install_{package}", f"installing {package}") as context:
                target.install_package(package, self.events, context)
        self.console.say("openssh-server, cloud-init")
        wanted = config.get("ssh", {}).get("install-server", False)
        with self.events.span(f"{POSTINSTALL}/install_openssh-server", "installing openssh-server"):
            target.settle_ssh(wanted)
        with self.events.span(f"{POSTINSTALL}/configure_cloud_init", "configuring cloud-init"):
            target.configure_cloud_init(config, network.for_target(config))
        self.state.set("UU_RUNNING")
        updates = config.get("updates", "security")
        with self.events.span(f"{POSTINSTALL}/run_unattended_upgrades", f"downloading and installing {updates} updates"):
            pass  # the medium and its mirror are of the same hour
        with self.events.span(f"{POSTINSTALL}/restore_apt_config", "restoring apt configuration"):
            pass

    def write_autoinstall_user_data(self):
        import yaml

        with self.events.span(f"{POSTINSTALL}/write_autoinstall_config", "writing autoinstall-user-data"):
            text = yaml.safe_dump({"autoinstall": self.config})
            write("/var/log/installer/autoinstall-user-data", f"#cloud-config\n{text}", 0o600)

    def late(self):
        self.state.set("LATE_COMMANDS")
        self.run_commands("Late", self.config.get("late-commands", []), {"TARGET_MOUNT_POINT": TARGET})

    def shut_down(self):
        mode = self.config.get("shutdown", "reboot")
        with self.events.span("subiquity/Shutdown/copy_logs_to_target", "copying logs to target"):
            target.copy_logs()
        target.unmount()
        self.state.set("DONE")
        with self.events.span("subiquity/Shutdown/shutdown", f"mode={mode.upper()}"):
            pass
        run("systemctl", "--force", mode)
        return sleep_for_ever()

    def fail(self, error):
        """Tells everybody, sends the evidence, and stays: an error never powers off."""
        trace = "".join(traceback.format_exception(error))
        self.console.log(trace)
        os.makedirs("/var/crash", exist_ok=True)
        write(f"/var/crash/{time.time():.6f}.install_fail.crash", f"ProblemType: Bug\nTitle: install failed\n{trace}", 0o600)
        self.console.say(f"FAILED: {type(error).__name__}: {error}")
        self.state.set("ERROR")
        self.events.emit("start", "subiquity/Error/run", "", "DEBUG")
        commands = self.config.get("error-commands", [])
        if commands:
            self.run_commands("Error", commands, ignore=True)
        else:
            self.events.emit("finish", "subiquity/Error/run", "", "DEBUG")
        self.console.say("An error occurred. Press enter to start a shell")
        self.console.on_line(lambda line: subprocess.run(
            ["setsid", "--ctty", "--wait", "bash", "-l"], check=False,
            stdin=open("/dev/tty1"), stdout=open("/dev/tty1", "w"), stderr=subprocess.STDOUT))
        sleep_for_ever()


def time_zones():
    listed = subprocess.run(["timedatectl", "list-timezones"], capture_output=True, text=True, check=False)
    return frozenset(listed.stdout.split())


def keyboard_layouts(path="/usr/share/X11/xkb/rules/base.lst"):
    """Returns {layout: {variants}} from X's list, which the genuine installer's own is made from."""
    layouts, section = {}, None
    for line in _read(path).splitlines():
        words = line.split()
        if line.startswith("!"):
            section = words[1]
        elif section == "layout" and words:
            layouts.setdefault(words[0], set())
        elif section == "variant" and len(words) > 1:
            layouts.setdefault(words[1].rstrip(":"), set()).add(words[0])
    return layouts


def cloud_config_keys():
    """Returns the top-level keys that cloud-init itself knows."""
    from cloudinit.config.schema import get_schema

    return frozenset(get_schema()["properties"])


def check_cloud_config(data):
    """Checks the first boot's user-data with cloud-init's own code, strictly."""
    from cloudinit.config.schema import SchemaValidationError, get_schema, validate_cloudconfig_schema

    try:
        validate_cloudconfig_schema(data, get_schema(), strict=True)
    except SchemaValidationError as error:
        raise Refusal(f"Malformed autoinstall in 'user-data' section: {error}") from error


def import_slow_modules():
    """Fetches from a slow medium, during a wait, what is needed after it."""
    import cloudinit.config.schema  # noqa: F401
    import yaml  # noqa: F401


def sleep_for_ever():
    threading.Event().wait()


def _read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def main():
    for stale in glob.glob("/run/subiquity/*"):
        if os.path.isfile(stale):
            os.unlink(stale)
    installer = Installer()
    try:
        installer.run()
    except Exception as error:  # whatever it is, the machine must stay up and say so
        installer.fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
