//! Speaks SSH for the stand-in's guests, which hand over the connections that they get.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use pve_sim::ssh::{HostKey, Sshd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::Deserialize;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};

/// What a guest may want, as one JSON object sent at once.
#[derive(Deserialize)]
#[serde(tag = "want", rename_all = "kebab-case")]
enum Request {
    /// A new host key, answered with a line of JSON.
    HostKey,
    /// To have the connection served that comes along.
    Sshd(Sshd),
}

/// Does so at this socket, as long as the returned is kept.
pub(crate) fn lend(socket: &Path) -> Runtime {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    runtime.spawn(async move {
        let listener = UnixListener::from_std(listener).unwrap();
        while let Ok((guest, _)) = listener.accept().await {
            tokio::spawn(answer(guest));
        }
    });
    runtime
}

async fn answer(mut guest: UnixStream) -> anyhow::Result<()> {
    let (request, connection) = receive(&guest).await?;
    match (serde_json::from_slice(&request)?, connection) {
        (Request::Sshd(sshd), Some(connection)) => {
            let client = std::net::TcpStream::from(connection);
            client.set_nonblocking(true)?;
            sshd.serve(TcpStream::from_std(client)?).await
        }
        (Request::Sshd(_), None) => anyhow::bail!("there is no connection to serve"),
        (Request::HostKey, _) => {
            let line = serde_json::to_string(&HostKey::new()?)? + "\n";
            Ok(guest.write_all(line.as_bytes()).await?)
        }
    }
}

/// Returns a message and the descriptor that came with it.
async fn receive(guest: &UnixStream) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    guest.async_io(Interest::READABLE, || receive_now(guest)).await
}

fn receive_now(guest: &UnixStream) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut message = vec![0; 1 << 16];
    // A process that a test starts must not keep the connection open.
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(guest, &mut [IoSliceMut::new(&mut message)], &mut control, flags)?;
    message.truncate(received.bytes);
    let mut descriptors = control.drain().filter_map(|it| match it {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let connection = descriptors.next().and_then(|mut descriptors| descriptors.next());
    Ok((message, connection))
}
