//! The Proxmox client against a server that answers as told: what is repeated, what is never, what is
//! sent in which shape, whom it trusts, and that no secret shows.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod changes;
mod login;
mod requests;
mod screenshot;
#[expect(unreachable_pub, clippy::pedantic, reason = "it is shared with the tests of the communicator")]
mod server;
mod transcripts;
mod trust;
mod turns;
mod upload;

use forge::definition::Secret;
use forge::pve::{Client, Credentials, Pace, Settings, Trust, Vm};
use serde_json::json;

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
