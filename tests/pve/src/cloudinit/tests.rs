use super::*;

fn config(text: &str) -> Config {
    let pair = |line: &str| line.split_once(": ").map(|(key, value)| (key.to_owned(), value.to_owned()));
    text.lines().filter_map(pair).collect()
}

fn node() -> Resolver {
    Resolver { nameservers: vec!["192.0.2.53".into(), "192.0.2.54".into()], search: vec!["lan".into()] }
}

fn render(text: &str) -> String {
    match drive(&config(text), 500, &node(), Custom::default()) {
        Ok(drive) => drive.files.iter().fold(format!("label {}\n", drive.label), |text, (name, content)| {
            format!("{text}--- {name}\n{content}")
        }),
        Err(error) => format!("error: {error}\n"),
    }
}

#[test]
fn configurations_become_drives() {
    crate::golden::assert_golden("cloudinit", "drive", 5, render);
}

/// What a genuine node answered (transcript 06, lines 115, 127 and 128).
#[test]
fn dumps_are_those_of_a_genuine_node() {
    let bare = config("name: conf-1.example.com\nnet0: virtio=BC:24:11:83:3B:E2,bridge=vmbr0");
    assert_eq!(
        dump(&bare, 500, &node(), "user").unwrap(),
        "#cloud-config\nhostname: conf-1\nmanage_etc_hosts: true\nfqdn: conf-1.example.com\nchpasswd:\n  \
         expire: False\nusers:\n  - default\npackage_upgrade: true\n"
    );
    let full = config(
        "name: conf-1.example.com\nnet0: virtio=BC:24:11:83:3B:E2,bridge=vmbr0\nciuser: deb\n\
         cipassword: $5$x\nsshkeys: ssh-ed25519%20AAAA%20me%40host%0A\n\
         ipconfig0: ip=10.98.0.70/24,gw=10.98.0.1\nnameserver: 10.98.0.1\nsearchdomain: example.com\nciupgrade: 0",
    );
    assert_eq!(
        dump(&full, 500, &node(), "user").unwrap(),
        "#cloud-config\nhostname: conf-1\nmanage_etc_hosts: true\nfqdn: conf-1.example.com\nuser: deb\n\
         password: $5$x\nssh_authorized_keys:\n  - ssh-ed25519 AAAA me@host\nchpasswd:\n  expire: False\n\
         users:\n  - default\n"
    );
    assert_eq!(
        dump(&full, 500, &node(), "network").unwrap(),
        "version: 1\nconfig:\n    - type: physical\n      name: eth0\n      mac_address: 'bc:24:11:83:3b:e2'\n      \
         subnets:\n      - type: static\n        address: '10.98.0.70'\n        netmask: '255.255.255.0'\n        \
         gateway: '10.98.0.1'\n    - type: nameserver\n      address:\n      - '10.98.0.1'\n      search:\n      \
         - 'example.com'\n"
    );
    assert!(dump(&full, 500, &node(), "meta").unwrap().starts_with("instance-id: "));
}

#[test]
fn custom_documents_replace_whole_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("u.yaml");
    fs::write(&path, "#cloud-config\n{}\n").unwrap();
    let volume = Volume { path, format: "raw".into() };
    let volumes = BTreeMap::from([("local:snippets/u.yaml".to_owned(), volume)]);
    let config = config("cicustom: user=local:snippets/u.yaml");
    let drive = drive(&config, 1, &node(), custom(&config, &volumes).unwrap()).unwrap();
    assert_eq!(drive.files[0].1, "#cloud-config\n{}\n");
    assert!(
        custom(&config, &BTreeMap::new()).unwrap_err().contains("'local:snippets/u.yaml' does not exist")
    );
}

#[test]
fn too_much_is_refused() {
    let custom = Custom { vendor: Some("x".repeat(FILES_MAX)), ..Custom::default() };
    let error = drive(&Config::new(), 1, &node(), custom).unwrap_err();
    assert_eq!(error, "Cloud-Init sum of snippets too big (> 3 MiB)");
}

#[test]
fn volumes_are_images_of_four_mebibytes() {
    let folder = tempfile::tempdir().unwrap();
    let drive = drive(&config("name: one"), 500, &node(), Custom::default()).unwrap();
    let read = |volume: &Volume, name: &str| {
        let output = Command::new("xorriso")
            .args(["-osirrox", "on", "-indev"])
            .arg(&volume.path)
            .args(["-extract", name])
            .arg(folder.path().join("out"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read_to_string(folder.path().join("out")).unwrap()
    };
    let raw = Volume { path: folder.path().join("vm-500-cloudinit.raw"), format: "raw".into() };
    write_volume(&drive, &raw).unwrap();
    assert_eq!(fs::metadata(&raw.path).unwrap().len(), VOLUME_SIZE);
    assert_eq!(&fs::read(&raw.path).unwrap()[16 * 2048 + 40..][..8], b"cidata  ");
    assert_eq!(read(&raw, "/user-data"), drive.files[0].1);

    let qcow2 = Volume { path: folder.path().join("vm-500-cloudinit.qcow2"), format: "qcow2".into() };
    write_volume(&drive, &qcow2).unwrap();
    write_volume(&drive, &qcow2).unwrap();
    let back = Volume { path: folder.path().join("back"), format: "raw".into() };
    run(Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(&qcow2.path).arg(&back.path)).unwrap();
    assert_eq!(fs::metadata(&back.path).unwrap().len(), VOLUME_SIZE);
    assert_eq!(read(&back, "/meta-data"), drive.files[2].1);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4, "a scratch folder is left");
}
