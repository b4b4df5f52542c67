"""What the stand-in's rules accept and refuse."""

import unittest

from standin import rules
from standin.rules import CannotDo, Refusal

WORLD = rules.World(
    timezones=frozenset(["Europe/Paris", "Etc/UTC"]),
    layouts={"fr": {"latin9", "oss"}, "us": set()},
)
CHECKS = {key: check for _, key, check in rules.SECTIONS}
DIRECT = {"layout": {"name": "direct"}}
IDENTITY = {"username": "odin", "hostname": "tpl", "password": "*"}

ACCEPTED = [
    ("interactive-sections", None),
    ("early-commands", ["true", ["echo", "x"]]),
    ("reporting", {"forge": {"type": "webhook", "endpoint": "http://h/e", "level": "INFO"}}),
    ("user-data", {}),
    ("packages", ["vim", "task^", "pkg=1"]),
    ("locale", "fr_FR.UTF-8"),
    ("refresh-installer", {"update": False, "channel": "stable"}),
    ("kernel", {"flavor": "generic"}),
    ("kernel", {"package": "linux-generic"}),
    ("keyboard", {"layout": "fr", "variant": "latin9", "toggle": None}),
    ("source", {"id": "ubuntu-server-minimal", "search_drivers": False, "unknown": 1}),
    ("network", {"version": 2}),
    ("network", {"network": {"version": 2, "ethernets": {"a": {"match": {"name": "en*"}, "dhcp4": True}}}}),
    ("proxy", None),
    ("apt", {"fallback": "abort", "geoip": False, "unknown": 1,
             "mirror-selection": {"primary": ["country-mirror", {"uri": "http://h/", "arches": ["amd64"]}]}}),
    ("storage", {"layout": {"name": "direct", "match": {"size": "largest"}}, "swap": {"size": 0}}),
    ("storage", {"layout": {"name": "direct", "match": [{"serial": "x*"}, {"size": "smallest"}]}, "swap": {"size": "2G"}}),
    ("identity", {**IDENTITY, "realname": "O"}),
    ("identity", {**IDENTITY, "username": "root"}),
    ("ssh", {"install-server": True, "allow-pw": False, "authorized-keys": [], "unknown": 1}),
    ("snaps", []),
    ("codecs", {"install": False}),
    ("drivers", {"install": True}),
    ("oem", {"install": "auto"}),
    ("timezone", "Europe/Paris"),
    ("timezone", ""),
    ("timezone", "geoip"),
    ("updates", "all"),
    ("late-commands", []),
    ("shutdown", "poweroff"),
    ("debconf-selections", "a b c d"),
]

REFUSED = [
    ("early-commands", "true", "is not of type array"),
    ("early-commands", [1], "is not of type string or array"),
    ("early-commands", [["a", 1]], "is not of type string"),
    ("early-commands", [[]], "empty command"),
    ("late-commands", "true", "late-commands"),
    ("reporting", {"forge": {"endpoint": "http://h"}}, "'type' is a required"),
    ("reporting", {"forge": {"type": "webhook"}}, "needs an 'endpoint'"),
    ("reporting", {"forge": {"type": "carrier-pigeon"}}, "unknown type"),
    ("reporting", {"forge": {"type": "webhook", "endpoint": "x", "token_key": "t"}}, "OAuth"),
    ("user-data", [], "is not of type object"),
    ("packages", "vim", "is not of type array"),
    ("locale", 1, "is not of type string"),
    ("refresh-installer", {"updates": False}, "additional properties"),
    ("refresh-installer", {"update": "no"}, "is not of type boolean"),
    ("kernel", {}, "exactly one"),
    ("kernel", {"package": "linux-generic", "flavor": "generic"}, "exactly one"),
    ("keyboard", {"layout": "zz"}, "Unknown keyboard layout 'zz'"),
    ("keyboard", {"layout": "fr", "variant": "zz"}, "Unknown keyboard variant"),
    ("keyboard", {"variant": "latin9"}, "'layout' is a required"),
    ("keyboard", {"layout": "fr", "model": "pc105"}, "additional properties"),
    ("source", {"search_drivers": "no"}, "is not of type boolean"),
    ("network", {"version": 1}, "version 1 is not 2"),
    ("network", {"ethernets": {}}, "'version' is a required"),
    ("network", {"version": 2, "ethernets": {"a": {"match": {"mac": "x"}}}}, "additional properties"),
    ("apt", {"fallback": "give-up"}, "is not one of"),
    ("apt", {"geoip": "no"}, "is not of type boolean"),
    ("apt", {"disable_components": ["main"]}, "is not one of"),
    ("apt", {"mirror-selection": {"primary": ["http://h"]}}, "is not of type object"),
    ("apt", {"mirror-selection": {"primary": [{"url": "http://h"}]}}, "'uri' is a required"),
    ("apt", {"mirror-selection": {"primary": {"uri": "http://h"}}}, "is not of type"),
    ("apt", {"primary": [], "mirror-selection": {}}, "exclude each other"),
    ("apt", {"preferences": [{"package": "x"}]}, "is a required property"),
    ("storage", {"layout": {"name": "direct", "match": {"size": "big"}}}, "is not one of"),
    ("storage", {"layout": {"name": "direct", "match": {"name": "vda"}}}, "unknown match keys"),
    ("storage", {"layout": {"name": "direct"}, "swap": {"size": "lots"}}, "is not a size"),
    ("storage", {"layout": "direct"}, "is not of type object"),
    ("identity", {"username": "odin", "hostname": "tpl"}, "'password' is a required"),
    ("identity", {"username": "odin", "password": "*"}, "'hostname' is a required"),
    ("identity", {"hostname": "tpl", "password": "*"}, "'username' is a required"),
    ("identity", {**IDENTITY, "uid": 1000}, "additional properties"),
    ("identity", {**IDENTITY, "password": 1}, "is not of type string"),
    ("ssh", {"install-server": "yes"}, "is not of type boolean"),
    ("ssh", {"authorized-keys": "ssh-ed25519 x"}, "is not of type array"),
    ("snaps", [{"classic": True}], "'name' is a required"),
    ("oem", {}, "'install' is a required"),
    ("oem", {"install": "maybe"}, "neither"),
    ("timezone", "Europe/Lutece", "Unrecognized time zone"),
    ("timezone", "europe/paris", "Unrecognized time zone"),
    ("updates", "none", "is not one of"),
    ("updates", False, "is not of type string"),
    ("shutdown", "halt", "is not one of"),
    ("ubuntu-pro", {"token": "x"}, "has not the form"),
]

CANNOT = [
    ("storage", {}),
    ("storage", {"layout": {}}),
    ("storage", {"layout": {"name": "lvm"}}),
    ("storage", {"layout": {"name": "zfs"}}),
    ("storage", {"layout": {"name": "anything"}}),
    ("storage", {"layout": {"name": "direct", "mode": "use_gap"}}),
    ("storage", {"layout": {"name": "direct", "ptable": "msdos"}}),
    ("storage", {"layout": {"name": "direct", "password": "x"}}),
    ("storage", {"config": []}),
    ("apt", {"sources": {"x": {}}}),
    ("kernel", {"flavor": "lowlatency"}),
    ("kernel", {"package": "linux-oem"}),
    ("refresh-installer", {"update": True}),
    ("snaps", [{"name": "hello"}]),
    ("ubuntu-pro", {"token": "C" + "1" * 24}),
]


class Sections(unittest.TestCase):
    def test_accepted(self):
        for key, value in ACCEPTED:
            with self.subTest(key=key, value=value):
                if key in CHECKS:
                    CHECKS[key](value, WORLD)

    def test_refused(self):
        for key, value, words in REFUSED:
            with self.subTest(key=key, value=value), self.assertRaises(Refusal) as caught:
                CHECKS[key](value, WORLD)
            self.assertNotIsInstance(caught.exception, CannotDo)
            self.assertIn(words, str(caught.exception))

    def test_what_only_the_genuine_one_can(self):
        for key, value in CANNOT:
            with self.subTest(key=key, value=value), self.assertRaises(CannotDo):
                CHECKS[key](value, WORLD)

    def test_unknown_source_fails_without_a_word(self):
        with self.assertRaises(Refusal) as caught:
            CHECKS["source"]({"id": "debian"}, WORLD)
        self.assertEqual(str(caught.exception), "")

    def test_user_data_goes_to_cloud_init(self):
        seen = []
        world = rules.World(check_cloud_config=seen.append)
        CHECKS["user-data"]({"users": []}, world)
        CHECKS["user-data"]({}, world)
        self.assertEqual(seen, [{"users": []}])

    def test_every_known_key_has_a_check(self):
        without = rules.KNOWN_KEYS - set(CHECKS)
        self.assertEqual(without, {"version", "interactive-sections"})


class WholeFile(unittest.TestCase):
    def test_plain_file_may_be_bare_or_wrapped(self):
        self.assertEqual(rules.unwrap_plain({"version": 1}), {"version": 1})
        self.assertEqual(rules.unwrap_plain({"autoinstall": {"version": 1}}), {"version": 1})

    def test_keys_beside_the_wrapper_are_fatal(self):
        with self.assertRaisesRegex(Refusal, "late-commands"):
            rules.unwrap_plain({"autoinstall": {"version": 1}, "late-commands": []})
        for document in (None, [], "text"):
            with self.assertRaises(Refusal):
                rules.unwrap_plain(document)

    def test_misplaced_directives(self):
        with self.assertRaisesRegex(Refusal, "Misplaced autoinstall directives.*late-commands"):
            rules.check_misplaced({"autoinstall": {}, "late-commands": []}, frozenset(["autoinstall", "timezone"]))
        rules.check_misplaced({"autoinstall": {}, "timezone": "x", "other": 1}, frozenset(["autoinstall", "timezone"]))

    def test_version(self):
        rules.check_core({"version": 1})
        for config in ({}, {"version": 2}, {"version": "1"}, {"version": True}, []):
            with self.subTest(config=config), self.assertRaises(Refusal):
                rules.check_core(config)

    def test_unknown_keys_are_dropped(self):
        self.assertEqual(rules.drop_unknown({"version": 1, "lokale": "x"}), ({"version": 1}, ["lokale"]))

    def test_someone_must_be_able_to_log_in(self):
        rules.check_someone_can_log_in({"user-data": {}})
        rules.check_someone_can_log_in({"identity": IDENTITY})
        with self.assertRaises(Refusal):
            rules.check_someone_can_log_in({"version": 1})

    def test_sizes(self):
        self.assertEqual([rules.parse_size(s) for s in ("0", "512M", "2G", "1GiB")], [0, 512 << 20, 2 << 30, 1 << 30])


class CloudInitSchema(unittest.TestCase):
    def test_real_schema(self):
        try:
            import cloudinit.config.schema  # noqa: F401
            from cloudinit.version import version_string
        except ImportError:
            self.skipTest("cloud-init is not on this machine: its strict schema is only checked on the medium")
        if int(version_string().split(".")[0]) < 25:
            self.skipTest("this machine's cloud-init is older than the medium's, and its schema looser")
        from standin.main import check_cloud_config

        check_cloud_config({"users": [{"name": "odin"}]})
        with self.assertRaises(Refusal):
            check_cloud_config({"usres": []})


if __name__ == "__main__":
    unittest.main()
