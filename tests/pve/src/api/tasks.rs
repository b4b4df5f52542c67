//! Tasks: lists, states, logs, and their end by force.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Allow, Endpoint, NODE, run, vmid};
use crate::access::Identity;
use crate::answer::{Answer, Failure, Reply, nothing};
use crate::schema::{Param, split_list};
use crate::sim::{Call, Sim};
use crate::worker;
use crate::world::World;
use crate::world::task::{Task, Upid};

const UPID: &[Param] = &[Param::text("upid").path()];

pub(crate) static ENDPOINTS: &[Endpoint] = &[
    Endpoint::new("GET", "/cluster/tasks", Allow::All, run!(cluster_list)),
    Endpoint::new("GET", "/nodes/{node}/tasks", Allow::All, run!(list)).takes(&[
        NODE,
        &[
            Param::flag("errors").opt(),
            Param::int("limit").min(0.0).opt(),
            Param::int("since").opt(),
            Param::choice("source", &["archive", "active", "all"]).opt(),
            Param::int("start").min(0.0).opt(),
            Param::named("statusfilter", "pve-task-status-type-list").opt(),
            Param::text("typefilter").opt(),
            Param::int("until").opt(),
            Param::text("userfilter").opt(),
            vmid("vmid").opt(),
        ],
    ]),
    Endpoint::new("GET", "/nodes/{node}/tasks/{upid}", Allow::All, run!(index)).takes(&[NODE, UPID]),
    Endpoint::new("DELETE", "/nodes/{node}/tasks/{upid}", Allow::All, run!(stop))
        .takes(&[NODE, UPID])
        .protected(),
    Endpoint::new("GET", "/nodes/{node}/tasks/{upid}/status", Allow::All, run!(status))
        .takes(&[NODE, UPID])
        .protected(),
    Endpoint::new("GET", "/nodes/{node}/tasks/{upid}/log", Allow::All, run!(log))
        .takes(&[
            NODE,
            UPID,
            &[
                Param::flag("download").opt(),
                Param::int("limit").min(0.0).opt(),
                Param::int("start").min(0.0).opt(),
            ],
        ])
        .protected(),
];

fn is_own(who: &Identity, upid: &Upid) -> bool {
    let owner = upid.identity();
    // A token sees its own tasks only; a user also those of its tokens.
    if who.token.is_some() { *who == owner } else { who.user == owner.user }
}

/// # Errors
/// 403 for somebody else's task.
fn check_owner(sim: &Sim, who: &Identity, upid: &Upid, node: &str, privilege: &str) -> Result<(), Failure> {
    if is_own(who, upid) {
        return Ok(());
    }
    sim.world().access.check(who, &format!("/nodes/{node}"), &[privilege])
}

fn parse(call: &Call) -> Result<Upid, Failure> {
    Upid::parse(call.args.text("upid"))
        .ok_or_else(|| Failure::parameter("upid", "unable to parse worker upid"))
}

/// A task of the node in the path: only that one has its log.
fn find<'a>(world: &'a World, call: &Call, upid: &Upid) -> Option<&'a Task> {
    world.task(&upid.to_string()).filter(|task| task.upid.node == call.node)
}

async fn index(call: Call) -> Answer {
    parse(&call)?;
    Ok(json!([{ "name": "log" }, { "name": "status" }]).into())
}

async fn status(call: Call) -> Answer {
    let upid = parse(&call)?;
    check_owner(&call.sim, &call.who, &upid, &call.node, "Sys.Audit")?;
    let world = call.sim.world();
    let task = find(&world, &call, &upid).ok_or_else(|| Failure::parameter("upid", "no such task"))?;
    Ok(task.status().into())
}

async fn log(call: Call) -> Answer {
    let upid = parse(&call)?;
    check_owner(&call.sim, &call.who, &upid, &call.node, "Sys.Audit")?;
    let world = call.sim.world();
    let Some(task) = find(&world, &call, &upid) else {
        let line = json!({ "n": 1, "t": "unable to open file - No such file or directory" });
        return Ok(Reply::List(line, 1));
    };
    if call.args.flag("download") {
        return Ok(Reply::Text(task.log.join("\n") + "\n"));
    }
    if task.log.is_empty() {
        return Ok(Reply::List(json!([{ "n": 1, "t": "no content" }]), 1));
    }
    let number = |name: &str, default| call.args.number(name).unwrap_or(default) as usize;
    let lines = worker::log_page(&task.log, number("start", 0), number("limit", 50));
    Ok(Reply::List(lines, task.log.len()))
}

async fn stop(call: Call) -> Answer {
    let upid = parse(&call)?;
    check_owner(&call.sim, &call.who, &upid, &call.node, "Sys.Modify")?;
    if find(&call.sim.world(), &call, &upid).is_none() {
        return Err(Failure::parameter("upid", "no such task"));
    }
    worker::stop(&Arc::clone(&call.sim), &upid).await;
    nothing()
}

async fn list(call: Call) -> Answer {
    let world = call.sim.world();
    let audits = world.access.has(&call.who, &format!("/nodes/{}", call.node), "Sys.Audit");
    let source = call.args.get("source").unwrap_or("archive");
    let mut rows: Vec<&Task> = world
        .tasks
        .iter()
        .filter(|task| task.upid.node == call.node)
        .filter(|task| match source {
            "active" => task.end.is_none(),
            "archive" => task.end.is_some(),
            _ => true,
        })
        .filter(|task| audits || is_own(&call.who, &task.upid))
        .filter(|task| wanted(&call, task))
        .collect();
    rows.sort_by_key(|task| std::cmp::Reverse((task.upid.starttime, task.upid.pid)));
    let number = |name: &str, default| call.args.number(name).unwrap_or(default) as usize;
    let limit = if number("limit", 50) == 0 { usize::MAX } else { number("limit", 50) };
    let page = rows.iter().skip(number("start", 0)).take(limit).map(|task| task.row());
    Ok(Reply::List(page.collect(), rows.len()))
}

fn wanted(call: &Call, task: &Task) -> bool {
    let args = &call.args;
    let upid = &task.upid;
    let status = task.end.as_ref().map_or("RUNNING", |(status, _)| status.as_str());
    let kind = match status {
        "OK" => "ok",
        warned if warned.starts_with("WARNINGS: ") => "warning",
        "unexpected status" => "unknown",
        _ => "error",
    };
    let since = |name: &str| args.get(name).and_then(|text| text.parse::<i64>().ok());
    let in_list = |list: &str| split_list(list).any(|wanted| wanted.eq_ignore_ascii_case(kind));
    args.get("vmid").is_none_or(|vmid| vmid == upid.id)
        && args.get("typefilter").is_none_or(|wanted| wanted == upid.kind)
        && args.get("userfilter").is_none_or(|part| upid.user.contains(part))
        && args.get("statusfilter").is_none_or(in_list)
        && !(args.flag("errors") && kind == "ok")
        && since("since").is_none_or(|since| upid.starttime >= since)
        && since("until").is_none_or(|until| upid.starttime <= until)
}

/// The last tasks of all nodes, 25 finished ones for each.
async fn cluster_list(call: Call) -> Answer {
    let world = call.sim.world();
    let audits = world.access.has(&call.who, "/", "Sys.Audit");
    let mut rows = Vec::new();
    for node in &world.nodes {
        // Here a token is not even its own tasks' owner.
        let own = |task: &&Task| call.who.token.is_none() && is_own(&call.who, &task.upid);
        rows.extend(recent(&world, node).filter(|task| audits || own(task)));
    }
    let shown = rows.into_iter().map(|task| {
        let mut row = task.row();
        if let Value::Object(row) = &mut row {
            row.remove("pid");
            row.remove("pstart");
            row.insert("saved".into(), json!(if task.end.is_some() { "1" } else { "0" }));
        }
        row
    });
    Ok(Reply::Data(shown.collect()))
}

fn recent<'a>(world: &'a World, node: &'a str) -> impl Iterator<Item = &'a Task> {
    world.tasks.iter().rev().filter(move |task| task.upid.node == node).take(25)
}
