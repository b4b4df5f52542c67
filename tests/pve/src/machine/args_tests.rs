use super::*;

/// Reads a golden file: the configuration as in `/etc/pve/qemu-server/VMID.conf`, and on `#` lines
/// the node: `network user PORT`, `network bridge`.
fn node(text: &str) -> (Spec, Vec<Forward>) {
    let facts: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# ")).collect();
    let pair = |line: &str| line.split_once(": ").map(|(key, value)| (key.to_owned(), value.to_owned()));
    let config: std::collections::BTreeMap<_, _> = text.lines().filter_map(pair).collect();
    let volid =
        |value: &String| value.split(',').next().filter(|volid| volid.contains(':')).map(str::to_owned);
    let volume = |volid: String| {
        let format = if volid.contains(".qcow2") { "qcow2" } else { "raw" }.to_owned();
        let file = volid.rsplit(['/', ':']).next().unwrap_or_default();
        (volid.clone(), Volume { path: Path::new("/volumes").join(file), format })
    };
    let spec = Spec {
        vmid: 8006,
        volumes: config.values().filter_map(volid).map(volume).collect(),
        config,
        folder: "/run/a,b/8006".into(),
        qemu: "qemu".into(),
        network: if facts.contains(&"network bridge") { Network::Bridge } else { Network::User },
    };
    let forward = |port: &str| Forward { port: port.parse().unwrap(), guest_address: None, guest_port: 2222 };
    let ports = facts.iter().filter_map(|fact| fact.strip_prefix("network user "));
    (spec, ports.map(forward).collect())
}

fn render(text: &str) -> String {
    let (spec, forwards) = node(text);
    match Config::parse(&spec) {
        Ok(config) => {
            let places = Places { folder: spec.folder.clone() };
            let args = machine_args(&spec, &config, &forwards, &places, 540_672);
            args.iter().fold(String::new(), |text, arg| {
                text + if arg.starts_with('-') { "" } else { "    " } + arg + "\n"
            })
        }
        Err(error) => format!("error: {error}\n"),
    }
}

#[test]
fn configurations_become_arguments() {
    crate::golden::assert_golden("machine", "args", 8, render);
}

#[test]
fn addresses_are_those_of_proxmox() {
    for (id, place) in [
        ("net0", "bus=pci.0,addr=0x12"),
        ("net6", "bus=pci.1,addr=0x1"),
        ("virtio0", "bus=pci.0,addr=0xa"),
        ("virtio6", "bus=pci.2,addr=0x1"),
        ("virtioscsi2", "bus=pci.3,addr=0x3"),
        ("rng0", "bus=pci.1,addr=0x1d"),
    ] {
        assert_eq!(address(id), place, "{id}");
    }
}
