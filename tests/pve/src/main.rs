//! `pve-sim`: a simulated Proxmox VE to run other programs against.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser;
use pve_sim::hypervisor::Network;
use pve_sim::machine::Qemu;
use pve_sim::{Options, Rule, Simulator, WorldSpec};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

/// Simulate a Proxmox VE cluster
#[derive(Debug, Parser)]
struct Arguments {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Folder for volumes and sockets
    #[arg(long)]
    state: PathBuf,
    /// File to write endpoint, fingerprint and token to once it listens
    #[arg(long)]
    ready_file: Option<PathBuf>,
    /// The cluster, as TOML
    #[arg(long)]
    world: Option<PathBuf>,
    /// What goes wrong, as TOML
    #[arg(long)]
    faults: Option<PathBuf>,
    /// Seconds that one second of Proxmox takes
    #[arg(long, default_value_t = 1.0)]
    time: f64,
    /// The QEMU program
    #[arg(long, default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// Folder to write requests.json and world.json to at the end
    #[arg(long)]
    record: Option<PathBuf>,
    /// Connect NICs to bridges of this host instead of user-mode networking
    #[arg(long)]
    bridges: bool,
}

fn read<T>(
    path: Option<&PathBuf>,
    parse: impl FnOnce(&str) -> Result<T, toml::de::Error>,
) -> anyhow::Result<Option<T>> {
    let Some(path) = path else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    parse(&text).map(Some).with_context(|| format!("reading {}", path.display()))
}

fn write(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_vec_pretty(value).context("writing JSON")?;
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let options = Options {
        listen: arguments.listen,
        world: read(arguments.world.as_ref(), WorldSpec::parse)?.unwrap_or_default(),
        faults: read(arguments.faults.as_ref(), Rule::parse)?.unwrap_or_default(),
        time: arguments.time,
        hypervisor: Arc::new(Qemu::default()),
        qemu: arguments.qemu,
        network: if arguments.bridges { Network::Bridge } else { Network::User },
        ..Options::new(arguments.state)
    };
    let simulator = Simulator::start(options).await?;
    let facts = format!(
        "endpoint={}\nfingerprint={}\ntoken={}\n",
        simulator.endpoint(),
        simulator.fingerprint(),
        simulator.token().unwrap_or_default()
    );
    std::io::stdout().write_all(facts.as_bytes()).context("printing where it listens")?;
    if let Some(path) = &arguments.ready_file {
        // Whoever waits for the file must never see half of it.
        let part = path.with_extension("part");
        std::fs::write(&part, &facts).with_context(|| format!("writing {}", part.display()))?;
        std::fs::rename(&part, path).with_context(|| format!("writing {}", path.display()))?;
    }
    let mut told = signal(SignalKind::terminate()).context("waiting for the end")?;
    tokio::select! {
        end = tokio::signal::ctrl_c() => end.context("waiting for the end")?,
        _ = told.recv() => {}
    }
    let Some(folder) = &arguments.record else {
        return Ok(());
    };
    write(&folder.join("requests.json"), &simulator.requests())?;
    write(&folder.join("world.json"), &simulator.dump())
}
