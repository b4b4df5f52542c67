//! Uploads: trees, single files, and big ones, which are fetched or go in pieces.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use forge::provision::{Bulk, Content, Context, Offer, ProvisionError, apply};

use crate::bench::{Bench, Fault, upload};

#[tokio::test]
async fn trees_arrive_with_modes_links_and_strange_names() {
    let bench = Bench::new();
    let source = bench.path("tree");
    fs::create_dir_all(source.join("sub/deep")).unwrap();
    let long = "long/".repeat(30);
    fs::create_dir_all(source.join(&long)).unwrap();
    for name in ["a b'c\"$(x)", "-rf", "new\nline", "sub/deep/é.j2x", &format!("{long}file")] {
        fs::write(source.join(name), name).unwrap();
    }
    fs::write(source.join("sub/motd.j2"), "hello {{ name }}").unwrap();
    fs::write(source.join("run.sh"), "x").unwrap();
    fs::set_permissions(source.join("run.sh"), fs::Permissions::from_mode(0o700)).unwrap();
    symlink("sub/deep", source.join("link")).unwrap();
    let target = bench.path("out/there");
    fs::create_dir_all(target.join("sub")).unwrap();
    fs::set_permissions(target.join("sub"), fs::Permissions::from_mode(0o2750)).unwrap();
    bench.apply(&upload("tree", &target, None), Duration::from_secs(20)).await.unwrap();
    for name in ["a b'c\"$(x)", "-rf", "new\nline", "sub/deep/é.j2x", &format!("{long}file")] {
        assert_eq!(fs::read_to_string(target.join(name)).unwrap(), name);
    }
    assert_eq!(fs::read_to_string(target.join("sub/motd")).unwrap(), "hello odin");
    assert_eq!(fs::read_link(target.join("link")).unwrap(), Path::new("sub/deep"));
    let mode = |name: &str| fs::metadata(target.join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("run.sh"), mode("-rf"), mode("sub"), mode("sub/deep")), (0o755, 0o644, 0o2750, 0o755));
}

#[tokio::test]
async fn one_file_gets_its_mode_and_replaces_what_was_there() {
    let bench = Bench::new();
    fs::write(bench.path("one"), "new").unwrap();
    let target = bench.path("etc/two");
    fs::create_dir(bench.path("etc")).unwrap();
    fs::write(&target, "old").unwrap();
    bench.apply(&upload("one", &target, Some("0440")), Duration::from_secs(20)).await.unwrap();
    assert_eq!(fs::read_to_string(&target).unwrap(), "new");
    assert_eq!(fs::metadata(&target).unwrap().mode() & 0o7777, 0o440);
    let mut wrong = upload("missing", &target, None);
    assert!(matches!(
        bench.apply(&wrong, Duration::from_secs(5)).await,
        Err(ProvisionError::Local { path, .. }) if path.ends_with("missing")
    ));
    wrong.upload.as_mut().unwrap().owner = Some("nobody".to_owned());
    assert!(matches!(bench.apply(&wrong, Duration::from_secs(5)).await, Err(ProvisionError::Invalid(_))));
}

/// Bytes that do not repeat.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test]
async fn big_files_go_in_pieces_and_lost_answers_do_no_harm() {
    let content = noise(200 * 1024);
    for fault in [None, Some((3, Fault::Unknown)), Some((2, Fault::NotSent)), Some((6, Fault::Timeout))] {
        let mut bench = Bench::new();
        bench.host.fault = fault;
        fs::write(bench.path("big"), &content).unwrap();
        let target = bench.path("out/big");
        bench.apply(&upload("big", &target, None), Duration::from_secs(20)).await.unwrap();
        assert!(fs::read(&target).unwrap() == content, "{fault:?}");
        assert_eq!(fs::read_dir(bench.path("out")).unwrap().count(), 1, "{fault:?}");
        bench.assert_clean();
    }
}

/// Offers files as `file://` URLs, which curl understands as well.
pub(crate) struct FileServer {
    spoil: bool,
    offered: AtomicUsize,
}

impl Bulk for FileServer {
    fn offer(&self, content: Content) -> Option<Offer> {
        self.offered.fetch_add(1, Ordering::Relaxed);
        let Content::File(path) = content else { panic!("files are offered as files") };
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("archive");
        fs::copy(path, &copy).unwrap();
        if self.spoil {
            fs::write(&copy, "something else").unwrap();
        }
        Some(Offer { url: format!("file://{}", copy.display()), guard: Box::new(folder) })
    }
}

#[tokio::test]
async fn big_files_are_fetched_and_verified() {
    let content = noise(200 * 1024);
    for spoil in [false, true] {
        let mut bench = Bench::new();
        bench.bulk = Some(FileServer { spoil, offered: AtomicUsize::new(0) });
        fs::write(bench.path("big"), &content).unwrap();
        let target = bench.path("out/big");
        let result = bench.apply(&upload("big", &target, None), Duration::from_secs(20)).await;
        if spoil {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("what arrived is not what was sent: expected sha256"), "{error}");
            assert!(!target.exists());
        } else {
            result.unwrap();
            assert!(fs::read(&target).unwrap() == content);
        }
        assert_eq!(bench.bulk.as_ref().unwrap().offered.load(Ordering::Relaxed), 1);
        assert!(fs::read_dir(bench.path("out")).unwrap().count() <= 1);
    }
}

#[tokio::test]
async fn a_guest_that_cannot_fetch_gets_pieces() {
    struct Nowhere;
    impl Bulk for Nowhere {
        fn offer(&self, _content: Content) -> Option<Offer> {
            Some(Offer { url: "file:///nonexistent-forge".to_owned(), guard: Box::new(()) })
        }
    }
    let bench = Bench::new();
    let content = noise(100 * 1024);
    fs::write(bench.path("big"), &content).unwrap();
    let target = bench.path("out/big");
    let shown = Mutex::new(Vec::new());
    let guest = bench.path("run/forge");
    let cx = Context {
        guest: &bench.host,
        folder: guest.to_str().unwrap(),
        bulk: Some(&Nowhere),
        root: bench.folder.path(),
        output: &|line| shown.lock().unwrap().push(line.to_owned()),
        log: &|_| (),
        retry: &|_, _, _| (),
        render: &|_| unreachable!(),
        secrets: &[],
    };
    apply(&upload("big", &target, None), Duration::from_secs(30), &cx).await.unwrap();
    assert!(fs::read(&target).unwrap() == content);
    assert_eq!(shown.lock().unwrap().last().unwrap(), "forge: sending in pieces instead");
}
