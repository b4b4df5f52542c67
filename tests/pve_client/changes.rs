//! Changes and tasks: a lost answer is looked for, what is busy is waited for, and a failure is told whole.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use forge::pve::{ConfigChange, Ending, Error, Seen};
use futures_util::future::BoxFuture;
use serde_json::json;

use super::server::{Reply, Server};
use super::{UPID, client, in_turn, vm};

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
