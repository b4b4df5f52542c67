use std::net::{IpAddr, Ipv4Addr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::*;

type Events = mpsc::UnboundedReceiver<ServerEvent>;

struct Fixture {
    server: Server,
    events: Events,
    folder: tempfile::TempDir,
}

/// Starts a server with limits that tests reach quickly.
async fn start() -> Fixture {
    start_with(|_| ()).await
}

async fn start_with(change: impl FnOnce(&mut Settings)) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let reach = Reach::Towards(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let mut settings = Settings::new(reach, folder.path().join("logs")).unwrap();
    settings.logs_max = 64 * 1024;
    settings.grace = Duration::from_millis(100);
    change(&mut settings);
    let (server, events) = Server::start(settings).await.unwrap();
    Fixture { server, events, folder }
}

impl Fixture {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.server.listens_on()).await.unwrap()
    }

    /// Sends a whole request on a connection of its own and returns all that comes back.
    async fn raw(&self, request: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_ref()).await.unwrap();
        read_to_end(&mut stream).await
    }

    /// Sends a request without a body for a path below the token.
    async fn ask(&self, method: &str, name: &str) -> String {
        let path = format!("/{}/{name}", self.token());
        self.raw(format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
    }

    fn token(&self) -> &str {
        &self.server.shared.token
    }

    async fn event(&mut self) -> ServerEvent {
        timeout(Duration::from_secs(5), self.events.recv()).await.expect("an event in time").unwrap()
    }
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer));
    read.await.expect("an answer in time").unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Reads one answer's head, on a connection that stays open.
async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(Duration::from_secs(5), stream.read_u8()).await.expect("an answer in time");
        head.push(byte.unwrap());
    }
    String::from_utf8(head).unwrap()
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

fn refusal(event: &ServerEvent) -> (&str, &str, u16) {
    match event {
        ServerEvent::Refused { method, path, status, .. } => (method, path, *status),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_file_on_offer_is_served_and_told() {
    let mut fixture = start().await;
    let offer = fixture.server.offer("user-data", "hello".to_owned()).unwrap();
    assert!(offer.url().ends_with("/user-data") && offer.url().contains(fixture.token()));
    let answer = fixture.ask("GET", "user-data").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("content-length: 5\r\n"), "{answer}");
    assert_eq!(body(&answer), "hello");
    let event = fixture.event().await;
    assert!(
        matches!(&event, ServerEvent::Fetched { name, bytes: 5, whole: true, .. } if name == "user-data")
    );
}

#[tokio::test]
async fn head_has_the_length_and_no_body() {
    let mut fixture = start().await;
    let _offer = fixture.server.offer("user-data", "hello".to_owned()).unwrap();
    let answer = fixture.ask("HEAD", "user-data").await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("content-length: 5\r\n"),
        "{answer}"
    );
    assert_eq!(body(&answer), "");
    assert!(matches!(fixture.event().await, ServerEvent::Fetched { bytes: 0, whole: false, .. }));
}

#[tokio::test]
async fn a_file_on_disk_is_streamed_whole() {
    let mut fixture = start().await;
    let path = fixture.folder.path().join("big");
    let content: Vec<u8> = (0..3_000_000_u32).map(|number| number as u8).collect();
    std::fs::write(&path, &content).unwrap();
    let offer = fixture.server.offer("upload/big.tar", path).unwrap();
    let mut stream = fixture.connect().await;
    let request = format!("GET /{}/upload/big.tar HTTP/1.0\r\n\r\n", fixture.token());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.ends_with(&content));
    assert!(matches!(fixture.event().await, ServerEvent::Fetched { bytes: 3_000_000, whole: true, .. }));
    drop(offer);
    assert!(fixture.ask("GET", "upload/big.tar").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn a_guest_that_breaks_off_has_not_fetched_the_whole() {
    let mut fixture = start().await;
    let path = fixture.folder.path().join("big");
    std::fs::write(&path, vec![7; 64 * 1024 * 1024]).unwrap();
    let _offer = fixture.server.offer("big", path).unwrap();
    let mut stream = fixture.connect().await;
    let request = format!("GET /{}/big HTTP/1.1\r\nHost: x\r\n\r\n", fixture.token());
    stream.write_all(request.as_bytes()).await.unwrap();
    read_head(&mut stream).await;
    drop(stream);
    assert!(matches!(fixture.event().await, ServerEvent::Fetched { whole: false, .. }));
}

/// Whatever is not to the letter on offer gets the very same answer.
#[tokio::test]
async fn everything_else_is_not_found() {
    let mut fixture = start().await;
    let _offer = fixture.server.offer("user-data", "secret".to_owned()).unwrap();
    let token = fixture.token().to_owned();
    let mut wrong = token.clone();
    wrong.replace_range(39.., if token.ends_with('0') { "1" } else { "0" });
    let mut answers = Vec::new();
    for line in [
        "GET / HTTP/1.1".to_owned(),
        "GET /user-data HTTP/1.1".to_owned(),
        format!("GET /{token} HTTP/1.1"),
        format!("GET /{token}/ HTTP/1.1"),
        format!("GET /{wrong}/user-data HTTP/1.1"),
        format!("GET /{}/user-data HTTP/1.1", token.to_uppercase().replace(char::is_numeric, "A")),
        format!("GET /{token}/nothing HTTP/1.1"),
        format!("GET /{token}/./user-data HTTP/1.1"),
        format!("GET /{token}/../{token}/user-data HTTP/1.1"),
        format!("GET /{token}/../../etc/passwd HTTP/1.1"),
        format!("GET /{token}/%2e%2e/%2e%2e/etc/passwd HTTP/1.1"),
        format!("GET /{token}/user%2ddata HTTP/1.1"),
        format!("GET /{token}//user-data HTTP/1.1"),
        format!("GET /{token}/user-data/ HTTP/1.1"),
        format!("GET /{token}/user-data?x HTTP/1.1"),
        format!("GET http://other/{wrong}/user-data HTTP/1.1"),
        format!("POST /{token}/user-data HTTP/1.1"),
        format!("PUT /{token}/report HTTP/1.1"),
        format!("GET /{token}/report HTTP/1.1"),
        format!("GET /{token}/logs HTTP/1.1"),
        format!("GET /{token}/ready HTTP/1.1"),
        format!("POST /{wrong}/ready HTTP/1.1"),
        format!("DELETE /{token}/logs HTTP/1.1"),
        format!("TRACE /{token}/user-data HTTP/1.1"),
        "OPTIONS * HTTP/1.1".to_owned(),
    ] {
        let answer = fixture.raw(format!("{line}\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 404 Not Found\r\n"), "{line}: {answer}");
        let event = fixture.event().await;
        assert_eq!(refusal(&event).2, 404, "{line}");
        assert!(!format!("{event:?}").contains(&token[1..]), "{line}: {event:?}");
        answers.push(body(&answer).to_owned());
    }
    answers.dedup();
    assert_eq!(answers, ["not found\n"]);
}

#[tokio::test]
async fn the_absolute_form_names_the_same_file() {
    let fixture = start().await;
    let _offer = fixture.server.offer("user-data", "hello".to_owned()).unwrap();
    let request =
        format!("GET {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", fixture.server.url("user-data"));
    assert_eq!(body(&fixture.raw(request).await), "hello");
}

#[tokio::test]
async fn nonsense_is_no_trouble() {
    let fixture = start().await;
    for request in
        ["\r\n\r\n\0\0", "GET\r\n\r\n", "GET /a b c HTTP/9.9\r\n\r\n", "\x16\x03\x01\x02\0\x01\0\r\n\r\n"]
    {
        assert!(!fixture.raw(request).await.starts_with("HTTP/1.1 200"));
    }
    let _offer = fixture.server.offer("user-data", "hello".to_owned()).unwrap();
    assert_eq!(body(&fixture.ask("GET", "user-data").await), "hello");
}

#[tokio::test]
async fn names_that_could_mislead_are_not_offered() {
    let fixture = start().await;
    let _taken = fixture.server.offer("taken", Vec::new()).unwrap();
    for name in [
        "", "/", "../x", "a/../b", ".hidden", "a//b", "a b", "ä", "report", "logs", "ready", "output",
        "output/x", "taken", "a?b",
    ] {
        assert!(fixture.server.offer(name, Vec::new()).is_err(), "{name}");
    }
}

fn report_request(fixture: &Fixture, json: &str) -> String {
    let (token, length) = (fixture.token(), json.len());
    format!(
        "POST /{token}/report HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{json}"
    )
}

#[tokio::test]
async fn reports_are_answered_and_told_in_order() {
    let mut fixture = start().await;
    let mut stream = fixture.connect().await;
    for number in 0..300 {
        let json = format!(r#"{{"name": "subiquity/{number}", "event_type": "start"}}"#);
        stream.write_all(report_request(&fixture, &json).as_bytes()).await.unwrap();
        assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 204 No Content\r\n"));
    }
    for number in 0..300 {
        let ServerEvent::Report(report) = fixture.event().await else { panic!("not a report") };
        assert_eq!(report.name, format!("subiquity/{number}"));
    }
}

#[tokio::test]
async fn a_guest_says_that_it_is_ready_at_once_and_as_often_as_it_likes() {
    let mut fixture = start().await;
    assert!(fixture.server.ready_url().ends_with(&format!("/{}/ready", fixture.token())));
    let request = format!("POST /{}/ready HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n", fixture.token());
    for _ in 0..3 {
        let mut stream = fixture.connect().await;
        // The body that it announces is not waited for.
        stream.write_all(request.as_bytes()).await.unwrap();
        assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 204 No Content\r\n"));
        let peer = stream.local_addr().unwrap();
        assert_eq!(fixture.event().await, ServerEvent::Ready { peer });
    }
}

/// Begins to send what a script prints; returns the connection, what arrives, and the address.
async fn begin_to_print(fixture: &Fixture) -> (TcpStream, mpsc::Receiver<Bytes>, output::Inlet) {
    let (inlet, mut pieces) = fixture.server.receive();
    let (_, path) = inlet.url().split_at(inlet.url().find(fixture.token()).unwrap() - 1);
    let mut stream = fixture.connect().await;
    let head = format!("PUT {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let first = timeout(Duration::from_secs(5), pieces.recv()).await.expect("its beginning in time");
    assert_eq!(first, Some(Bytes::new()));
    (stream, pieces, inlet)
}

#[tokio::test]
async fn what_a_script_prints_arrives_while_it_is_printed() {
    let mut fixture = start_with(|settings| settings.idle_timeout = Duration::from_millis(150)).await;
    let (mut stream, mut pieces, inlet) = begin_to_print(&fixture).await;
    for _ in 0..2 {
        stream.write_all(b"4\r\none\n\r\n").await.unwrap();
        assert_eq!(pieces.recv().await.unwrap(), "one\n");
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 204 No Content\r\n"));
    assert_eq!(pieces.recv().await, None);
    let name = inlet.url().split_once(fixture.token()).unwrap().1[1..].to_owned();
    assert!(fixture.ask("PUT", &name).await.starts_with("HTTP/1.1 404"), "each address is there once");
    assert_eq!(refusal(&fixture.event().await).2, 404);
}

#[tokio::test]
async fn a_script_that_is_not_heard_any_more_has_nothing_more_to_say() {
    let fixture = start().await;
    let (stream, mut pieces, _inlet) = begin_to_print(&fixture).await;
    drop(stream);
    assert_eq!(timeout(Duration::from_secs(5), pieces.recv()).await.expect("the end in time"), None);
    let (inlet, pieces) = fixture.server.receive();
    let name = inlet.url().split_once(fixture.token()).unwrap().1[1..].to_owned();
    drop((inlet, pieces));
    assert!(fixture.ask("POST", &name).await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn a_report_that_is_none_is_answered_all_the_same() {
    let mut fixture = start().await;
    let mut stream = fixture.connect().await;
    stream.write_all(report_request(&fixture, "{nonsense").as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 204"));
    assert_eq!(refusal(&fixture.event().await), ("POST", "/…/report", 204));
}

#[tokio::test]
async fn slow_clients_do_not_hold_up_a_report() {
    let fixture = start().await;
    let path = fixture.folder.path().join("big");
    std::fs::write(&path, vec![7; 32 * 1024 * 1024]).unwrap();
    let _offer = fixture.server.offer("big", path).unwrap();
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut stream = fixture.connect().await;
        stream
            .write_all(format!("GET /{}/big HTTP/1.1\r\nHost: x\r\n\r\n", fixture.token()).as_bytes())
            .await
            .unwrap();
        slow.push(stream);
        let mut stream = fixture.connect().await;
        stream.write_all(b"GET /half-a-he").await.unwrap();
        slow.push(stream);
    }
    let started = Instant::now();
    let mut stream = fixture.connect().await;
    stream.write_all(report_request(&fixture, r#"{"name": "a"}"#).as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 204"));
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
}

#[tokio::test]
async fn unfinished_heads_and_stalled_bodies_are_ended() {
    let mut fixture = start_with(|settings| {
        settings.header_timeout = Duration::from_millis(50);
        settings.idle_timeout = Duration::from_millis(150);
        settings.connections_max = 1;
    })
    .await;
    let mut stream = fixture.connect().await;
    stream.write_all(b"GET /half-a-he").await.unwrap();
    read_to_end(&mut stream).await;
    let mut stream = fixture.connect().await;
    let head =
        format!("PUT /{}/logs HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf", fixture.token());
    stream.write_all(head.as_bytes()).await.unwrap();
    read_to_end(&mut stream).await;
    let ServerEvent::Logs { bytes: 4, truncated: Some(reason), path, .. } = fixture.event().await else {
        panic!("no truncated logs");
    };
    assert_eq!(reason, "the connection was lost");
    assert!(path.to_string_lossy().ends_with("installer-logs-1.log.truncated") && path.exists());
    assert!(fixture.ask("GET", "x").await.starts_with("HTTP/1.1 404"), "the one place is free again");
}

#[tokio::test]
async fn logs_come_chunked_after_100_continue() {
    let mut fixture = start().await;
    let mut stream = fixture.connect().await;
    let head = format!(
        "PUT /{}/logs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n",
        fixture.token()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(read_head(&mut stream).await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"4\r\n\x1f\x8b\x08\x00\r\n").await.unwrap();
    stream.write_all(b"6\r\nabcdef\r\n0\r\n\r\n").await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 204"));
    let ServerEvent::Logs { path, bytes: 10, truncated: None, .. } = fixture.event().await else {
        panic!("no whole logs");
    };
    assert_eq!(std::fs::read(&path).unwrap(), b"\x1f\x8b\x08\x00abcdef");
    assert!(path.ends_with("logs/installer-logs-1.tar.gz"));
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
}

#[tokio::test]
async fn several_logs_are_numbered_up_to_a_limit() {
    let mut fixture = start().await;
    for number in 1..=17 {
        let request = format!(
            "POST /{}/logs HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx",
            fixture.token()
        );
        let answer = fixture.raw(request).await;
        let event = fixture.event().await;
        if number <= 16 {
            assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
            let ServerEvent::Logs { path, truncated: None, .. } = event else { panic!("{event:?}") };
            assert!(path.ends_with(format!("installer-logs-{number}.log")));
        } else {
            assert!(answer.starts_with("HTTP/1.1 507"), "{answer}");
            assert_eq!(refusal(&event).2, 507);
        }
    }
}

#[tokio::test]
async fn logs_beyond_the_limit_are_cut_and_kept() {
    let mut fixture = start().await;
    let mut stream = fixture.connect().await;
    let head =
        format!("PUT /{}/logs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", fixture.token());
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = [b"1000\r\n".as_slice(), &[b'l'; 4096], b"\r\n"].concat();
    for _ in 0..16 {
        stream.write_all(&chunk).await.unwrap();
    }
    stream.write_all(b"1\r\nx\r\n").await.unwrap();
    let answer = read_head(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("connection: close"), "{answer}");
    let ServerEvent::Logs { path, bytes, truncated: Some(reason), .. } = fixture.event().await else {
        panic!("no truncated logs");
    };
    assert_eq!((bytes, reason.as_str()), (64 * 1024, "larger than 1 MiB"));
    assert_eq!(std::fs::read(path).unwrap(), vec![b'l'; 64 * 1024]);
}

#[tokio::test]
async fn one_connection_serves_many_requests() {
    let fixture = start().await;
    let _offer = fixture.server.offer("user-data", Vec::new()).unwrap();
    let mut stream = fixture.connect().await;
    for _ in 0..3 {
        let request = format!("GET /{}/user-data HTTP/1.1\r\nHost: x\r\n\r\n", fixture.token());
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-length: 0"), "{head}");
    }
}

#[tokio::test]
async fn stopping_ends_connections_and_frees_the_port() {
    let fixture = start().await;
    let path = fixture.folder.path().join("big");
    std::fs::write(&path, vec![7; 32 * 1024 * 1024]).unwrap();
    let _offer = fixture.server.offer("big", path).unwrap();
    let mut idle = fixture.connect().await;
    let mut busy = fixture.connect().await;
    busy.write_all(format!("GET /{}/big HTTP/1.1\r\nHost: x\r\n\r\n", fixture.token()).as_bytes())
        .await
        .unwrap();
    read_head(&mut busy).await;
    let address = fixture.server.listens_on();
    timeout(Duration::from_secs(2), fixture.server.stop()).await.expect("it stops in time");
    assert_eq!(idle.read(&mut [0; 1]).await.unwrap_or(0), 0);
    assert!(TcpStream::connect(address).await.is_err());
    TcpListener::bind(address).await.expect("the port is free");
}

#[tokio::test]
async fn dropping_the_server_frees_the_port() {
    let Fixture { server, .. } = start().await;
    let address = server.listens_on();
    drop(server);
    let freed = async {
        while TcpListener::bind(address).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(2), freed).await.expect("the port is free");
}

#[tokio::test]
async fn a_taken_port_is_passed_over() {
    let first = start().await;
    let taken = first.server.listens_on().port();
    let second = start_with(|settings| settings.ports = taken..=taken + 20).await;
    assert!((taken + 1..=taken + 20).contains(&second.server.listens_on().port()));
    let mut settings = second.server.shared.settings.clone();
    settings.ports = taken..=taken;
    let message = Server::start(settings).await.unwrap_err().to_string();
    assert!(message.starts_with(&format!("listening on 127.0.0.1:{taken} for guests")), "{message}");
}

#[tokio::test]
async fn tokens_are_long_and_new_each_time() {
    let (one, two) = (start().await, start().await);
    assert_eq!(one.token().len(), 40);
    assert_ne!(one.token(), two.token());
    assert!(!one.server.advertises().contains(one.token()));
}
