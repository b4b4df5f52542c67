//! Whom the client trusts, what it says of a connection that does not come about, and what it never says.

use forge::pve::{Client, Error, Pace, Trust};

use super::server::{self, Reply, Server};
use super::{SECRET, client, settings, version};

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
