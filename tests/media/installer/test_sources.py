"""Where the answers come from."""

import json
import os
import tempfile
import unittest

from standin import sources
from standin.rules import Refusal


class KernelLine(unittest.TestCase):
    def test_only_the_bare_word_counts(self):
        for line, expected in (
            ("BOOT_IMAGE=/casper/vmlinuz ---", False), ("autoinstall ---", True), ("--- autoinstall", True),
            ("autoinstall=1", False), ("'autoinstall'", True), ("xautoinstall", False),
        ):
            with self.subTest(line=line):
                self.assertEqual(sources.is_unattended(sources.cmdline_words(line)), expected)

    def test_an_unbalanced_quote_is_fatal(self):
        with self.assertRaises(ValueError):
            sources.cmdline_words('quiet "ds=nocloud')

    def test_arguments_after_the_dashes_are_inherited(self):
        words = sources.cmdline_words("BOOT_IMAGE=/casper/vmlinuz quiet --- console=ttyS0 ds=nocloud;s=http://h/")
        self.assertEqual(sources.arguments_for_target(words), ["console=ttyS0", "ds=nocloud;s=http://h/"])
        self.assertEqual(sources.arguments_for_target(["quiet", "---"]), [])
        self.assertEqual(sources.arguments_for_target(["quiet"]), [])


class Order(unittest.TestCase):
    def test_first_hit_wins(self):
        places = ["/named.yaml", sources.ROOT_FILE, sources.CLOUD_FILE, sources.MEDIUM_FILE]
        words = ["subiquity.autoinstallpath=/named.yaml"]
        for number, first in enumerate(places):
            self.assertEqual(sources.first_source(words, lambda path, n=number: path in places[n:]), first)
        self.assertIsNone(sources.first_source(words, lambda path: False))


class CloudConfig(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def path(self, name, text=None):
        path = os.path.join(self.folder.name, name)
        if text is not None:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        return path

    def take(self, combined, user_data):
        target = self.path("out.yaml")
        found = sources.take_from_cloud_config(
            self.path("combined", json.dumps(combined)), self.path("user-data", user_data), target,
            frozenset(["autoinstall", "timezone"]))
        if not found:
            return False
        with open(target, encoding="utf-8") as file:
            return sources.parse_plain(file.read())

    def test_the_autoinstall_part_is_taken(self):
        self.assertEqual(self.take({"autoinstall": {"version": 1}, "users": []}, "#cloud-config\nautoinstall: {version: 1}\n"), {"version": 1})

    def test_a_session_without_answers(self):
        self.assertFalse(self.take({"users": []}, "#cloud-config\n{}\n"))

    def test_misplaced_directives_are_fatal(self):
        with self.assertRaisesRegex(Refusal, "Misplaced"):
            self.take({"autoinstall": {}}, "#cloud-config\nautoinstall: {}\nlate-commands: []\n")

    def test_without_the_first_line_it_is_no_configuration(self):
        self.assertFalse(self.take({}, "autoinstall: {version: 1}\nlate-commands: []\n"))

    def test_bad_yaml(self):
        with self.assertRaisesRegex(Refusal, "not YAML"):
            sources.parse_plain("a: [")


if __name__ == "__main__":
    unittest.main()
