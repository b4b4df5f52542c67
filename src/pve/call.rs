//! A request as the client is given it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::{NodeName, Vmid};

/// What a path segment or a query value leaves as it is.
const PLAIN: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Parameters of a request: Proxmox takes numbers and booleans (1 and 0) as text, too.
pub type Params = BTreeMap<String, String>;

/// A method that Proxmox knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Post,
    Put,
    Delete,
}

impl Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
        })
    }
}

/// A request: its method, a path from the API's schema with the values for its `{…}`, and parameters.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) method: Method,
    /// As in the schema, for instance `/nodes/{node}/qemu/{vmid}/config`; the counter's key.
    pub(super) template: &'static str,
    arguments: Vec<String>,
    query: Vec<(&'static str, String)>,
    body: Option<Value>,
    /// The VMs it concerns: one call at a time is under way for each.
    pub(super) vms: BTreeSet<Vmid>,
    /// The node whose guest agents it bothers.
    pub(super) agent: Option<NodeName>,
}

impl Call {
    pub(super) fn new(method: Method, template: &'static str) -> Self {
        Self {
            method,
            template,
            arguments: Vec::new(),
            query: Vec::new(),
            body: None,
            vms: BTreeSet::new(),
            agent: None,
        }
    }

    pub(super) fn get(template: &'static str) -> Self {
        Self::new(Method::Get, template)
    }

    pub(super) fn post(template: &'static str) -> Self {
        Self::new(Method::Post, template)
    }

    pub(super) fn put(template: &'static str) -> Self {
        Self::new(Method::Put, template)
    }

    pub(super) fn delete(template: &'static str) -> Self {
        Self::new(Method::Delete, template)
    }

    /// Fills the next `{…}` of the path.
    pub(super) fn at(mut self, value: impl Display) -> Self {
        self.arguments.push(value.to_string());
        self
    }

    /// Fills the next `{…}` of the path with the VM that the call concerns.
    pub(super) fn vm(self, vmid: Vmid) -> Self {
        self.at(vmid).holding(vmid)
    }

    /// Names a VM that the call concerns without being in its path.
    pub(super) fn holding(mut self, vmid: Vmid) -> Self {
        self.vms.insert(vmid);
        self
    }

    /// Says that the call goes to the guest agent of a VM on that node.
    pub(super) fn through_agent(mut self, node: &NodeName) -> Self {
        self.agent = Some(node.clone());
        self
    }

    pub(super) fn query(mut self, name: &'static str, value: impl Display) -> Self {
        self.query.push((name, value.to_string()));
        self
    }

    pub(super) fn query_if<T: Display>(self, name: &'static str, value: Option<T>) -> Self {
        match value {
            Some(value) => self.query(name, value),
            None => self,
        }
    }

    /// Sets the JSON body: an object, without nulls (they reach Proxmox as undefined values).
    pub(super) fn body(mut self, body: Value) -> Self {
        self.body = Some(body);
        self
    }

    pub(super) fn params(self, params: &Params) -> Self {
        self.body(serde_json::to_value(params).expect("texts are JSON"))
    }

    /// Tells whether the call changes nothing.
    pub(super) fn reads(&self) -> bool {
        self.method == Method::Get
    }

    /// Tells whether the call may be made again when its answer is lost. A guest agent tells how a command
    /// ended once, and how often it is asked is for those to say who ask it.
    pub(super) fn may_repeat(&self) -> bool {
        self.reads() && self.agent.is_none()
    }

    /// Returns the path and query for the request line.
    pub(super) fn target(&self) -> String {
        let path = "/api2/json".to_owned() + &self.path(&encode);
        let query: Vec<_> =
            self.query.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
        if query.is_empty() { path } else { path + "?" + &query.join("&") }
    }

    /// Returns the bytes of the body; nothing for none.
    pub(super) fn bytes(&self) -> Option<Vec<u8>> {
        self.body.as_ref().map(|body| body.to_string().into_bytes())
    }

    /// Returns the path with its values, each in the shape that is wanted.
    ///
    /// Templates and their values stand side by side in this module's source, so that one without the other
    /// is a mistake in forge and no input can bring it about.
    fn path(&self, shape: &dyn Fn(&str) -> String) -> String {
        let mut values = self.arguments.iter();
        let mut value = || values.next().expect("each placeholder has a value");
        let shaped = |segment: &str| match segment {
            // It takes the rest of the path, with slashes.
            "{volume}" => value().split('/').map(shape).collect::<Vec<_>>().join("/"),
            _ if segment.starts_with('{') => shape(value()),
            _ => segment.to_owned(),
        };
        let path = self.template.split('/').map(shaped).collect::<Vec<_>>().join("/");
        debug_assert!(values.next().is_none(), "each value of {} has a placeholder", self.template);
        path
    }
}

impl Display for Call {
    /// Shows the method and the path; queries may hold tickets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path(&str::to_owned))
    }
}

pub(super) fn encode(text: &str) -> String {
    utf8_percent_encode(text, &PLAIN).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_queries_are_encoded_and_shown_plainly() {
        let call = Call::get("/nodes/{node}/tasks/{upid}/log")
            .at("pve1")
            .at("UPID:a!b:")
            .query("start", 5)
            .query("x", "a b;c=é");
        assert_eq!(
            call.target(),
            "/api2/json/nodes/pve1/tasks/UPID%3Aa%21b%3A/log?start=5&x=a%20b%3Bc%3D%C3%A9"
        );
        assert_eq!(call.to_string(), "GET /nodes/pve1/tasks/UPID:a!b:/log");
        let call =
            Call::get("/nodes/{node}/storage/{storage}/content/{volume}").at("n").at("s").at("s:iso/a b.iso");
        assert_eq!(call.target(), "/api2/json/nodes/n/storage/s/content/s%3Aiso/a%20b.iso");
    }

    #[test]
    fn a_body_is_one_json_object() {
        let params = Params::from([("virtio0".to_owned(), "local:5,ssd=1".to_owned())]);
        let call = Call::post("/nodes/{node}/qemu").at("pve1").params(&params);
        assert_eq!(call.bytes().unwrap(), br#"{"virtio0":"local:5,ssd=1"}"#);
        assert_eq!(Call::get("/version").bytes(), None);
    }
}
