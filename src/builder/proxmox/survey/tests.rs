use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::pve::Vmid;

fn storage(id: &str, kind: &str, content: &str, avail: u64) -> StorageStatus {
    serde_json::from_value(json!({
        "storage": id, "type": kind, "content": content, "enabled": 1, "active": 1, "avail": avail,
        "total": 100 * GIB,
    }))
    .unwrap()
}

fn bridge(name: &str) -> Bridge {
    serde_json::from_value(json!({ "iface": name, "type": "bridge", "active": 1, "cidr": "10.0.0.1/24" }))
        .unwrap()
}

fn node(name: &str, free_memory: u64) -> NodeView {
    NodeView {
        name: name.to_owned(),
        is_online: true,
        free_memory: Some(free_memory),
        storages: vec![
            storage("local-zfs", "zfspool", "images,rootdir", 80 * GIB),
            storage("local", "dir", "iso,vztmpl", 20 * GIB),
        ],
        bridges: vec![bridge("vmbr0")],
        has_kvm: Some(true),
        trouble: None,
    }
}

/// Returns a cluster of one node where all is well.
fn survey() -> Survey {
    let profile = ProxmoxProfile { node: "asgard".to_owned(), ..ProxmoxProfile::default() };
    let version = Version { version: "8.4.21".to_owned(), release: "8.4".to_owned() };
    let needs = access::needs(&access::Place {
        profile: &profile,
        node: Some("asgard"),
        scratch: 9000,
        templates: &[90001],
        agent: version.agent_privileges(),
        is_vnet: false,
        uploads_answers: false,
    });
    let mut rights: Rights = BTreeMap::new();
    for need in &needs {
        let held = need.privileges.iter().map(ToString::to_string);
        rights.entry(need.path.clone()).or_default().extend(held);
    }
    Survey {
        wish: Wish { templates: vec![90001], disk_bytes: 50 * GIB, ..Wish::default() },
        who: "forge@pve!ci".to_owned(),
        version,
        ahead: Some(1),
        nodes: vec![node("asgard", 8 * GIB)],
        taken: BTreeSet::new(),
        scratch: 9000,
        needs,
        rights,
        roles: BTreeSet::new(),
        pools: Vec::new(),
        route: Route {
            node: Some("10.0.0.1".parse().unwrap()),
            ours: Some("10.0.0.5".parse().unwrap()),
            advertised: None,
        },
        emulates: false,
        profile,
    }
}

fn finding(survey: &Survey, name: &str) -> Finding {
    let findings = survey.findings();
    let found = findings.iter().find(|finding| finding.name == name);
    found.unwrap_or_else(|| panic!("no `{name}` in {findings:#?}")).clone()
}

fn level(survey: &Survey, name: &str) -> Level {
    finding(survey, name).level
}

#[test]
fn where_all_is_well_a_build_has_its_site() {
    let survey = survey();
    let bad: Vec<_> = survey.findings().into_iter().filter(|it| it.level != Level::Ok).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(survey.commands().is_empty());
    let site = survey.site(Vec::new()).unwrap();
    assert_eq!((site.node.as_str(), site.disks.kind.as_str()), ("asgard", "zfspool"));
    assert!(!site.disks.takes_format && site.disks.linked_clones);
    assert!(site.can_download && site.tags_on_create);
    assert_eq!(site.candidates().take(2).map(Vmid::get).collect::<Vec<_>>(), [9000, 9001]);
}

#[test]
fn a_range_with_a_templates_vmid_is_refused() {
    let mut survey = survey();
    survey.profile.vmids = "90000-90010".to_owned();
    let found = finding(&survey, "VMIDs 90000-90010");
    assert_eq!((found.level, found.found.contains("90001 is a template's own")), (Level::Missing, true));
}

#[test]
fn a_node_without_virtualisation_is_told_before_anything_is_uploaded() {
    for (has_kvm, emulates, is_missing) in [
        (Some(false), false, true),
        (Some(false), true, false),
        (Some(true), false, false),
        (None, false, false),
    ] {
        let mut survey = survey();
        survey.nodes[0].has_kvm = has_kvm;
        survey.emulates = emulates;
        let found = survey.findings().into_iter().find(|finding| finding.name == "virtualisation");
        assert_eq!(found.is_some(), is_missing, "{found:?}");
        assert!(
            found.is_none_or(|it| it.level == Level::Missing && it.advice.unwrap().contains("kvm = false"))
        );
    }
}

#[test]
fn taken_vmids_are_not_tried() {
    let mut survey = survey();
    survey.taken = BTreeSet::from([9000, 9002]);
    let site = survey.site(Vec::new()).unwrap();
    assert_eq!(site.candidates().take(2).map(Vmid::get).collect::<Vec<_>>(), [9001, 9003]);
    for (last, expected) in [(9003, Level::Ok), (9002, Level::Missing), (9000, Level::Missing)] {
        survey.profile.vmids = format!("9000-{last}");
        survey.taken.retain(|vmid| *vmid <= last);
        assert_eq!(level(&survey, &format!("VMIDs 9000-{last}")), expected, "{last}");
    }
}

#[test]
fn auto_takes_the_node_with_the_most_free_memory_that_has_everything() {
    let profile = ProxmoxProfile::default();
    let without = |change: fn(&mut NodeView)| {
        let mut node = node("rich", 64 * GIB);
        change(&mut node);
        node
    };
    let poor = || vec![node("poor", 4 * GIB), node("better", 6 * GIB), node("poorer", 3 * GIB)];
    for change in [
        (|node| node.is_online = false) as fn(&mut NodeView),
        |node| node.trouble = Some("pveproxy answers 595".to_owned()),
        |node| node.storages.clear(),
        |node| node.storages[0].active = false,
        |node| node.storages[0].enabled = false,
        |node| node.storages[1].content.clear(),
        |node| node.bridges.clear(),
        |node| node.bridges[0].active = false,
    ] {
        let mut nodes = poor();
        nodes.push(without(change));
        assert_eq!(choose(&profile, &nodes).unwrap().name, "better");
        let refused = choose(&profile, &nodes[3..]).unwrap_err();
        assert!(refused.len() == 1 && refused[0].starts_with("rich: "), "{refused:?}");
    }
    assert_eq!(choose(&profile, &[without(|_| {})]).unwrap().name, "rich");
    // Nobody may know the memory: the first will do.
    let blind = |name| NodeView { free_memory: None, ..node(name, 0) };
    assert_eq!(choose(&profile, &[blind("a"), blind("b")]).unwrap().name, "a");
}

#[test]
fn a_named_node_that_is_not_there_is_missing() {
    let mut survey = survey();
    survey.profile.node = "midgard".to_owned();
    let finding = finding(&survey, "node");
    assert_eq!(finding.level, Level::Missing);
    assert_eq!(finding.found, "there is no node `midgard`; there are: asgard");
    assert!(survey.site(Vec::new()).is_none());
}

#[test]
fn storages_are_judged_by_content_and_space() {
    let with = |change: &dyn Fn(&mut NodeView)| {
        let mut survey = survey();
        change(&mut survey.nodes[0]);
        survey
    };
    for (avail, expected) in [(GIB / 2, Level::Missing), (20 * GIB, Level::Warn), (60 * GIB, Level::Ok)] {
        let survey = with(&|node| node.storages[0].avail = avail);
        assert_eq!(level(&survey, "storage local-zfs"), expected, "{avail}");
    }
    let survey = with(&|node| node.storages[0].kind = "lvm".to_owned());
    assert_eq!(level(&survey, "storage local-zfs"), Level::Note);
    let survey = with(&|node| node.storages[1].content.clear());
    let missing = finding(&survey, "storage local");
    assert_eq!(missing.level, Level::Missing);
    let survey = with(&|node| {
        node.storages[0].content.clear();
        node.storages.push(storage("ssd", "lvmthin", "images", 80 * GIB));
    });
    let advice = finding(&survey, "storage local-zfs").advice.unwrap();
    assert_eq!(advice, "set `vm_storage` in the builder profile; these take images: ssd");
}

#[test]
fn a_missing_bridge_names_those_that_there_are() {
    let mut survey = survey();
    survey.profile.bridge = "vmbr7".to_owned();
    let finding = finding(&survey, "bridge vmbr7");
    assert_eq!(finding.level, Level::Missing);
    assert_eq!(finding.advice.unwrap(), "set `bridge` in the builder profile; there are: vmbr0");
}

#[test]
fn missing_rights_hinder_what_needs_them() {
    for (path, promotes, expected) in [
        ("/vms/9000", false, Level::Missing),
        ("/vms/90001", false, Level::Warn),
        ("/vms/90001", true, Level::Missing),
        ("/storage/local", false, Level::Missing),
        ("/nodes/asgard", false, Level::Warn),
        ("/nodes/asgard", true, Level::Warn),
    ] {
        let mut survey = survey();
        survey.wish.promotes = promotes;
        survey.rights.remove(path);
        let finding = finding(&survey, &format!("rights on {path}"));
        assert_eq!(finding.level, expected, "{path} {promotes}: {}", finding.found);
        assert!(survey.commands().iter().any(|command| command.starts_with("pveum acl modify ")));
    }
}

#[test]
fn a_pool_is_missing_only_where_that_can_be_seen() {
    for (pools, audits, expected) in
        [(&["forge"][..], true, Level::Ok), (&["other"], true, Level::Missing), (&[], false, Level::Note)]
    {
        let mut survey = survey();
        survey.profile.pool = Some("forge".to_owned());
        survey.pools = pools.iter().map(ToString::to_string).collect();
        if audits {
            survey.rights.insert("/pool/forge".to_owned(), BTreeSet::from(["Pool.Audit".to_owned()]));
        }
        assert_eq!(level(&survey, "pool forge"), expected, "{pools:?}");
    }
}

#[test]
fn versions_are_judged() {
    for (version, expected) in [
        ("7.4-3", Level::Missing),
        ("8.4.21", Level::Ok),
        ("9.2.11", Level::Ok),
        ("10.0", Level::Warn),
        ("?", Level::Missing),
    ] {
        let mut survey = survey();
        survey.version.version = version.to_owned();
        assert_eq!(level(&survey, "version"), expected, "{version}");
    }
}

#[test]
fn forges_address_is_judged() {
    for (ours, advertised, cidr, expected) in [
        (Some("10.0.0.5"), None, Some("10.0.0.1/24"), Level::Ok),
        (Some("10.0.1.5"), None, Some("10.0.0.1/24"), Level::Note),
        (Some("10.0.1.5"), None, None, Level::Note),
        (Some("127.0.0.1"), None, Some("10.0.0.1/24"), Level::Missing),
        (None, None, Some("10.0.0.1/24"), Level::Missing),
        (None, Some("forge.lan"), None, Level::Ok),
    ] {
        let mut survey = survey();
        survey.route.ours = ours.map(|text: &str| text.parse().unwrap());
        survey.route.advertised = advertised.map(str::to_owned);
        survey.nodes[0].bridges[0].cidr = cidr.map(str::to_owned);
        assert_eq!(level(&survey, "forge's address"), expected, "{ours:?} {cidr:?}");
    }
}

#[test]
fn clocks_are_compared() {
    for (ahead, expected) in
        [(None, Level::Note), (Some(-30), Level::Ok), (Some(31), Level::Warn), (Some(-3600), Level::Warn)]
    {
        let mut survey = survey();
        survey.ahead = ahead;
        assert_eq!(level(&survey, "clock"), expected, "{ahead:?}");
    }
}

#[test]
fn networks_hold_their_addresses() {
    for (address, cidr, expected) in [
        ("10.0.0.200", "10.0.0.1/24", true),
        ("10.0.1.1", "10.0.0.1/24", false),
        ("10.9.9.9", "10.0.0.1/0", true),
        ("10.0.0.1", "10.0.0.1/32", true),
        ("fd00::5", "fd00::1/64", true),
        ("fd01::5", "fd00::1/64", false),
        ("10.0.0.1", "fd00::1/64", false),
        ("10.0.0.1", "10.0.0.1/99", false),
        ("10.0.0.1", "10.0.0.1", false),
    ] {
        assert_eq!(is_inside(address.parse().unwrap(), cidr), expected, "{address} {cidr}");
    }
}
