//! A user and a password: the ticket that they get, and when another is asked for.

use std::time::Duration;

use forge::definition::Secret;
use forge::pve::{Client, ConfigChange, Credentials, Trust};
use serde_json::json;

use super::server::{Reply, Server};
use super::{in_turn, settings, version, vm};

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
