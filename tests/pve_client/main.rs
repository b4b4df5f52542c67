//! The Proxmox client against a server that answers as told: what is repeated, what is never, what is
//! sent in which shape, whom it trusts, and that no secret shows.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use forge::definition::Secret;
use forge::pve::{
    Client, CloneOptions, ConfigChange, Content, Credentials, Ending, Error, Pace, Params, Seen, Settings,
    Trust, Upload, Vm,
};
use futures_util::future::BoxFuture;
use serde_json::json;

#[expect(unreachable_pub, clippy::pedantic, reason = "it is shared with the tests of the communicator")]
mod server;
mod transcripts;

use server::{Reply, Request, Server};

const SECRET: &str = "0b5cf9aa-5ec2-e77e-b0a7-000000000000";
const UPID: &str = "UPID:pve1:0012D687:05F5E0FF:68E77800:qmstart:110:forge@pve!ci:";

fn settings(server: &Server, trust: Trust) -> Settings {
    let scheme = if trust == Trust::Anything { "http" } else { "https" };
    let token = Secret::new(format!("forge@pve!ci={SECRET}"));
    Settings {
        endpoints: vec![format!("{scheme}://127.0.0.1:{}", server.address.port()).parse().unwrap()],
        credentials: Credentials::parse_token(&token).unwrap(),
        trust,
        pace: Pace::default().faster(100),
    }
}

fn client(server: &Server) -> Client {
    Client::new(settings(server, Trust::Anything)).unwrap()
}

fn vm(client: &Client) -> Vm {
    client.vm(&"pve1".parse().unwrap(), "110".parse().unwrap())
}

fn version() -> Reply {
    Reply::data(json!({ "version": "8.4.21", "release": "8.4" }))
}

/// Answers requests one after another from a list, and then as the last one.
fn in_turn(replies: Vec<Reply>) -> impl FnMut(&Request) -> Reply + Send {
    let mut next = 0;
    move |_| {
        next += 1;
        replies[(next - 1).min(replies.len() - 1)].clone()
    }
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

#[tokio::test]
async fn a_task_whose_name_was_lost_is_found() {
    let now = 0x68E7_7800;
    let server = Server::plain(move |request| match request.path.as_str() {
        "/nodes/pve1/qemu/110/status/start" => Reply::Hangup,
        "/nodes/pve1/time" => Reply::data(json!({ "time": now, "timezone": "UTC" })),
        "/nodes/pve1/tasks" => {
            assert_eq!(
                (request.asked("typefilter"), request.asked("source")),
                (Some("qmstart"), Some("all"))
            );
            // The time is that of the server, not of this machine.
            let since: i64 = request.asked("since").unwrap().parse().unwrap();
            assert!((now - 10..=now).contains(&since), "{since}");
            let theirs = UPID.replace("forge@pve!ci", "root@pam");
            let another = UPID.replace("qmstart", "qmstop");
            let listed = [theirs.as_str(), &another, UPID];
            Reply::data(listed.iter().map(|upid| json!({ "upid": upid, "status": "RUNNING" })).collect())
        }
        other => panic!("{other}"),
    })
    .await;
    let client = client(&server);
    assert_eq!(vm(&client).start(None).await.unwrap().as_str(), UPID);
    // It is named now: the next lost one is another.
    let error = vm(&client).start(None).await.unwrap_err();
    assert!(error.is_unknown(), "{error}");
    assert_eq!(client.counts().of("POST /nodes/{node}/qemu/{vmid}/status/start"), 2);
}

#[tokio::test]
async fn a_change_of_unknown_outcome_is_made_again_only_after_a_look() {
    let change = ConfigChange::set([("cores", "2")]);
    let server = Server::plain(in_turn(vec![Reply::Hangup, Reply::Hangup, Reply::data(json!(null))])).await;
    let client = client(&server);
    let vm = self::vm(&client);
    let looks = AtomicUsize::new(0);
    let look = || -> BoxFuture<'_, _> {
        looks.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(Seen::NotDone) })
    };
    client.settle(&|| Box::pin(vm.set(&change)), &look).await.unwrap();
    assert_eq!((looks.into_inner(), server.requests().len()), (2, 3));

    let server = Server::plain(|_| Reply::Hangup).await;
    let client = self::client(&server);
    let vm = self::vm(&client);
    let done = || -> BoxFuture<'_, _> { Box::pin(async { Ok(Seen::Done(())) }) };
    client.settle(&|| Box::pin(vm.set(&change)), &done).await.unwrap();
    let unclear = || -> BoxFuture<'_, _> { Box::pin(async { Ok(Seen::Unclear) }) };
    let error = client.settle(&|| Box::pin(vm.set(&change)), &unclear).await.unwrap_err();
    assert!(error.is_unknown(), "{error}");
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn what_is_busy_is_waited_for() {
    let change = ConfigChange::set([("cores", "2")]);
    let busy = Reply::refusal(500, "can't lock file '/var/lock/qemu-server/lock-110.conf' - got timeout");
    let server = Server::plain(in_turn(vec![busy.clone(), busy, Reply::data(json!(null))])).await;
    let client = client(&server);
    let vm = self::vm(&client);
    client.when_free(Duration::from_secs(5), &|| Box::pin(vm.set(&change))).await.unwrap();

    let server = Server::plain(|_| Reply::refusal(500, "VM is locked (backup)")).await;
    let client = self::client(&server);
    let vm = self::vm(&client);
    let error = client.when_free(Duration::from_millis(50), &|| Box::pin(vm.set(&change))).await.unwrap_err();
    assert!(matches!(&error, Error::Busy { lock: Some(lock), .. } if lock == "backup"), "{error}");
}

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

#[tokio::test]
async fn a_task_is_waited_for_through_trouble_and_its_failure_is_told_whole() {
    let status = |fields| Reply::data(fields);
    let mut asked = 0;
    let server = Server::plain(move |request| {
        if request.path.ends_with("/log") {
            let start: usize = request.asked("start").unwrap().parse().unwrap();
            let lines: Vec<_> =
                (start..20).map(|n| json!({ "n": n + 1, "t": format!("line {n}") })).collect();
            return Reply::data(json!(lines));
        }
        asked += 1;
        match asked {
            1 => status(json!({ "status": "running" })),
            2..=40 => Reply::answer(596, "Connection timed out", ""),
            41 => Reply::refusal(500, "hostname lookup 'pve1' failed - failed to get address info"),
            42 => Reply::answer(200, "OK", "<html>of a proxy</html>"),
            _ => status(json!({ "status": "stopped", "exitstatus": "got signal 9" })),
        }
    })
    .await;
    let client = client(&server);
    let upid = UPID.parse().unwrap();
    let seen = Mutex::new(Vec::new());
    let on_line = |line: &str| seen.lock().unwrap().push(line.to_owned());
    let error = client.wait(&upid, Duration::from_secs(20), Some(&on_line)).await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with(&format!("task {UPID} failed: got signal 9\n    line 12\n")), "{text}");
    assert!(text.ends_with("line 19"), "{text}");
    let lines = seen.lock().unwrap().clone();
    assert_eq!(lines.len(), 20);

    let server =
        Server::plain(move |_| status(json!({ "status": "stopped", "exitstatus": "WARNINGS: 2" }))).await;
    let ending = self::client(&server).wait(&upid, Duration::from_secs(1), None).await.unwrap();
    assert_eq!((ending, server.requests().len()), (Ending::Warnings(2), 1));

    let server = Server::plain(move |_| status(json!({ "status": "running" }))).await;
    let error = self::client(&server).wait(&upid, Duration::from_millis(60), None).await.unwrap_err();
    assert!(matches!(&error, Error::Deadline { .. }), "{error}");

    let server = Server::plain(move |_| Reply::refusal(500, "no quorum")).await;
    let error = self::client(&server).wait(&upid, Duration::from_millis(60), None).await.unwrap_err();
    assert!(matches!(&error, Error::Deadline { what, .. } if what.contains("no quorum")), "{error}");
    let server = Server::plain(move |_| Reply::refusal(403, "Permission check failed")).await;
    let error = self::client(&server).wait(&upid, Duration::from_mins(1), None).await.unwrap_err();
    assert!(matches!(&error, Error::Forbidden { .. }), "{error}");
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
async fn a_password_gets_a_ticket_that_is_used_until_it_is_refused() {
    let mut tickets = 0;
    let mut refused = false;
    let server = Server::plain(move |request| {
        if request.path == "/access/ticket" {
            assert_eq!(request.json(), json!({ "username": "root@pam", "password": "hunter2" }));
            assert_eq!(request.header("cookie"), None);
            tickets += 1;
            let ticket = format!("PVE:root@pam:{tickets}::sig/+=");
            return Reply::data(json!({ "ticket": ticket, "CSRFPreventionToken": format!("csrf{tickets}") }));
        }
        let cookie = format!("PVEAuthCookie=PVE%3Aroot%40pam%3A{tickets}%3A%3Asig%2F%2B%3D");
        assert_eq!(request.header("cookie"), Some(cookie.as_str()));
        let csrf = (request.method != "GET").then(|| format!("csrf{tickets}"));
        assert_eq!(request.header("csrfpreventiontoken"), csrf.as_deref());
        if request.method == "PUT" && !std::mem::replace(&mut refused, true) {
            return Reply::answer(401, "Permission denied - invalid csrf token", "");
        }
        version()
    })
    .await;
    let mut settings = settings(&server, Trust::Anything);
    settings.credentials = Credentials::password("root@pam", Secret::new("hunter2")).unwrap();
    let client = Client::new(settings).unwrap();
    client.version().await.unwrap();
    client.version().await.unwrap();
    vm(&client).set(&ConfigChange::set([("cores", "2")])).await.unwrap();
    let tickets = server.lines().iter().filter(|line| line.ends_with("/access/ticket")).count();
    assert_eq!((tickets, server.lines().len()), (2, 6));
}

/// Returns a client with a user and a password.
fn with_password(server: &Server) -> Client {
    let mut settings = settings(server, Trust::Anything);
    settings.credentials = Credentials::password("root@pam", Secret::new("hunter2")).unwrap();
    Client::new(settings).unwrap()
}

fn ticket(name: &str) -> Reply {
    Reply::data(json!({ "ticket": name, "CSRFPreventionToken": "csrf" }))
}

#[tokio::test]
async fn a_ticket_that_was_lost_is_asked_for_again() {
    let replies = vec![Reply::Hangup, Reply::answer(596, "?", ""), ticket("PVE:x"), Reply::data(json!(null))];
    let server = Server::plain(in_turn(replies)).await;
    vm(&with_password(&server)).set(&ConfigChange::set([("cores", "2")])).await.unwrap();
    assert_eq!(server.requests().len(), 4);
}

#[tokio::test]
async fn two_calls_whose_ticket_is_refused_share_the_next_one() {
    let mut tickets = 0;
    let server = Server::plain(move |request| {
        if request.path == "/access/ticket" {
            tickets += 1;
            return ticket(&format!("PVE{tickets}"));
        }
        let old = request.header("cookie") == Some("PVEAuthCookie=PVE1");
        match request.path.as_str() {
            "/version" => version(),
            // Both are under way before the first refusal, and the second comes after the new ticket.
            path if old => {
                let pause = Duration::from_millis(if path.contains("/110/") { 100 } else { 250 });
                Reply::Late(pause, Box::new(Reply::answer(401, "permission denied - invalid PVE ticket", "")))
            }
            _ => Reply::data(json!(null)),
        }
    })
    .await;
    let client = with_password(&server);
    client.version().await.unwrap();
    let change = ConfigChange::set([("cores", "2")]);
    let (one, other) = (vm(&client), client.vm(&"pve1".parse().unwrap(), "111".parse().unwrap()));
    tokio::try_join!(one.set(&change), other.set(&change)).unwrap();
    let asked = server.lines().iter().filter(|line| line.ends_with("/access/ticket")).count();
    assert_eq!(asked, 2);
}

#[tokio::test]
async fn a_ticket_that_is_none_is_told() {
    for (reply, words) in [
        (Reply::refusal(401, "authentication failure"), "authentication failure"),
        (Reply::data(json!({ "ticket": "PVE:root@pam:!tfa!x", "CSRFPreventionToken": "" })), "API token"),
        (Reply::data(json!({ "ticket": 5 })), "there is no ticket"),
    ] {
        let server = Server::plain(move |_| reply.clone()).await;
        let mut settings = settings(&server, Trust::Anything);
        settings.credentials = Credentials::password("root@pam", Secret::new("hunter2")).unwrap();
        let error = Client::new(settings).unwrap().version().await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(!format!("{error:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn only_whom_the_settings_trust_gets_the_token() {
    let server = Server::tls(|_| version()).await;
    let pin = server::fingerprint().to_lowercase();
    let other = pin.replace("12:b6", "13:b6");
    for trust in
        [Trust::CaFile(server::ca_file()), Trust::Pinned(vec![other.parse().unwrap(), pin.parse().unwrap()])]
    {
        Client::new(settings(&server, trust)).unwrap().version().await.unwrap();
    }
    let seen = server.requests().len();
    for trust in [Trust::System, Trust::Pinned(vec![other.parse().unwrap()])] {
        // A machine without any authority cannot even begin.
        let Ok(client) = Client::new(settings(&server, trust)) else { continue };
        let error = client.version().await.unwrap_err();
        assert!(matches!(&error, Error::Tls { .. }), "{error:?}");
        assert!(error.hints().join("\n").contains(server::fingerprint()), "{:?}", error.hints());
    }
    assert_eq!(server.requests().len(), seen);
    let mut anything = settings(&server, Trust::CaFile(server::ca_file()));
    anything.trust = Trust::Anything;
    Client::new(anything).unwrap().version().await.unwrap();
}

#[tokio::test]
async fn what_stands_in_the_way_of_a_connection_is_told_plainly() {
    let away = Server::plain(|_| Reply::Hangup).await;
    let port = away.address.port();
    away.stop().await;
    // Its certificate is for 127.0.0.1.
    let other = Server::tls_at("127.0.0.2:0", |_| version()).await;
    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain_address = plain.local_addr().unwrap();
    let answering = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        let mut all = Vec::new();
        while let Ok((mut socket, _)) = plain.accept().await {
            socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            all.push(socket);
        }
    });
    let ca = || Trust::CaFile(server::ca_file());
    for (endpoint, trust, words) in [
        (format!("http://127.0.0.1:{port}"), Trust::Anything, "nothing listens on its port"),
        (format!("https://{plain_address}"), ca(), "does not speak TLS"),
        (format!("https://{}", other.address), ca(), "not for 127.0.0.2 but for"),
    ] {
        let mut settings = settings(&other, trust);
        settings.endpoints = vec![endpoint.parse().unwrap()];
        settings.pace = Pace::default().faster(1000);
        let error = Client::new(settings).unwrap().version().await.unwrap_err();
        assert!(error.to_string().contains(words), "{endpoint}: {error}");
    }
    answering.abort();
}

#[tokio::test]
async fn no_secret_is_in_an_error() {
    let moved = Reply::Answer {
        status: 301,
        reason: "Moved Permanently".to_owned(),
        headers: format!("Location: https://x/?token={SECRET}\r\n"),
        body: b"Moved Permanently".to_vec(),
    };
    for reply in
        [moved, Reply::Hangup, Reply::answer(200, "OK", "no json"), Reply::answer(401, "No ticket", "")]
    {
        let server = Server::plain(move |_| reply.clone()).await;
        let client = client(&server);
        let error = client.version().await.unwrap_err();
        let shown = format!("{error} {error:?} {:?} {client:?}", error.hints());
        assert!(!shown.contains(SECRET), "{shown}");
    }
}

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
