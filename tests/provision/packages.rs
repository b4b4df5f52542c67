//! Packages: what is installed, what is fetched for it, and who is waited for.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use forge::provision::ProvisionError;

use crate::bench::{Bench, SH, packages, shell};

/// Puts programs with those names and texts first on the guest's search path.
fn fake_programs(bench: &mut Bench, programs: &[(&str, &str)]) {
    let bin = bench.path("bin");
    fs::create_dir(&bin).unwrap();
    for (name, text) in programs {
        fs::write(bin.join(name), format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    bench.host.path = format!("{}:{}", bin.display(), bench.host.path);
}

#[tokio::test]
async fn packages_are_installed_after_a_retried_update() {
    let mut bench = Bench::new();
    let count = bench.path("updates");
    let apt = format!(
        "for word; do case $word in update) echo x >>{0}; [ $(wc -l <{0}) -gt 1 ] || exit 100; echo updated;; \
         install) shift $(($# - 2)); echo \"installing $2 as $DEBIAN_FRONTEND\";; esac; done",
        count.display()
    );
    let query = "for word; do :; done; [ \"$word\" != vim ] || printf installed";
    fake_programs(&mut bench, &[("apt-get", &apt), ("dpkg-query", query)]);
    bench.apply(&packages(&["vim", "zip"], false), Duration::from_secs(20)).await.unwrap();
    assert_eq!(
        bench.shown(),
        [
            "forge: the package lists could not be fetched; again in 1 s",
            "updated",
            "installing zip as noninteractive"
        ]
    );
}

#[tokio::test]
async fn nothing_is_fetched_when_all_is_installed() {
    let mut bench = Bench::new();
    fake_programs(&mut bench, &[("apt-get", "exit 9"), ("dpkg-query", "printf installed")]);
    bench.apply(&packages(&["vim", "zip"], false), Duration::from_secs(20)).await.unwrap();
    assert_eq!(bench.shown(), ["forge: already installed: vim zip"]);
}

#[tokio::test]
async fn a_held_lock_is_waited_for_and_named() {
    let mut bench = Bench::new();
    let lock = bench.path("lock");
    fs::write(&lock, "").unwrap();
    let ready = bench.path("ready");
    let program = "import fcntl,sys,time\nf=open(sys.argv[1],'w'); fcntl.lockf(f, fcntl.LOCK_EX)\n\
                   open(sys.argv[2],'w').close(); time.sleep(60)";
    let mut holder = tokio::process::Command::new("python3")
        .args(["-c", program, lock.to_str().unwrap(), ready.to_str().unwrap()])
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    while !ready.exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    fake_programs(&mut bench, &[("apt-get", "exit 9"), ("dpkg-query", "exit 1")]);
    // The locks' paths are the system's own; only the test's script names another.
    let text = format!("locks={}\n", lock.display()) + include_str!("../../src/provision/guest/packages.sh");
    let mut step = shell(SH, &text);
    step.shell.as_mut().unwrap().env = [("packages", "vim"), ("upgrade", "false"), ("lock_wait", "1")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into_iter()
        .collect();
    let error = bench.apply(&step, Duration::from_secs(20)).await.unwrap_err();
    let shown = bench.shown();
    let who =
        format!("forge: waiting for process {} (python3) holding {}", holder.id().unwrap(), lock.display());
    assert_eq!(shown[0], who);
    assert!(shown[1].starts_with("forge: gave up after 1 s waiting for process"), "{shown:?}");
    assert!(matches!(error, ProvisionError::Failed { code: 100, .. }), "{error}");
    holder.kill().await.unwrap();
}
