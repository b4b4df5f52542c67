//! Taps: the host's ends of NICs, each in the bridge that its NIC names.

use std::process::Command;

use serde_json::Value;

use super::args::tap_name;
use super::config::Nic;

/// A tap on the host; dropping it removes it.
#[derive(Debug)]
pub(super) struct Tap(String);

impl Tap {
    /// Creates a NIC's tap and puts it into the NIC's bridge.
    pub(super) fn create(vmid: u32, nic: &Nic) -> Result<Self, String> {
        let bridge = nic.bridge.as_deref().ok_or_else(|| format!("{}: no bridge", nic.id))?;
        let filters = bridge_filters(bridge)?;
        let name = tap_name(vmid, nic.index);
        // One of a simulator that was killed; mostly there is none.
        run("ip", &["link", "delete", &name]).ok();
        let queues: &[&str] = if nic.queues > 1 { &["multi_queue"] } else { &[] };
        run("ip", &[&["tuntap", "add", "dev", &name, "mode", "tap"], queues].concat())?;
        let tap = Self(name);
        run("ip", &["link", "set", &tap.0, "master", bridge, "up"])?;
        if let Some(tag) = nic.tag {
            if !filters {
                return Err(format!(
                    "{}: VLAN {tag} needs a bridge with VLAN filtering, not {bridge}",
                    nic.id
                ));
            }
            run("bridge", &["vlan", "delete", "dev", &tap.0, "vid", "1"])?;
            run("bridge", &["vlan", "add", "dev", &tap.0, "vid", &tag.to_string(), "pvid", "untagged"])?;
        }
        Ok(tap)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // It fails only when the tap has gone already.
        run("ip", &["link", "delete", &self.0]).ok();
    }
}

/// Returns whether a bridge keeps VLANs apart. Asks `ip`, as `/sys` may show another network.
fn bridge_filters(bridge: &str) -> Result<bool, String> {
    let missing = || format!("bridge '{bridge}' does not exist");
    let text = run("ip", &["-json", "-details", "link", "show", "dev", bridge]).map_err(|_| missing())?;
    let links: Value = serde_json::from_str(&text).map_err(|error| format!("ip link: {error}"))?;
    let info = &links[0]["linkinfo"];
    if info["info_kind"] != "bridge" {
        return Err(missing());
    }
    Ok(info["info_data"]["vlan_filtering"] == 1)
}

fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let text = format!("{program} {}", args.join(" "));
    let output = Command::new(program).args(args).output().map_err(|error| format!("{text}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{text}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
