//! Keys, the monitor, and consoles over websockets.

use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::not_running;
use super::power::machine;
use crate::answer::{Answer, Failure, Reply, nothing};
use crate::api::{Allow, Endpoint, NODE_VM, run};
use crate::console::{Bridge, Console, Waiting};
use crate::held;
use crate::random;
use crate::schema::Param;
use crate::sim::Call;
use crate::worker::Worker;

const CONSOLE: Allow = Allow::Has("/vms/{vmid}", &["VM.Console"]);

pub(crate) static ENDPOINTS: &[Endpoint] = &[
    Endpoint::new("PUT", "/nodes/{node}/qemu/{vmid}/sendkey", CONSOLE, run!(send_key))
        .takes(&[NODE_VM, &[Param::text("key"), Param::flag("skiplock").opt()]])
        .protected(),
    Endpoint::new(
        "POST",
        "/nodes/{node}/qemu/{vmid}/monitor",
        Allow::Special(may_enter_monitor),
        run!(monitor),
    )
    .takes(&[NODE_VM, &[Param::text("command")]])
    .protected(),
    Endpoint::new("POST", "/nodes/{node}/qemu/{vmid}/vncproxy", CONSOLE, run!(vnc_proxy))
        .takes(&[NODE_VM, &[Param::flag("generate-password").opt(), Param::flag("websocket").opt()]])
        .protected(),
    Endpoint::new("POST", "/nodes/{node}/qemu/{vmid}/termproxy", CONSOLE, run!(term_proxy))
        .takes(&[NODE_VM, &[Param::choice("serial", &["serial0", "serial1", "serial2", "serial3"]).opt()]])
        .protected(),
    Endpoint::new("GET", "/nodes/{node}/qemu/{vmid}/vncwebsocket", CONSOLE, run!(websocket)).takes(&[
        NODE_VM,
        &[Param::int("port").min(5900.0).max(5999.0), Param::text("vncticket").max_len(512)],
    ]),
];

async fn send_key(call: Call) -> Answer {
    let vmid = call.args.vmid();
    if call.args.flag("skiplock") && !call.who.is_root() {
        return Err(Failure::parameter("skiplock", "Only root may use this option."));
    }
    let guard = call.sim.locks.exclusive(vmid, 10.0).await?;
    {
        let world = call.sim.world();
        world.vm(&call.node, vmid)?.config.check_lock()?;
    }
    let machine = machine(&call, vmid)?;
    let key = call.args.text("key");
    if !key.is_ascii() {
        call.sim.clock.sleep(5.0).await;
        let text = format!("VM {vmid} qmp command 'human-monitor-command' failed - got timeout");
        return Err(text.into());
    }
    let sent = machine.send_key(key).await;
    drop(guard);
    sent.map_err(|text| Failure::new(500, format!("{}\r\n", text.trim_end())))?;
    nothing()
}

fn may_enter_monitor(
    access: &crate::access::Access,
    who: &crate::access::Identity,
    given: &serde_json::Map<String, Value>,
) -> Result<(), Failure> {
    let path = crate::api::fill("/vms/{vmid}", given);
    if access.major < 9 {
        access.check(who, &path, &["VM.Monitor"])
    } else {
        access.check_any(who, &path, &["Sys.Audit", "Sys.Modify"])
    }
}

/// Commands that release 9 keeps for root@pam.
const ROOT_ONLY: &[&str] =
    &["screendump", "change", "device_add", "migrate", "drive_add", "dump-guest-memory", "memsave", "savevm"];

async fn monitor(call: Call) -> Answer {
    let vmid = call.args.vmid();
    let command = call.args.text("command").to_owned();
    let (first, major) =
        (command.split_whitespace().next().unwrap_or_default(), call.sim.world().release.major());
    if !["info", "help", ""].contains(&first) {
        if major >= 9 && ROOT_ONLY.contains(&first) && !call.who.is_root() {
            return Err(Failure::forbidden_bare());
        }
        call.sim.world().access.check(&call.who, "/", &["Sys.Modify"])?;
    }
    let text = match machine(&call, vmid) {
        Ok(machine) => match machine.hmp(&command).await {
            Ok(text) => text,
            Err(error) => format!("ERROR: {error}\n"),
        },
        Err(failure) if failure == not_running(vmid) => format!("ERROR: VM {vmid} not running\n"),
        Err(failure) => return Err(failure),
    };
    Ok(json!(text).into())
}

async fn vnc_proxy(call: Call) -> Answer {
    let vmid = call.args.vmid();
    let machine = call.sim.world().vm(&call.node, vmid)?.running();
    let password = random::hex(4);
    let ticket = format!("PWD{}:{}", random::hex(4), ticket(&call));
    let socket = machine.as_ref().map(|machine| machine.vnc_socket().to_owned()).unwrap_or_default();
    if let Some(machine) = machine {
        machine.set_vnc_password(&password).await?;
    }
    let (port, upid) = proxy(&call, &ticket, socket, false)?;
    let cert = held(&call.sim.certificate).pem.clone();
    Ok(json!({
        "user": call.who.full(), "ticket": ticket, "password": password, "port": port.to_string(),
        "upid": upid, "cert": cert,
    })
    .into())
}

async fn term_proxy(call: Call) -> Answer {
    let vmid = call.args.vmid();
    let serial = call.args.get("serial").map(String::from);
    let socket = {
        let world = call.sim.world();
        let vm = world.vm(&call.node, vmid)?;
        let key = serial.unwrap_or_else(|| "serial0".into());
        if vm.config.get(&key).is_none() {
            return Err(format!("unable to find a serial interface ('{key}')").into());
        }
        let number = key.trim_start_matches("serial").parse().unwrap_or(0);
        vm.running().and_then(|machine| machine.serial_socket(number)).unwrap_or_default()
    };
    let ticket = ticket(&call);
    let (port, upid) = proxy(&call, &ticket, socket, true)?;
    Ok(json!({ "user": call.who.full(), "ticket": ticket, "port": port.to_string(), "upid": upid }).into())
}

fn ticket(call: &Call) -> String {
    format!("PVEVNC:{:08X}::{}", call.sim.clock.now(), random::signature())
}

/// Puts a console on a port; its task waits 10 s for a client, then as long as the client stays.
fn proxy(call: &Call, ticket: &str, socket: PathBuf, terminal: bool) -> Result<(u16, String), Failure> {
    let (taken, client) = oneshot::channel();
    let vmid = call.args.vmid();
    let waiting = Waiting {
        ticket: ticket.into(),
        who: call.who.full(),
        vmid,
        socket,
        terminal,
        taken: Some(taken),
        over: false,
    };
    let port = call.sim.consoles.add(waiting).ok_or("no free port")?;
    let upid = call.fork("vncproxy", &vmid.to_string(), move |worker: Worker| async move {
        let came = tokio::select! {
            came = tokio::time::timeout(worker.sim.clock.span(10.0), client) => came,
            () = worker.cancelled() => {
                worker.sim.consoles.close(port);
                return Err("received interrupt".into());
            }
        };
        let Ok(Ok(gone)) = came else {
            worker.sim.consoles.close(port);
            return Err("connection timed out".into());
        };
        // The sender's drop is the end of the bridge.
        drop(gone.await);
        worker.sim.consoles.close(port);
        Ok(())
    });
    Ok((port, upid))
}

async fn websocket(call: Call) -> Answer {
    let port = call.args.number("port").map_or(0, |port| port as u16);
    let wrong = || Failure { delay: 3.0, ..Failure::new(401, "permission denied - invalid PVEVNC ticket\n") };
    let mut ports = held(&call.sim.consoles.ports);
    let known = ports.get_mut(&port).filter(|waiting| {
        waiting.ticket == call.args.text("vncticket")
            && waiting.who == call.who.full()
            && waiting.vmid == call.args.vmid()
    });
    let Some(waiting) = known else {
        return Err(wrong());
    };
    let Some(upgrade) = call.upgrade else {
        return Ok(json!({ "port": port.to_string() }).into());
    };
    let console = waiting.taken.take().and_then(|taken| {
        let (done, gone) = oneshot::channel();
        taken.send(gone).ok()?;
        let barred = call.who.token.is_some() && call.sim.world().release.major() < 9;
        let hello = (!barred).then(|| format!("{}:{}", waiting.who, waiting.ticket));
        Some(Console { socket: waiting.socket.clone(), terminal: waiting.terminal, hello, done })
    });
    Ok(Reply::Websocket(Bridge { key: upgrade.key, binary: upgrade.binary, console }))
}
