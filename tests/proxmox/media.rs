//! How media and answers get to the node.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::Value;

use crate::node::{Node, Setting};

fn node() -> Node {
    node_that_deletes(false)
}

/// Returns a node whose token may do what a build needs, and delete media if it is to.
fn node_that_deletes(deletes_media: bool) -> Node {
    Node::new(&Setting { deletes_media, only_nocloud: true, ..Setting::default() })
}

/// Serves a file to everybody, and counts who takes it.
fn serve(content: Vec<u8>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/mini.iso", listener.local_addr().unwrap());
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut reader = BufReader::new(connection.try_clone().unwrap());
            let mut request = String::new();
            while reader.read_line(&mut request).is_ok_and(|read| read > 2) {}
            let length = content.len();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            connection.write_all(head.as_bytes()).ok();
            if request.starts_with("GET") {
                count.fetch_add(1, Ordering::SeqCst);
                connection.write_all(&content).ok();
            }
        }
    });
    (url, taken)
}

#[test]
fn the_node_downloads_a_medium_once_and_nothing_is_fetched_here() {
    let node = node();
    let (url, taken) = serve(node.root.iso.clone());
    for _ in 0..2 {
        let ended = node.start(&["--var", &format!("iso={url}")]).finish();
        ended.assert_code(0);
    }
    assert_eq!(taken.load(Ordering::SeqCst), 1, "the medium was taken more than once");
    let requests = node.simulator.requests();
    let count = |end: &str| requests.iter().filter(|request| request.path.ends_with(end)).count();
    assert_eq!(count("/upload"), 1, "only the seed is uploaded");
    assert!(!node.root.path("cache/forge/media").exists(), "the medium was fetched here as well");
}

#[test]
fn a_medium_that_the_node_cannot_get_is_fetched_here() {
    let node = node();
    node.simulator.add_fault(
        serde_json::from_value(serde_json::json!({
            "method": "POST", "path": "/nodes/*/storage/*/download-url",
            "action": "task-fails", "text": "download failed: 403 Forbidden",
        }))
        .unwrap(),
    );
    let (url, taken) = serve(node.root.iso.clone());
    let ended = node.start(&["--var", &format!("iso={url}")]).finish();
    ended.assert_code(0);
    assert!(ended.notes().any(|note| note.contains("403 Forbidden") && note.contains("fetched here")));
    assert!(taken.load(Ordering::SeqCst) >= 1);
}

const CDROM: &[&str] = &["--var", "transport=cdrom", "--var", "fetch=1s"];

/// Returns the volumes that the only run's journal has open.
fn open_volumes(node: &Node) -> Value {
    let text = fs::read_to_string(node.root.evidence().join("proxmox.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["volumes"].clone()
}

#[test]
fn answers_on_a_volume_stay_where_the_token_may_not_delete_them() {
    for (deletes, stays) in [(true, 0), (false, 1)] {
        let node = node_that_deletes(deletes);
        let ended = node.start(CDROM).finish();
        ended.assert_code(0);
        let warned = ended.stdout.contains("stays there");
        assert_eq!(warned, !deletes, "it is told before anything is made: {}", ended.stdout);
        let files = node.simulator.dump()["files"].clone();
        let seeds = files.as_array().unwrap().iter();
        let seeds = seeds.filter(|file| file["volid"].as_str().unwrap().contains("forge-seed-"));
        assert_eq!(seeds.count(), stays, "{files:#}");
        assert_eq!(open_volumes(&node).as_array().map_or(0, Vec::len), stays);
    }
}

#[test]
fn answers_on_a_volume_leave_neither_a_serial_number_nor_the_volume() {
    let node = node_that_deletes(true);
    let ended = node.start(CDROM).finish();
    ended.assert_code(0);
    assert_eq!(open_volumes(&node), Value::Null, "the journal has it no more");
    let requests = node.simulator.requests();
    let created = requests.iter().find(|it| it.method == "POST" && it.path.ends_with("/qemu")).unwrap();
    let smbios = created.params["smbios1"].as_str().unwrap();
    assert!(!smbios.contains("serial"), "{smbios}");
    let uploads = requests.iter().filter(|request| request.path.ends_with("/upload")).count();
    assert_eq!(uploads, 2, "the medium and the volume");
    let files = node.simulator.dump()["files"].clone();
    assert_eq!(files.as_array().unwrap().len(), 1, "only the medium stays: {files:#}");
    node.root.assert_hidden(&[&node.root.secret]);
    let said = fs::read_to_string(node.artifact("manifest.json")).unwrap();
    assert!(!said.contains(&node.root.secret));
}
