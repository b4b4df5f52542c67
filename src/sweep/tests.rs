//! Both ways of looking, over trees and images with everything planted, and with what is no secret.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::testing::{Host, tool};

const TOKEN: &str = "5b1f0a6e9c3d47288f60d1e2b3a4c5968778695a";
const KEY: &str = "-----BEGIN OPENSSH PRIVATE KEY-----\n\
                   b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\n\
                   QyNTUxOQAAACB5\n-----END OPENSSH PRIVATE KEY-----\n";
const HASH_SALT: &str = "$6$rounds=5000$saltsalt$";

/// Returns a hash as `mkpasswd` makes them.
fn hash(letter: char) -> String {
    format!("{HASH_SALT}{}", letter.to_string().repeat(86))
}

fn values() -> Vec<Value> {
    let secret = "it's \"no\" secret\nsecond line of it\nshort\n";
    [
        Value::of("the token", TOKEN),
        Value::of("the address", "10.0.2.2:46661"),
        Value::of("the secret", secret),
        Value::of("the console password", &hash('w')),
    ]
    .concat()
}

/// A small root, as clean as one can be.
struct Tree(TempDir);

impl Tree {
    fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        tree.write(
            "etc/passwd",
            "root:x:0:0::/root:/bin/sh\nops:x:1001:1001::/srv/ops home:/bin/sh\nx:x:2:2::/:\n",
        );
        tree.write("etc/shadow", format!("root:*:1::::::\nodin:{}:1::::::\n", hash('w')));
        tree.write("etc/shadow-", format!("root:*:1::::::\nodin:{}:1::::::\n", hash('w')));
        tree.write("root/.bash_history", "");
        tree.write("home/odin/.bashrc", "HISTSIZE=1000\n");
        // The line alone is in every SSH client, and the marks of hashes in what makes them.
        tree.write(
            "usr/bin/ssh",
            "\0-----BEGIN OPENSSH PRIVATE KEY-----\n\0\0$6$%s$%s\0$y$j9T$\0autoinstall:\0",
        );
        tree.write("usr/share/doc/x/README", "-----BEGIN RSA PRIVATE KEY-----\n…\n");
        tree
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Makes a file one that a package delivers.
    fn deliver(&self, name: &str, content: &str, listed_as: &str) {
        self.write(name, content);
        let output = Command::new("md5sum").arg(self.path().join(name)).output().unwrap();
        let sum = String::from_utf8(output.stdout).unwrap()[..32].to_owned();
        let list = format!("var/lib/dpkg/info/{}.md5sums", name.replace('/', "-"));
        self.write(&list, format!("{sum}  {listed_as}\n"));
    }

    async fn look(&self, host: &Host) -> Result<guest::Report, guest::SweepError> {
        guest::look(&values(), self.path().to_str().unwrap(), host, Duration::from_secs(20)).await
    }

    async fn findings(&self) -> Vec<(String, String)> {
        let report = self.look(&Host::new(0)).await.unwrap();
        report.findings.into_iter().map(|it| (it.name, it.place)).collect()
    }
}

/// Returns everything below a folder, as an archive.
fn content(folder: &Path) -> Vec<u8> {
    let output = Command::new("tar").arg("-C").arg(folder).args(["-c", "--sort=name", "."]).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[tokio::test]
async fn a_clean_guest_has_no_findings_and_is_not_changed() {
    let tree = Tree::new();
    let before = content(tree.path());
    assert_eq!(tree.findings().await, []);
    assert!(content(tree.path()) == before);
}

#[tokio::test]
async fn each_planted_secret_is_found_in_a_guest() {
    let other = hash('o');
    let answers = format!("#cloud-config\nautoinstall:\n  version: 1\n  identity:\n    password: {other}\n");
    let yescrypt = format!("ops:$y$j9T$saltsaltsalt$abcdefgh$: x $y$j9T$saltsaltsalt${}:", "a".repeat(43));
    let encrypted = format!(
        "\r\n-----BEGIN RSA PRIVATE KEY-----\r\nProc-Type: 4,ENCRYPTED\r\nDEK-Info: AES-128-CBC,A0\r\n\r\n{}",
        "M".repeat(64)
    );
    for (file, text, name) in [
        (
            "etc/systemd/system/x.service",
            format!("ExecStart=curl http://10.0.2.2:46661/{TOKEN}/ready"),
            "the token",
        ),
        ("etc/x", "http://10.0.2.2:46661/".to_owned(), "the address"),
        ("var/lib/x.db", format!("\0\x01{TOKEN}\0"), "the token"),
        ("boot/efi/x", TOKEN.to_owned(), "the token"),
        (".hidden/x", TOKEN.to_owned(), "the token"),
        ("home/odin/a b\t'c'\"$d", TOKEN.to_owned(), "the token"),
        ("etc/a", "say it's \"no\" secret".to_owned(), "the secret"),
        ("etc/a.json", r#"{"a": "it's \"no\" secret"}"#.to_owned(), "the secret"),
        ("etc/a.sh", r#"a='it'\''s "no" secret'"#.to_owned(), "the secret"),
        ("etc/b", "a second line of it, too".to_owned(), "the secret"),
        ("var/backups/shadow.bak", format!("odin:{}:1:", hash('w')), "the console password"),
        ("etc/ssh/ssh_host_ed25519_key", KEY.to_owned(), "a private key"),
        ("etc/ssl/private/x.pem", encrypted, "a private key"),
        ("srv/key.json", format!("{{\"key\": \"{}\"}}", KEY.replace('\n', "\\n")), "a private key"),
        ("etc/cloud/x", format!("passwd: {other}"), "a password's hash"),
        ("etc/shadow", format!("root:{other}:1::::::"), "a password's hash"),
        ("etc/y", yescrypt, "a password's hash"),
        ("etc/z", format!("$2b$12${}", "b".repeat(53)), "a password's hash"),
        ("autoinstall.yaml", answers, "an installer's answers"),
        ("root/.bash_history", "ls\n".to_owned(), "a shell history"),
        ("home/gone/.zsh_history", "ls\n".to_owned(), "a shell history"),
        ("srv/ops home/.python_history", "1\n".to_owned(), "a shell history"),
        (".sh_history", "ls\n".to_owned(), "a shell history"),
    ] {
        let tree = Tree::new();
        tree.write(file, text);
        let found = tree.findings().await;
        let shown = file.replace('\t', "?");
        assert!(found.contains(&(name.to_owned(), format!("/{shown}"))), "{name} in {file}: {found:?}");
    }
}

#[tokio::test]
async fn a_path_with_line_ends_is_looked_at_and_does_no_harm() {
    let tree = Tree::new();
    tree.write("etc/two\nlines\n", TOKEN);
    tree.write("etc/found\tx\nfound\tthe token\t/etc/passwd", KEY);
    let found = tree.findings().await;
    let expected =
        [("a private key", "/etc/found?x?found?the token?/etc/passwd"), ("the token", "/etc/two?lines?")];
    assert_eq!(found, expected.map(|(name, path)| (name.to_owned(), path.to_owned())));
}

#[tokio::test]
async fn what_is_on_no_disk_is_not_looked_at() {
    let tree = Tree::new();
    for name in ["dev/shm/x", "proc/1/environ", "run/forge/x", "snap/core/x", "sys/firmware/dmi/x"] {
        tree.write(name, format!("{TOKEN}\n{KEY}"));
    }
    // Links lead to what is looked at anyway, or is not there.
    symlink(tree.path().join("run"), tree.path().join("var-run")).unwrap();
    assert_eq!(tree.findings().await, []);
    tree.write("srv/run/x", TOKEN);
    assert_eq!(tree.findings().await.len(), 1);
}

#[tokio::test]
async fn what_packages_deliver_is_everybodys_until_it_is_changed() {
    let tree = Tree::new();
    tree.deliver("usr/lib/libtls.so", &format!("\0{KEY}\0"), "usr/lib/libtls.so");
    tree.deliver("usr/sbin/x", &hash('s'), "sbin/x");
    tree.deliver("usr/lib/python3/a/keys.py", &format!("KEY = '''{KEY}'''"), "usr/lib/python3/a/keys.py");
    tree.write("usr/lib/python3/a/__pycache__/keys.cpython-312.pyc", format!("\x01\0{KEY}\0"));
    let report = tree.look(&Host::new(0)).await.unwrap();
    assert_eq!((report.findings.as_slice(), report.public.len()), (&[][..], 2));

    tree.write("usr/lib/python3/a/keys.py", format!("KEY = '''{KEY}''' "));
    tree.write("usr/lib/libtls.so.1", format!("\0{KEY}\0"));
    tree.write("usr/sbin/x", TOKEN);
    let found: Vec<_> = tree.findings().await.into_iter().map(|(_, path)| path).collect();
    let changed = [
        "/usr/lib/libtls.so.1",
        "/usr/lib/python3/a/__pycache__/keys.cpython-312.pyc",
        "/usr/lib/python3/a/keys.py",
        "/usr/sbin/x",
    ];
    assert_eq!(found, changed);
}

#[tokio::test]
async fn a_value_is_never_told() {
    let tree = Tree::new();
    tree.write("etc/x", format!("{TOKEN} {} {KEY} it's \"no\" secret", hash('w')));
    let report = tree.look(&Host::new(0)).await.unwrap();
    let told = format!("{report:?} {} {:?}", describe(&report.findings), values());
    for secret in [TOKEN, &hash('w'), "it's", "second line", "b3BlbnNzaC1r", "46661"] {
        assert!(!told.contains(secret), "{told}");
    }
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again() {
    let (tree, host) = (Tree::new(), Host::new(2));
    assert!(tree.look(&host).await.is_ok());
    assert!(matches!(tree.look(&Host::new(3)).await, Err(guest::SweepError::Communicator(_))));
}

#[tokio::test]
async fn a_guest_that_was_not_looked_through_is_no_clean_one() {
    let tree = Tree::new();
    fs::remove_file(tree.path().join("etc/passwd")).unwrap();
    symlink("passwd", tree.path().join("etc/passwd")).unwrap();
    let mut host = Host::new(0);
    host.may_complain = true;
    let error = tree.look(&host).await.unwrap_err().to_string();
    assert!(error.starts_with("not every file of the guest was looked at: cut: "), "{error}");

    let many: Vec<_> =
        (0..300).flat_map(|number| Value::of("x", &format!("{number}{}", "x".repeat(250)))).collect();
    let error = guest::look(&many, "", &Host::new(0), Duration::from_secs(1)).await.unwrap_err().to_string();
    assert!(error.contains("bytes of secrets are more than"), "{error}");
}

#[test]
fn values_are_their_telling_lines() {
    let texts = |text: &str| Value::of("x", text).iter().map(|it| it.text().to_owned()).collect::<Vec<_>>();
    assert_eq!(texts("short\n  1234567\n\n"), Vec::<String>::new());
    assert_eq!(texts("  12345678 \n"), ["12345678"]);
    let key: Vec<String> = (10..20).map(|number| format!("line {number}{}", "x".repeat(number))).collect();
    assert_eq!(texts(&key.join("\n")), key[6..]);
    assert_eq!(texts(&"é".repeat(300)), ["é".repeat(128)]);
    assert!(Value::of("x", &hash('w'))[0].is_password && !Value::of("x", TOKEN)[0].is_password);
}

#[test]
fn findings_are_told_place_by_place_and_not_all() {
    let finding = |place: u32, name: &str| Finding { place: format!("/{place}"), name: name.to_owned() };
    let few = [finding(1, "a hash"), finding(1, "a key"), finding(2, "a key")];
    assert_eq!(describe(&few), "/1: a hash, a key; /2: a key");
    let many: Vec<_> = (0..11).map(|place| finding(place, "a key")).collect();
    assert!(describe(&many).ends_with("/7: a key; and 3 places more"));
}

// Disks --------------------------------------------------------------------------------------------

/// What is read at a time, and so where one window ends.
const WINDOW: u64 = 1 << 20;

/// A sparse image of 64 MiB.
struct Image(TempDir, File);

impl Image {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file =
            File::options().read(true).write(true).create_new(true).open(folder.path().join("raw")).unwrap();
        file.set_len(64 * WINDOW).unwrap();
        Self(folder, file)
    }

    fn write(&self, at: u64, bytes: impl AsRef<[u8]>) {
        self.1.write_all_at(bytes.as_ref(), at).unwrap();
    }

    async fn findings(&self, public: &[String]) -> Vec<(String, String)> {
        let public = public.iter().cloned().collect();
        let found = disk::scan(&self.0.path().join("raw"), &values(), &public, |_, _| ()).await.unwrap();
        found.into_iter().map(|it| (it.name, it.place)).collect()
    }
}

#[tokio::test]
async fn a_token_is_found_wherever_windows_and_holes_end() {
    let length = TOKEN.len() as u64;
    for at in [0, WINDOW - length, WINDOW - 20, WINDOW - 1, WINDOW, 3 * WINDOW - 512, 64 * WINDOW - length] {
        let image = Image::new();
        // Data up to the end of the third window, so that windows follow one another.
        image.write(0, vec![0xa5; 3 * WINDOW as usize]);
        image.write(at, TOKEN);
        assert_eq!(image.findings(&[]).await, [("the token".to_owned(), format!("byte {at}"))]);
    }
    for at in [40 * WINDOW, 40 * WINDOW + 4096 - length, 64 * WINDOW - length] {
        let image = Image::new();
        image.write(at, TOKEN);
        assert_eq!(image.findings(&[]).await, [("the token".to_owned(), format!("byte {at}"))]);
    }
}

#[tokio::test]
async fn the_last_byte_of_an_image_of_any_length_counts() {
    let image = Image::new();
    image.1.set_len(5000).unwrap();
    image.write(5000 - TOKEN.len() as u64, TOKEN);
    assert_eq!(image.findings(&[]).await.len(), 1);
    image.1.set_len(4999).unwrap();
    assert_eq!(image.findings(&[]).await.len(), 0);
}

#[tokio::test]
async fn each_secret_is_found_on_a_disk_and_counted() {
    let image = Image::new();
    image.write(4096, format!("http://10.0.2.2:46661/{TOKEN}/report"));
    image.write(2 * WINDOW - 30, KEY);
    image.write(5 * WINDOW - 40, hash('o'));
    for at in 10..15 {
        image.write(at * WINDOW + 7, r#""it's \"no\" secret""#);
    }
    let found = image.findings(&[]).await;
    let expected = [
        ("a password's hash", "byte 5242840"),
        ("a private key", "byte 2097122"),
        ("the address", "byte 4103"),
        ("the secret", "bytes 10485768, 11534344, 12582920 and 2 more"),
        ("the token", "byte 4118"),
    ];
    assert_eq!(found, expected.map(|(name, place)| (name.to_owned(), place.to_owned())));
}

#[tokio::test]
async fn what_is_no_secret_is_not_found_on_a_disk() {
    let image = Image::new();
    image.write(0, format!("odin:{}:1::", hash('w')));
    image.write(
        8192,
        "\0-----BEGIN OPENSSH PRIVATE KEY-----\n\0\0$6$%s$%s\0autoinstall:\n version: 1\n identity:\n",
    );
    assert_eq!(image.findings(&[]).await, []);
}

/// What the guest tells of packages is known again on the disk, however lines end there.
#[tokio::test]
async fn what_packages_deliver_is_known_again_on_a_disk() {
    let (tree, image) = (Tree::new(), Image::new());
    tree.deliver("usr/lib/libtls.so", &format!("\0{KEY}\0{}\0", hash('s')), "usr/lib/libtls.so");
    let public: Vec<_> = tree.look(&Host::new(0)).await.unwrap().public.into_iter().collect();
    image.write(WINDOW - 50, KEY.replace('\n', "\r\n"));
    image.write(3 * WINDOW, hash('s'));
    assert_eq!(image.findings(&public).await, []);
    image.write(4 * WINDOW, KEY.replace("b3Blbn", "b4Blbn"));
    assert_eq!(image.findings(&public).await.len(), 1);
    assert_eq!(image.findings(&[]).await.len(), 2);
}

#[tokio::test]
async fn a_compressed_secret_is_out_of_reach() {
    let (image, tree) = (Image::new(), Tree::new());
    let mut gzip = tool("gzip", "gzip")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    gzip.stdin.take().unwrap().write_all(format!("{TOKEN} {TOKEN}").as_bytes()).unwrap();
    let packed = gzip.wait_with_output().unwrap().stdout;
    image.write(0, &packed);
    tree.write("var/log/x.gz", &packed);
    assert_eq!((image.findings(&[]).await.len(), tree.findings().await.len()), (0, 0));
}

#[tokio::test]
async fn progress_is_told_and_a_hole_takes_no_time() {
    let image = Image::new();
    image.1.set_len(1 << 42).unwrap();
    image.write(1 << 41, TOKEN);
    let mut told = Vec::new();
    let path = image.0.path().join("raw");
    let found =
        disk::scan(&path, &values(), &BTreeSet::new(), |done, total| told.push((done, total))).await.unwrap();
    assert_eq!(found.len(), 1);
    assert!(told.iter().all(|(done, total)| *total == 1 << 42 && *done > 1 << 41), "{told:?}");
    assert!(disk::scan(Path::new("/nowhere"), &[], &BTreeSet::new(), |_, _| ()).await.is_err());
}
