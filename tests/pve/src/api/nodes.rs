//! What concerns one node: its state, network, certificate and abilities.

use serde_json::{Value, json};

use super::{Allow, Endpoint, NODE, cluster, run};
use crate::answer::{Answer, Failure};
use crate::held;
use crate::schema::Param;
use crate::sim::Call;

const AUDIT: Allow = Allow::Has("/nodes/{node}", &["Sys.Audit"]);
const NIC_KINDS: &[&str] = &[
    "bridge",
    "bond",
    "eth",
    "alias",
    "vlan",
    "fabric",
    "OVSBridge",
    "OVSBond",
    "OVSPort",
    "OVSIntPort",
    "vnet",
    "any_bridge",
    "any_local_bridge",
    "include_sdn",
];
const ARCH: &[Param] = &[Param::choice("arch", &["x86_64", "aarch64"]).opt().since(9)];

pub(crate) static ENDPOINTS: &[Endpoint] = &[
    Endpoint::new("GET", "/nodes", Allow::All, run!(list)),
    Endpoint::new("GET", "/nodes/{node}/status", AUDIT, run!(status)).takes(&[NODE]),
    Endpoint::new(
        "POST",
        "/nodes/{node}/status",
        Allow::Has("/nodes/{node}", &["Sys.PowerMgmt"]),
        run!(power),
    )
    .takes(&[NODE, &[Param::choice("command", &["reboot", "shutdown"])]])
    .protected(),
    Endpoint::new("GET", "/nodes/{node}/version", Allow::All, run!(cluster::version)).takes(&[NODE]),
    Endpoint::new("GET", "/nodes/{node}/network", Allow::All, run!(network))
        .takes(&[NODE, &[Param::choice("type", NIC_KINDS).opt()]]),
    Endpoint::new("GET", "/nodes/{node}/dns", AUDIT, run!(dns)).takes(&[NODE]),
    Endpoint::new("GET", "/nodes/{node}/time", AUDIT, run!(time)).takes(&[NODE]),
    Endpoint::new("GET", "/nodes/{node}/aplinfo", Allow::All, run!(empty)).takes(&[NODE]),
    Endpoint::new("GET", "/nodes/{node}/lxc", Allow::All, run!(empty)).takes(&[NODE]).protected(),
    Endpoint::new(
        "GET",
        "/nodes/{node}/lxc/{vmid}/config",
        Allow::Has("/vms/{vmid}", &["VM.Audit"]),
        run!(no_container),
    )
    .takes(&[
        super::NODE_VM,
        &[Param::flag("current").opt(), Param::named("snapshot", "pve-configid").max_len(40).opt()],
    ]),
    Endpoint::new("GET", "/nodes/{node}/certificates/info", Allow::All, run!(certificates)).takes(&[NODE]),
    Endpoint::new("GET", "/nodes/{node}/capabilities/qemu/machines", Allow::All, run!(machines))
        .takes(&[NODE, ARCH]),
    Endpoint::new("GET", "/nodes/{node}/capabilities/qemu/cpu", Allow::All, run!(cpus)).takes(&[NODE, ARCH]),
];

async fn list(call: Call) -> Answer {
    let world = call.sim.world();
    let fingerprint = held(&call.sim.certificate).fingerprint.clone();
    let rows = world.nodes.iter().map(|node| {
        json!({
            "id": format!("node/{node}"), "node": node, "type": "node", "status": "online", "level": "",
            "cpu": 0.02, "maxcpu": 8, "mem": 4_u64 << 30, "maxmem": 64_u64 << 30, "disk": 8_u64 << 30,
            "maxdisk": 256_u64 << 30, "uptime": 86_400, "ssl_fingerprint": fingerprint,
        })
    });
    Ok(rows.collect::<Value>().into())
}

async fn status(call: Call) -> Answer {
    let world = call.sim.world();
    let (version, _, repoid) = world.release.version();
    let hvm = if world.has_kvm { "1" } else { "" };
    Ok(json!({
        "uptime": 86_400, "cpu": 0.02, "wait": 0, "idle": 0, "loadavg": ["0.10", "0.12", "0.09"],
        "pveversion": format!("pve-manager/{version}/{repoid}"),
        "kversion": "Linux 6.8.12-sim #1 SMP PREEMPT_DYNAMIC @0",
        "current-kernel": {
            "sysname": "Linux", "release": "6.8.12-sim", "version": "#1 SMP PREEMPT_DYNAMIC @0",
            "machine": "x86_64",
        },
        "boot-info": { "mode": "legacy-bios" },
        "ksm": { "shared": 0 },
        "memory": { "total": 64_u64 << 30, "used": 4_u64 << 30, "free": 60_u64 << 30 },
        "swap": { "total": 0, "used": 0, "free": 0 },
        "rootfs": {
            "total": 256_u64 << 30, "used": 8_u64 << 30, "free": 248_u64 << 30, "avail": 248_u64 << 30,
        },
        "cpuinfo": {
            "model": "Simulated", "sockets": 1, "cores": 8, "cpus": 8, "mhz": "2596.094", "hvm": hvm,
            "flags": "fpu vme de pse tsc msr", "user_hz": 100,
        },
    })
    .into())
}

/// The simulated node does not go down.
async fn power(_: Call) -> Answer {
    Err(Failure::died("this node is simulated and stays up"))
}

async fn empty(_: Call) -> Answer {
    Ok(json!([]).into())
}

async fn no_container(call: Call) -> Answer {
    let text = format!(
        "Configuration file 'nodes/{}/lxc/{}.conf' does not exist",
        call.node,
        call.args.text("vmid")
    );
    Err(Failure::died(text))
}

async fn network(call: Call) -> Answer {
    let world = call.sim.world();
    let kind = call.args.get("type");
    let bridges = matches!(kind, None | Some("bridge" | "any_bridge" | "any_local_bridge" | "include_sdn"));
    let seen = world.bridges.iter().filter(|bridge| {
        let held = world.access.held(&call.who, &format!("/sdn/zones/localnetwork/{}", bridge.name));
        bridges && (held.contains_key("SDN.Use") || held.contains_key("SDN.Audit"))
    });
    let rows = seen.map(|bridge| {
        let mut row = json!({
            "iface": bridge.name, "type": "bridge", "active": 1, "autostart": 1, "priority": 4,
            "method": "manual", "method6": "manual", "families": ["inet"], "bridge_ports": "eno1",
            "bridge_stp": "off", "bridge_fd": "0",
        });
        if let Some((address, prefix)) = bridge.cidr.as_deref().and_then(|cidr| cidr.split_once('/')) {
            row["method"] = json!("static");
            row["cidr"] = json!(format!("{address}/{prefix}"));
            row["address"] = json!(address);
            row["netmask"] = json!(prefix);
        }
        row
    });
    let mut rows: Vec<Value> = rows.collect();
    if kind.is_none() {
        rows.push(json!({
            "iface": "eno1", "type": "unknown", "active": 1, "priority": 3, "method": "manual",
            "method6": "manual", "families": ["inet"],
        }));
    }
    Ok(Value::Array(rows).into())
}

async fn dns(_: Call) -> Answer {
    Ok(json!({ "dns1": "192.0.2.53" }).into())
}

async fn time(call: Call) -> Answer {
    let now = call.sim.clock.now();
    Ok(json!({ "time": now, "localtime": now, "timezone": "Etc/UTC" }).into())
}

async fn certificates(call: Call) -> Answer {
    let certificate = held(&call.sim.certificate).clone();
    let name = "/CN=Proxmox Virtual Environment";
    Ok(json!([{
        "filename": "pve-ssl.pem", "fingerprint": certificate.fingerprint, "pem": certificate.pem,
        "subject": name, "issuer": name, "notbefore": 1_700_000_000, "notafter": 2_100_000_000,
        "public-key-type": "id-ecPublicKey", "public-key-bits": 256,
        "san": ["127.0.0.1", "localhost", call.node],
    }, {
        "filename": "pve-root-ca.pem", "fingerprint": certificate.fingerprint, "pem": certificate.pem,
        "issuer": name, "notbefore": 1_700_000_000, "notafter": 2_100_000_000,
        "san": ["127.0.0.1", "localhost", call.node],
    }])
    .into())
}

async fn machines(_: Call) -> Answer {
    let versions = ["7.2", "7.1", "7.0", "6.2"];
    let rows = versions.iter().flat_map(|version| {
        [("q35", "pc-q35"), ("i440fx", "pc-i440fx")].map(
            |(kind, prefix)| json!({ "id": format!("{prefix}-{version}"), "type": kind, "version": version }),
        )
    });
    Ok(rows.collect::<Value>().into())
}

async fn cpus(_: Call) -> Answer {
    let models =
        [("host", "default"), ("kvm64", "default"), ("max", "default"), ("x86-64-v2-AES", "GenuineIntel")];
    let rows = models.iter().map(|(name, vendor)| json!({ "name": name, "vendor": vendor, "custom": 0 }));
    Ok(rows.collect::<Value>().into())
}
