//! The schemas for editors: they are current, and agree with the loader.

use std::path::Path;

use crate::cases::{TEMPLATE, expect, golden};

#[test]
fn committed_schemas_are_current() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
    std::fs::create_dir_all(&folder).unwrap();
    for (name, schema) in [
        ("definition", forge::definition::schema::definition()),
        ("profile", forge::definition::schema::profile()),
        ("control", forge::definition::schema::control()),
    ] {
        // `forge schema {name} > schema/{name}.schema.json` refreshes it, too.
        expect(&folder.join(format!("{name}.schema.json")), &format!("{schema:#}\n"));
    }
}

/// What an editor accepts: the schema agrees with the loader on every good file and on what is
/// wrong in shape.
#[test]
fn editors_see_what_the_loader_sees() {
    let schema = forge::definition::schema::definition();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let valid = |text: &str| {
        let value: toml::Table = text.parse().unwrap();
        validator.is_valid(&serde_json::to_value(value).unwrap())
    };
    let web = std::fs::read_to_string(golden("good/full").join(TEMPLATE)).unwrap();
    // Only a merged definition is complete.
    let complete = web.replace("vmid = 9001", "vmid = 9001\nrelease = \"{{ var.release }}\"");
    assert!(valid(&complete));
    assert!(valid(&complete.replace("vmid = 9001", "vmid = \"{{ var.vmid }}\"")));
    for (old, new) in [
        ("vmid = 9001", "vmid = \"9001\""),
        ("vmid = 9001", "vmid = 1"),
        ("firmware = \"uefi\"", "firmware = \"efi\""),
        ("tpm = true", "tmp = true"),
        ("timeout = \"90s\"", "timeout = \"90\""),
        ("schema = 1", "schema = \"{{ 1 }}\""),
    ] {
        assert!(!valid(&complete.replacen(old, new, 1)), "{old} → {new}");
    }
    // What a parent may give is asked for only where there is none.
    let alone = complete.replace("extends = \"base\"\n", "");
    assert!(valid(&alone) && valid(&web));
    for line in ["vmid = 9001\n", "iso = \"{{ var.iso }}\"\n"] {
        assert!(alone.contains(line) && !valid(&alone.replacen(line, "", 1)), "{line}");
    }
}
