//! What forge may depend on: the rules of `deny.toml`, held without any tool but cargo.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

fn rules() -> toml::Table {
    include_str!("../deny.toml").parse().expect("deny.toml is TOML")
}

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--offline", "--locked"])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    match metadata["packages"].take() {
        Value::Array(packages) => packages,
        other => panic!("no packages in {other}"),
    }
}

fn strings<'a>(rules: &'a toml::Table, section: &str, key: &str) -> Vec<&'a str> {
    rules[section][key].as_array().expect("an array").iter().filter_map(toml::Value::as_str).collect()
}

#[test]
fn every_licence_is_allowed() {
    let rules = rules();
    let allowed: Vec<_> = strings(&rules, "licenses", "allow")
        .into_iter()
        .map(|text| spdx::Licensee::parse(text).unwrap_or_else(|error| panic!("{text}: {error}")))
        .collect();
    let refused: Vec<_> = packages()
        .iter()
        .filter(|package| {
            let text = package["license"].as_str().unwrap_or_default();
            let expression = spdx::Expression::parse_mode(text, spdx::ParseMode::LAX);
            !expression.is_ok_and(|it| it.evaluate(|want| allowed.iter().any(|have| have.satisfies(want))))
        })
        .map(|package| format!("{} is under {}", package["name"], package["license"]))
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
}

#[test]
fn nothing_banned_and_everything_from_the_registry() {
    let rules = rules();
    let banned: BTreeSet<_> = rules["bans"]["deny"]
        .as_array()
        .expect("an array")
        .iter()
        .filter_map(|entry| entry.get("name").and_then(toml::Value::as_str))
        .collect();
    assert!(!banned.is_empty());
    for package in packages() {
        let name = package["name"].as_str().expect("a name");
        assert!(!banned.contains(name), "{name} is banned by deny.toml");
        let source = package["source"].as_str().unwrap_or("registry+ (this package)");
        assert!(source.starts_with("registry+"), "{name} comes from {source}");
    }
}
