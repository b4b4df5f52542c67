//! A picture of a VM's screen, over a WebSocket.

use std::time::Duration;

use serde_json::json;

use super::server::{Reply, Server};
use super::{client, vm};

#[tokio::test]
async fn a_screenshot_comes_over_a_websocket() {
    let picture = screenshot_server().await;
    assert_eq!((picture.width, picture.height, &picture.pixels[..3]), (2, 1, &[255, 0, 0][..]));
}

/// Serves one VNC session as QEMU would, to whom pveproxy would let in.
async fn screenshot_server() -> forge::pve::Picture {
    let server = Server::plain(|request| {
        if request.path.ends_with("/vncproxy") {
            return Reply::data(json!({ "port": "5900", "ticket": "PVEVNC:1::x+/=", "user": "forge@pve!ci", "password": "12345678" }));
        }
        assert_eq!(request.asked("vncticket"), Some("PVEVNC:1::x+/="));
        assert_eq!(request.header("upgrade"), Some("websocket"));
        let key = request.header("sec-websocket-key").unwrap();
        let accept = accept(key);
        let mut said = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: binary\r\n\r\n"
        )
        .into_bytes();
        // It need not listen: what the client says is known.
        let init = [&[0, 2, 0, 1], [0; 16].as_slice(), &[0, 0, 0, 1, b'x']].concat();
        let update = [0, 0, 0, 1, 0, 0, 0, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 255, 0, 0, 255, 0, 0];
        for frame in [&b"RFB 003.008\n"[..], &[1, 2], &[7; 16], &[0; 4], &init, &update] {
            said.extend([0x82, frame.len() as u8]);
            said.extend(frame);
        }
        Reply::Raw(said)
    })
    .await;
    vm(&client(&server)).screenshot(Duration::from_secs(5)).await.unwrap()
}

fn accept(key: &str) -> String {
    use base64::Engine as _;
    use sha1::Digest as _;
    let digest = sha1::Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"));
    base64::engine::general_purpose::STANDARD.encode(digest)
}
