//! Both ways, over a copy in memory of this machine's own root: whatever they do there is forgotten.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::time::Instant;
use std::{env, fs};

use super::*;
use crate::communicator::contract;

const WAYS: [Way; 2] = [Way::Nspawn, Way::Unshare];

/// Opens a copy of this machine's root; says so where that cannot be.
async fn copy(way: Way) -> Option<Chroot> {
    const CAP_SYS_ADMIN: u32 = 21;
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    if u64::from_str_radix(capabilities.trim(), 16).unwrap() >> CAP_SYS_ADMIN & 1 == 0 {
        println!("NOT RUN by {}: making namespaces takes root", way.as_str());
        return None;
    }
    match Chroot::open_by(way, Path::new("/"), Writes::Forgotten).await {
        Ok(root) => Some(root),
        // There are places where it does not work, and that is what the other way is for.
        Err(error @ ChrootError::Namespaces { way: Way::Nspawn, .. }) => {
            println!("NOT RUN: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

async fn shell(root: &Chroot, script: &str) -> Output {
    root.exec(&Exec::shell(script)).await.unwrap()
}

/// Returns the processes whose namespace of that kind is the one.
fn processes_in(kind: &str, namespace: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let is_in =
        |path: &Path| fs::read_link(path.join("ns").join(kind)).is_ok_and(|it| it == Path::new(namespace));
    entries
        .map(|entry| entry.path())
        .filter(|path| is_in(path))
        .map(|path| path.display().to_string())
        .collect()
}

async fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn systemd_nspawn_keeps_the_contract() {
    if let Some(root) = copy(Way::Nspawn).await {
        contract::hold(&root, Path::new("/tmp")).await;
    }
}

#[tokio::test]
async fn unshare_keeps_the_contract() {
    if let Some(root) = copy(Way::Unshare).await {
        contract::hold(&root, Path::new("/tmp")).await;
    }
}

#[tokio::test]
async fn a_copy_forgets_what_is_done_to_it() {
    let name = format!("/forge-{}", uuid::Uuid::new_v4().simple());
    for way in WAYS {
        let Some(root) = copy(way).await else { continue };
        root.put_file(&name, b"x").await.unwrap();
        assert_eq!(root.get_file(&name).await.unwrap(), b"x");
        assert!(!Path::new(&name).exists(), "{way:?}");
        root.close().await;
        let root = copy(way).await.unwrap();
        assert!(root.get_file(&name).await.is_err(), "{way:?}");
    }
}

#[tokio::test]
async fn links_in_a_root_lead_nowhere_else() {
    let outside = tempfile::tempdir().unwrap();
    let (secret, written) = (outside.path().join("secret"), outside.path().join("written"));
    fs::write(&secret, "s").unwrap();
    for way in WAYS {
        let Some(root) = copy(way).await else { continue };
        // The folder is in the root as well, which is a copy of this machine's.
        let up = "../".repeat(20);
        for (name, target) in
            [("plain", written.display().to_string()), ("up", format!("{up}{}", written.display()))]
        {
            assert!(
                shell(&root, &format!("mkdir -p {0}; ln -s {target} /run/{name}", outside.path().display()))
                    .await
                    .success()
            );
            root.put_file(&format!("/run/{name}"), b"x").await.unwrap();
            assert!(!written.exists(), "{way:?} {name}");
            assert_eq!(root.get_file(&format!("/run/{name}")).await.unwrap(), b"x");
        }
        // Nor does the way that the namespaces were made lead back.
        let host = shell(&root, "cat /proc/1/root/$0 2>/dev/null; ls /proc/1/root/proc/1/cwd/").await;
        assert!(host.text().contains("usr"), "{way:?} {host:?}");
        root.close().await;
    }
}

#[tokio::test]
async fn the_kernel_is_not_the_guests_to_change() {
    for way in WAYS {
        let Some(root) = copy(way).await else { continue };
        for attempt in [
            // With the value that it has, so that no harm is done.
            "echo \"$(cat /proc/sys/vm/swappiness)\" >/proc/sys/vm/swappiness",
            "mount -o remount,rw /proc/sys || mount -o remount,bind,rw /proc/sys",
            "umount /proc/sys || umount -l /proc",
            "mount -t proc proc /mnt",
            "mount -o remount,rw /sys || mount -o remount,bind,rw /sys",
            "mount -t sysfs sysfs /mnt",
            "mknod /root/memory c 1 1",
            "hostname somebody-else",
            "date --set=@0",
            "mount \"$(findmnt --noheadings --output SOURCE /proc/1/root || echo /dev/vda)\" /mnt",
        ] {
            let output = shell(&root, attempt).await;
            assert!(!output.success(), "{way:?}: {attempt}");
        }
        let maps = shell(&root, "cat /proc/self/uid_map /proc/self/gid_map").await.text();
        assert!(
            maps.lines().all(|line| line.split_whitespace().take(2).collect::<BTreeSet<_>>().len() == 1),
            "{maps}"
        );
        // Root it is, over files.
        let owned = shell(&root, "touch /root/x && chown 12:34 /root/x && stat -c %u:%g /root/x").await;
        assert_eq!(owned.text(), "12:34", "{way:?} {owned:?}");
    }
}

#[tokio::test]
async fn a_command_ends_as_a_whole_at_its_deadline() {
    for way in WAYS {
        let Some(root) = copy(way).await else { continue };
        let script = "echo $$ >/run/pids; for n in 1 2; do setsid sh -c 'sleep 98 & echo $$ >>/run/pids; wait' & done; wait";
        let command = Exec::shell(script).timeout(Duration::from_millis(600));
        let error = root.exec(&command).await.unwrap_err();
        assert!(matches!(error, CommunicatorError::Timeout { .. }), "{error}");
        assert_eq!(shell(&root, "wc -l </run/pids").await.text(), "3");
        let left = shell(&root, "grep -lx sleep /proc/[0-9]*/comm").await;
        assert!(!left.success(), "{way:?} {left:?}");
    }
}

#[tokio::test]
async fn what_a_command_detaches_runs_on_until_the_root_is_closed() {
    for way in WAYS {
        let Some(root) = copy(way).await else { continue };
        // It keeps the command's own output open, too.
        let started = Instant::now();
        let output = shell(&root, "(sleep 97 &) ; readlink /proc/self/ns/pid").await;
        assert!(started.elapsed() < Duration::from_secs(20));
        let namespace = output.text();
        let running = shell(&root, "grep -lx sleep /proc/[0-9]*/comm").await;
        assert!(running.success(), "{way:?}");
        root.close().await;
        assert_eq!(processes_in("pid", &namespace), Vec::<String>::new(), "{way:?}");
    }
}

#[tokio::test]
async fn a_root_that_has_ended_is_gone() {
    for way in WAYS {
        let Some(root) = copy(way).await else { continue };
        let long = Exec::shell("kill -KILL -1; sleep 60");
        let error = root.exec(&long).await.unwrap_err();
        assert!(matches!(error, CommunicatorError::Gone { .. }), "{way:?} {error}");
        let error = root.get_file("/etc/passwd").await.unwrap_err();
        assert!(matches!(error, CommunicatorError::Gone { .. }), "{way:?} {error}");
    }
}

#[tokio::test]
async fn a_root_in_a_folder_does_not_restart() {
    let Some(root) = copy(Way::Unshare).await else { return };
    let error = root.wait_for_reboot("x", Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "restarting the guest: refused by the guest: a root file system in a folder does not boot"
    );
}

#[tokio::test]
async fn a_folder_that_leads_elsewhere_is_no_root() {
    if !rustix::process::geteuid().is_root() {
        let error = Chroot::open(Path::new("/"), Writes::Forgotten).await.unwrap_err();
        assert!(matches!(error, ChrootError::NotRoot), "{error}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ["dev", "run", "sys", "tmp"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    symlink("/proc", folder.path().join("proc")).unwrap();
    let error = Chroot::open(folder.path(), Writes::Kept).await.unwrap_err().to_string();
    assert!(error.ends_with("is not a root file system: it has no folder `proc`"), "{error}");
    fs::remove_file(folder.path().join("proc")).unwrap();
    fs::create_dir(folder.path().join("proc")).unwrap();
    // Nothing is in it that could run, by neither way.
    let error = Chroot::open(folder.path(), Writes::Kept).await.unwrap_err().to_string();
    assert!(error.starts_with("making namespaces with unshare: "), "{error}");
}

/// The test's own program plays the forge that is killed.
#[tokio::test]
async fn nothing_outlives_a_forge_that_is_killed() {
    const PLAYS: &str = "FORGE_TEST_KILLED";
    if let Ok(way) = env::var(PLAYS) {
        let way = WAYS.into_iter().find(|it| it.as_str() == way).unwrap();
        let Some(root) = copy(way).await else { return };
        let namespaces = "readlink /proc/self/ns/pid /proc/self/ns/mnt";
        let text = shell(&root, &format!("setsid sleep 96 >/dev/null 2>&1 & {namespaces}")).await.text();
        println!("\nup {}", text.replace('\n', " "));
        drop(root.exec(&Exec::shell("sleep 96").timeout(Duration::from_secs(20))).await);
        return;
    }
    for way in WAYS {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let name = "communicator::chroot::tests::nothing_outlives_a_forge_that_is_killed";
        let mut forge = Command::new(env::current_exe().unwrap());
        forge.args([name, "--exact", "--nocapture"]).env(PLAYS, way.as_str()).env("TMPDIR", folder.path());
        let mut forge = forge.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(forge.stdout.take().unwrap()).lines();
        let up =
            lines.map_while(Result::ok).find(|line| line.starts_with("up ") || line.starts_with("NOT RUN"));
        let up = up.unwrap();
        let Some(namespaces) = up.strip_prefix("up ") else {
            println!("{up}");
            forge.wait().unwrap();
            continue;
        };
        let (pids, mnt) = namespaces.split_once(' ').unwrap();
        wait_until("the second command does not run", || processes_in("pid", pids).len() >= 4).await;
        forge.kill().unwrap();
        forge.wait().unwrap();
        wait_until("its processes are left", || {
            processes_in("pid", pids).is_empty() && processes_in("mnt", mnt).is_empty()
        })
        .await;
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts);
        // The empty folder is all.
        for left in fs::read_dir(folder.path()).unwrap() {
            fs::remove_dir(left.unwrap().path()).unwrap();
        }
    }
}
