"""What the installer decides about disk, mirror and first boot."""

import unittest

import yaml

from standin import firstboot, network, storage
from standin.report import Events
from standin.rules import Refusal
from standin.storage import GIB

IDENTITY = {"username": "odin", "hostname": "tpl", "password": "!", "realname": "Odin"}


def disk(path, size, **facts):
    base = {"path": path, "size": size * GIB, "model": "", "vendor": "", "serial": "", "id_path": "", "devpath": "",
            "ssd": False, "install-media": False}
    return {**base, **facts}


class Disks(unittest.TestCase):
    DISKS = [disk("/dev/vda", 10, serial="root"), disk("/dev/sda", 20, ssd=True), disk("/dev/sdb", 1),
             disk("/dev/sdc", 90, **{"install-media": True})]

    def pick(self, match):
        return storage.choose_disk(self.DISKS, match)["path"]

    def test_matches(self):
        for match, path in (
            ({"size": "largest"}, "/dev/sda"), ({"size": "smallest"}, "/dev/vda"), ({"serial": "ro*"}, "/dev/vda"),
            ({"path": "/dev/v*"}, "/dev/vda"), ({"ssd": True}, "/dev/sda"), ({}, "/dev/vda"),
            ([{"serial": "none"}, {"size": "largest"}], "/dev/sda"), ({"install-media": True}, "/dev/sdc"),
        ):
            with self.subTest(match=match):
                self.assertEqual(self.pick(match), path)

    def test_nothing_fits(self):
        for match in ({"serial": "none"}, {"path": "/dev/sdb"}, {"ssd": True, "path": "/dev/vda"}):
            with self.assertRaisesRegex(Refusal, "Failed to find matching device"):
                self.pick(match)

    def test_partitions(self):
        self.assertEqual(storage.partition_path("/dev/vda", 2), "/dev/vda2")
        self.assertEqual(storage.partition_path("/dev/nvme0n1", 2), "/dev/nvme0n1p2")
        self.assertIn("1:ef02", storage.partition_args(False, "/dev/vda"))
        self.assertIn("1:ef00", storage.partition_args(True, "/dev/vda"))

    def test_swap(self):
        self.assertEqual(storage.swap_bytes({"swap": {"size": 0}}, 2 * GIB, 100 * GIB), 0)
        self.assertEqual(storage.swap_bytes({"swap": {"size": "1G"}}, 2 * GIB, 100 * GIB), GIB)
        self.assertEqual(storage.swap_bytes({}, 2 * GIB, 100 * GIB), 2 * GIB)
        self.assertEqual(storage.swap_bytes({}, 4 * GIB, 8 * GIB), 2 * GIB)


class Mirrors(unittest.TestCase):
    def choose(self, apt, *good):
        slept = []
        chosen = network.choose_mirror(apt, "trixie", Events(lambda line: None), slept.append,
                                       lambda uri, codename: None if uri in good else "no")
        return chosen, slept

    def test_first_that_works(self):
        apt = {"mirror-selection": {"primary": ["country-mirror", {"uri": "http://a"}, {"uri": "http://b"}]}}
        self.assertEqual(self.choose(apt, "http://b"), ("http://b", [10]))
        self.assertEqual(self.choose(apt, "http://a", "http://b"), ("http://a", []))

    def test_other_architectures_are_skipped(self):
        apt = {"mirror-selection": {"primary": [{"uri": "http://a", "arches": ["arm64"]}, {"uri": "http://b"}]}}
        self.assertEqual(self.choose(apt, "http://a", "http://b")[0], "http://b")

    def test_fallbacks(self):
        primary = {"mirror-selection": {"primary": [{"uri": "http://a"}]}}
        self.assertIsNone(self.choose(primary)[0])
        self.assertIsNone(self.choose({})[0])
        self.assertEqual(self.choose({**primary, "fallback": "continue-anyway"})[0], "http://a")
        with self.assertRaisesRegex(Refusal, "no mirror is usable"):
            self.choose({**primary, "fallback": "abort"})


class FirstBoot(unittest.TestCase):
    CONFIG = {
        "identity": IDENTITY, "locale": "fr_FR", "timezone": "Europe/Paris",
        "ssh": {"install-server": True, "authorized-keys": ["k"]},
        "user-data": {"users": [{"name": "odin", "sudo": "ALL=(ALL) NOPASSWD:ALL"}], "growpart": {"x": 1}},
    }

    def test_merge(self):
        made = firstboot.cloud_config(self.CONFIG, ["sudo", "adm", "staff"], True)
        self.assertEqual([user["name"] for user in made["users"]], ["odin", "odin"])
        self.assertEqual(made["users"][0]["groups"], "adm,sudo")
        self.assertEqual(made["users"][0]["passwd"], "!")
        self.assertIs(made["users"][0]["lock_passwd"], False)
        self.assertEqual(made["growpart"], {"mode": "off", "x": 1})
        self.assertEqual(made["locale"], "fr_FR.UTF-8")
        self.assertIs(made["ssh_pwauth"], False)
        self.assertIs(made["preserve_hostname"], True)
        self.assertTrue(made["write_files"][0]["defer"])

    def test_locale_is_ignored_on_minimal(self):
        self.assertNotIn("locale", firstboot.cloud_config(self.CONFIG, [], False))

    def test_password_login_is_on_without_keys(self):
        made = firstboot.cloud_config({"identity": IDENTITY, "ssh": {"install-server": True}}, [], True)
        self.assertIs(made["ssh_pwauth"], True)
        self.assertNotIn("ssh_pwauth", firstboot.cloud_config({"identity": IDENTITY}, [], True))

    def test_keys_without_identity_go_to_the_default_user(self):
        made = firstboot.cloud_config({"user-data": {}, "ssh": {"authorized-keys": ["k"]}}, [], True)
        self.assertEqual(made["ssh_authorized_keys"], ["k"])
        self.assertNotIn("users", made)

    def test_files(self):
        files = firstboot.files(self.CONFIG, ["sudo"], True, {"version": 2})
        installer, mode = files["/etc/cloud/cloud.cfg.d/99-installer.cfg"]
        self.assertEqual(mode, 0o600)
        parsed = yaml.safe_load(installer)
        self.assertEqual(parsed["datasource_list"], ["None"])
        self.assertTrue(parsed["datasource"]["None"]["userdata_raw"].startswith("#cloud-config\n"))
        self.assertEqual(files["/etc/cloud/cloud.cfg.d/90-installer-network.cfg"][1], 0o600)
        hook, mode = files["/etc/cloud/clean.d/99-installer"]
        self.assertEqual(mode, 0o755)
        for path in files:
            if not path.endswith("clean.d/99-installer"):
                self.assertIn(path, hook)


if __name__ == "__main__":
    unittest.main()
