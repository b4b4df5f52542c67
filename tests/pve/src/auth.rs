//! Who sends a request: a token in a header, or a ticket in a cookie.
//!
//! Source: pve-manager `PVE/HTTPServer.pm` `auth_handler`.

use std::sync::LazyLock;

use regex::Regex;

use crate::access::{Identity, Token};
use crate::held;
use crate::http::form::percent_decode;
use crate::http::head::Head;
use crate::sim::Sim;

/// Tickets end after two hours.
const TICKET_SECONDS: i64 = 7200;

static TOKEN: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^([^\s:/]+@[A-Za-z][A-Za-z0-9._-]+)!([A-Za-z][A-Za-z0-9._-]+)=(.+)$")
        .expect("a fixed pattern")
});

/// Finds out who sends a request; `None` on paths that are open to the world.
///
/// # Errors
/// The reason of the 401.
pub(crate) fn identify(
    sim: &Sim,
    head: &Head,
    path: &str,
    is_upload: bool,
) -> Result<Option<Identity>, &'static str> {
    let cookie = head.header("cookie").and_then(|text| value_of(text, "PVEAuthCookie", &['=']));
    if let Some(ticket) = cookie {
        let ticket = percent_decode(&ticket, false);
        if open_to_world(&head.method, path) {
            return Ok(None);
        }
        return by_ticket(sim, head, &ticket, is_upload).map(Some);
    }
    let header = head.header("authorization").and_then(|text| value_of(text, "PVEAPIToken", &['=', ' ']));
    match header {
        Some(token) => match by_token(sim, &percent_decode(&token, false)) {
            Some(who) => Ok(Some(who)),
            None if open_to_world(&head.method, path) => Ok(None),
            None => Err("Authentication failed!"),
        },
        None if open_to_world(&head.method, path) => Ok(None),
        None => Err("No ticket"),
    }
}

fn open_to_world(method: &str, path: &str) -> bool {
    matches!(
        (method, path),
        ("GET", "/access/domains") | ("GET" | "POST", "/access/ticket") | ("POST", "/access/vncticket")
    )
}

/// The value after `name` and a separator, up to a semicolon.
fn value_of(text: &str, name: &str, separators: &[char]) -> Option<String> {
    let start = text
        .match_indices(name)
        .find(|(at, _)| text[..*at].chars().next_back().is_none_or(|c| c == ' ' || c == ';'));
    let rest = text[start?.0 + name.len()..].strip_prefix(separators)?;
    rest.split(';').next().map(|value| value.trim().to_owned())
}

fn by_token(sim: &Sim, text: &str) -> Option<Identity> {
    let parts = TOKEN.captures(text)?;
    let world = sim.world();
    let user = world.access.users.get(&parts[1]).filter(|user| !user.disabled)?;
    let token = user.tokens.get(&parts[2])?;
    let good = token.secret == parts[3] && !is_over(token, sim.clock.now());
    good.then(|| Identity { user: parts[1].into(), token: Some(parts[2].into()) })
}

fn is_over(token: &Token, now: i64) -> bool {
    token.expire != 0 && token.expire <= now
}

fn by_ticket(sim: &Sim, head: &Head, ticket: &str, is_upload: bool) -> Result<Identity, &'static str> {
    let tickets = held(&sim.tickets);
    let known = tickets.get(ticket).filter(|known| sim.clock.now() - known.made < TICKET_SECONDS);
    let known = known.ok_or("Authentication failed!")?;
    if head.method != "GET" && !is_upload && head.header("csrfpreventiontoken") != Some(&known.csrf) {
        return Err("Permission denied - invalid csrf token");
    }
    Ok(Identity { user: known.user.clone(), token: None })
}

/// Whether `ticket` is one of `user` that still holds.
pub(crate) fn holds(sim: &Sim, user: &str, ticket: &str) -> bool {
    let tickets = held(&sim.tickets);
    tickets
        .get(ticket)
        .is_some_and(|known| known.user == user && sim.clock.now() - known.made < TICKET_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_taken_with_equals_sign_or_blank() {
        let token = |text| value_of(text, "PVEAPIToken", &['=', ' ']);
        assert_eq!(token("PVEAPIToken=a@pve!b=c").as_deref(), Some("a@pve!b=c"));
        assert_eq!(token("PVEAPIToken a@pve!b=c;x").as_deref(), Some("a@pve!b=c"));
        assert_eq!(token("pveapitoken=a@pve!b=c"), None);
        assert_eq!(token("Bearer x"), None);
        assert_eq!(value_of("a=1; PVEAuthCookie=T%3A", "PVEAuthCookie", &['=']).as_deref(), Some("T%3A"));
    }
}
