//! Fetching from a server that misbehaves on purpose, and from files.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use forge::fetch::{Cache, Expected, FetchError, Image, Progress, image};
use sha2::{Digest, Sha256};

/// What a server does with one request.
struct Reply {
    bytes: Vec<u8>,
    /// Whether it then says nothing more and does not close.
    hold: bool,
}

/// A server that does with each request, counted from 0, what its closure says.
struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(reply: impl Fn(usize, &str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let seen = Arc::clone(&requests);
        let reply = Arc::new(reply);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, reply) = (Arc::clone(&seen), Arc::clone(&reply));
                thread::spawn(move || answer(&stream.unwrap(), &seen, reply.as_ref()));
            }
        });
        Self { address, requests }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn answer(stream: &TcpStream, seen: &Mutex<Vec<String>>, reply: &dyn Fn(usize, &str) -> Reply) {
    let mut lines = BufReader::new(stream).lines();
    let mut request = String::new();
    while let Some(Ok(line)) = lines.next() {
        if line.is_empty() {
            break;
        }
        request += &line;
        request.push('\n');
    }
    let number = {
        let mut seen = seen.lock().unwrap();
        seen.push(request.clone());
        seen.len() - 1
    };
    let reply = reply(number, &request);
    let mut stream = stream;
    // A client that has gone away is part of some tests.
    let _written = stream.write_all(&reply.bytes).is_ok();
    if reply.hold {
        loop {
            thread::park();
        }
    }
}

fn header<'a>(request: &'a str, name: &str) -> Option<&'a str> {
    let wanted = format!("{name}:");
    request
        .lines()
        .find(|line| line.len() > wanted.len() && line[..wanted.len()].eq_ignore_ascii_case(&wanted))
        .map(|line| line[wanted.len()..].trim())
}

fn response(status: &str, headers: &str, body: &[u8]) -> Reply {
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n");
    Reply { bytes: [head.as_bytes(), body].concat(), hold: false }
}

/// In place of an entity tag: none.
const NO_TAG: &str = "";

/// Answers as a good server does: ranges, an entity tag, the right length.
fn good(content: &[u8], tag: &str, request: &str) -> Reply {
    let start = header(request, "Range")
        .filter(|_| header(request, "If-Range").is_none_or(|wanted| wanted == tag))
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let total = content.len();
    let tag = if tag == NO_TAG { String::new() } else { format!("ETag: {tag}\r\n") };
    match start {
        Some(start) if start >= total => response("416 Range Not Satisfiable", "", b""),
        Some(start) => {
            let length = total - start;
            let headers = format!(
                "{tag}Content-Range: bytes {start}-{}/{total}\r\nContent-Length: {length}\r\n",
                total - 1
            );
            response("206 Partial Content", &headers, &content[start..])
        }
        None => response("200 OK", &format!("{tag}Content-Length: {total}\r\n"), content),
    }
}

/// Returns a good answer that breaks off after that many bytes of its body.
fn cut(mut reply: Reply, body: usize) -> Reply {
    let head = reply.bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    reply.bytes.truncate(head + body);
    reply
}

struct Fixture {
    folder: tempfile::TempDir,
    cache: Cache,
    content: Vec<u8>,
    told: Mutex<Vec<Progress>>,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = Cache::at(folder.path().join("cache"));
        cache.retries.attempts = 3;
        cache.retries.pause = Duration::from_millis(1);
        cache.retries.silence = Duration::from_millis(300);
        let content =
            (0..700_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        Self { folder, cache, content, told: Mutex::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts a server of the content that answers as a good one does, but for that change.
    fn serve(&self, change: impl Fn(usize, Reply) -> Reply + Send + Sync + 'static) -> Server {
        let content = self.content.clone();
        Server::start(move |number, request| change(number, good(&content, "\"a\"", request)))
    }

    /// Starts such a server that falls silent in its first answer, after that many bytes.
    fn serve_haltingly(&self, body: usize) -> Server {
        self.serve(
            move |number, reply| {
                if number == 0 { Reply { hold: true, ..cut(reply, body) } } else { reply }
            },
        )
    }

    /// Fetches what must come in the end, and come right.
    async fn fetch_whole(&self, location: &str) -> Image {
        let got = self.fetch(location).await.unwrap();
        assert_eq!(fs::read(&got.path).unwrap(), self.content);
        got
    }

    async fn fetch(&self, location: &str) -> Result<Image, FetchError> {
        self.fetch_as(location, &Expected::Sha256(sha256(&self.content))).await
    }

    async fn fetch_as(&self, location: &str, expected: &Expected) -> Result<Image, FetchError> {
        let tell = |progress| self.told.lock().unwrap().push(progress);
        image(location, self.folder.path(), expected, &self.cache, &tell).await
    }

    fn told(&self) -> Vec<Progress> {
        std::mem::take(&mut self.told.lock().unwrap())
    }

    fn hashed(told: &[Progress]) -> bool {
        told.iter().any(|progress| matches!(progress, Progress::Hashing { .. }))
    }

    /// Returns the whole files in the cache.
    fn whole(&self) -> Vec<PathBuf> {
        let folders = fs::read_dir(self.cache.root().join("sha256")).into_iter().flatten();
        let files = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
        files.map(|file| file.unwrap().path()).collect()
    }

    fn partial(&self) -> PathBuf {
        self.cache.root().join("partial").join(sha256(&self.content))
    }
}

fn sha256(content: &[u8]) -> String {
    format!("{:x}", bytes::Bytes::copy_from_slice(&Sha256::digest(content)))
}

#[tokio::test]
async fn a_download_is_verified_kept_and_remembered() {
    let fixture = Fixture::new();
    let server = fixture.serve(|_, reply| reply);
    let url = server.url("releases/image.iso");
    let got = fixture.fetch_whole(&url).await;
    assert!(got.path.ends_with(format!("sha256/{}/image.iso", got.sha256)));
    assert_eq!((got.size, got.from_cache, got.signed_by.clone()), (700_000, false, None));
    let told = fixture.told();
    let end = Progress::Downloading { done: 700_000, total: Some(700_000) };
    assert!(told.contains(&end) && !Fixture::hashed(&told), "{told:?}");
    assert!(!fixture.partial().exists() && !fixture.partial().with_extension("json").exists());

    let again = fixture.fetch(&url).await.unwrap();
    assert_eq!(again, Image { from_cache: true, ..got.clone() });
    assert_eq!(fixture.told(), [Progress::Remembered]);
    assert_eq!(server.requests().len(), 1);

    // Touched: hashed again, and still what it must be.
    fs::File::options().write(true).open(&got.path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    assert!(fixture.fetch(&url).await.unwrap().from_cache);
    assert!(Fixture::hashed(&fixture.told()));
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_damaged_file_in_the_cache_is_fetched_again() {
    let fixture = Fixture::new();
    let server = fixture.serve(|_, reply| reply);
    let got = fixture.fetch(&server.url("image.iso")).await.unwrap();
    fs::write(&got.path, "damaged").unwrap();
    let again = fixture.fetch_whole(&server.url("image.iso")).await;
    assert!(!again.from_cache);
    let aside = fixture.cache.root().join("wrong").join(format!("{}-image.iso", sha256(b"damaged")));
    assert_eq!(fs::read(aside).unwrap(), b"damaged");
}

#[tokio::test]
async fn a_broken_connection_is_resumed_where_it_broke() {
    let fixture = Fixture::new();
    // Five breaks, more than the three attempts that may bring nothing.
    let server = fixture.serve(|number, reply| if number < 5 { cut(reply, 100_000) } else { reply });
    fixture.fetch_whole(&server.url("image.iso")).await;
    let requests = server.requests();
    assert_eq!(requests.len(), 6);
    assert_eq!(header(&requests[0], "Range"), None);
    for (number, request) in requests.iter().enumerate().skip(1) {
        assert_eq!(header(request, "Range"), Some(format!("bytes={}-", number * 100_000).as_str()));
        assert_eq!(header(request, "If-Range"), Some("\"a\""));
    }
    let told = fixture.told();
    let retry = told.iter().find_map(|progress| match progress {
        Progress::Retry { attempt, of, reason } => Some((*attempt, *of, reason.clone())),
        _ => None,
    });
    assert_eq!(retry.as_ref().map(|retry| (retry.0, retry.1)), Some((2, 3)), "{retry:?}");
    assert!(!Fixture::hashed(&told), "what came is hashed once: {told:?}");
}

#[tokio::test]
async fn a_dropped_fetch_leaves_a_partial_file_that_is_resumed() {
    let mut fixture = Fixture::new();
    let server = fixture.serve_haltingly(200_000);
    let url = server.url("image.iso");
    fixture.cache.retries.silence = Duration::from_secs(30);
    let arrived = async {
        while fs::metadata(fixture.partial()).map_or(0, |metadata| metadata.len()) < 200_000 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        result = fixture.fetch(&url) => panic!("{result:?}"),
        () = arrived => {}
    }
    assert_eq!(fixture.whole(), Vec::<PathBuf>::new());
    fixture.fetch_whole(&url).await;
    assert_eq!(header(&server.requests()[1], "Range"), Some("bytes=200000-"));
    assert!(Fixture::hashed(&fixture.told()), "what came before is hashed from the disk");
}

#[tokio::test]
async fn a_killed_process_leaves_a_partial_file_that_is_resumed() {
    let fixture = Fixture::new();
    let server = fixture.serve_haltingly(200_000);
    let url = server.url("image.iso");
    let mut child = child(&fixture, &url, &[]);
    let deadline = Instant::now() + Duration::from_secs(20);
    while fs::metadata(fixture.partial()).map_or(0, |metadata| metadata.len()) < 200_000 {
        assert!(Instant::now() < deadline, "the child downloads");
        thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(fixture.whole(), Vec::<PathBuf>::new());
    fixture.fetch_whole(&url).await;
    assert_eq!(header(&server.requests()[1], "Range"), Some("bytes=200000-"));
}

/// Starts this test program anew, as a process that fetches.
fn child(fixture: &Fixture, url: &str, variables: &[(&str, &str)]) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "in_a_process_of_its_own", "--nocapture"])
        .env("FORGE_TEST_FETCH_URL", url)
        .env("FORGE_TEST_FETCH_DIGEST", sha256(&fixture.content))
        .env("FORGE_CACHE", fixture.cache.root())
        .envs(variables.iter().copied())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// What [`child`] runs; in an ordinary test run there is nothing to do.
#[tokio::test]
async fn in_a_process_of_its_own() {
    let variable = |name| std::env::var(name);
    let (Ok(url), Ok(digest)) = (variable("FORGE_TEST_FETCH_URL"), variable("FORGE_TEST_FETCH_DIGEST"))
    else {
        return;
    };
    let cache = Cache::of_user().unwrap();
    image(&url, Path::new("/"), &Expected::Sha256(digest), &cache, &|_| ()).await.unwrap();
}

#[tokio::test]
async fn the_proxy_of_the_environment_is_used() {
    let fixture = Fixture::new();
    let proxy = fixture.serve(|_, reply| reply);
    let variables = [("http_proxy", format!("http://{}", proxy.address)), ("no_proxy", String::new())];
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut child = child(&fixture, "http://images.example/x/image.iso", &variables);
    assert!(child.wait().unwrap().success());
    assert!(proxy.requests()[0].starts_with("GET http://images.example/x/image.iso HTTP/1.1"));
}

#[tokio::test]
async fn a_server_without_ranges_sends_all_again() {
    let fixture = Fixture::new();
    let content = fixture.content.clone();
    let server = Server::start(move |number, _| {
        let reply = response("200 OK", &format!("Content-Length: {}\r\n", content.len()), &content);
        if number == 0 { cut(reply, 100_000) } else { reply }
    });
    fixture.fetch_whole(&server.url("image.iso")).await;
    assert_eq!(header(&server.requests()[1], "Range"), Some("bytes=100000-"));
}

#[tokio::test]
async fn a_file_that_changes_between_attempts_is_not_mixed() {
    let fixture = Fixture::new();
    let (new, old) = (fixture.content.clone(), vec![b'o'; fixture.content.len()]);
    let server = Server::start(move |number, request| match number {
        0 => cut(good(&old, "\"old\"", request), 300_000),
        _ => good(&new, "\"new\"", request),
    });
    fixture.fetch_whole(&server.url("image.iso")).await;
    assert_eq!(server.requests().len(), 2, "the answer to If-Range was the whole new file");
}

#[tokio::test]
async fn a_mixed_file_is_not_blamed_on_the_server() {
    let fixture = Fixture::new();
    let (new, old) = (fixture.content.clone(), vec![b'o'; fixture.content.len()]);
    // This server has ranges, but nothing that tells versions apart.
    let server = Server::start(move |number, request| match number {
        0 => cut(good(&old, NO_TAG, request), 300_000),
        _ => good(&new, NO_TAG, request),
    });
    fixture.fetch_whole(&server.url("image.iso")).await;
    let ranges: Vec<_> = server.requests().iter().map(|request| header(request, "Range").is_some()).collect();
    assert_eq!(ranges, [false, true, false], "resumed, found wrong, and begun anew");
}

#[tokio::test]
async fn a_range_that_was_not_asked_for_is_not_used() {
    let fixture = Fixture::new();
    let content = fixture.content.clone();
    let server = Server::start(move |number, request| match number {
        0 => cut(good(&content, "\"a\"", request), 100_000),
        1 => {
            let headers = format!("Content-Range: bytes 5-{}/{}\r\n", content.len() - 1, content.len());
            response("206 Partial Content", &headers, &content[5..])
        }
        _ => good(&content, "\"a\"", request),
    });
    fixture.fetch_whole(&server.url("image.iso")).await;
}

#[tokio::test]
async fn a_partial_file_longer_than_the_file_is_begun_anew() {
    let fixture = Fixture::new();
    let content = fixture.content.clone();
    let server = Server::start(move |number, request| match number {
        0 => cut(good(&vec![0; 900_000], "\"a\"", request), 800_000),
        _ => good(&content, "\"a\"", request),
    });
    fixture.fetch_whole(&server.url("image.iso")).await;
}

#[tokio::test]
async fn a_length_that_never_comes_is_told_with_numbers() {
    let fixture = Fixture::new();
    let server = Server::start(|number, _| {
        let mut reply = response("200 OK", "Content-Length: 1000\r\n", b"short");
        if number > 0 {
            reply.bytes.clear();
        }
        reply
    });
    let error = fixture.fetch(&server.url("image.iso")).await.unwrap_err();
    assert!(matches!(error, FetchError::Unreachable { attempts: 3, .. }), "{error}");
    assert!(error.to_string().contains("what came so far is kept and resumed"), "{error}");
    assert_eq!(fixture.whole(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn what_will_not_change_is_not_tried_again() {
    let fixture = Fixture::new();
    let server = Server::start(|_, _| response("404 Not Found", "Content-Length: 0\r\n", b""));
    let error = fixture.fetch(&server.url("image.iso")).await.unwrap_err();
    let expected = format!("{}: the server answered 404 Not Found", server.url("image.iso"));
    assert_eq!(error.to_string(), expected);
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn what_may_change_is_tried_again() {
    let fixture = Fixture::new();
    let server = fixture.serve(|number, reply| match number {
        0 => response("503 Service Unavailable", "Retry-After: 0\r\nContent-Length: 0\r\n", b""),
        1 => Reply { hold: true, ..cut(reply, 10) },
        _ => reply,
    });
    fixture.fetch(&server.url("image.iso")).await.unwrap();
    let reasons: Vec<String> = fixture
        .told()
        .into_iter()
        .filter_map(|progress| match progress {
            Progress::Retry { reason, .. } => Some(reason),
            _ => None,
        })
        .collect();
    let expected = ["the server answered 503 Service Unavailable", "the server was silent for too long"];
    assert_eq!(reasons, expected);
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let fixture = Fixture::new();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = fixture.fetch(&format!("http://user:secret@{nobody}/image.iso")).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, FetchError::Unreachable { attempts: 3, .. }), "{text}");
    assert!(text.contains("refused") && !text.contains("secret") && !text.contains("user"), "{text}");
}

#[tokio::test]
async fn no_tls_is_told_as_such_and_not_tried_again() {
    let fixture = Fixture::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            // Plain text where a handshake is expected.
            let _written = stream.unwrap().write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").is_ok();
        }
    });
    let error = fixture.fetch(&format!("https://{address}/image.iso")).await.unwrap_err();
    assert!(matches!(error, FetchError::Tls { .. }), "{error:?}");
    assert!(!fixture.told().iter().any(|progress| matches!(progress, Progress::Retry { .. })));
}

#[tokio::test]
async fn credentials_go_to_the_server_and_nowhere_else() {
    let fixture = Fixture::new();
    let server = Server::start(|_, _| response("401 Unauthorized", "Content-Length: 0\r\n", b""));
    let url = format!("http://user:secret@{}/image.iso?token=abc", server.address);
    let error = fixture.fetch(&url).await.unwrap_err();
    assert_eq!(header(&server.requests()[0], "Authorization"), Some("Basic dXNlcjpzZWNyZXQ="));
    let text = format!("{error} {error:?}");
    assert!(!text.contains("secret") && !text.contains("abc"), "{text}");
}

#[tokio::test]
async fn more_than_the_disk_holds_is_refused_at_once() {
    let fixture = Fixture::new();
    let server = Server::start(|_, _| Reply {
        hold: true,
        ..response("200 OK", "Content-Length: 9000000000000000\r\n", b"a beginning")
    });
    let error = fixture.fetch(&server.url("image.iso")).await.unwrap_err();
    assert!(matches!(error, FetchError::Space { needed: 9_000_000_000_000_000, .. }), "{error}");
}

#[tokio::test]
async fn two_fetches_make_one_download() {
    let fixture = Fixture::new();
    let server = fixture.serve(|_, reply| {
        thread::sleep(Duration::from_millis(150));
        reply
    });
    let url = server.url("image.iso");
    let (one, two) = tokio::join!(fixture.fetch(&url), fixture.fetch(&url));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.path, two.path);
    assert_ne!(one.from_cache, two.from_cache);
    assert_eq!(server.requests().len(), 1);
    let waiting = Progress::Waiting("waiting for another forge to fetch image.iso".to_owned());
    assert!(fixture.told().contains(&waiting));
}

#[tokio::test]
async fn two_processes_make_one_download() {
    let fixture = Fixture::new();
    let server = fixture.serve(|_, reply| {
        thread::sleep(Duration::from_millis(300));
        reply
    });
    let url = server.url("image.iso");
    let mut children = [child(&fixture, &url, &[]), child(&fixture, &url, &[])];
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(server.requests().len(), 1);
    assert_eq!(fixture.whole().len(), 1);
}

#[tokio::test]
async fn a_wrong_file_is_kept_aside_and_told_with_both_digests() {
    let fixture = Fixture::new();
    let other = vec![b'x'; 1000];
    let actual = sha256(&other);
    let server = Server::start(move |_, request| good(&other, "\"a\"", request));
    let error = fixture.fetch(&server.url("image.iso")).await.unwrap_err();
    let FetchError::WrongDigest { expected, actual: found, kept, .. } = &error else { panic!("{error}") };
    assert_eq!((expected, found), (&sha256(&fixture.content), &actual));
    let kept = kept.as_ref().unwrap();
    assert_eq!(fs::read(kept).unwrap().len(), 1000);
    let text = error.to_string();
    assert!(text.contains(&actual) && text.contains(expected), "{text}");
    assert!(text.ends_with(&format!("; the download is kept as {}", kept.display())), "{text}");
    assert_eq!(fixture.whole(), Vec::<PathBuf>::new());
    assert!(!fixture.partial().exists());
    assert_eq!(server.requests().len(), 1, "it came at once: no doubt is left");
}

#[tokio::test]
async fn a_local_file_is_used_in_place_and_hashed_once() {
    let fixture = Fixture::new();
    let path = fixture.path("image.iso");
    fs::write(&path, &fixture.content).unwrap();
    let got = fixture.fetch("image.iso").await.unwrap();
    assert_eq!((&got.path, got.from_cache), (&path, false));
    assert!(fixture.told().contains(&Progress::Hashing { done: 700_000, total: 700_000 }));
    fixture.fetch(path.to_str().unwrap()).await.unwrap();
    assert_eq!(fixture.told(), [Progress::Remembered]);
    assert_eq!(fixture.whole(), Vec::<PathBuf>::new(), "it is never copied");

    fs::write(&path, "other").unwrap();
    let error = fixture.fetch("image.iso").await.unwrap_err();
    assert!(matches!(&error, FetchError::WrongDigest { kept: None, .. }), "{error}");
    assert!(error.to_string().ends_with("; the file is left untouched"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"other");
}

#[tokio::test]
async fn locations_that_cannot_be_are_told() {
    let fixture = Fixture::new();
    let digest = Expected::Sha256("0".repeat(64));
    fs::create_dir(fixture.path("folder")).unwrap();
    for (location, expected, message) in [
        ("none.iso", &digest, "there is no file"),
        ("folder", &digest, "/folder cannot be read: it is a folder"),
        ("ftp://user:secret@host/x", &digest, "`ftp://host/x` cannot be fetched: only http, https and paths"),
        ("https://", &digest, "cannot be fetched"),
        ("none.iso", &Expected::Sha256("abc".to_owned()), "`abc` is not a SHA-256"),
    ] {
        let error = fixture.fetch_as(location, expected).await.unwrap_err().to_string();
        assert!(error.contains(message) && !error.contains("secret"), "{location}: {error}");
    }
}

/// A key, a list and its signature, as files and over HTTP.
#[tokio::test]
async fn a_signed_list_says_what_an_image_must_be() {
    use pgp::composed::{DetachedSignature, KeyType, SecretKeyParamsBuilder};
    use pgp::crypto::hash::HashAlgorithm;
    use pgp::ser::Serialize;
    use pgp::types::{KeyDetails, Password};

    let fixture = Fixture::new();
    let mut parameters = SecretKeyParamsBuilder::default();
    parameters.key_type(KeyType::Ed25519Legacy).can_sign(true).primary_user_id("Images".into());
    let secret = parameters.build().unwrap().generate(rand::thread_rng()).unwrap();
    let list = format!("{} *image.iso\n", sha256(&fixture.content));
    let signature = DetachedSignature::sign_binary_data(
        rand::thread_rng(),
        &secret.primary_key,
        &Password::empty(),
        HashAlgorithm::Sha512,
        list.as_bytes(),
    );
    let signature = signature.unwrap().to_bytes().unwrap();
    let fingerprint = format!("{:X}", secret.fingerprint());
    fs::write(fixture.path("key.gpg"), secret.to_public_key().to_bytes().unwrap()).unwrap();
    fs::write(fixture.path("SHA256SUMS"), &list).unwrap();
    fs::write(fixture.path("SHA256SUMS.gpg"), &signature).unwrap();
    fs::write(fixture.path("image.iso"), &fixture.content).unwrap();
    let expected = |file: &str, signature: &str, name: &str| Expected::Signed {
        file: file.to_owned(),
        signature: signature.to_owned(),
        key: fixture.path("key.gpg"),
        fingerprint: fingerprint.to_lowercase(),
        name: name.to_owned(),
    };

    let got = fixture.fetch_as("image.iso", &expected("SHA256SUMS", "SHA256SUMS.gpg", "image.iso")).await;
    assert_eq!(got.unwrap().signed_by, Some(format!("{fingerprint} (Images)")));

    let (copy, content) = (list.clone(), fixture.content.clone());
    let server = Server::start(move |number, request| match request.split(' ').nth(1).unwrap() {
        _ if number == 0 => response("502 Bad Gateway", "", b""),
        "/SHA256SUMS" => good(copy.as_bytes(), "\"a\"", request),
        "/SHA256SUMS.gpg" => good(&signature, "\"a\"", request),
        _ => good(&content, "\"a\"", request),
    });
    let over_http = expected(&server.url("SHA256SUMS"), &server.url("SHA256SUMS.gpg"), "image.iso");
    let got = fixture.fetch_as(&server.url("image.iso"), &over_http).await.unwrap();
    assert_eq!(got.sha256, sha256(&fixture.content));
    assert_eq!(server.requests().len(), 4, "each once, and one that failed");

    let error = fixture.fetch_as("image.iso", &expected("SHA256SUMS", "SHA256SUMS.gpg", "imag.iso")).await;
    assert_eq!(
        error.unwrap_err().to_string(),
        "SHA256SUMS does not list `imag.iso`; did you mean `image.iso`?"
    );

    fs::write(fixture.path("SHA256SUMS"), list.replace("image", "other")).unwrap();
    let error = fixture.fetch_as("image.iso", &expected("SHA256SUMS", "SHA256SUMS.gpg", "other.iso")).await;
    let message =
        "the signature SHA256SUMS.gpg of SHA256SUMS does not hold: it does not fit the file's content";
    assert_eq!(error.unwrap_err().to_string(), message);
}
