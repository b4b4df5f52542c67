//! The digest of a plan: what enters it and what does not.

use forge::definition::Inputs;
use forge::plan::Selection;

use crate::cases::{TEMPLATE, changed, full, golden, plan_of};

#[test]
fn the_digest_changes_with_what_shapes_the_guest() {
    // With a password, so that the step `console` runs.
    let vars = vec![("console_password".to_owned(), "x".to_owned())];
    let inputs = Inputs { vars, ..Inputs::default() };
    let digest = plan_of(&golden("good/full"), "web", &inputs, &Selection::default()).digest;
    let cases: [(&str, &str, &str); 15] = [
        ("hardening/console.sh", "usermod", "usermod "),
        ("hardening/seal.sh", "exit 0", "exit 00"),
        ("files/motd.d/10-welcome", "welcome", "welcome!"),
        ("http/base/autoinstall.yaml.j2", "version: 1", "version: 1 "),
        ("http/web/extra.sh", "extra", "more"),
        (TEMPLATE, "size_gib = 32", "size_gib = 33"),
        (TEMPLATE, "vmid = 9001", "vmid = 9002"),
        (TEMPLATE, "D8274B", "D8274C"),
        (TEMPLATE, "http://archive.example/ubuntu", "http://other.example/ubuntu"),
        (TEMPLATE, "[\"curl\"]", "[\"wget\"]"),
        (TEMPLATE, "default = 2222", "default = 2223"),
        (TEMPLATE, "inline = \"\"\"", "inline = \"\"\"\n"),
        (TEMPLATE, "profile = \"base\"", "profile = \"server\""),
        (TEMPLATE, "profile = \"base\"", "profile = \"base\"\nenv = { STORAGE = \"external\" }"),
        ("hardening/controls/core-dumps.toml", "hard core 0", "hard core 1"),
    ];
    for (file, old, new) in cases {
        let folder = changed(file, |text| text.replace(old, new));
        let other = plan_of(folder.path(), "web", &inputs, &Selection::default()).digest;
        assert_ne!(other, digest, "{file}: {old} → {new}");
    }
}

#[test]
fn the_digest_does_not_change_with_place_and_time() {
    let digest = full().digest;
    let cases: [(&str, &str, &str); 10] = [
        ("args.txt", "", "\n"),
        // Not one that is applied.
        ("hardening/controls/modules.toml", "dccp", "rds"),
        (TEMPLATE, "timeout = \"90s\"", "timeout = \"91s\""),
        (TEMPLATE, "retries = 1", "retries = 2"),
        (
            TEMPLATE,
            "[prove]\n",
            "[timeouts]\ninstall = \"2h\"\n[[contract]]\nname = \"clone\"\naddress = \"10.10.10.60/24\"\n[prove]\n",
        ),
        (TEMPLATE, "isos/live-server.iso", "https://mirror.example/other-name.iso"),
        (
            TEMPLATE,
            "C3514BF0056180D09376462A7A1B4F213C1D6E8EA67FAE5C25099C6FD3D8274B",
            "c3514bf0056180d09376462a7a1b4f213c1d6e8ea67fae5c25099c6fd3d8274b",
        ),
        (TEMPLATE, "[machine]\n", "[machine] # the hardware\n"),
        ("builders/rack.toml", "cpu = \"max\"", "cpu = \"host\"\ncores = 1"),
        ("builders/rack.toml", "8000-8099", "9000"),
    ];
    for (file, old, new) in cases {
        let folder =
            changed(file, |text| if old.is_empty() { new.to_owned() } else { text.replace(old, new) });
        let other = plan_of(folder.path(), "web", &Inputs::default(), &Selection::default()).digest;
        assert_eq!(other, digest, "{file}: {old} → {new}");
    }
}

#[test]
fn of_a_secret_only_whether_it_is_set_enters_the_digest() {
    let case = golden("good/full");
    let with = |value: &str| {
        let vars = vec![("console_password".to_owned(), value.to_owned())];
        plan_of(&case, "web", &Inputs { vars, ..Inputs::default() }, &Selection::default()).digest
    };
    assert_eq!(with("one"), with("two"));
    assert_eq!(with(""), full().digest);
    assert_ne!(with("one"), full().digest);
}
