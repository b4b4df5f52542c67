//! Who asks: the headers that say so, and the ticket's life.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::call::{Call, encode};
use super::settings::Credentials;
use super::{Client, Error};
use crate::definition::Secret;

/// How old a ticket gets; the server takes it for two hours.
const TICKET_LIFE: Duration = Duration::from_mins(80);

/// How old a ticket may be to be exchanged for a new one without the password.
const TICKET_RENEWABLE: Duration = Duration::from_mins(110);

/// The credentials, and the ticket that a password got.
#[derive(Debug)]
pub(super) struct Auth {
    credentials: Credentials,
    ticket: Mutex<Option<Ticket>>,
    /// How many tickets there have been.
    tickets: AtomicU64,
}

#[derive(Debug, Clone)]
pub(super) struct Ticket {
    cookie: Secret,
    csrf: Secret,
    since: Instant,
    /// How many tickets there have been, with this one.
    generation: u64,
}

/// The header lines that say who asks.
#[derive(Debug)]
pub(super) struct Headers {
    pub(super) lines: Secret,
    /// The generation of the ticket in them; nothing for a token.
    ticket: Option<u64>,
}

/// The answer of `POST /access/ticket`.
#[derive(Deserialize)]
struct TicketAnswer {
    ticket: String,
    #[serde(rename = "CSRFPreventionToken")]
    csrf: String,
}

impl Auth {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self { credentials, ticket: Mutex::default(), tickets: AtomicU64::new(0) }
    }

    pub(super) fn who(&self) -> &str {
        self.credentials.who()
    }

    /// Returns the header lines of a request, for which a ticket may have to be got first.
    pub(super) async fn headers(&self, client: &Client, reads: bool) -> Result<Headers, Error> {
        let Credentials::Password { user, password } = &self.credentials else {
            return Ok(Headers { lines: self.token_header(), ticket: None });
        };
        let mut slot = self.ticket.lock().await;
        let ticket = match slot.take() {
            Some(ticket) if ticket.since.elapsed() < TICKET_LIFE => ticket,
            old => {
                let old = old.filter(|ticket| ticket.since.elapsed() < TICKET_RENEWABLE);
                let generation = self.tickets.fetch_add(1, Ordering::Relaxed);
                renew(client, user, old, password, generation).await?
            }
        };
        let headers = Headers { lines: ticket.headers(reads), ticket: Some(ticket.generation) };
        *slot = Some(ticket);
        Ok(headers)
    }

    /// Drops the ticket that the server did not take, unless another call has got a new one meanwhile; says
    /// whether another attempt makes sense.
    pub(super) async fn forget_ticket(&self, refused: &Headers) -> bool {
        let mut slot = self.ticket.lock().await;
        slot.take_if(|ticket| Some(ticket.generation) == refused.ticket);
        refused.ticket.is_some()
    }

    fn token_header(&self) -> Secret {
        let Credentials::Token { id, secret } = &self.credentials else {
            return Secret::new("");
        };
        // The server takes what comes before `;` and decodes `%`.
        let value = format!("{id}={}", secret.expose()).replace('%', "%25").replace(';', "%3B");
        Secret::new(format!("Authorization: PVEAPIToken={value}\r\n"))
    }
}

impl Ticket {
    fn headers(&self, reads: bool) -> Secret {
        let cookie = format!("Cookie: PVEAuthCookie={}\r\n", encode(self.cookie.expose()));
        let csrf = format!("CSRFPreventionToken: {}\r\n", self.csrf.expose());
        Secret::new(if reads { cookie } else { cookie + &csrf })
    }
}

/// Gets a ticket for the old one, else for the password.
async fn renew(
    client: &Client,
    user: &str,
    old: Option<Ticket>,
    password: &Secret,
    generation: u64,
) -> Result<Ticket, Error> {
    let since = Instant::now();
    let mut answer = login(client, user, old.as_ref().map_or(password, |old| &old.cookie)).await;
    if old.is_some() && matches!(answer, Err(Error::Unauthorized { .. })) {
        // The key that signed the old ticket may be gone.
        answer = login(client, user, password).await;
    }
    let what = "POST /access/ticket".to_owned();
    let TicketAnswer { ticket, csrf } = serde_json::from_value(answer?)
        // serde's words could quote the answer, which holds the ticket.
        .map_err(|_| Error::Answer { what: what.clone(), reason: "there is no ticket in it".to_owned() })?;
    if ticket.contains(":!tfa!") {
        let message = "a second factor is asked for, which forge cannot give; use an API token".to_owned();
        return Err(Error::Unauthorized { what, who: user.to_owned(), message });
    }
    if (ticket.clone() + &csrf).contains(['\r', '\n']) {
        return Err(Error::Answer { what, reason: "the ticket has more than one line".to_owned() });
    }
    Ok(Ticket { cookie: Secret::new(ticket), csrf: Secret::new(csrf), since, generation })
}

async fn login(client: &Client, user: &str, password: &Secret) -> Result<Value, Error> {
    let body = json!({ "username": user, "password": password.expose() });
    match client.call_without_auth(Call::post("/access/ticket").body(body)).await {
        // A ticket that is lost does no harm, and the call that it was for has not been made.
        Err(Error::Unknown { what, reason }) => Err(Error::NotSent { what, reason }),
        answer => answer,
    }
}
