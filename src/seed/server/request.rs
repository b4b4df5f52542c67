//! What each request gets.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use subtle::ConstantTimeEq;

use super::body::{Answer, Sending};
use super::{Activity, InstallerReport, LOGS, OUTPUT, READY, REPORT, ServerEvent, Shared, logs, output};

/// The most bytes of one installer report.
const REPORT_MAX: usize = 1024 * 1024;

/// How long a report's body may take; it comes in one piece.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a path asks for, once the token was right.
enum Wanted<'a> {
    File(&'a str),
    Report,
    Logs,
    Ready,
    Output(&'a str),
}

/// Answers one request; every request becomes one event.
pub(super) async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    shared: Arc<Shared>,
    activity: Activity,
) -> Result<Response<Answer>, Infallible> {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let has_query = request.uri().query().is_some();
    let response = match wanted(&shared.token, &path, has_query, &method) {
        Some(Wanted::Report) => return Ok(take_report(request, peer, &shared).await),
        Some(Wanted::Logs) => return Ok(logs::take(request.into_body(), peer, shared, activity).await),
        Some(Wanted::Ready) => {
            shared.tell(ServerEvent::Ready { peer });
            plain(StatusCode::NO_CONTENT)
        }
        Some(Wanted::Output(name)) => {
            let sender = shared.inlets().remove(name);
            match sender {
                Some(sender) => return Ok(output::take(request.into_body(), sender, activity).await),
                None => plain_and_close(StatusCode::NOT_FOUND),
            }
        }
        Some(Wanted::File(name)) => {
            let content = shared.offers().get(name).cloned();
            match content {
                Some(content) => {
                    let head_only = method == Method::HEAD;
                    Sending::open(name, content, head_only, peer, Arc::clone(&shared), activity)
                        .await
                        .map_or_else(|_| plain(StatusCode::INTERNAL_SERVER_ERROR), file)
                }
                None => plain(StatusCode::NOT_FOUND),
            }
        }
        None => plain(StatusCode::NOT_FOUND),
    };
    if !response.status().is_success() {
        refuse(&shared, &method, &path, response.status(), peer);
    }
    Ok(response)
}

/// Returns what is asked for, or nothing when any part of the request is not as it must be.
fn wanted<'a>(token: &str, path: &'a str, has_query: bool, method: &Method) -> Option<Wanted<'a>> {
    let (given, name) = path.strip_prefix('/')?.split_once('/')?;
    if !bool::from(given.as_bytes().ct_eq(token.as_bytes())) || has_query {
        return None;
    }
    if let Some(name) = name.strip_prefix(OUTPUT).and_then(|rest| rest.strip_prefix('/')) {
        return [Method::POST, Method::PUT].contains(method).then_some(Wanted::Output(name));
    }
    match (name, method) {
        (REPORT, &Method::POST) => Some(Wanted::Report),
        (LOGS, &Method::POST | &Method::PUT) => Some(Wanted::Logs),
        (READY, &Method::POST) => Some(Wanted::Ready),
        (REPORT | LOGS | READY, _) => None,
        (name, &Method::GET | &Method::HEAD) => Some(Wanted::File(name)),
        _ => None,
    }
}

/// Takes a report. The answer waits for nothing but the body, and never says that it was wrong:
/// the installer could do nothing with that.
async fn take_report(request: Request<Incoming>, peer: SocketAddr, shared: &Shared) -> Response<Answer> {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let body = Limited::new(request.into_body(), REPORT_MAX).collect();
    let report = match tokio::time::timeout(REPORT_TIMEOUT, body).await {
        Ok(Ok(body)) => InstallerReport::parse(&body.to_bytes()),
        Ok(Err(_)) | Err(_) => None,
    };
    match report {
        Some(report) => shared.tell(ServerEvent::Report(report)),
        None => refuse(shared, &method, &path, StatusCode::NO_CONTENT, peer),
    }
    plain(StatusCode::NO_CONTENT)
}

fn refuse(shared: &Shared, method: &Method, path: &str, status: StatusCode, peer: SocketAddr) {
    shared.tell(ServerEvent::Refused {
        method: method.as_str().chars().take(16).collect(),
        path: redacted(path),
        status: status.as_u16(),
        peer,
    });
}

/// Returns a path for people, without anything that is, or nearly is, a token.
fn redacted(path: &str) -> String {
    let part = |part: &str| if part.len() >= 24 { "…".to_owned() } else { part.to_owned() };
    let parts: Vec<String> = path.split('/').map(part).collect();
    parts.join("/").chars().take(120).collect()
}

fn file(sending: Sending) -> Response<Answer> {
    let size = sending.size();
    let mut response = Response::new(Answer::Offer(Box::new(sending)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
    response
}

/// Returns an answer that says only its status.
pub(super) fn plain(status: StatusCode) -> Response<Answer> {
    let text = match status {
        StatusCode::NO_CONTENT => None,
        StatusCode::NOT_FOUND => Some(Bytes::from_static(b"not found\n")),
        _ => Some(Bytes::from(format!("{}\n", status.canonical_reason().unwrap_or("error").to_lowercase()))),
    };
    let mut response = Response::new(Answer::Text(text));
    *response.status_mut() = status;
    response
}

/// Returns such an answer after which the connection ends, for a request that was not read whole.
pub(super) fn plain_and_close(status: StatusCode) -> Response<Answer> {
    let mut response = plain(status);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_must_match_to_the_letter() {
        let found = |path: &str, method: Method| wanted("token", path, false, &method).is_some();
        assert!(found("/token/user-data", Method::GET));
        assert!(found("/token/user-data", Method::HEAD));
        assert!(found("/token/report", Method::POST));
        assert!(found("/token/logs", Method::PUT));
        assert!(found("/token/ready", Method::POST));
        for (path, method) in [
            ("/token", Method::GET),
            ("//token/user-data", Method::GET),
            ("/Token/user-data", Method::GET),
            ("/toke/user-data", Method::GET),
            ("/tokenn/user-data", Method::GET),
            ("token/user-data", Method::GET),
            ("*", Method::OPTIONS),
            ("/token/user-data", Method::POST),
            ("/token/user-data", Method::DELETE),
            ("/token/report", Method::GET),
            ("/token/report", Method::PUT),
            ("/token/logs", Method::GET),
            ("/token/ready", Method::GET),
            ("/token/ready/", Method::POST),
        ] {
            assert!(!found(path, method.clone()), "{method} {path}");
        }
        assert!(wanted("token", "/token/user-data", true, &Method::GET).is_none());
    }

    #[test]
    fn events_never_hold_a_token() {
        let token = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(redacted(&format!("/{token}/user-data")), "/…/user-data");
        assert_eq!(redacted(&format!("/x/{token}")), "/x/…");
        assert_eq!(redacted(&format!("/{}/y", &token[1..])), "/…/y");
        assert!(redacted(&"/a".repeat(500)).chars().count() <= 120);
    }
}
