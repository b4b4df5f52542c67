//! Uploads: their shape, to which node they go, and what is said of one that is refused.

use std::sync::Mutex;

use forge::pve::{Client, Content, Error, Settings, Trust, Upload};
use serde_json::json;

use super::server::{self, Reply, Request, Server};
use super::{UPID, client, settings, version};

fn iso(folder: &tempfile::TempDir, size: usize) -> std::path::PathBuf {
    let path = folder.path().join("local.iso");
    let content: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
    std::fs::write(&path, content).unwrap();
    path
}

#[tokio::test]
async fn an_upload_has_the_one_shape_that_is_taken() {
    let upid = UPID.replace("qmstart:110", "imgcopy:");
    let answer = Reply::data(json!(upid));
    let server = Server::plain(move |_| answer.clone()).await;
    let folder = tempfile::tempdir().unwrap();
    let path = iso(&folder, 3_000_001);
    let client = client(&server);
    let storage = client.storage(&"pve1".parse().unwrap(), &"local".parse().unwrap());
    let progress = Mutex::new(Vec::new());
    let upload = Upload { path: &path, content: Content::Iso, name: "a b.iso", sha256: Some("abc") };
    let task = storage.upload(&upload, &|done, of| progress.lock().unwrap().push((done, of))).await.unwrap();
    assert_eq!(task.as_str(), upid);
    assert_eq!(storage.volid(Content::Iso, "a b.iso"), "local:iso/a_b.iso");

    let request = &server.requests()[0];
    let boundary =
        request.header("content-type").unwrap().strip_prefix("multipart/form-data; boundary=").unwrap();
    let disposition = "Content-Disposition: form-data; name=";
    let opening = format!(
        "--{boundary}\r\n{disposition}\"content\"\r\n\r\niso\r\n\
         --{boundary}\r\n{disposition}\"checksum-algorithm\"\r\n\r\nsha256\r\n\
         --{boundary}\r\n{disposition}\"checksum\"\r\n\r\nabc\r\n\
         --{boundary}\r\n{disposition}\"filename\"; filename=\"a_b.iso\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    );
    let end = format!("\r\n--{boundary}--\r\n");
    let whole = [opening.as_bytes(), &std::fs::read(&path).unwrap(), end.as_bytes()].concat();
    assert!(request.body == whole, "{} bytes instead of {}", request.body.len(), whole.len());
    let together = request.head.len() + opening.len();
    assert!((together..16 * 1024 * 1024).contains(&request.first_read), "{}", request.first_read);
    let progress = progress.lock().unwrap();
    assert!(progress.is_sorted() && progress.last() == Some(&(3_000_001, 3_000_001)), "{progress:?}");
}

#[tokio::test]
async fn an_upload_goes_straight_to_its_node_where_that_is_known() {
    let upid = UPID.replace("qmstart:110", "imgcopy:");
    let lines = json!([
        { "type": "cluster", "name": "c", "nodes": 2, "quorate": 1 },
        { "type": "node", "name": "pve1", "ip": "127.0.0.2", "local": 0, "online": 1 },
        { "type": "node", "name": "pve2", "ip": "127.0.0.1", "local": 1, "online": 1 },
    ]);
    let answer = move |request: &Request| match request.path.as_str() {
        "/cluster/status" => Reply::data(lines.clone()),
        _ => Reply::data(json!(upid)),
    };
    let first = Server::plain(answer.clone()).await;
    let second = Server::at("127.0.0.2:0", answer).await;
    let folder = tempfile::tempdir().unwrap();
    let path = iso(&folder, 1000);
    let upload = Upload { path: &path, content: Content::Iso, name: "x.iso", sha256: None };
    let endpoints: Vec<_> =
        [&first, &second].iter().map(|it| format!("http://{}", it.address).parse().unwrap()).collect();
    let client = Client::new(Settings { endpoints, ..settings(&first, Trust::Anything) }).unwrap();
    for node in ["pve1", "pve2"] {
        let storage = client.storage(&node.parse().unwrap(), &"local".parse().unwrap());
        storage.upload(&upload, &|_, _| {}).await.unwrap();
    }
    let uploads = |server: &Server| -> Vec<String> {
        server.lines().into_iter().filter(|line| line.starts_with("POST")).collect()
    };
    assert_eq!(uploads(&first), ["POST /nodes/pve2/storage/local/upload"]);
    assert_eq!(uploads(&second), ["POST /nodes/pve1/storage/local/upload"]);
}

#[tokio::test]
async fn an_upload_that_is_refused_early_says_why() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut settings = {
        let server = Server::plain(|_| version()).await;
        settings(&server, Trust::Anything)
    };
    settings.endpoints = vec![format!("http://{}", listener.local_addr().unwrap()).parse().unwrap()];
    let refusing = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut some = vec![0; 1000];
        socket.read_exact(&mut some).await.unwrap();
        let answer = "HTTP/1.1 403 Permission check failed (/storage/local, Datastore.AllocateTemplate)\r\n\
                      Connection: close\r\nContent-Length: 0\r\n\r\n";
        socket.write_all(answer.as_bytes()).await.unwrap();
        // Unread bytes make this a reset.
        drop(socket);
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("empty.iso");
    std::fs::File::create(&path).unwrap().set_len(20_000_000).unwrap();
    let client = Client::new(settings).unwrap();
    let storage = client.storage(&"pve1".parse().unwrap(), &"local".parse().unwrap());
    let upload = Upload { path: &path, content: Content::Iso, name: "x.iso", sha256: None };
    let error = storage.upload(&upload, &|_, _| {}).await.unwrap_err();
    refusing.await.unwrap();
    assert!(matches!(&error, Error::Forbidden { missing: Some(_), .. }), "{error:?}");
}

#[tokio::test]
async fn an_upload_goes_through_tls_whole() {
    let upid = UPID.replace("qmstart:110", "imgcopy:");
    let server = Server::tls(move |_| Reply::data(json!(upid))).await;
    let folder = tempfile::tempdir().unwrap();
    let path = iso(&folder, 5_000_000);
    let client = Client::new(settings(&server, Trust::CaFile(server::ca_file()))).unwrap();
    let storage = client.storage(&"pve1".parse().unwrap(), &"local".parse().unwrap());
    let upload = Upload { path: &path, content: Content::Iso, name: "x.iso", sha256: None };
    storage.upload(&upload, &|_, _| {}).await.unwrap();
    let body = &server.requests()[0].body;
    let content = std::fs::read(&path).unwrap();
    assert!(body.windows(64).any(|window| window == &content[..64]) && body.len() > content.len());
}
