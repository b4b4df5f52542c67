//! The cluster and its nodes.

use serde::Deserialize;

use super::call::Call;
use super::client::understand;
use super::{Client, Error, NodeName, Vmid, loose};

/// A node.
#[derive(Debug, Clone, Deserialize)]
pub struct Node {
    /// Its name.
    pub node: String,
    /// `online`, `offline` or `unknown`.
    #[serde(default)]
    pub status: String,
    /// Processors in all.
    #[serde(default, deserialize_with = "loose::number")]
    pub maxcpu: u32,
    /// The share of the processors in use, 0 to 1.
    #[serde(default, deserialize_with = "loose::number")]
    pub cpu: f64,
    /// Memory in all, in bytes.
    #[serde(default, deserialize_with = "loose::number")]
    pub maxmem: u64,
    /// Memory in use, in bytes.
    #[serde(default, deserialize_with = "loose::number")]
    pub mem: u64,
}

impl Node {
    /// Tells whether it is there.
    #[must_use]
    pub fn is_online(&self) -> bool {
        self.status == "online"
    }
}

/// A VM or container as the cluster lists it: tags, lock and existence are up to date, the name, status and
/// template flag may be 10 s old.
#[derive(Debug, Clone, Deserialize)]
pub struct Guest {
    /// Its number.
    pub vmid: Vmid,
    /// Its node.
    pub node: String,
    /// `qemu` or `lxc`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `running`, `stopped` or `unknown`.
    #[serde(default)]
    pub status: Option<String>,
    /// Its name.
    #[serde(default)]
    pub name: Option<String>,
    /// Its tags as stored.
    #[serde(default)]
    pub tags: Option<String>,
    /// Its config's lock.
    #[serde(default)]
    pub lock: Option<String>,
    /// Its pool.
    #[serde(default)]
    pub pool: Option<String>,
    /// How the high-availability manager sees it, when it manages it.
    #[serde(default)]
    pub hastate: Option<String>,
    /// Whether it is a template.
    #[serde(default, deserialize_with = "loose::flag")]
    pub template: bool,
}

/// A bridge that this user may see or use.
#[derive(Debug, Clone, Deserialize)]
pub struct Bridge {
    /// Its name, such as `vmbr0`.
    pub iface: String,
    /// `bridge`, `OVSBridge` or `vnet`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Whether it is up.
    #[serde(default, deserialize_with = "loose::flag")]
    pub active: bool,
    /// Its address with the length of its network's prefix.
    #[serde(default)]
    pub cidr: Option<String>,
    /// Whether it passes VLAN tags.
    #[serde(default, deserialize_with = "loose::flag")]
    pub bridge_vlan_aware: bool,
}

#[derive(Deserialize)]
struct PoolAnswer {
    poolid: String,
}

#[derive(Deserialize)]
struct TimeAnswer {
    #[serde(deserialize_with = "loose::number")]
    time: i64,
}

/// A line of `/cluster/status`.
#[derive(Debug, Deserialize)]
pub(super) struct ClusterStatus {
    /// `cluster` or `node`.
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// Its name.
    pub(super) name: String,
    /// A node's: whether it is the one that answers.
    #[serde(default, deserialize_with = "loose::flag")]
    pub(super) local: bool,
    /// A node's address.
    #[serde(default)]
    pub(super) ip: Option<String>,
}

impl Client {
    /// Lists the nodes.
    pub async fn nodes(&self) -> Result<Vec<Node>, Error> {
        self.ask(Call::get("/nodes")).await
    }

    /// Lists the VMs and containers of the whole cluster that this user may see.
    pub async fn guests(&self) -> Result<Vec<Guest>, Error> {
        self.ask(Call::get("/cluster/resources").query("type", "vm")).await
    }

    /// Tells whether a VMID is free at this moment, in the whole cluster; the create call alone reserves one.
    pub async fn is_free(&self, vmid: Vmid) -> Result<bool, Error> {
        match self.call(Call::get("/cluster/nextid").query("vmid", vmid)).await {
            Ok(_) => Ok(true),
            Err(Error::Taken { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Lists the pools that this user may see.
    pub async fn pools(&self) -> Result<Vec<String>, Error> {
        let pools: Vec<PoolAnswer> = self.ask(Call::get("/pools")).await?;
        Ok(pools.into_iter().map(|pool| pool.poolid).collect())
    }

    /// Returns what the cluster says of its nodes and which endpoint says so; needs Sys.Audit on `/`.
    pub(super) async fn cluster_status(&self) -> Result<(Vec<ClusterStatus>, usize), Error> {
        let call = Call::get("/cluster/status");
        let what = call.to_string();
        let (value, endpoint) = self.call_at(call).await?;
        Ok((understand(what, value)?, endpoint))
    }

    /// Lists the bridges of a node that this user may see or use.
    pub async fn bridges(&self, node: &NodeName) -> Result<Vec<Bridge>, Error> {
        self.ask(Call::get("/nodes/{node}/network").at(node).query("type", "any_bridge")).await
    }

    /// Returns a node's clock, in seconds since 1970; needs Sys.Audit on the node.
    pub async fn time(&self, node: &NodeName) -> Result<i64, Error> {
        let answer: TimeAnswer = self.ask(Call::get("/nodes/{node}/time").at(node)).await?;
        Ok(answer.time)
    }

    /// Returns what a node says of itself: `cpuinfo`, `memory`, `rootfs`, `pveversion`, … as JSON; needs
    /// Sys.Audit on the node.
    pub async fn node_status(&self, node: &NodeName) -> Result<serde_json::Value, Error> {
        self.call(Call::get("/nodes/{node}/status").at(node)).await
    }
}
