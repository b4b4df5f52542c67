//! Storages: what is on them, what they take, downloads by the node itself.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::json;

use super::call::Call;
use super::{Client, Error, NodeName, StorageId, Upid, Vmid, loose};

/// The longest file name that Proxmox takes.
const FILE_NAME_MAX: usize = 255;

/// A storage as a node sees it.
#[derive(Debug, Clone)]
pub struct Storage {
    pub(super) client: Client,
    pub(super) node: NodeName,
    pub(super) id: StorageId,
}

/// How a storage is.
#[derive(Debug, Clone, Deserialize)]
pub struct StorageStatus {
    /// Its name; the answer for one storage leaves it out.
    #[serde(default)]
    pub storage: String,
    /// `dir`, `zfspool`, `lvmthin`, `nfs`, `cifs`, `rbd`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// What it takes: images, rootdir, iso, vztmpl, backup, snippets, import.
    #[serde(default, deserialize_with = "loose::words")]
    pub content: BTreeSet<String>,
    /// Whether it is switched on for this node.
    #[serde(default, deserialize_with = "loose::flag")]
    pub enabled: bool,
    /// Whether it works at this moment.
    #[serde(default, deserialize_with = "loose::flag")]
    pub active: bool,
    /// Whether all nodes see the same.
    #[serde(default, deserialize_with = "loose::flag")]
    pub shared: bool,
    /// Its size in bytes.
    #[serde(default, deserialize_with = "loose::number")]
    pub total: u64,
    /// What is free of it, in bytes.
    #[serde(default, deserialize_with = "loose::number")]
    pub avail: u64,
}

/// A volume in a storage's list.
#[derive(Debug, Clone, Deserialize)]
pub struct Volume {
    /// Its name, such as `local:iso/x.iso`.
    pub volid: String,
    /// What it is: images, iso, …
    #[serde(default)]
    pub content: String,
    /// `raw`, `qcow2`, `iso`, …
    #[serde(default)]
    pub format: String,
    /// Its size in bytes.
    #[serde(default, deserialize_with = "loose::number")]
    pub size: u64,
    /// Whose disk it is.
    #[serde(default, deserialize_with = "loose::maybe_number")]
    pub vmid: Option<u32>,
    /// When it was made, in seconds since 1970.
    #[serde(default, deserialize_with = "loose::maybe_number")]
    pub ctime: Option<i64>,
    /// The base that it is linked to.
    #[serde(default)]
    pub parent: Option<String>,
}

/// A volume on its own.
#[derive(Debug, Clone, Deserialize)]
pub struct VolumeInfo {
    /// `raw`, `qcow2`, …
    #[serde(default)]
    pub format: String,
    /// Its size in bytes.
    #[serde(default, deserialize_with = "loose::number")]
    pub size: u64,
    /// Where it is on the node.
    #[serde(default)]
    pub path: Option<String>,
}

/// What a storage keeps that can be uploaded or downloaded to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// ISO images, as `.iso` or `.img`.
    Iso,
    /// Container templates.
    ContainerTemplate,
    /// Disk images to import.
    Import,
}

impl Content {
    /// Returns Proxmox's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Iso => "iso",
            Self::ContainerTemplate => "vztmpl",
            Self::Import => "import",
        }
    }
}

/// A file for a node to download.
#[derive(Debug, Clone)]
pub struct Download<'a> {
    /// Where from: http or https.
    pub url: &'a str,
    /// What it is.
    pub content: Content,
    /// Its name on the storage; see [`normalise_file_name`].
    pub name: &'a str,
    /// Its SHA-256: a file that is there with it is taken as it is, one with another is an error.
    pub sha256: &'a str,
}

impl Client {
    /// Returns a node's storage, which may or may not exist.
    #[must_use]
    pub fn storage(&self, node: &NodeName, id: &StorageId) -> Storage {
        Storage { client: self.clone(), node: node.clone(), id: id.clone() }
    }

    /// Lists a node's storages that this user may see; with a content, those that take it.
    pub async fn storages(
        &self,
        node: &NodeName,
        content: Option<&str>,
    ) -> Result<Vec<StorageStatus>, Error> {
        self.ask(Call::get("/nodes/{node}/storage").at(node).query_if("content", content)).await
    }
}

impl Storage {
    /// Returns its name.
    #[must_use]
    pub fn id(&self) -> &StorageId {
        &self.id
    }

    /// Returns its node.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// Returns the name that a volume has after it was uploaded or downloaded under a file name.
    #[must_use]
    pub fn volid(&self, content: Content, name: &str) -> String {
        format!("{}:{}/{}", self.id, content.as_str(), normalise_file_name(name))
    }

    fn at(&self, call: Call) -> Call {
        call.at(&self.node).at(&self.id)
    }

    /// Returns how it is.
    pub async fn status(&self) -> Result<StorageStatus, Error> {
        let call = self.at(Call::get("/nodes/{node}/storage/{storage}/status"));
        let status: StorageStatus = self.client.ask(call).await?;
        Ok(StorageStatus { storage: self.id.to_string(), ..status })
    }

    /// Lists its volumes that this user may see, of one content or of one VM.
    pub async fn volumes(&self, content: Option<&str>, vmid: Option<Vmid>) -> Result<Vec<Volume>, Error> {
        let call = self.at(Call::get("/nodes/{node}/storage/{storage}/content"));
        self.client.ask(call.query_if("content", content).query_if("vmid", vmid)).await
    }

    /// Returns a volume; nothing when it is not there.
    pub async fn volume(&self, volid: &str) -> Result<Option<VolumeInfo>, Error> {
        let call = self.at(Call::get("/nodes/{node}/storage/{storage}/content/{volume}")).at(volid);
        match self.client.ask(call).await {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes a volume; one that is not there is no error. Needs Datastore.Allocate, which uploading
    /// does not.
    pub async fn delete(&self, volid: &str) -> Result<Upid, Error> {
        let call = self.at(Call::delete("/nodes/{node}/storage/{storage}/content/{volume}")).at(volid);
        self.client.start_task(call, &self.node, "imgdel", self.id.as_str()).await
    }

    /// Lets the node download a file. Besides Datastore.AllocateTemplate on the storage it needs
    /// Sys.AccessNetwork on the node.
    pub async fn download(&self, download: &Download<'_>) -> Result<Upid, Error> {
        let Download { url, content, name, sha256 } = download;
        let name = normalise_file_name(name);
        let call = self.at(Call::post("/nodes/{node}/storage/{storage}/download-url")).body(json!({
            "url": url,
            "content": content.as_str(),
            "filename": name,
            "checksum": sha256,
            "checksum-algorithm": "sha256",
        }));
        self.client.start_task(call, &self.node, "download", &name).await
    }
}

/// Returns the name that Proxmox gives a file: without folders, with `_` for every character besides
/// letters, digits, `_`, `.` and `-` (pve-storage, `normalize_content_filename`).
#[must_use]
pub fn normalise_file_name(name: &str) -> String {
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '_' };
    // What is cut is the beginning: the end has the extension.
    let name: String = name.chars().map(plain).collect();
    name[name.len().saturating_sub(FILE_NAME_MAX)..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_become_what_proxmox_makes_of_them() {
        for (name, normal) in [
            ("ubuntu-24.04.3.iso", "ubuntu-24.04.3.iso"),
            ("a b+.iso", "a_b_.iso"),
            ("../../etc/x\\y z.iso", "y_z.iso"),
            ("é.iso", "_.iso"),
        ] {
            assert_eq!(normalise_file_name(name), normal);
        }
        let long = normalise_file_name(&("x".repeat(300) + ".iso"));
        assert_eq!((long.len(), &long[251..]), (255, ".iso"));
    }
}
