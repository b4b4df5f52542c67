//! Requests: their shape, on which connection they go, and which are sent again.

use std::time::{Duration, Instant};

use forge::pve::{Client, CloneOptions, ConfigChange, Error, Params, Trust};
use serde_json::json;

use super::server::{Reply, Server};
use super::{SECRET, UPID, client, in_turn, settings, version, vm};

#[tokio::test]
async fn requests_have_the_shape_that_pveproxy_takes() {
    let server = Server::plain(|request| match request.method.as_str() {
        "GET" => version(),
        _ => Reply::data(json!(UPID)),
    })
    .await;
    let client = client(&server);
    client.version().await.unwrap();
    let vm = vm(&client);
    vm.create(&Params::from([("name".to_owned(), "x".to_owned())])).await.unwrap();
    vm.stop().await.unwrap();
    vm.destroy().await.unwrap();
    let options = CloneOptions {
        newid: "111".parse().unwrap(),
        name: Some("c".to_owned()),
        full: true,
        storage: Some("local".parse().unwrap()),
        pool: None,
        description: None,
    };
    vm.clone_to(&options).await.unwrap();
    let [get, create, stop, destroy, clone] = &server.requests()[..] else { panic!() };
    let token = format!("PVEAPIToken=forge@pve!ci={SECRET}");
    for request in server.requests() {
        assert_eq!(request.header("authorization"), Some(token.as_str()));
        assert!(request.header("transfer-encoding").is_none() && request.header("expect").is_none());
        assert!(request.head.lines().count() < 64 && request.head.len() < 8192);
    }
    assert_eq!((get.header("content-length"), get.header("content-type")), (None, None));
    assert_eq!(create.json(), json!({ "name": "x", "vmid": "110" }));
    assert_eq!((stop.header("content-length"), stop.header("content-type")), (Some("0"), None));
    assert_eq!(destroy.target, "/api2/json/nodes/pve1/qemu/110?purge=1");
    assert!(destroy.body.is_empty() && destroy.header("content-length").is_none());
    assert_eq!(clone.json(), json!({ "newid": "111", "name": "c", "full": "1", "storage": "local" }));
}

#[tokio::test]
async fn connections_are_used_again_but_not_old_ones() {
    let server = Server::plain(|_| version()).await;
    let mut settings = settings(&server, Trust::Anything);
    settings.pace.idle = Duration::from_millis(500);
    let client = Client::new(settings).unwrap();
    for _ in 0..3 {
        client.version().await.unwrap();
    }
    assert_eq!(server.requests().last().unwrap().connection, 0);
    tokio::time::sleep(Duration::from_millis(510)).await;
    client.version().await.unwrap();
    assert_eq!(server.requests().last().unwrap().connection, 1);
}

#[tokio::test]
async fn reads_are_repeated_while_the_server_is_away() {
    for trouble in [
        Reply::Hangup,
        Reply::answer(595, "Connection refused", ""),
        Reply::answer(596, "Connection reset by peer", ""),
        Reply::answer(597, "?", ""),
        Reply::answer(599, "Too many redirections", ""),
    ] {
        let server = Server::plain(in_turn(vec![trouble.clone(), trouble, version()])).await;
        assert_eq!(client(&server).version().await.unwrap().major(), 8);
        assert_eq!(server.requests().len(), 3);
    }
}

#[tokio::test]
async fn changes_are_repeated_only_when_they_were_not_sent() {
    let server =
        Server::plain(in_turn(vec![Reply::answer(595, "Connection refused", ""), Reply::data(json!(null))]))
            .await;
    vm(&client(&server)).set(&ConfigChange::set([("cores", "2")])).await.unwrap();
    assert_eq!(server.requests().len(), 2);

    for trouble in [Reply::Hangup, Reply::answer(596, "Broken pipe", ""), Reply::answer(599, "?", "")] {
        let server = Server::plain(in_turn(vec![trouble])).await;
        let error = vm(&client(&server)).set(&ConfigChange::set([("cores", "2")])).await.unwrap_err();
        assert!(error.is_unknown(), "{error}");
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_guest_agent_is_asked_once() {
    let lost = Reply::refusal(500, "VM 110 qmp command 'guest-exec-status' failed - got timeout");
    for trouble in [Reply::Hangup, Reply::answer(596, "Connection timed out", ""), lost] {
        let server = Server::plain(move |_| trouble.clone()).await;
        let agent = vm(&client(&server)).agent();
        for error in [agent.exec_status(5).await.unwrap_err(), agent.read_file("/x").await.unwrap_err()] {
            assert!(error.is_unknown(), "{error}");
        }
        assert_eq!(server.requests().len(), 2);
    }
}

#[tokio::test]
async fn refusals_are_not_repeated() {
    for (status, text) in
        [(500, "VM is locked (backup)"), (403, "Permission check failed"), (400, "Bad Request"), (501, "?")]
    {
        let server = Server::plain(move |_| Reply::refusal(status, text)).await;
        let error = client(&server).version().await.unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!(server.requests().len(), 1, "{text}");
    }
}

#[tokio::test]
async fn an_unreachable_server_is_told_after_a_while_and_another_one_is_tried() {
    let gone = Server::plain(|_| Reply::Hangup).await;
    let mut settings = settings(&gone, Trust::Anything);
    gone.stop().await;
    let started = Instant::now();
    let error = Client::new(settings.clone()).unwrap().version().await.unwrap_err();
    assert!(matches!(&error, Error::NotSent { .. }), "{error}");
    assert!(started.elapsed() >= settings.pace.patience / 2);

    let there = Server::plain(|_| version()).await;
    settings.endpoints.push(format!("http://{}", there.address).parse().unwrap());
    let client = Client::new(settings).unwrap();
    client.version().await.unwrap();
    assert_eq!(client.endpoint().to_string(), format!("http://{}", there.address));
}
