//! Whole builds on other clusters than the one node with ZFS: releases, storages, nodes, rights.

use std::thread;

use forge::builder::proxmox::access;
use pve_sim::{Release, Storage, StorageKind, WorldSpec};

use crate::node::{Node, Setting, is_template, take_vms};
use crate::requests::assert_requests_are_well;

/// A cluster, and what is seen of it in the end.
struct World {
    name: &'static str,
    cluster: WorldSpec,
    node: &'static str,
    profile: &'static str,
    /// What forge says.
    says: &'static [&'static str],
    /// How the volume of the template's system disk begins.
    disk: &'static str,
    /// Whether its tags tell that it is a candidate.
    is_tagged: bool,
}

fn storage(id: &str, kind: StorageKind, content: &[&str], shared: bool) -> Storage {
    let known = WorldSpec::default().storages.swap_remove(0);
    let content = content.iter().map(|it| (*it).to_owned()).collect();
    Storage { id: id.to_owned(), kind, content, shared, ..known }
}

fn worlds() -> Vec<World> {
    let plain = || World {
        name: "",
        cluster: WorldSpec::default(),
        node: "asgard",
        profile: "",
        says: &[],
        disk: "local-zfs:base-",
        is_tagged: true,
    };
    let iso = || storage("local", StorageKind::Dir, &["iso"], false);
    let nodes = || ["asgard", "midgard", "jotunheim"].map(String::from).to_vec();
    vec![
        World {
            name: "release 9 on a thin pool",
            cluster: WorldSpec {
                release: Release::V9,
                storages: vec![iso(), storage("thin", StorageKind::LvmThin, &["images"], false)],
                ..WorldSpec::default()
            },
            profile: "vm_storage = \"thin\"",
            disk: "thin:base-",
            ..plain()
        },
        World {
            name: "release 8 on one directory for everything",
            cluster: WorldSpec {
                storages: vec![storage("local", StorageKind::Dir, &["iso", "images"], false)],
                ..WorldSpec::default()
            },
            profile: "vm_storage = \"local\"",
            disk: "local:",
            ..plain()
        },
        World {
            name: "three nodes on Ceph, media on NFS",
            cluster: WorldSpec {
                release: Release::V9,
                nodes: nodes(),
                storages: vec![
                    storage("media", StorageKind::Nfs, &["iso"], true),
                    storage("ceph", StorageKind::Rbd, &["images"], true),
                ],
                ..WorldSpec::default()
            },
            node: "auto",
            profile: "vm_storage = \"ceph\"\niso_storage = \"media\"",
            disk: "ceph:base-",
            ..plain()
        },
        World {
            name: "another node than the one that answers",
            cluster: WorldSpec { nodes: nodes(), ..WorldSpec::default() },
            node: "jotunheim",
            ..plain()
        },
        World {
            name: "rights on a pool alone",
            cluster: WorldSpec { pools: vec!["build".to_owned()], ..WorldSpec::default() },
            profile: "pool = \"build\"",
            ..plain()
        },
        World {
            name: "tags that only administrators may use",
            cluster: WorldSpec { allowed_tags: Some(vec!["web".to_owned()]), ..WorldSpec::default() },
            says: &["are not allowed", "for modifying tag"],
            is_tagged: false,
            ..plain()
        },
    ]
}

fn build(it: &World) {
    let node = Node::new(&Setting {
        node: it.node.into(),
        world: it.cluster.clone(),
        profile: it.profile.into(),
        only_nocloud: true,
        ..Setting::default()
    });
    let before = node.world();
    let ended = node.start(&[]).finish();
    let said = format!("{}: {}\n{}", it.name, ended.stderr, ended.stdout);
    assert_eq!(ended.status.code(), Some(0), "{said}");
    let missing: Vec<_> = it.says.iter().filter(|text| !ended.stdout.contains(**text)).collect();
    assert!(missing.is_empty(), "{missing:?} {said}");
    let mut after = node.world();
    let template = after["vms"].as_object().unwrap().values().next().unwrap().clone();
    let text = |key: &str| template["config"][key].as_str().unwrap_or_default().to_owned();
    assert!(text("virtio0").starts_with(it.disk), "{}: {template:#}", it.name);
    assert_eq!(text("tags").contains("forge-candidate"), it.is_tagged, "{}: {template:#}", it.name);
    assert_eq!(take_vms(&mut after, is_template), 1, "{}: {after:#}", it.name);
    assert_eq!(after, before, "{}", it.name);
    assert_requests_are_well(&node.simulator.requests());
}

#[test]
fn builds_go_well_on_every_kind_of_cluster() {
    thread::scope(|scope| {
        for world in worlds() {
            scope.spawn(move || build(&world));
        }
    });
}

/// Returns how `forge doctor` ends, and what it says, with a token that lacks that right.
fn doctor(without: &str) -> (Option<i32>, String) {
    let node = Node::new(&Setting { without: without.into(), ..Setting::default() });
    let ended = node.forge("doctor").args(["--on", "sim"]).output().unwrap();
    (ended.status.code(), String::from_utf8(ended.stdout).unwrap())
}

/// Builds show whether the token has too little; this shows whether it has more than doctor asks for.
#[test]
fn doctor_misses_each_right_that_builds_have() {
    let (code, said) = doctor("");
    assert_eq!(code, Some(0), "{said}");
    let others = [
        "VM.Monitor",
        "Datastore.AllocateSpace",
        "Datastore.AllocateTemplate",
        "Datastore.Audit",
        "SDN.Use",
        "Sys.AccessNetwork",
        "Sys.Audit",
    ];
    let well = |said: &str| said.lines().filter(|line| line.starts_with("ok ")).count();
    let all = well(&said);
    thread::scope(|scope| {
        for rights in [&access::VM[..7], &access::VM[7..], &others[..4], &others[4..]] {
            scope.spawn(move || {
                for right in rights {
                    let (_, said) = doctor(right);
                    let is_missed = said.contains(right) && well(&said) < all;
                    assert!(is_missed, "doctor does not miss {right}: {said}");
                }
            });
        }
    });
}
