//! The HTTP client: what is tried again, what is told of a failure, what never is.

use std::error::Error;
use std::sync::Once;
use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, StatusCode, Url};

use super::{FetchError, OnProgress, Progress};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a server may be asked to be left alone.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(1);

/// How downloads are tried again.
#[derive(Debug, Clone)]
pub struct Retries {
    /// How many attempts in a row may bring nothing.
    pub attempts: u32,
    /// The pause after the first failure; it doubles with each further one, give or take a quarter.
    pub pause: Duration,
    /// The longest pause.
    pub pause_max: Duration,
    /// How long a server may be silent.
    pub silence: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            attempts: 6,
            pause: Duration::from_secs(1),
            pause_max: Duration::from_secs(20),
            silence: Duration::from_secs(45),
        }
    }
}

impl Retries {
    /// Returns the pause before an attempt, the second being the first that has one.
    fn pause_before(&self, attempt: u32) -> Duration {
        let doubled = self.pause.saturating_mul(1 << attempt.saturating_sub(2).min(16));
        let mut random = [0; 1];
        getrandom::fill(&mut random).expect("the kernel gives random bytes");
        // Between 3/4 and 5/4, so that many builds do not come back all at once.
        doubled.min(self.pause_max).mul_f64(0.75 + f64::from(random[0]) / 510.0)
    }
}

/// Why an attempt failed.
pub(super) enum Failed {
    /// It may go better the next time.
    Passing {
        reason: String,
        /// How long the server asked to wait.
        after: Option<Duration>,
    },
    /// It will not.
    Final(FetchError),
}

impl Failed {
    pub(super) fn passing(reason: impl Into<String>) -> Self {
        Self::Passing { reason: reason.into(), after: None }
    }
}

impl From<FetchError> for Failed {
    fn from(error: FetchError) -> Self {
        Self::Final(error)
    }
}

/// Counts attempts that brought nothing.
pub(super) struct Attempts<'a> {
    url: &'a Url,
    retries: &'a Retries,
    failed: u32,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(url: &'a Url, retries: &'a Retries) -> Self {
        Self { url, retries, failed: 0 }
    }

    /// Notes that something came: patience begins anew.
    pub(super) fn progressed(&mut self) {
        self.failed = 0;
    }

    /// Takes a failure: pauses before the next attempt, or gives up.
    pub(super) async fn after(&mut self, failed: Failed, progress: OnProgress<'_>) -> Result<(), FetchError> {
        let (reason, after) = match failed {
            Failed::Final(error) => return Err(error),
            Failed::Passing { reason, after } => (reason, after),
        };
        self.failed += 1;
        let of = self.retries.attempts;
        if self.failed >= of {
            return Err(FetchError::Unreachable { url: shown(self.url), attempts: of, reason });
        }
        let attempt = self.failed + 1;
        progress(Progress::Retry { attempt, of, reason });
        let asked = after.unwrap_or_default().min(RETRY_AFTER_MAX);
        tokio::time::sleep(self.retries.pause_before(attempt).max(asked)).await;
        Ok(())
    }
}

/// Returns a client: system roots, proxies from the environment, no limit on the whole.
pub(super) fn client(retries: &Retries) -> Result<Client, FetchError> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // Somebody else may have installed one already: then that one serves.
        let _first = rustls::crypto::ring::default_provider().install_default().is_ok();
    });
    Client::builder()
        .user_agent(concat!("forge/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(retries.silence)
        .build()
        .map_err(|error| FetchError::Tls { url: "the HTTP client".to_owned(), reason: reason(&error) })
}

/// Says of a status that is no success whether it is worth another attempt.
pub(super) fn refused(url: &Url, status: StatusCode, headers: &HeaderMap) -> Failed {
    let passing = status.is_server_error()
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
    if passing {
        let after = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let reason = format!("the server answered {status}");
        return Failed::Passing { reason, after: after.map(Duration::from_secs) };
    }
    FetchError::Refused { url: shown(url), status: status.to_string() }.into()
}

/// Says whether a failed request is worth another attempt.
pub(super) fn failed(url: &Url, error: reqwest::Error) -> Failed {
    let error = error.without_url();
    if has_cause::<rustls::Error>(&error) {
        return FetchError::Tls { url: shown(url), reason: reason(&error) }.into();
    }
    if error.is_builder() || error.is_redirect() {
        return FetchError::Refused { url: shown(url), status: reason(&error) }.into();
    }
    Failed::passing(reason(&error))
}

fn has_cause<T: Error + 'static>(error: &(dyn Error + 'static)) -> bool {
    if error.is::<T>() {
        return true;
    }
    // An I/O error shows what it wraps only when asked for it.
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    wrapped.is_some_and(|inner| has_cause::<T>(inner)) || error.source().is_some_and(has_cause::<T>)
}

/// Returns an error's causes without its own, general words.
fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "the server was silent for too long".to_owned();
    }
    let mut causes: Vec<String> = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if causes.last().is_none_or(|last| !last.contains(&text)) {
            causes.push(text);
        }
        next = cause.source();
    }
    if causes.is_empty() { error.to_string() } else { causes.join(": ") }
}

/// Returns a small file.
pub(super) async fn get_small(
    url: &Url,
    limit: usize,
    retries: &Retries,
    progress: OnProgress<'_>,
) -> Result<Vec<u8>, FetchError> {
    let client = client(retries)?;
    progress(Progress::Downloading { done: 0, total: None });
    let mut attempts = Attempts::new(url, retries);
    loop {
        match get_small_once(&client, url, limit).await {
            Ok(content) => return Ok(content),
            Err(failed) => attempts.after(failed, progress).await?,
        }
    }
}

async fn get_small_once(client: &Client, url: &Url, limit: usize) -> Result<Vec<u8>, Failed> {
    let mut response = client.get(url.clone()).send().await.map_err(|error| failed(url, error))?;
    if response.status() != StatusCode::OK {
        return Err(refused(url, response.status(), response.headers()));
    }
    let mut content = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| failed(url, error))? {
        if content.len() + chunk.len() > limit {
            let status = format!("more than the {limit} bytes that such a file may have");
            return Err(FetchError::Refused { url: shown(url), status }.into());
        }
        content.extend_from_slice(&chunk);
    }
    Ok(content)
}

/// Returns a URL for people: without credentials, and without a query, which may hold some.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Both fail only for URLs that cannot have credentials.
    let _cleared = url.set_username("").is_ok() && url.set_password(None).is_ok();
    if url.query().is_some() {
        url.set_query(Some("…"));
    }
    url.set_fragment(None);
    url.to_string().replace("%E2%80%A6", "…")
}

/// Returns a location for people, whether it is a URL or a path.
pub(super) fn shown_text(location: &str) -> String {
    if !location.contains("://") {
        return location.to_owned();
    }
    match Url::parse(location) {
        Ok(url) => shown(&url),
        Err(_) => format!("{}://…", location.split("://").next().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_never_shown() {
        for (location, shown) in [
            ("https://user:secret@host/path/x.iso", "https://host/path/x.iso"),
            ("https://secret@host/x", "https://host/x"),
            ("https://host:8443/x?X-Amz-Signature=secret#f", "https://host:8443/x?…"),
            ("ftp://user:secret@host/x", "ftp://host/x"),
            ("https://user:secret@ho st/", "https://…"),
            ("images/x.iso", "images/x.iso"),
        ] {
            assert_eq!(shown_text(location), shown);
        }
    }

    #[test]
    fn pauses_grow_to_a_limit_and_vary() {
        let retries = Retries::default();
        for (attempt, seconds) in [(2, 1.0), (3, 2.0), (4, 4.0), (5, 8.0), (12, 20.0), (u32::MAX, 20.0)] {
            let pause = retries.pause_before(attempt).as_secs_f64();
            assert!((seconds * 0.75..=seconds * 1.25 + 0.001).contains(&pause), "{attempt}: {pause}");
        }
        let pauses: Vec<_> = (0..20).map(|_| retries.pause_before(3)).collect();
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }
}
