//! The node's own downloads: HTTP from loopback or wherever the URL says, and digests of files.

use std::path::{Path, PathBuf};

use md5::Md5;
use sha1::Sha1;
use sha2::digest::DynDigest;
use sha2::{Sha224, Sha256, Sha384, Sha512};
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::worker::Worker;
use crate::world::config::hex;

/// A file's digest in hexadecimal digits.
///
/// # Errors
/// An unreadable file.
pub(crate) async fn digest(file: &Path, algorithm: &str) -> Result<String, String> {
    let mut hasher: Box<dyn DynDigest + Send> = match algorithm {
        "md5" => Box::new(Md5::default()),
        "sha1" => Box::new(Sha1::default()),
        "sha224" => Box::new(Sha224::default()),
        "sha384" => Box::new(Sha384::default()),
        "sha512" => Box::new(Sha512::default()),
        _ => Box::new(Sha256::default()),
    };
    let path: PathBuf = file.into();
    let work = tokio::task::spawn_blocking(move || {
        let mut file = std::fs::File::open(&path)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match std::io::Read::read(&mut file, &mut buffer)? {
                0 => return Ok(hex(&hasher.finalize())),
                count => hasher.update(&buffer[..count]),
            }
        }
    });
    let digest: std::io::Result<String> = work.await.map_err(|error| error.to_string())?;
    digest.map_err(|error| format!("unable to open file - {error}"))
}

/// What a server says before the body.
pub(crate) struct Found {
    pub(crate) length: u64,
    pub(crate) media: String,
    stream: BufReader<TcpStream>,
}

struct Target {
    host: String,
    port: u16,
    path: String,
}

fn parse_url(url: &str) -> Option<Target> {
    let rest = url.strip_prefix("http://")?;
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "80"));
    Some(Target { host: host.into(), port: port.parse().ok()?, path: path.into() })
}

enum Ended {
    Body(Found),
    Moved(String),
    Refused(u16, String),
}

/// Asks once.
async fn ask(method: &str, url: &str) -> Result<Ended, String> {
    let target = parse_url(url).ok_or("only http is simulated")?;
    let Target { host, port, path } = &target;
    let stream = TcpStream::connect((host.as_str(), *port))
        .await
        .map_err(|_| format!("Connecting to {host}:{port}... failed: Connection refused."))?;
    let mut stream = BufReader::new(stream);
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
    let mut line = String::new();
    stream.read_line(&mut line).await.map_err(|error| error.to_string())?;
    let mut words = line.trim_end().splitn(3, ' ');
    let status: u16 = words.nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let reason = words.next().unwrap_or_default().to_owned();
    let (mut length, mut media, mut location) = (0, String::new(), String::new());
    loop {
        line.clear();
        let count = stream.read_line(&mut line).await.map_err(|error| error.to_string())?;
        let Some((key, value)) = line.trim_end().split_once(':').filter(|_| count > 0) else {
            break;
        };
        match key.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap_or(0),
            "content-type" => media = value.trim().into(),
            "location" => location = value.trim().into(),
            _ => {}
        }
    }
    Ok(match status {
        200..=299 => Ended::Body(Found { length, media, stream }),
        301 | 302 | 303 | 307 | 308 => {
            let relative = location.starts_with('/');
            Ended::Moved(if relative { format!("http://{host}:{port}{location}") } else { location })
        }
        _ => Ended::Refused(status, reason),
    })
}

/// Length and media type of what a URL leads to.
///
/// # Errors
/// The server's text.
pub(crate) async fn head(url: &str) -> Result<Found, String> {
    let mut url = url.to_owned();
    for _ in 0..10 {
        match ask("HEAD", &url).await? {
            Ended::Body(found) => return Ok(found),
            Ended::Moved(to) => url = to,
            Ended::Refused(status, reason) => {
                return Err(format!("invalid server response: '{status} {reason}'"));
            }
        }
    }
    Err("too many redirections".into())
}

/// Downloads to a file, with the log of wget.
///
/// # Errors
/// As the task ends.
pub(crate) async fn fetch(worker: &Worker, url: &str, to: &Path, shown: &str) -> Result<(), String> {
    let mut url = url.to_owned();
    for _ in 0..10 {
        worker.log(format!("--2026-11-21 07:55:40--  {url}"));
        let target = parse_url(&url).ok_or("download failed: only http is simulated")?;
        let ended = ask("GET", &url).await.map_err(|error| format!("download failed: {error}"))?;
        worker.log(format!("Connecting to {}:{}... connected.", target.host, target.port));
        let waiting = "HTTP request sent, awaiting response...";
        match ended {
            Ended::Body(found) => {
                worker.log(format!("{waiting} 200 OK"));
                return store(worker, found, to, shown).await;
            }
            Ended::Moved(next) => {
                worker.log(format!("{waiting} 302 Found"));
                let location = next.strip_prefix(&format!("http://{}:{}", target.host, target.port));
                worker.log(format!("Location: {} [following]", location.unwrap_or(&next)));
                url = next;
            }
            Ended::Refused(status, reason) => {
                worker.log(format!("{waiting} {status} {reason}"));
                worker.log(format!("2026-11-21 07:55:41 ERROR {status}: {reason}."));
                return Err("download failed: exit code 8".into());
            }
        }
    }
    Err("download failed: exit code 8".into())
}

async fn store(worker: &Worker, mut found: Found, to: &Path, shown: &str) -> Result<(), String> {
    let media = if found.media.is_empty() { String::new() } else { format!(" [{}]", found.media) };
    worker.log(format!("Length: {} ({}K){media}", found.length, found.length / 1024));
    worker.log(format!("Saving to: '{shown}'"));
    if let Some(folder) = to.parent() {
        tokio::fs::create_dir_all(folder).await.map_err(|error| error.to_string())?;
    }
    let failed = |error: std::io::Error| format!("download failed: {error}");
    let mut file = File::create(to).await.map_err(failed)?;
    let mut buffer = vec![0; 1 << 16];
    let mut total = 0;
    loop {
        let read = tokio::select! {
            read = found.stream.read(&mut buffer) => read.map_err(failed)?,
            () = worker.cancelled() => return Err("download failed: interrupted by signal".into()),
        };
        if read == 0 {
            break;
        }
        file.write_all(&buffer[..read]).await.map_err(failed)?;
        total += read as u64;
    }
    file.flush().await.map_err(failed)?;
    if total < found.length {
        return Err("download failed: exit code 4".into());
    }
    worker.log("     0K                                    100%  161M=0s");
    worker.log(format!("2026-11-21 07:55:40 (161 MB/s) - '{shown}' saved [{total}/{total}]"));
    Ok(())
}
