//! Uploads, streamed in the one shape that pveproxy's multipart parser takes.
//!
//! The order of the parts is fixed, the file is the last, and its part's headers must arrive in one
//! piece: what comes of them after a split is stored as the file's content, silently. So everything up to
//! the file's first byte is written at once, in one TLS record. (pve-http-server,
//! `src/PVE/APIServer/AnyEvent.pm`, `file_upload_multipart`.)

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

use super::call::Call;
use super::client::{data, understand};
use super::http::{Connection, Response};
use super::storage::{Content, Storage, normalise_file_name};
use super::{Error, Upid};

/// How much of the file is in memory, twice: one piece is read while the other is sent.
const PIECE: usize = 512 * 1024;

/// The extensions, in lower case, of what each content takes on every version since 8.4.
const ISO: [&str; 2] = [".iso", ".img"];
const CONTAINER_TEMPLATE: [&str; 4] = [".tar.gz", ".tar.xz", ".tar.zst", ".tar.bz2"];
const IMPORT: [&str; 4] = [".ova", ".qcow2", ".raw", ".vmdk"];

/// A file to upload.
#[derive(Debug, Clone, Copy)]
pub struct Upload<'a> {
    /// The file on this machine.
    pub path: &'a Path,
    /// What it is.
    pub content: Content,
    /// Its name on the storage; see [`normalise_file_name`].
    pub name: &'a str,
    /// Its SHA-256, which the node then verifies before it stores the file.
    pub sha256: Option<&'a str>,
}

/// Takes how many bytes of how many are sent.
pub type OnSent<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);

/// How much of a request the server can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// The end is missing, so it stores nothing.
    Part,
    /// The end was written, and how much of it got there nobody can tell.
    PerhapsAll,
}

/// Why the body was not sent whole.
enum Stopped {
    /// The server speaks, or has closed the connection.
    Server,
    /// The file cannot be read, or is not as long as it was.
    File(String),
}

impl Storage {
    /// Uploads a file and returns the task that stores it. A file of that name is overwritten.
    ///
    /// Dropping the future ends the upload; nothing is stored then.
    ///
    /// # Errors
    /// [`Error::NotSent`] when the connection broke before the end of the file: nothing was stored.
    pub async fn upload(&self, upload: &Upload<'_>, on_sent: OnSent<'_>) -> Result<Upid, Error> {
        let call = Call::post("/nodes/{node}/storage/{storage}/upload").at(&self.node).at(&self.id);
        let what = call.to_string();
        let unusable = |reason: String| Error::Unusable { what: upload.path.display().to_string(), reason };
        check_name(upload).map_err(unusable)?;
        let file = File::open(upload.path).map_err(|error| unusable(error.to_string()))?;
        let size = file.metadata().map_err(|error| unusable(error.to_string()))?.len();
        let file = Arc::new(file);

        let begun = Instant::now();
        let auth = self.client.auth_headers(false).await?;
        let mut connection = self.client.connect_to(&self.node).await?;
        // Another node stores it first on a file system of its own, and then hands it on.
        let what = format!("{what} through {}", self.client.address(connection.endpoint));
        let frame = Frame::new(upload);
        let head =
            self.client.head(&format!("POST {}", call.target()), connection.endpoint, Some(auth.expose()));
        let opening = frame.opening(&head, size);
        self.client.count(&call);

        let silence = self.client.pace().answer;
        let sent = send(&mut connection, &opening, &file, size, &frame.end(), silence, on_sent).await;
        let sent = sent.map_err(unusable)?;
        let response = match (answer(&mut connection, silence).await, sent) {
            (Ok(response), _) => response,
            (Err(reason), Sent::Part) => return Err(Error::NotSent { what, reason }),
            (Err(reason), Sent::PerhapsAll) => {
                let found = self.client.find_lost(&self.node, "imgcopy", "", begun).await;
                return found.ok_or(Error::Unknown { what, reason });
            }
        };
        let upid: Upid = understand(what.clone(), data(&what, self.client.who(), &response)?)?;
        self.client.remember(&upid);
        Ok(upid)
    }
}

/// What is written around a file.
struct Frame {
    boundary: String,
    parts: String,
}

impl Frame {
    fn new(upload: &Upload<'_>) -> Self {
        let boundary = format!("forge-{}", uuid::Uuid::new_v4().simple());
        let header = |name: &str| format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"");
        let field = |name: &str, value: &str| format!("{}\r\n\r\n{value}\r\n", header(name));
        let mut parts = field("content", upload.content.as_str());
        if let Some(sha256) = upload.sha256 {
            parts += &(field("checksum-algorithm", "sha256") + &field("checksum", sha256));
        }
        let name = format!("; filename=\"{}\"", normalise_file_name(upload.name));
        parts += &(header("filename") + &name + "\r\nContent-Type: application/octet-stream\r\n\r\n");
        Self { boundary, parts }
    }

    /// Returns everything before the file.
    fn opening(&self, head: &str, size: u64) -> Vec<u8> {
        let Self { boundary, parts } = self;
        let length = parts.len() as u64 + size + self.end().len() as u64;
        format!(
            "{head}Content-Type: multipart/form-data; boundary={boundary}\r\nContent-Length: {length}\r\n\r\n{parts}"
        )
        .into_bytes()
    }

    /// Returns everything after the file.
    fn end(&self) -> String {
        format!("\r\n--{}--\r\n", self.boundary)
    }
}

fn check_name(upload: &Upload<'_>) -> Result<(), String> {
    let name = normalise_file_name(upload.name).to_lowercase();
    let extensions: &[&str] = match upload.content {
        Content::Iso => &ISO,
        Content::ContainerTemplate => &CONTAINER_TEMPLATE,
        Content::Import => &IMPORT,
    };
    if extensions.iter().any(|extension| name.ends_with(extension)) {
        return Ok(());
    }
    let all = extensions.join(", ");
    Err(format!(
        "`{}` cannot be its name as {}: it must end in one of {all}",
        upload.name,
        upload.content.as_str()
    ))
}

/// Sends the whole request, or stops as soon as the server speaks; says how much it can have then.
///
/// # Errors
/// What is wrong with the file.
async fn send(
    connection: &mut Connection,
    opening: &[u8],
    file: &Arc<File>,
    size: u64,
    end: &str,
    silence: Duration,
    on_sent: OnSent<'_>,
) -> Result<Sent, String> {
    let Connection { wire, buffer, .. } = connection;
    let (mut reader, mut writer) = tokio::io::split(wire);
    let mut early = BytesMut::new();
    let mut sent = Sent::Part;
    let sending = async {
        write(&mut writer, opening, silence).await?;
        send_file(&mut writer, file, size, silence, on_sent).await?;
        sent = Sent::PerhapsAll;
        write(&mut writer, end.as_bytes(), silence).await?;
        timeout(silence, writer.flush()).await.map_err(|_| Stopped::Server)?.map_err(|_| Stopped::Server)
    };
    let result = tokio::select! {
        biased;
        _ = reader.read_buf(&mut early) => Err(Stopped::Server),
        result = sending => result,
    };
    buffer.unsplit(early);
    match result {
        Err(Stopped::File(reason)) => Err(reason),
        Ok(()) | Err(Stopped::Server) => Ok(sent),
    }
}

async fn send_file(
    writer: &mut (impl AsyncWrite + Unpin),
    file: &Arc<File>,
    size: u64,
    silence: Duration,
    on_sent: OnSent<'_>,
) -> Result<(), Stopped> {
    let mut sent = 0;
    let mut piece = read_piece(file, Vec::with_capacity(PIECE), size).await?;
    let mut spare = Vec::with_capacity(PIECE);
    while !piece.is_empty() {
        let left = size - sent - piece.len() as u64;
        let (written, next) = tokio::join!(write(writer, &piece, silence), read_piece(file, spare, left));
        written?;
        sent += piece.len() as u64;
        on_sent(sent, size);
        spare = std::mem::replace(&mut piece, next?);
    }
    Ok(())
}

/// Fills a piece with what comes next of the file, of which so much is left.
async fn read_piece(file: &Arc<File>, mut piece: Vec<u8>, left: u64) -> Result<Vec<u8>, Stopped> {
    let (file, wanted) = (Arc::clone(file), left.min(PIECE as u64));
    // Read into the piece itself: tokio's file would copy each byte once more.
    let read = spawn_blocking(move || {
        piece.clear();
        (&*file).take(wanted).read_to_end(&mut piece).map(|_| piece)
    });
    let read = read.await.map_err(std::io::Error::from).and_then(|result| result);
    let piece = read.map_err(|error| Stopped::File(error.to_string()))?;
    if piece.len() as u64 == wanted {
        Ok(piece)
    } else {
        Err(Stopped::File("it became shorter while it was sent".to_owned()))
    }
}

async fn write(
    writer: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    silence: Duration,
) -> Result<(), Stopped> {
    match timeout(silence, writer.write_all(bytes)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Stopped::Server),
    }
}

async fn answer(connection: &mut Connection, silence: Duration) -> Result<Response, String> {
    match timeout(silence, connection.response()).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {}", crate::event::human_duration(silence))),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use super::*;

    /// Takes so many bytes, and fails then; says nothing.
    struct Taking(usize);

    impl tokio::io::AsyncRead for Taking {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Taking {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            Poll::Ready(if taken == 0 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(taken) })
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_broke_with_the_end_on_its_way_may_be_there() {
        let held = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(held.path(), [7; 100]).unwrap();
        for (taken, expected) in
            [(0, Sent::Part), (50, Sent::Part), (104, Sent::PerhapsAll), (107, Sent::PerhapsAll)]
        {
            let mut connection = Connection::new(Taking(taken), 0);
            let file = Arc::new(File::open(held.path()).unwrap());
            let second = Duration::from_secs(1);
            let sent = send(&mut connection, b"head", &file, 100, "end", second, &|_, _| {}).await;
            assert_eq!(sent, Ok(expected), "{taken} of 107 bytes");
        }
    }

    fn upload<'a>(name: &'a str, sha256: Option<&'a str>) -> Upload<'a> {
        Upload { path: Path::new("x"), content: Content::Iso, name, sha256 }
    }

    #[test]
    fn the_parts_have_the_order_and_spelling_that_the_parser_takes() {
        let frame = Frame::new(&upload("a b.iso", Some("abc")));
        let boundary = &frame.boundary;
        let expected = [
            &format!("--{boundary}"),
            "Content-Disposition: form-data; name=\"content\"",
            "",
            "iso",
            &format!("--{boundary}"),
            "Content-Disposition: form-data; name=\"checksum-algorithm\"",
            "",
            "sha256",
            &format!("--{boundary}"),
            "Content-Disposition: form-data; name=\"checksum\"",
            "",
            "abc",
            &format!("--{boundary}"),
            "Content-Disposition: form-data; name=\"filename\"; filename=\"a_b.iso\"",
            "Content-Type: application/octet-stream",
            "",
            "",
        ];
        assert_eq!(frame.parts.split("\r\n").collect::<Vec<_>>(), expected);
        let opening = String::from_utf8(frame.opening("POST / HTTP/1.1\r\n", 7)).unwrap();
        let length = frame.parts.len() + 7 + frame.end().len();
        assert!(
            opening.contains(&format!("\r\nContent-Length: {length}\r\n\r\n--{boundary}\r\n")),
            "{opening}"
        );
        assert!(opening.len() < 16 * 1024);
    }

    #[test]
    fn a_name_that_proxmox_refuses_is_refused_before_gigabytes_are_sent() {
        for (name, good) in
            [("x.iso", true), ("X.ISO", true), ("x.img", true), ("x.qcow2", false), ("iso", false)]
        {
            assert_eq!(check_name(&upload(name, None)).is_ok(), good, "{name}");
        }
    }
}
