//! QEMU's edge against golden arguments and against the real QEMU, without an operating system.
//!
//! The machines here boot a hand-made boot sector within a second, also without KVM. QEMU must be
//! there: `make test` installs it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use forge::definition::{Chipset, DiskFormat, ScsiController};
use forge::qemu::accel::Accel;
use forge::qemu::args::{Places, machine_args};
use forge::qemu::firmware::{self, Flash, FlashFormat};
use forge::qemu::spec::{Boot, Firmware, Forward, Host, OnReset, SerialNumber, UserNet};
use forge::qemu::{End, Error, Machine, MachineSpec};
use serde::Deserialize;
use tempfile::TempDir;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(20);

/// Stops and waits.
const HANG: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfc];
/// Powers off by ACPI: writes `SLP_EN` to the control port, which is at 0x604 on Q35.
const POWER_OFF: &[u8] = &[0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xfa, 0xf4];
/// Loads an empty interrupt table and calls for an interrupt: a triple fault.
const TRIPLE_FAULT: &[u8] = &[0x0f, 0x01, 0x1e, 0x80, 0x7c, 0xcc];
/// Tells pvpanic of a panic.
const PANIC: &[u8] = &[0xba, 0x05, 0x05, 0xb0, 0x01, 0xee, 0xfa, 0xf4];

/// Returns a machine that boots the code from a disk in a new folder.
fn machine(code: &[u8]) -> (MachineSpec, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut sector = code.to_vec();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    // SeaBIOS boots no disk smaller than a cylinder.
    sector.resize(1024 * 1024, 0);
    let disk = folder.path().join("disk, raw");
    fs::write(&disk, sector).unwrap();
    let definition =
        forge::definition::Machine { cores: 1, memory_mib: 256, ..forge::definition::Machine::default() };
    let host = Host {
        binary: "qemu-system-x86_64".into(),
        accel: Accel::Tcg,
        firmware: Firmware::Bios,
        disks: vec![(disk, DiskFormat::Raw)],
        cdroms: Vec::new(),
        networks: Vec::new(),
        uuid: Uuid::from_u128(0x1234),
        serial_number: None,
        boot: Boot::Disk,
        on_reset: OnReset::End,
    };
    (MachineSpec::new(&definition, host), folder)
}

async fn launch(spec: &MachineSpec, folder: &TempDir) -> Machine {
    Machine::launch(spec, folder.path()).await.expect("QEMU is installed (apt install qemu-system-x86)")
}

async fn end_of(code: &[u8]) -> End {
    let (spec, folder) = machine(code);
    launch(&spec, &folder).await.wait_for_end(LIMIT).await.unwrap()
}

#[tokio::test]
async fn power_off_reset_and_panic_are_told_apart() {
    let ends = tokio::join!(end_of(POWER_OFF), end_of(TRIPLE_FAULT), end_of(PANIC));
    assert_eq!(ends, (End::PowerOff, End::Reset, End::Panicked));
}

#[tokio::test]
async fn a_reset_that_may_be_is_counted() {
    let (mut spec, folder) = machine(TRIPLE_FAULT);
    spec.on_reset = OnReset::Restart;
    let machine = launch(&spec, &folder).await;
    let mut state = machine.state();
    let counted = state.wait_for(|state| state.resets >= 2);
    let state = tokio::time::timeout(LIMIT, counted).await.unwrap().unwrap();
    assert_eq!(state.end, None);
}

#[tokio::test]
async fn a_machine_that_powered_off_still_shows_its_screen() {
    let (spec, folder) = machine(POWER_OFF);
    let machine = launch(&spec, &folder).await;
    machine.wait_for_end(LIMIT).await.unwrap();
    let path = folder.path().join("screen.png");
    machine.screenshot(&path).await.unwrap();
    let file = std::io::BufReader::new(fs::File::open(path).unwrap());
    let reader = png::Decoder::new(file).read_info().unwrap();
    // The text mode that the firmware boots in.
    assert_eq!((reader.info().width, reader.info().height), (720, 400));

    machine.quit().await.unwrap();
    assert!(!is_running(machine.pid()));
    assert_eq!(machine.wait_for_end(LIMIT).await.unwrap(), End::PowerOff);
}

#[tokio::test]
async fn quitting_is_no_crash_and_leaves_no_socket() {
    let (spec, folder) = machine(HANG);
    let machine = launch(&spec, &folder).await;
    machine.press_enter().await.unwrap();
    machine.powerdown().await.unwrap();
    let error = machine.wait_for_end(Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
    let sockets = machine.agent_socket().parent().unwrap().to_owned();
    assert!(sockets.exists());
    machine.quit().await.unwrap();
    machine.quit().await.unwrap();
    assert_eq!(machine.wait_for_end(LIMIT).await.unwrap(), End::Stopped);
    drop(machine);
    assert!(!sockets.exists());
}

#[tokio::test]
async fn a_killed_qemu_is_noticed_within_a_second() {
    let (spec, folder) = machine(HANG);
    let machine = launch(&spec, &folder).await;
    signal("KILL", machine.pid());
    let killed = Instant::now();
    let end = machine.wait_for_end(LIMIT).await.unwrap();
    assert!(killed.elapsed() < Duration::from_secs(1), "{:?}", killed.elapsed());
    assert_eq!(end.to_string(), "QEMU ended with signal 9 (killed)");
    let error = machine.screenshot(Path::new("/nowhere.png")).await.unwrap_err();
    assert!(matches!(error, Error::Closed { .. }), "{error}");
}

#[tokio::test]
async fn a_qemu_that_does_not_start_says_why() {
    let (mut spec, folder) = machine(HANG);
    spec.disks[0].path = folder.path().join("no-disk");
    let error = Machine::launch(&spec, folder.path()).await.unwrap_err().to_string();
    assert!(error.starts_with("QEMU ended with exit code 1: ") && error.contains("no-disk"), "{error}");

    spec.binary = "qemu-system-none".into();
    let error = Machine::launch(&spec, folder.path()).await.unwrap_err().to_string();
    assert!(error.contains("qemu-system-none is not installed"), "{error}");
    assert!(error.contains("apt install qemu-system-x86"), "{error}");
}

#[tokio::test]
async fn the_guest_gets_the_serial_number_and_other_users_do_not() {
    const TOKEN: &str = "http://10.0.2.2:8000/2d1f0e6c-secret-token/";
    let (mut spec, folder) = machine(HANG);
    spec.serial_number = Some(SerialNumber(TOKEN.to_owned()));
    let machine = launch(&spec, &folder).await;
    for file in ["cmdline", "environ"] {
        let text = fs::read(format!("/proc/{}/{file}", machine.pid())).unwrap();
        assert!(!contains(&text, b"secret-token"), "{file}");
    }
    assert!(!fs::read_to_string(folder.path().join("qemu.args")).unwrap().contains("secret-token"));
    let sockets = machine.agent_socket().parent().unwrap();
    assert!(!sockets.join("smbios").exists());

    let record =
        forge::qemu::smbios::system_record(forge::qemu::args::product(Chipset::Q35), spec.uuid, TOKEN);
    let deadline = Instant::now() + LIMIT;
    // SeaBIOS puts small tables below 1 MiB.
    while !contains(&low_memory(&machine, &folder).await, &record) {
        assert!(Instant::now() < deadline, "the record is not in the guest's memory");
    }
}

/// Returns the first MiB of the guest's memory.
async fn low_memory(machine: &Machine, folder: &TempDir) -> Vec<u8> {
    let path = folder.path().join("memory");
    let filename = path.to_str().unwrap().to_owned();
    machine.qmp().execute(qapi::qmp::pmemsave { val: 0, size: 1 << 20, filename }, LIMIT).await.unwrap();
    fs::read(path).unwrap()
}

#[tokio::test]
async fn forwarded_ports_are_free_ones_of_the_host() {
    let (mut spec, folder) = machine(HANG);
    spec.nics[0].network = UserNet {
        net: Some("10.10.10.0/24".to_owned()),
        dhcp_start: Some([10, 10, 10, 50].into()),
        forwards: vec![Forward { address: Some([10, 10, 10, 5].into()), port: 2222 }],
        restrict: true,
    };
    let machine = launch(&spec, &folder).await;
    let port = machine.forwarded_port(2222).await.unwrap();
    std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let error = machine.forwarded_port(22).await.unwrap_err().to_string();
    assert!(error.contains("port 22 of the guest is not forwarded"), "{error}");
}

/// Every device that a definition can name is one that this QEMU knows and starts with.
#[tokio::test]
async fn every_golden_machine_starts() {
    futures_util::future::join_all(golden_names().iter().map(|name| start_golden(name))).await;
}

async fn start_golden(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut spec = golden_spec(name);
    spec.memory_mib = 256;
    spec.accel = Accel::Tcg;
    "max".clone_into(&mut spec.cpu);
    if let Firmware::Uefi { .. } = spec.firmware {
        let ovmf = firmware::find_ovmf(spec.chipset).expect("OVMF is installed (apt install ovmf)");
        spec.firmware = firmware::prepare(&ovmf, folder.path()).unwrap();
    }
    for disk in &mut spec.disks {
        disk.path = folder.path().join(disk.path.file_name().unwrap());
        forge::qemu::img::create(&disk.path, disk.format, 1 << 20).await.unwrap();
    }
    for cdrom in &mut spec.cdroms {
        *cdrom = folder.path().join(cdrom.file_name().unwrap());
        fs::write(&cdrom, vec![0; 64 * 1024]).unwrap();
    }
    let started = Machine::launch(&spec, folder.path()).await;
    let machine = started.unwrap_or_else(|error| panic!("{name}: {error}"));
    let log = fs::read_to_string(machine.stderr_log()).unwrap();
    assert_eq!(log, "", "{name}");
    machine.quit().await.unwrap();
}

#[tokio::test]
async fn a_ctrl_c_on_the_terminal_does_not_reach_qemu() {
    let (spec, folder) = machine(HANG);
    let machine = launch(&spec, &folder).await;
    let group = |pid: u32| fields_after_name(pid)[2].clone();
    assert_eq!(group(machine.pid()), machine.pid().to_string());
    assert_ne!(group(machine.pid()), group(std::process::id()));
}

const CHILD: &str = "FORGE_TEST_LAUNCH_IN";

/// Is the forge of the next test: launches a machine, tells its process ids and waits to be killed.
#[tokio::test]
async fn launch_and_wait_when_told_to() {
    let Some(folder) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let (mut spec, _disk) = machine(HANG);
    spec.tpm = true;
    let machine = Machine::launch(&spec, &folder).await.unwrap();
    fs::write(folder.join("pid.new"), machine.pid().to_string()).unwrap();
    fs::rename(folder.join("pid.new"), folder.join("pid")).unwrap();
    machine.wait_for_end(Duration::from_mins(1)).await.unwrap();
}

#[test]
fn a_killed_forge_takes_its_machine_along() {
    let folder = tempfile::tempdir().unwrap();
    let mut forge = Command::new(std::env::current_exe().unwrap())
        .args(["launch_and_wait_when_told_to", "--exact"])
        .env(CHILD, folder.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = folder.path().join("pid");
    let qemu: u32 = wait_for(|| fs::read_to_string(&pid).ok()).parse().unwrap();
    let swtpm = child_named(forge.id(), "swtpm");
    assert!(is_running(qemu) && is_running(swtpm));
    forge.kill().unwrap();
    forge.wait().unwrap();
    let killed = Instant::now();
    wait_for(|| (!is_running(qemu) && !is_running(swtpm)).then_some(()));
    assert!(killed.elapsed() < Duration::from_secs(1), "{:?}", killed.elapsed());
}

fn wait_for<T>(mut what: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(value) = what() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited too long");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn signal(name: &str, pid: u32) {
    assert!(Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap().success());
}

/// Returns the fields of `/proc/PID/stat` that follow the name: state, parent, group, … (proc(5)).
fn fields_after_name(pid: u32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().map(str::to_owned).collect()
}

/// Tells whether a process runs; one that only waits to be reaped does not.
fn is_running(pid: u32) -> bool {
    fields_after_name(pid).first().is_some_and(|state| state != "Z" && state != "X")
}

fn child_named(parent: u32, name: &str) -> u32 {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find(|&pid: &u32| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            comm.trim() == name && fields_after_name(pid).get(1).is_some_and(|id| *id == parent.to_string())
        })
        .expect("the child is there")
}

/// A golden machine: `[machine]` of a definition and what the host adds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Golden {
    machine: forge::definition::Machine,
    kvm: bool,
    restart_on_reset: bool,
    boot_cdrom: bool,
    serial_number: Option<String>,
    cdroms: Vec<PathBuf>,
    forwards: Vec<u16>,
    net: Option<String>,
}

impl Default for Golden {
    fn default() -> Self {
        Self {
            machine: forge::definition::Machine::default(),
            kvm: false,
            restart_on_reset: true,
            boot_cdrom: false,
            serial_number: None,
            cdroms: Vec::new(),
            forwards: Vec::new(),
            net: None,
        }
    }
}

fn golden_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qemu")
}

fn golden_names() -> Vec<String> {
    let files = fs::read_dir(golden_folder()).unwrap().flatten().map(|entry| entry.path());
    let mut names: Vec<String> = files
        .filter(|path| path.extension().is_some_and(|ending| ending == "toml"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert!(names.len() >= 6, "{names:?}");
    names
}

fn golden_spec(name: &str) -> MachineSpec {
    let text = fs::read_to_string(golden_folder().join(format!("{name}.toml"))).unwrap();
    let golden: Golden = toml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
    let flash = |name: &str, format| Flash { path: format!("/fw/{name}").into(), format };
    let firmware = match golden.machine.firmware {
        forge::definition::Firmware::Bios => Firmware::Bios,
        forge::definition::Firmware::Uefi => Firmware::Uefi {
            code: flash("code.fd", FlashFormat::Raw),
            vars: flash("vars.qcow2", FlashFormat::Qcow2),
        },
    };
    let disks = golden.machine.disks.iter().enumerate();
    let host = Host {
        binary: "qemu-system-x86_64".into(),
        accel: if golden.kvm { Accel::Kvm } else { Accel::Tcg },
        firmware,
        disks: disks.map(|(index, disk)| (format!("/run/disk{index}").into(), disk.format)).collect(),
        cdroms: golden.cdroms,
        networks: vec![UserNet {
            net: golden.net,
            forwards: golden.forwards.iter().map(|&port| Forward { address: None, port }).collect(),
            ..UserNet::default()
        }],
        uuid: Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
        serial_number: golden.serial_number.map(SerialNumber),
        boot: if golden.boot_cdrom { Boot::Cdrom } else { Boot::Disk },
        on_reset: if golden.restart_on_reset { OnReset::Restart } else { OnReset::End },
    };
    MachineSpec::new(&golden.machine, host)
}

/// `UPDATE_GOLDEN=1` writes what is expected; read the difference before you commit it.
#[test]
fn golden_machines_have_their_arguments() {
    let place = |name: &str| PathBuf::from("/sockets").join(name);
    let places = Places {
        qmp: place("qmp"),
        agent: place("agent"),
        serial: place("serial"),
        serial_log: "/run/serial,1.log".into(),
        smbios: place("smbios"),
        tpm: place("tpm"),
    };
    for name in golden_names() {
        let args = machine_args(&golden_spec(&name), &places).join("\n") + "\n";
        let expected = golden_folder().join(format!("{name}.args"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&expected, &args).unwrap();
        }
        let expected = fs::read_to_string(&expected).unwrap_or_default();
        for (number, (ours, theirs)) in args.lines().zip(expected.lines()).enumerate() {
            assert_eq!(ours, theirs, "{name}.args, line {}", number + 1);
        }
        assert_eq!(args.lines().count(), expected.lines().count(), "{name}.args, its end");
        assert!(!args.contains("token"), "{name}");
    }
}

/// The golden machines cover each choice that a definition has.
#[test]
fn golden_machines_cover_the_choices() {
    let specs: Vec<MachineSpec> = golden_names().iter().map(|name| golden_spec(name)).collect();
    assert!(specs.iter().any(|spec| spec.chipset == Chipset::I440fx));
    assert!(specs.iter().any(|spec| spec.scsi_controller == ScsiController::VirtioScsiSingle));
    assert!(specs.iter().any(|spec| spec.tpm && spec.firmware != Firmware::Bios));
    assert!(specs.iter().any(|spec| spec.cdroms.len() > 1 && spec.boot == Boot::Cdrom));
    assert!(specs.iter().any(|spec| spec.serial_number.is_some()));
    assert!(specs.iter().any(|spec| spec.accel == Accel::Kvm));
    assert!(specs.iter().any(|spec| !spec.agent && !spec.serial));
}
