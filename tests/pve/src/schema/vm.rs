//! The keys of a VM's configuration, as `POST qemu` and the config calls take them.
//!
//! Source: `PVE/QemuServer.pm`, `PVE/QemuServer/Drive.pm`, and the schema that pve-docs publishes.

use super::Param;

const IMAGE_FORMATS: &[&str] = &["raw", "qcow", "qed", "qcow2", "vmdk", "cloop"];
const FILE: Param = Param::named("file", "pve-volume-id-or-qm-path").default_key();
const VOLUME: Param = Param::alias("volume", "file");
const IMPORT: Param = Param::named("import-from", "pve-volume-id-or-absolute-path").opt();
const SIZE: Param = Param::named("size", "disk-size").opt();
const IMAGE_FORMAT: Param = Param::choice("format", IMAGE_FORMATS).opt();

/// Lists the keys that every bus has, then those that only some have.
macro_rules! drive {
    ($($extra:expr),* $(,)?) => {
        &[
            FILE,
            VOLUME,
            SIZE,
            IMAGE_FORMAT,
            Param::choice("aio", &["native", "threads", "io_uring"]).opt(),
            Param::flag("backup").opt(),
            Param::int("bps").opt(),
            Param::int("bps_max_length").min(1.0).opt(),
            Param::int("bps_rd").opt(),
            Param::alias("bps_rd_length", "bps_rd_max_length"),
            Param::int("bps_rd_max_length").min(1.0).opt(),
            Param::int("bps_wr").opt(),
            Param::alias("bps_wr_length", "bps_wr_max_length"),
            Param::int("bps_wr_max_length").min(1.0).opt(),
            Param::choice("cache", &["none", "writethrough", "writeback", "unsafe", "directsync"]).opt(),
            Param::flag("detect_zeroes").opt(),
            Param::choice("discard", &["ignore", "on"]).opt(),
            Param::int("iops").opt(),
            Param::int("iops_max").opt(),
            Param::int("iops_max_length").min(1.0).opt(),
            Param::int("iops_rd").opt(),
            Param::alias("iops_rd_length", "iops_rd_max_length"),
            Param::int("iops_rd_max").opt(),
            Param::int("iops_rd_max_length").min(1.0).opt(),
            Param::int("iops_wr").opt(),
            Param::alias("iops_wr_length", "iops_wr_max_length"),
            Param::int("iops_wr_max").opt(),
            Param::int("iops_wr_max_length").min(1.0).opt(),
            Param::number("mbps").opt(),
            Param::number("mbps_max").opt(),
            Param::number("mbps_rd").opt(),
            Param::number("mbps_rd_max").opt(),
            Param::number("mbps_wr").opt(),
            Param::number("mbps_wr_max").opt(),
            Param::choice("media", &["cdrom", "disk"]).opt(),
            Param::flag("replicate").opt(),
            Param::choice("rerror", &["ignore", "report", "stop"]).opt(),
            Param::named("serial", "urlencoded").max_len(60).opt(),
            Param::flag("shared").opt(),
            Param::flag("snapshot").opt(),
            Param::choice("werror", &["enospc", "ignore", "report", "stop"]).opt(),
            $($extra),*
        ]
    };
}

const WWN: Param = Param::text("wwn").matches("(?:^(0x)[0-9a-fA-F]{16})").opt();
const SSD: Param = Param::flag("ssd").opt();
const IOTHREAD: Param = Param::flag("iothread").opt();
const READ_ONLY: Param = Param::flag("ro").opt();

const MODEL: Param = Param::named("model", "urlencoded").max_len(120).opt();
const CDROM: &[Param] = drive![SSD, WWN, MODEL];
const IDE: &[Param] = drive![IMPORT, SSD, WWN, MODEL];
const SATA: &[Param] = drive![IMPORT, SSD, WWN];
const SCSI: &[Param] = drive![
    IMPORT,
    SSD,
    WWN,
    IOTHREAD,
    READ_ONLY,
    Param::int("queues").min(2.0).opt(),
    Param::flag("scsiblock").opt(),
    Param::text("vendor").matches("[A-Za-z0-9\\-_\\s]{0,8}").opt(),
    Param::text("product").matches("[A-Za-z0-9\\-_\\s]{0,16}").opt(),
];
pub(crate) const VIRTIO: &[Param] = drive![IMPORT, IOTHREAD, READ_ONLY];

const EFIDISK: &[Param] = &[
    FILE,
    VOLUME,
    IMPORT,
    SIZE,
    IMAGE_FORMAT,
    Param::choice("efitype", &["2m", "4m"]).opt(),
    Param::choice("ms-cert", &["2011", "2023", "2023w", "2023k"]).opt().since(9),
    Param::flag("pre-enrolled-keys").opt(),
];
const TPMSTATE: &[Param] = &[
    FILE,
    VOLUME,
    IMPORT,
    SIZE,
    Param::choice("format", &["raw", "qcow2", "vmdk"]).opt().since(9),
    Param::choice("version", &["v1.2", "v2.0"]).opt(),
];
const UNUSED: &[Param] = &[Param::named("file", "pve-volume-id").default_key(), VOLUME];

/// The keys of `netN`.
pub(crate) const NET: &[Param] = &[
    Param::choice("model", MODELS).default_key(),
    Param::named("macaddr", "mac-addr").opt(),
    Param::named("bridge", "pve-bridge-id").opt(),
    Param::flag("firewall").opt(),
    Param::flag("link_down").opt(),
    Param::int("mtu").min(1.0).max(65520.0).opt(),
    Param::int("queues").min(0.0).max(64.0).opt(),
    Param::number("rate").min(0.0).opt(),
    Param::int("tag").min(1.0).max(4094.0).opt(),
    Param::text("trunks").matches("(?:\\d+(?:-\\d+)?(?:;\\d+(?:-\\d+)?)*)").opt(),
    Param::model_alias("e1000"),
    Param::model_alias("e1000-82540em"),
    Param::model_alias("e1000-82544gc"),
    Param::model_alias("e1000-82545em"),
    Param::model_alias("e1000e"),
    Param::model_alias("i82551"),
    Param::model_alias("i82557b"),
    Param::model_alias("i82559er"),
    Param::model_alias("ne2k_isa"),
    Param::model_alias("ne2k_pci"),
    Param::model_alias("pcnet"),
    Param::model_alias("rtl8139"),
    Param::model_alias("virtio"),
    Param::model_alias("vmxnet3"),
];
const MODELS: &[&str] = &[
    "e1000",
    "e1000-82540em",
    "e1000-82544gc",
    "e1000-82545em",
    "e1000e",
    "i82551",
    "i82557b",
    "i82559er",
    "ne2k_isa",
    "ne2k_pci",
    "pcnet",
    "rtl8139",
    "virtio",
    "vmxnet3",
];

/// The keys of `boot`.
pub(crate) const BOOT: &[Param] = &[
    Param::text("legacy").matches("[acdn]{1,4}").opt().default_key(),
    Param::named("order", "pve-qm-bootdev-list").opt(),
];

/// The keys of `agent`.
pub(crate) const AGENT: &[Param] = &[
    Param::flag("enabled").default_key(),
    Param::flag("freeze-fs").opt().since(9),
    // Release 9 made it an alias of `freeze-fs`; both are taken there.
    Param::flag("freeze-fs-on-backup").opt(),
    Param::alias("guest-fsfreeze", "freeze-fs-on-backup"),
    Param::flag("fstrim_cloned_disks").opt(),
    Param::choice("type", &["virtio", "isa"]).opt(),
];

/// The keys of `cpu`.
pub(crate) const CPU: &[Param] = &[
    Param::text("cputype").opt().default_key(),
    Param::text("flags")
        .matches("(?:(?:([+-])([a-zA-Z0-9\\-_\\.]+))(;(?:([+-])([a-zA-Z0-9\\-_\\.]+)))*)")
        .opt(),
    Param::int("guest-phys-bits").min(32.0).max(64.0).opt().since(9),
    Param::flag("hidden").opt(),
    Param::text("hv-vendor-id").matches("(?:[a-zA-Z0-9]{1,12})").opt(),
    Param::named("phys-bits", "pve-phys-bits").opt(),
    Param::text("reported-model").opt(),
];

const BASE64: &str = "[A-Za-z0-9+\\/]+={0,2}";
/// The keys of `smbios1`.
pub(crate) const SMBIOS: &[Param] = &[
    Param::flag("base64").opt(),
    Param::text("family").matches(BASE64).opt(),
    Param::text("manufacturer").matches(BASE64).opt(),
    Param::text("product").matches(BASE64).opt(),
    Param::text("serial").matches(BASE64).opt(),
    Param::text("sku").matches(BASE64).opt(),
    Param::text("uuid").matches(UUID).opt(),
    Param::text("version").matches(BASE64).opt(),
];
const UUID: &str = "[a-fA-F0-9]{8}(?:-[a-fA-F0-9]{4}){3}-[a-fA-F0-9]{12}";

const IPCONFIG: &[Param] = &[
    Param::named("gw", "ipv4").needs("ip").opt(),
    Param::named("gw6", "ipv6").needs("ip6").opt(),
    Param::named("ip", "pve-ipv4-config").opt(),
    Param::named("ip6", "pve-ipv6-config").opt(),
];
const CICUSTOM: &[Param] = &[
    Param::named("meta", "pve-volume-id").opt(),
    Param::named("network", "pve-volume-id").opt(),
    Param::named("user", "pve-volume-id").opt(),
    Param::named("vendor", "pve-volume-id").opt(),
];
/// The keys of `memory`.
pub(crate) const MEMORY: &[Param] = &[Param::int("current").min(16.0).default_key()];
/// The keys of `rng0`.
pub(crate) const RNG: &[Param] = &[
    Param::int("max_bytes").opt(),
    Param::int("period").opt(),
    Param::choice("source", &["/dev/urandom", "/dev/random", "/dev/hwrng"]).default_key(),
];
const VGA: &[Param] = &[
    Param::choice("clipboard", &["vnc"]).opt(),
    Param::int("memory").min(4.0).max(512.0).opt(),
    Param::choice(
        "type",
        &[
            "cirrus",
            "qxl",
            "qxl2",
            "qxl3",
            "qxl4",
            "none",
            "serial0",
            "serial1",
            "serial2",
            "serial3",
            "std",
            "virtio",
            "virtio-gl",
            "vmware",
        ],
    )
    .opt()
    .default_key(),
];
const MACHINE: &[Param] = &[
    Param::number("aw-bits").min(32.0).max(64.0).opt().since(9),
    Param::flag("enable-s3").opt(),
    Param::flag("enable-s4").opt(),
    Param::text("type")
        .matches(
            "(pc|pc(-i440fx)?-\\d+(\\.\\d+)+(\\+pve\\d+)?(\\.pxe)?|q35|pc-q35-\\d+(\\.\\d+)+(\\+pve\\d+)?(\\.pxe)?|virt(?:-\\d+(\\.\\d+)+)?(\\+pve\\d+)?)",
        )
        .max_len(40)
        .opt()
        .default_key(),
    Param::choice("viommu", &["intel", "virtio"]).opt(),
];
const WATCHDOG: &[Param] = &[
    Param::choice("action", &["reset", "shutdown", "poweroff", "pause", "debug", "none"]).opt(),
    Param::choice("model", &["i6300esb", "ib700"]).opt().default_key(),
];
const AUDIO: &[Param] = &[
    Param::choice("device", &["ich9-intel-hda", "intel-hda", "AC97"]),
    Param::choice("driver", &["spice", "none"]).opt(),
];
const CPU_RANGES: &str = "(?:\\d+(?:-\\d+)?(?:;\\d+(?:-\\d+)?)*)";
const NUMA: &[Param] = &[
    Param::text("cpus").matches(CPU_RANGES),
    Param::text("hostnodes").matches(CPU_RANGES).opt(),
    Param::number("memory").opt(),
    Param::choice("policy", &["preferred", "bind", "interleave"]).opt(),
];
const IVSHMEM: &[Param] =
    &[Param::text("name").matches("[a-zA-Z0-9\\-]+").opt(), Param::int("size").min(1.0)];
const SPICE: &[Param] =
    &[Param::flag("foldersharing").opt(), Param::choice("videostreaming", &["off", "all", "filter"]).opt()];
/// The keys of `usbN`.
pub(crate) const USB: &[Param] = &[
    Param::text("host")
        .matches(
            "(?:(?:(?:(?:(0x)?([0-9A-Fa-f]{4}):(0x)?([0-9A-Fa-f]{4})))|(?:(?:(\\d+)\\-(\\d+(\\.\\d+)*)))|[Ss][Pp][Ii][Cc][Ee]))",
        )
        .opt()
        .default_key(),
    Param::named("mapping", "pve-configid").opt(),
    Param::flag("usb3").opt(),
];
const PCI_ID: &str = "(?:^0x[0-9a-fA-F]{4}$)";
/// The keys of `hostpciN`.
pub(crate) const HOSTPCI: &[Param] = &[
    Param::text("host")
        .matches(
            "(?:(?:(?:[a-f0-9]{4,}:)?[a-f0-9]{2}:[a-f0-9]{2}(?:\\.[a-f0-9])?)(;(?:(?:[a-f0-9]{4,}:)?[a-f0-9]{2}:[a-f0-9]{2}(?:\\.[a-f0-9])?))*)",
        )
        .opt()
        .default_key(),
    Param::text("device-id").matches(PCI_ID).opt(),
    Param::choice("driver", &["vfio", "keep"]).opt().since(9),
    Param::flag("legacy-igd").opt(),
    Param::named("mapping", "pve-configid").opt(),
    Param::text("mdev").matches("[^/\\.:]+").opt(),
    Param::flag("pcie").opt(),
    Param::flag("rombar").opt(),
    Param::text("romfile").matches("[^,;]+").opt(),
    Param::text("sub-device-id").matches(PCI_ID).opt(),
    Param::text("sub-vendor-id").matches(PCI_ID).opt(),
    Param::text("vendor-id").matches(PCI_ID).opt(),
    Param::flag("x-vga").opt(),
];
const VIRTIOFS: &[Param] = &[
    Param::choice("cache", &["auto", "always", "metadata", "never"]).opt(),
    Param::flag("direct-io").opt(),
    Param::named("dirid", "pve-configid").default_key(),
    Param::flag("expose-acl").opt(),
    Param::flag("expose-xattr").opt(),
];
const SEV: &[Param] = &[
    Param::flag("allow-smt").opt(),
    Param::flag("kernel-hashes").opt(),
    Param::flag("no-debug").opt(),
    Param::flag("no-key-sharing").opt(),
    Param::choice("type", &["std", "es", "snp"]).max_len(3).default_key(),
];
const TDX: &[Param] = &[
    Param::flag("attestation"),
    Param::choice("type", &["tdx"]).default_key(),
    Param::int("vsock-cid").min(2.0).opt(),
    Param::int("vsock-port").min(0.0).opt(),
];
/// Keyboard layouts, here and in the datacenter's options.
const KEYBOARDS: &[&str] = &[
    "de", "de-ch", "da", "en-gb", "en-us", "es", "fi", "fr", "fr-be", "fr-ca", "fr-ch", "hu", "is", "it",
    "ja", "lt", "mk", "nl", "no", "pl", "pt", "pt-br", "sv", "sl", "tr",
];
const OS_TYPES: &[&str] = &[
    "other", "wxp", "w2k", "w2k3", "w2k8", "wvista", "win7", "win8", "win10", "win11", "l24", "l26",
    "solaris",
];
const LOCKS: &[&str] = &[
    "backup",
    "clone",
    "create",
    "migrate",
    "rollback",
    "snapshot",
    "snapshot-delete",
    "suspending",
    "suspended",
];

/// Every key that stands in a VM's configuration file.
pub(crate) const OPTIONS: &[Param] = &[
    Param::flag("acpi").opt(),
    Param::named("affinity", "pve-cpuset").opt(),
    Param::keys("agent", AGENT).opt(),
    Param::flag("allow-ksm").opt().since(9),
    Param::keys("amd-sev", SEV).opt(),
    Param::choice("arch", &["x86_64", "aarch64"]).opt(),
    Param::text("args").opt(),
    Param::keys("audio0", AUDIO).opt(),
    Param::flag("autostart").opt(),
    Param::int("balloon").min(0.0).opt(),
    Param::choice("bios", &["seabios", "ovmf"]).opt(),
    Param::keys("boot", BOOT).opt(),
    Param::named("bootdisk", "pve-qm-bootdisk").matches("(ide|sata|scsi|virtio)\\d+").opt(),
    Param::keys("cdrom", CDROM).opt(),
    Param::keys("cicustom", CICUSTOM).opt(),
    Param::text("cipassword").opt(),
    Param::choice("citype", &["configdrive2", "nocloud", "opennebula"]).opt(),
    Param::flag("ciupgrade").opt(),
    Param::text("ciuser").opt(),
    Param::int("cores").min(1.0).opt(),
    Param::keys("cpu", CPU).opt(),
    Param::number("cpulimit").min(0.0).max(128.0).opt(),
    Param::int("cpuunits").min(1.0).max(262_144.0).opt(),
    Param::text("description").max_len(8192).opt(),
    Param::keys("efidisk0", EFIDISK).opt(),
    Param::flag("freeze").opt(),
    Param::named("hookscript", "pve-volume-id").opt(),
    Param::keys("hostpci", HOSTPCI).up_to(15).opt(),
    Param::named("hotplug", "pve-hotplug-features").opt(),
    Param::choice("hugepages", &["any", "2", "1024"]).opt(),
    Param::keys("ide", IDE).up_to(3).opt(),
    Param::keys("intel-tdx", TDX).opt().since(9),
    Param::keys("ipconfig", IPCONFIG).up_to(31).opt(),
    Param::keys("ivshmem", IVSHMEM).opt(),
    Param::flag("keephugepages").opt(),
    Param::choice("keyboard", KEYBOARDS).opt(),
    Param::flag("kvm").opt(),
    Param::flag("localtime").opt(),
    Param::choice("lock", LOCKS).opt(),
    Param::keys("machine", MACHINE).opt(),
    Param::keys("memory", MEMORY).opt(),
    Param::number("migrate_downtime").min(0.0).opt(),
    Param::int("migrate_speed").min(0.0).opt(),
    Param::named("name", "dns-name").opt(),
    Param::named("nameserver", "address-list").opt(),
    Param::keys("net", NET).up_to(31).opt(),
    Param::flag("numa").opt(),
    Param::keys("numa", NUMA).up_to(7).opt(),
    Param::flag("onboot").opt(),
    Param::choice("ostype", OS_TYPES).opt(),
    Param::text("parallel").matches("/dev/parport\\d+|/dev/usb/lp\\d+").up_to(2).opt(),
    Param::flag("protection").opt(),
    Param::flag("reboot").opt(),
    Param::keys("rng0", RNG).opt(),
    Param::keys("sata", SATA).up_to(5).opt(),
    Param::keys("scsi", SCSI).up_to(30).opt(),
    Param::choice(
        "scsihw",
        &["lsi", "lsi53c810", "virtio-scsi-pci", "virtio-scsi-single", "megasas", "pvscsi"],
    )
    .opt(),
    Param::text("searchdomain").opt(),
    Param::text("serial").matches("(/dev/.+|socket)").up_to(3).opt(),
    Param::int("shares").min(0.0).max(50_000.0).opt(),
    Param::keys("smbios1", SMBIOS).max_len(512).opt(),
    Param::int("smp").min(1.0).opt(),
    Param::int("sockets").min(1.0).opt(),
    Param::keys("spice_enhancements", SPICE).opt(),
    Param::named("sshkeys", "urlencoded").opt(),
    Param::text("startdate").matches("(now|\\d{4}-\\d{1,2}-\\d{1,2}(T\\d{1,2}:\\d{1,2}:\\d{1,2})?)").opt(),
    Param::named("startup", "pve-startup-order").opt(),
    Param::flag("tablet").opt(),
    Param::named("tags", "pve-tag-list").opt(),
    Param::flag("tdf").opt(),
    Param::flag("template").opt(),
    Param::keys("tpmstate0", TPMSTATE).opt(),
    Param::keys("unused", UNUSED).up_to(255).opt(),
    Param::keys("usb", USB).up_to(13).opt(),
    Param::int("vcpus").min(1.0).opt(),
    Param::keys("vga", VGA).opt(),
    Param::keys("virtio", VIRTIO).up_to(15).opt(),
    Param::keys("virtiofs", VIRTIOFS).up_to(9).opt(),
    Param::text("vmgenid").matches("(?:[a-fA-F0-9]{8}(?:-[a-fA-F0-9]{4}){3}-[a-fA-F0-9]{12}|[01])").opt(),
    Param::named("vmstatestorage", "pve-storage-id").opt(),
    Param::keys("watchdog", WATCHDOG).opt(),
];

/// The option called `key`, an index included.
pub(crate) fn option(key: &str) -> Option<&'static Param> {
    OPTIONS.iter().find(|option| option.is(key))
}
