//! What only shows on the wire: stalls, plain HTTP, splits of uploads, websockets.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use std::time::{Duration, Instant};

use common::{Client, Connection};
use pve_sim::{Action, Options, Release, Rule, Simulator};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

async fn simulator() -> (Simulator, Client, tempfile::TempDir) {
    simulator_of(Release::V8).await
}

async fn simulator_of(release: Release) -> (Simulator, Client, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut options = Options { time: 0.1, ..Options::new(folder.path()) };
    options.world.release = release;
    let simulator = Simulator::start(options).await.unwrap();
    let client = Client::new(&simulator);
    (simulator, client, folder)
}

#[tokio::test]
async fn whatever_stalls_is_dropped_without_an_answer() {
    let (_simulator, client, _folder) = simulator().await;
    let put = client.bytes("PUT", "/api2/json/nodes/asgard/qemu/1/config", &[], Some(("", &[b'x'; 100])));
    let many: Vec<(String, String)> = (0..70).map(|n| (format!("X-{n}"), "a".to_owned())).collect();
    for sent in [
        Vec::new(),
        b"GET /api2/json/version HTTP/1.1\r\nHost: x\r\n".to_vec(),
        put[..put.len() - 93].to_vec(),
        client.bytes("GET", "/api2/json/version", &many, None),
    ] {
        let mut connection = Connection::open(client.address, &client.pem).await;
        let since = Instant::now();
        connection.send(&sent).await;
        assert!(connection.receive().await.is_none());
        assert!(since.elapsed() > Duration::from_millis(300), "it is left waiting first");
    }
}

#[tokio::test]
async fn plain_http_is_sent_to_https() {
    let (_simulator, client, _folder) = simulator().await;
    for (method, status) in [("GET", "301 Moved Permanently"), ("POST", "308 Permanent Redirect")] {
        let mut stream = TcpStream::connect(client.address).await.unwrap();
        let head = format!("{method} /api2/json/version HTTP/1.1\r\nHost: pve1:8006\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{text}");
        assert!(text.contains("Location: https://pve1:8006/api2/json/version\r\n"), "{text}");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (_simulator, client, _folder) = simulator().await;
    let mut connection = Connection::open(client.address, &client.pem).await;
    let get = |path: &str| client.bytes("GET", path, &[], None);
    connection
        .send(&[get("/api2/json/version"), get("/api2/json/nodes"), get("/api2/json/nosuch")].concat())
        .await;
    let mut statuses = Vec::new();
    while let Some(answer) = connection.receive().await {
        statuses.push(answer.status);
    }
    assert_eq!(statuses, [200, 200, 501]);
}

#[tokio::test]
async fn an_upload_split_within_its_file_headers_is_spoilt() {
    let (simulator, client, _folder) = simulator().await;
    let body = "--b\r\nContent-Disposition: form-data; name=\"content\"\r\n\r\niso\r\n\
                --b\r\nContent-Disposition: form-data; name=\"filename\"; filename=\"split.iso\"\r\n\
                Content-Type: application/octet-stream\r\n\r\nDATA\r\n--b--\r\n";
    let target = "/api2/json/nodes/asgard/storage/local/upload";
    let media = "multipart/form-data; boundary=b";
    let whole = client.bytes("POST", target, &[], Some((media, body.as_bytes())));
    let at = whole.windows(13).position(|part| part == b"Content-Type:").unwrap();
    let in_body = whole[at + 1..].windows(13).position(|part| part == b"Content-Type:").unwrap() + at + 1;
    let mut connection = Connection::open(client.address, &client.pem).await;
    connection.send(&whole[..in_body]).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    connection.send(&whole[in_body..]).await;
    let upid = connection.receive().await.unwrap().data();
    assert_eq!(client.finish("asgard", &upid).await, "OK", "nothing tells that the file is wrong");
    let bytes = simulator.dump()["files"][0]["bytes"].as_u64().unwrap();
    assert!(bytes > 4, "the headers are in the file: {bytes} bytes");
}

async fn console(client: &Client, kind: &str) -> (String, String) {
    let path = format!("/nodes/asgard/qemu/100/{kind}");
    let made = client.call("POST", &path, json!({})).await.data();
    let text = |key: &str| made[key].as_str().unwrap().to_owned();
    (text("port"), text("ticket"))
}

fn upgrade(client: &Client, port: &str, ticket: &str) -> Vec<u8> {
    let target = format!(
        "/api2/json/nodes/asgard/qemu/100/vncwebsocket?port={port}&vncticket={}",
        common::escape(ticket)
    );
    let headers = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Protocol", "binary"),
    ];
    let headers = headers.map(|(key, value)| (key.to_owned(), value.to_owned()));
    client.bytes("GET", &target, &headers, None)
}

/// A masked frame with an empty mask.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u16;
    let long = length.to_be_bytes();
    let length = if length < 126 { vec![0x80 | length as u8] } else { vec![0xfe, long[0], long[1]] };
    [&[0x80 | opcode], &length[..], &[0; 4], payload].concat()
}

async fn expect(connection: &mut Connection, bytes: &[u8]) {
    while connection.buffer.len() < bytes.len() {
        let read = connection.stream.read_buf(&mut connection.buffer);
        assert!(tokio::time::timeout(Duration::from_secs(5), read).await.unwrap().unwrap() > 0);
    }
    assert_eq!(&connection.buffer[..bytes.len()], bytes);
    connection.buffer.drain(..bytes.len());
}

#[tokio::test]
async fn a_websocket_carries_vnc() {
    let (_simulator, client, _folder) = simulator().await;
    client.done("POST", "/nodes/asgard/qemu", json!({ "vmid": 100, "kvm": 0, "serial0": "socket" })).await;
    client.done("POST", "/nodes/asgard/qemu/100/status/start", json!({})).await;
    let (port, ticket) = console(&client, "vncproxy").await;
    assert!(ticket.starts_with("PWD"), "{ticket}");
    let mut connection = Connection::open(client.address, &client.pem).await;
    connection.send(&upgrade(&client, &port, &ticket)).await;
    let answer = connection.receive().await.unwrap();
    assert_eq!(
        (answer.status, answer.header("sec-websocket-accept")),
        (101, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="))
    );
    // The bytes of transcript 10: a greeting, one kind of authentication, an answer to a ping.
    expect(&mut connection, b"\x82\x0cRFB 003.008\n").await;
    connection.send(&frame(2, b"RFB 003.008\n")).await;
    expect(&mut connection, &[0x82, 2, 1, 2]).await;
    connection.send(&frame(9, b"x")).await;
    expect(&mut connection, &[0x8a, 1, b'x']).await;
    connection.send(&frame(8, b"")).await;
    assert!(connection.ends_within(Duration::from_secs(2)).await);
}

#[tokio::test]
async fn a_terminal_asks_for_its_ticket_and_release_8_takes_none_of_a_token() {
    for release in [Release::V9, Release::V8] {
        let (_simulator, client, _folder) = simulator_of(release).await;
        let vm = json!({ "vmid": 100, "kvm": 0, "serial0": "socket" });
        client.done("POST", "/nodes/asgard/qemu", vm).await;
        client.done("POST", "/nodes/asgard/qemu/100/status/start", json!({})).await;
        let (port, ticket) = console(&client, "termproxy").await;
        let mut connection = Connection::open(client.address, &client.pem).await;
        connection.send(&upgrade(&client, &port, &ticket)).await;
        assert_eq!(connection.receive().await.unwrap().status, 101);
        connection.send(&frame(1, format!("root@pam!full:{ticket}\n").as_bytes())).await;
        if release == Release::V8 {
            assert!(connection.ends_within(Duration::from_secs(2)).await);
        } else {
            expect(&mut connection, b"\x82\x02OK").await;
        }
    }
}

#[tokio::test]
async fn a_reload_refuses_protected_calls_for_a_second() {
    let (simulator, client, _folder) = simulator().await;
    simulator.add_fault(Rule { method: None, path: "/version".into(), nth: Some(1), action: Action::Reload });
    let during = client.call("GET", "/version", Value::Null).await;
    assert_eq!((during.status, during.header("connection")), (200, Some("close")));
    let refused = client.call("GET", "/nodes/asgard/qemu", Value::Null).await;
    assert_eq!((refused.status, refused.reason.as_str(), refused.body.len()), (595, "Connection refused", 0));
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(client.call("GET", "/nodes/asgard/qemu", Value::Null).await.status, 200);
}
