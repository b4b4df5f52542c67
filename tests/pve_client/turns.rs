//! Calls that take turns: about one VM, and to the agents of one node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use forge::pve::{CloneOptions, ConfigChange};
use serde_json::json;

use super::server::{Reply, Server};
use super::{UPID, client, version, vm};

#[tokio::test]
async fn a_vm_gets_one_call_at_a_time_and_a_dropped_one_ends_first() {
    let slow = || Reply::Late(Duration::from_millis(150), Box::new(Reply::data(json!(null))));
    let server =
        Server::plain(move |request| if request.path.contains("qemu/110") { slow() } else { version() })
            .await;
    let client = client(&server);
    let vm = vm(&client);
    let change = ConfigChange::set([("cores", "2")]);
    let dropped = tokio::time::timeout(Duration::from_millis(50), vm.set(&change)).await;
    assert!(dropped.is_err());
    let started = Instant::now();
    let other = async { client.version().await.map(drop) };
    tokio::try_join!(vm.set(&change), vm.set(&change), other).unwrap();
    assert!(started.elapsed() >= Duration::from_millis(350), "{:?}", started.elapsed());
    let put = "PUT /nodes/pve1/qemu/110/config";
    assert_eq!(server.lines(), [put, "GET /version", put, put]);
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_not_sent() {
    let server = Server::plain(|_| {
        Reply::Late(Duration::from_millis(100), Box::new(Reply::answer(595, "Connection refused", "")))
    })
    .await;
    let client = client(&server);
    let (vm, change) = (vm(&client), ConfigChange::set([("cores", "2")]));
    let short = Duration::from_millis(20);
    let (first, second) = tokio::join!(
        tokio::time::timeout(short, vm.set(&change)),
        tokio::time::timeout(short, vm.set(&change))
    );
    assert!(first.is_err() && second.is_err());
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Neither the one that waited for its turn, nor the first again: nothing came of it.
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn who_looks_for_a_clone_waits_for_the_answer_about_it() {
    let answered = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&answered);
    let server = Server::plain(move |request| {
        if request.path.ends_with("/clone") {
            let clone = Reply::data(json!(UPID.replace("qmstart", "qmclone")));
            return Reply::Late(Duration::from_millis(200), Box::new(clone));
        }
        seen.store(true, Ordering::Relaxed);
        Reply::refusal(500, "Configuration file 'nodes/pve1/qemu-server/105.conf' does not exist")
    })
    .await;
    let client = client(&server);
    let options = CloneOptions {
        // Below its original's: turns are taken in the order of the VMIDs.
        newid: "105".parse().unwrap(),
        name: None,
        full: false,
        storage: None,
        pool: None,
        description: None,
    };
    let dropped = tokio::time::timeout(Duration::from_millis(50), vm(&client).clone_to(&options)).await;
    assert!(dropped.is_err());
    let looked = client.vm(&"pve1".parse().unwrap(), options.newid);
    let early = tokio::time::timeout(Duration::from_millis(50), looked.config()).await;
    assert!(early.is_err() && !answered.load(Ordering::Relaxed));
    assert!(looked.config().await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn a_node_gets_two_agent_calls_at_a_time() {
    let server = Server::plain(|_| {
        Reply::Late(Duration::from_millis(50), Box::new(Reply::data(json!({ "result": {} }))))
    })
    .await;
    let client = client(&server);
    let agent = |vmid: &str| client.vm(&"pve1".parse().unwrap(), vmid.parse().unwrap()).agent();
    let started = Instant::now();
    let agents = ["110", "111", "112", "113"].map(agent);
    futures_util::future::try_join_all(agents.iter().map(forge::pve::Agent::ping)).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(95), "{:?}", started.elapsed());
}
