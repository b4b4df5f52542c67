//! Pools.

use serde_json::{Value, json};

use super::{Allow, Endpoint, cluster, run};
use crate::answer::{Answer, Failure, nothing};
use crate::schema::{Args, Param, split_list};
use crate::sim::Call;
use crate::world::World;

const POOL: Param = Param::named("poolid", "pve-poolid");
const KIND: Param = Param::choice("type", &["qemu", "lxc", "storage"]).opt();
const CHANGES: &[Param] = &[
    Param::flag("allow-move").opt(),
    Param::text("comment").opt(),
    Param::flag("delete").opt(),
    Param::named("storage", "pve-storage-id-list").opt(),
    Param::named("vms", "pve-vmid-list").opt(),
];
const ALLOCATE: Allow = Allow::Has("/pool/{poolid}", &["Pool.Allocate"]);

pub(crate) static ENDPOINTS: &[Endpoint] = &[
    Endpoint::new("GET", "/pools", Allow::All, run!(list)).takes(&[&[POOL.opt(), KIND.needs("poolid")]]),
    Endpoint::new("POST", "/pools", ALLOCATE, run!(make))
        .takes(&[&[Param::text("comment").opt(), POOL]])
        .protected(),
    Endpoint::new("PUT", "/pools", ALLOCATE, run!(change)).takes(&[&[POOL], CHANGES]).protected(),
    Endpoint::new("DELETE", "/pools", ALLOCATE, run!(drop_pool)).takes(&[&[POOL]]).protected(),
    Endpoint::new("GET", "/pools/{poolid}", Allow::Special(may_see), run!(show))
        .takes(&[&[POOL.path(), KIND]]),
    Endpoint::new("PUT", "/pools/{poolid}", ALLOCATE, run!(change))
        .takes(&[&[POOL.path()], CHANGES])
        .protected(),
    Endpoint::new("DELETE", "/pools/{poolid}", ALLOCATE, run!(drop_pool))
        .takes(&[&[POOL.path()]])
        .protected(),
];

fn may_see(
    access: &crate::access::Access,
    who: &crate::access::Identity,
    given: &serde_json::Map<String, Value>,
) -> Result<(), Failure> {
    let path = super::fill("/pool/{poolid}", given);
    access.check(who, &path, &["Pool.Audit"])
}

fn no_pool(pool: &str) -> String {
    format!("pool '{pool}' does not exist")
}

fn facts(world: &World, pool: &str, args: &Args) -> Value {
    let mut facts = json!({ "poolid": pool });
    if let Some(Some(comment)) = world.pools.get(pool) {
        facts["comment"] = json!(comment);
    }
    let members = world.access.pools.get(pool).into_iter().flatten();
    let rows = members.filter_map(|vmid| {
        let mut row = cluster::vm_row(world, *vmid)?;
        // Only the list of all resources names the pool and the tags.
        row.as_object_mut()?.retain(|key, _| key != "pool" && key != "tags");
        args.get("type").is_none_or(|kind| kind == "qemu").then_some(row)
    });
    facts["members"] = rows.collect();
    facts
}

async fn list(call: Call) -> Answer {
    let world = call.sim.world();
    if let Some(pool) = call.args.get("poolid") {
        if !world.pools.contains_key(pool) {
            return Err(no_pool(pool).into());
        }
        return Ok(json!([facts(&world, pool, &call.args)]).into());
    }
    let rows = world
        .pools
        .iter()
        .filter(|(pool, _)| world.access.has(&call.who, &format!("/pool/{pool}"), "Pool.Audit"))
        .map(|(pool, comment)| match comment {
            Some(comment) => json!({ "poolid": pool, "comment": comment }),
            None => json!({ "poolid": pool }),
        });
    Ok(rows.collect::<Value>().into())
}

async fn show(call: Call) -> Answer {
    let world = call.sim.world();
    let pool = call.args.text("poolid");
    if !world.pools.contains_key(pool) {
        return Err(no_pool(pool).into());
    }
    Ok(facts(&world, pool, &call.args).into())
}

async fn make(call: Call) -> Answer {
    let mut world = call.sim.world();
    let pool = call.args.text("poolid").to_owned();
    if world.pools.contains_key(&pool) {
        return Err(Failure::died(format!("create pool failed: pool '{pool}' already exists")));
    }
    world.access.pools.entry(pool.clone()).or_default();
    world.pools.insert(pool, call.args.get("comment").map(Into::into));
    nothing()
}

async fn change(call: Call) -> Answer {
    let mut world = call.sim.world();
    let pool = call.args.text("poolid").to_owned();
    if !world.pools.contains_key(&pool) {
        return Err(format!("update pools failed: {}", no_pool(&pool)).into());
    }
    if let Some(comment) = call.args.get("comment") {
        world.pools.insert(pool.clone(), Some(comment.into()));
    }
    for vmid in split_list(call.args.text("vms")).filter_map(|text| text.parse::<u32>().ok()) {
        world.access.check(&call.who, &format!("/vms/{vmid}"), &["VM.Allocate"])?;
        let elsewhere = world.access.pool_of(vmid).filter(|other| *other != pool).map(String::from);
        if let Some(other) = elsewhere {
            if !call.args.flag("allow-move") {
                let text = format!("VM {vmid} belongs already to pool '{other}' and 'allow-move' is not set");
                return Err(Failure::died(format!("update pools failed: {text}")));
            }
            world.access.pools.entry(other).or_default().remove(&vmid);
        }
        let members = world.access.pools.entry(pool.clone()).or_default();
        if call.args.flag("delete") {
            members.remove(&vmid);
        } else {
            members.insert(vmid);
        }
    }
    nothing()
}

async fn drop_pool(call: Call) -> Answer {
    let mut world = call.sim.world();
    let pool = call.args.text("poolid").to_owned();
    if !world.pools.contains_key(&pool) {
        return Err(Failure::died(format!("delete pool failed: {}", no_pool(&pool))));
    }
    if world.access.pools.get(&pool).is_some_and(|members| !members.is_empty()) {
        return Err(Failure::died(format!("delete pool failed: pool '{pool}' is not empty")));
    }
    world.pools.remove(&pool);
    world.access.pools.remove(&pool);
    nothing()
}
