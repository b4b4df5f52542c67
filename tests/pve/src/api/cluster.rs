//! What concerns the whole cluster.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Allow, Endpoint, run, vmid};
use crate::answer::{Answer, Failure};
use crate::schema::Param;
use crate::sim::Call;
use crate::world::World;
use crate::world::storage::Storage;

pub(crate) static ENDPOINTS: &[Endpoint] = &[
    Endpoint::new("GET", "/", Allow::All, run!(index)),
    Endpoint::new("GET", "/version", Allow::All, run!(version)),
    Endpoint::new("GET", "/cluster/nextid", Allow::All, run!(next_id)).takes(&[&[vmid("vmid").opt()]]),
    Endpoint::new("GET", "/cluster/resources", Allow::All, run!(resources)).takes(&[&[Param::choice(
        "type",
        &["vm", "storage", "node", "sdn"],
    )
    .opt()]]),
    Endpoint::new("GET", "/cluster/status", Allow::Has("/", &["Sys.Audit"]), run!(status)).protected(),
    Endpoint::new("GET", "/cluster/options", Allow::All, run!(options)),
    Endpoint::new("GET", "/storage", Allow::All, run!(storages)).takes(&[&[Param::choice(
        "type",
        &[
            "btrfs",
            "cephfs",
            "cifs",
            "dir",
            "esxi",
            "iscsi",
            "iscsidirect",
            "lvm",
            "lvmthin",
            "nfs",
            "pbs",
            "rbd",
            "zfs",
            "zfspool",
        ],
    )
    .opt()]]),
    Endpoint::new(
        "GET",
        "/storage/{storage}",
        Allow::Has("/storage/{storage}", &["Datastore.Allocate"]),
        run!(storage),
    )
    .takes(&[&[Param::named("storage", "pve-storage-id").path()]]),
];

async fn index(_: Call) -> Answer {
    let names = ["version", "cluster", "nodes", "storage", "access", "pools"];
    Ok(names.iter().map(|name| json!({ "subdir": name })).collect::<Value>().into())
}

pub(crate) async fn version(call: Call) -> Answer {
    let (version, release, repoid) = call.sim.world().release.version();
    Ok(json!({ "version": version, "release": release, "repoid": repoid }).into())
}

async fn next_id(call: Call) -> Answer {
    let world = call.sim.world();
    let Some(wanted) = call.args.get("vmid") else {
        return Ok(json!(world.free_vmid().to_string()).into());
    };
    if wanted.parse().is_ok_and(|vmid: u32| world.owner_of(vmid).is_some()) {
        return Err(Failure::parameter("vmid", format!("VM {wanted} already exists")));
    }
    Ok(json!(wanted).into())
}

/// A VM's row: its figures as the statistics daemon last told them, its lock, tags and pool as of now.
pub(crate) fn vm_row(world: &World, vmid: u32) -> Option<Value> {
    let vm = world.vms.get(&vmid)?;
    let mut row = world.told.get(&vmid).cloned().unwrap_or_else(|| json!({ "status": "unknown" }));
    row["id"] = json!(format!("qemu/{vmid}"));
    row["vmid"] = json!(vmid);
    row["node"] = json!(vm.node);
    row["type"] = json!("qemu");
    for key in ["lock", "tags"] {
        if let Some(value) = vm.config.get(key) {
            row[key] = json!(value);
        }
    }
    if let Some(pool) = world.access.pool_of(vmid) {
        row["pool"] = json!(pool);
    }
    Some(row)
}

/// What the statistics daemon tells the cluster about VMs that are not too young for it to know.
pub(crate) fn tell(world: &mut World, youngest: Duration) {
    let told = world.vms.iter().filter(|(_, vm)| vm.made.elapsed() >= youngest).map(|(vmid, vm)| {
        let mut row = super::qemu::figures(world, *vmid, vm);
        let cpus = row["cpus"].take();
        let figures = row.as_object_mut().expect("figures are an object");
        figures.retain(|key, value| {
            !value.is_null() && !["serial", "tags", "lock", "pid", "agent"].contains(&key.as_str())
        });
        row["maxcpu"] = cpus;
        row["template"] = json!(u8::from(vm.config.is_template()));
        row["diskread"] = json!(0);
        row["diskwrite"] = json!(0);
        (*vmid, row)
    });
    world.told = told.collect();
}

async fn resources(call: Call) -> Answer {
    let world = call.sim.world();
    let wanted = |kind: &str| call.args.get("type").is_none_or(|only| only == kind);
    let mut rows = Vec::new();
    if call.args.get("type").is_none() {
        let pools = world.pools.keys();
        let seen = pools.filter(|pool| world.access.has(&call.who, &format!("/pool/{pool}"), "Pool.Audit"));
        rows.extend(seen.map(|pool| json!({ "id": format!("/pool/{pool}"), "type": "pool", "pool": pool })));
    }
    if wanted("vm") {
        let seen =
            world.vms.keys().filter(|vmid| world.access.has(&call.who, &format!("/vms/{vmid}"), "VM.Audit"));
        rows.extend(seen.filter_map(|vmid| {
            let mut row = vm_row(&world, *vmid)?;
            let pool = row["pool"].as_str().map(|pool| format!("/pool/{pool}"));
            if pool.is_some_and(|pool| !world.access.has(&call.who, &pool, "Pool.Audit")) {
                row.as_object_mut()?.remove("pool");
            }
            Some(row)
        }));
        let seen = world.containers.iter();
        let seen = seen.filter(|(vmid, _)| world.access.has(&call.who, &format!("/vms/{vmid}"), "VM.Audit"));
        rows.extend(seen.map(|(vmid, node)| {
            let id = format!("lxc/{vmid}");
            json!({ "id": id, "vmid": vmid, "node": node, "type": "lxc", "status": "unknown" })
        }));
    }
    if wanted("node") {
        rows.extend(world.nodes.iter().map(|node| node_row(node)));
    }
    if wanted("storage") {
        for node in &world.nodes {
            let seen =
                world.storages.iter().filter(|storage| storage.on(node) && may_see(&world, &call, storage));
            rows.extend(seen.map(|storage| storage_row(&world, storage, node)));
        }
    }
    if wanted("sdn") && call.args.get("type").is_none() {
        let zones = world
            .nodes
            .iter()
            .filter(|_| world.access.held(&call.who, "/sdn/zones/localnetwork").contains_key("SDN.Audit"));
        rows.extend(zones.map(|node| {
            json!({
                "id": format!("sdn/{node}/localnetwork"), "type": "sdn", "sdn": "localnetwork",
                "node": node, "status": "ok",
            })
        }));
    }
    Ok(Value::Array(rows).into())
}

fn may_see(world: &World, call: &Call, storage: &Storage) -> bool {
    let held = world.access.held(&call.who, &format!("/storage/{}", storage.id));
    held.contains_key("Datastore.Audit") || held.contains_key("Datastore.AllocateSpace")
}

fn node_row(node: &str) -> Value {
    json!({
        "id": format!("node/{node}"), "type": "node", "node": node, "status": "online", "level": "",
        "cgroup-mode": 2, "cpu": 0.02, "maxcpu": 8, "mem": 4_u64 << 30, "maxmem": 64_u64 << 30,
        "disk": 8_u64 << 30, "maxdisk": 256_u64 << 30, "uptime": 86_400,
    })
}

fn storage_row(world: &World, storage: &Storage, node: &str) -> Value {
    let (used, total) = super::storage::space(world, storage, node);
    json!({
        "id": format!("storage/{node}/{}", storage.id), "type": "storage", "storage": storage.id,
        "node": node, "plugintype": storage.kind.name(), "content": storage.content.join(","),
        "shared": u8::from(storage.shared), "status": "available", "disk": used, "maxdisk": total,
    })
}

async fn status(call: Call) -> Answer {
    let world = call.sim.world();
    let mut rows = Vec::new();
    if world.nodes.len() > 1 {
        rows.push(json!({
            "id": "cluster", "type": "cluster", "name": "simulated", "nodes": world.nodes.len(),
            "quorate": 1, "version": 3,
        }));
    }
    rows.extend(world.nodes.iter().enumerate().map(|(number, node)| {
        let nodeid = if world.nodes.len() > 1 { number + 1 } else { 0 };
        json!({
            "id": format!("node/{node}"), "type": "node", "name": node, "nodeid": nodeid, "online": 1,
            "local": u8::from(*node == world.home), "ip": "127.0.0.1", "level": "",
        })
    }));
    Ok(Value::Array(rows).into())
}

async fn options(call: Call) -> Answer {
    let world = call.sim.world();
    let mut shown = json!({});
    if world.access.has(&call.who, "/", "Sys.Audit") {
        shown = json!({ "mac_prefix": "BC:24:11", "description": "" });
    }
    shown["allowed-tags"] = json!(world.allowed_tags.clone().unwrap_or_else(|| used_tags(&world)));
    Ok(shown.into())
}

fn used_tags(world: &World) -> Vec<String> {
    let texts = world.vms.values().filter_map(|vm| vm.config.get("tags"));
    let tags: std::collections::BTreeSet<String> =
        texts.flat_map(crate::schema::split_list).map(String::from).collect();
    tags.into_iter().collect()
}

fn storage_config(storage: &Storage) -> Value {
    let digest = crate::world::config::hex(&<sha1::Sha1 as sha1::Digest>::digest(&storage.id));
    let mut shown = json!({
        "storage": storage.id, "type": storage.kind.name(), "content": storage.content.join(","),
        "digest": digest,
    });
    match storage.kind.name() {
        "dir" | "nfs" | "cifs" => shown["path"] = json!(storage.path),
        "lvmthin" => shown["vgname"] = json!(storage.path),
        _ => shown["pool"] = json!(storage.path),
    }
    if storage.shared && storage.kind.name() == "dir" {
        shown["shared"] = json!(1);
    }
    if !storage.nodes.is_empty() {
        shown["nodes"] = json!(storage.nodes.join(","));
    }
    if storage.disabled {
        shown["disable"] = json!(1);
    }
    shown
}

async fn storages(call: Call) -> Answer {
    let world = call.sim.world();
    let seen = world
        .storages
        .iter()
        .filter(|storage| may_see(&world, &call, storage))
        .filter(|storage| call.args.get("type").is_none_or(|kind| kind == storage.kind.name()));
    Ok(seen.map(storage_config).collect::<Value>().into())
}

async fn storage(call: Call) -> Answer {
    let world = call.sim.world();
    Ok(storage_config(world.storage(call.args.text("storage"))?).into())
}
