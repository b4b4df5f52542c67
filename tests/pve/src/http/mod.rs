//! HTTP/1.1 as pveproxy speaks it, by hand: its peculiarities are the point.
//!
//! Source: pve-http-server `PVE/APIServer/AnyEvent.pm`, and transcript 12.

pub(crate) mod conn;
pub(crate) mod form;
pub(crate) mod head;
pub(crate) mod multipart;
pub(crate) mod proxies;
pub(crate) mod response;
pub(crate) mod upload;
pub(crate) mod websocket;
