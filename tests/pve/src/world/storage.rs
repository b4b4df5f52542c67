//! Storages and volumes: names as each kind of storage makes them, over plain files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// What a storage is made of, as far as names and abilities go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageKind {
    /// A directory.
    Dir,
    /// A directory on an NFS server.
    Nfs,
    /// A directory on a Windows share.
    Cifs,
    /// A ZFS dataset with one volume per disk.
    ZfsPool,
    /// A thin pool of LVM.
    LvmThin,
    /// A Ceph pool.
    Rbd,
}

impl StorageKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dir => "dir",
            Self::Nfs => "nfs",
            Self::Cifs => "cifs",
            Self::ZfsPool => "zfspool",
            Self::LvmThin => "lvmthin",
            Self::Rbd => "rbd",
        }
    }

    /// Whether volumes are files in folders, with a format each.
    pub(crate) fn has_files(self) -> bool {
        matches!(self, Self::Dir | Self::Nfs | Self::Cifs)
    }

    /// Whether a linked clone's name carries its base.
    fn names_base(self) -> bool {
        self != Self::LvmThin
    }

    /// How the storage's code calls itself when it cannot read a name.
    fn plugin(self) -> &'static str {
        match self {
            Self::Dir | Self::Nfs | Self::Cifs => "directory",
            Self::ZfsPool => "zfs",
            Self::LvmThin => "lvm",
            Self::Rbd => "rbd",
        }
    }
}

/// A storage's configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Storage {
    /// Its name.
    pub id: String,
    /// Its kind.
    pub kind: StorageKind,
    /// What may be stored: `images`, `iso`, …
    pub content: Vec<String>,
    /// The path, pool or volume group that texts show; nothing of it is touched.
    #[serde(default)]
    pub path: String,
    /// Whether all nodes see the same volumes.
    #[serde(default)]
    pub shared: bool,
    /// The nodes that have it; empty for all.
    #[serde(default)]
    pub nodes: Vec<String>,
    /// Switched off in the configuration.
    #[serde(default)]
    pub disabled: bool,
    /// Size in GiB.
    #[serde(default = "default_size")]
    pub size_gib: u64,
    /// Every allocation fails for want of space.
    #[serde(default)]
    pub full: bool,
}

fn default_size() -> u64 {
    256
}

impl Storage {
    pub(crate) fn holds(&self, content: &str) -> bool {
        self.content.iter().any(|held| held == content)
    }

    pub(crate) fn on(&self, node: &str) -> bool {
        self.nodes.is_empty() || self.nodes.iter().any(|name| name == node)
    }

    /// Where its volumes are kept: shared ones once, others per node.
    pub(crate) fn scope<'a>(&self, node: &'a str) -> &'a str {
        if self.shared { "shared" } else { node }
    }

    /// The path that texts show for a volume.
    pub(crate) fn shown_path(&self, name: &str) -> String {
        let (leaf, base) = split_linked(self.kind, name);
        let path = &self.path;
        if base.is_none()
            && let Some((kind, file)) = leaf.split_once('/')
            && let Some(folder) = content_folder(kind)
        {
            return format!("{path}/{folder}/{file}");
        }
        match self.kind {
            StorageKind::Dir | StorageKind::Nfs | StorageKind::Cifs => format!("{path}/images/{leaf}"),
            StorageKind::ZfsPool => format!("/dev/zvol/{path}/{leaf}"),
            StorageKind::LvmThin => format!("/dev/{path}/{leaf}"),
            StorageKind::Rbd => format!("rbd:{path}/{leaf}"),
        }
    }
}

/// The folder of uploaded content below a directory storage.
pub(crate) fn content_folder(content: &str) -> Option<&'static str> {
    match content {
        "iso" => Some("template/iso"),
        "vztmpl" => Some("template/cache"),
        "import" => Some("import"),
        "snippets" => Some("snippets"),
        "backup" => Some("dump"),
        _ => None,
    }
}

/// A guest's disk.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) storage: String,
    /// Without the storage and without a base: `100/vm-100-disk-0.qcow2`, `vm-100-disk-0`.
    pub(crate) leaf: String,
    /// The base that a linked clone hangs on, as a leaf.
    pub(crate) base: Option<String>,
    pub(crate) vmid: u32,
    /// The file on this host and QEMU's format of it.
    pub(crate) file: PathBuf,
    pub(crate) file_format: String,
    /// The format that lists show.
    pub(crate) format: String,
    pub(crate) bytes: u64,
    pub(crate) ctime: i64,
}

impl Image {
    pub(crate) fn is_base(&self) -> bool {
        file_name(&self.leaf).starts_with("base-")
    }

    /// The name in configurations, its base included where the storage's kind shows it.
    pub(crate) fn name(&self, kind: StorageKind) -> String {
        match &self.base {
            Some(base) if kind.names_base() => format!("{base}/{}", self.leaf),
            _ => self.leaf.clone(),
        }
    }

    pub(crate) fn volid(&self, kind: StorageKind) -> String {
        format!("{}:{}", self.storage, self.name(kind))
    }
}

fn file_name(leaf: &str) -> &str {
    leaf.rsplit('/').next().unwrap_or(leaf)
}

/// Images by scope (node or `shared`), storage and leaf.
pub(crate) type Images = BTreeMap<(String, String, String), Image>;

/// Splits a name into leaf and base.
pub(crate) fn split_linked(kind: StorageKind, name: &str) -> (&str, Option<&str>) {
    let parts: Vec<&str> = name.split('/').collect();
    let at = match (kind.has_files(), parts.len()) {
        (true, 4) => parts[0].len() + parts[1].len() + 1,
        (false, 2) => parts[0].len(),
        _ => return (name, None),
    };
    (&name[at + 1..], Some(&name[..at]))
}

/// What kind of content a name stands for.
///
/// # Errors
/// The server's text for a name that the storage cannot have.
pub(crate) fn content_of(kind: StorageKind, name: &str) -> Result<&'static str, String> {
    let bad = || format!("unable to parse {} volume name '{name}'", kind.plugin());
    let (leaf, _) = split_linked(kind, name);
    if !kind.has_files() {
        let good = ["vm-", "base-"].iter().any(|prefix| {
            leaf.strip_prefix(prefix).and_then(|rest| rest.split('-').next()).is_some_and(is_number)
        });
        return if good { Ok("images") } else { Err(bad()) };
    }
    let (folder, file) = leaf.split_once('/').ok_or_else(bad)?;
    if file.is_empty() || file.contains('/') || file == ".." {
        return Err(bad());
    }
    let extension_is = |all: &[&str]| all.iter().any(|ext| file.to_lowercase().ends_with(ext));
    match folder {
        "iso" if extension_is(&[".iso", ".img"]) => Ok("iso"),
        "vztmpl" if extension_is(&[".tar", ".tar.gz", ".tar.xz", ".tar.zst", ".tar.bz2"]) => Ok("vztmpl"),
        "import" if extension_is(&[".ova", ".qcow2", ".raw", ".vmdk"]) => Ok("import"),
        "snippets" => Ok("snippets"),
        "backup" => Ok("backup"),
        vmid if is_number(vmid) => Ok("images"),
        _ => Err(bad()),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The VM that a volume's name says it belongs to.
pub(crate) fn owner_of(kind: StorageKind, name: &str) -> Option<u32> {
    let (leaf, _) = split_linked(kind, name);
    if kind.has_files() {
        return leaf.split('/').next()?.parse().ok();
    }
    leaf.split('-').nth(1)?.parse().ok()
}

/// A free name for a new disk of `vmid`, counting up from 0.
pub(crate) fn free_leaf(
    images: &Images,
    scope: &str,
    storage: &Storage,
    vmid: u32,
    prefix: &str,
    format: &str,
) -> String {
    let taken: Vec<String> = images
        .iter()
        .filter(|((in_scope, id, _), image)| in_scope == scope && *id == storage.id && image.vmid == vmid)
        .map(|((.., leaf), _)| {
            let name = file_name(leaf);
            name.split('.')
                .next()
                .unwrap_or(name)
                .trim_start_matches("base-")
                .trim_start_matches("vm-")
                .into()
        })
        .collect();
    let free = (0..10_000).find(|number| !taken.contains(&format!("{vmid}-disk-{number}")));
    let number = free.unwrap_or_default();
    leaf_for(storage.kind, vmid, &format!("{prefix}-{vmid}-disk-{number}"), format)
}

/// A leaf out of its bare name.
pub(crate) fn leaf_for(kind: StorageKind, vmid: u32, name: &str, format: &str) -> String {
    if kind.has_files() { format!("{vmid}/{name}.{format}") } else { name.into() }
}

/// The leaf of the base volume that a disk becomes.
pub(crate) fn base_leaf(kind: StorageKind, leaf: &str) -> String {
    if kind.has_files() { leaf.replacen("/vm-", "/base-", 1) } else { leaf.replacen("vm-", "base-", 1) }
}

/// The file below `root` that holds an image.
pub(crate) fn image_file(root: &Path, storage: &Storage, leaf: &str) -> PathBuf {
    if storage.kind.has_files() { root.join("images").join(leaf) } else { root.join(leaf) }
}

/// What an uploaded file's name becomes: its last part, odd characters as underscores.
pub(crate) fn normalise_file_name(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or(name);
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    last.chars().map(|c| if plain(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(kind: StorageKind) -> Storage {
        Storage {
            id: "s1".into(),
            kind,
            content: vec!["images".into()],
            path: "/var/lib/vz".into(),
            shared: false,
            nodes: Vec::new(),
            disabled: false,
            size_gib: 1,
            full: false,
        }
    }

    #[test]
    fn each_kind_names_its_volumes_in_its_own_way() {
        use StorageKind::{Dir, LvmThin, Rbd, ZfsPool};
        for (kind, disk, base, linked) in [
            (Dir, "7/vm-7-disk-0.raw", "7/base-7-disk-0.raw", "7/base-7-disk-0.raw/8/vm-8-disk-0.raw"),
            (ZfsPool, "vm-7-disk-0", "base-7-disk-0", "base-7-disk-0/vm-8-disk-0"),
            (LvmThin, "vm-7-disk-0", "base-7-disk-0", "vm-8-disk-0"),
            (Rbd, "vm-7-disk-0", "base-7-disk-0", "base-7-disk-0/vm-8-disk-0"),
        ] {
            let storage = storage(kind);
            let images = Images::new();
            assert_eq!(free_leaf(&images, "n", &storage, 7, "vm", "raw"), disk);
            assert_eq!(base_leaf(kind, disk), base);
            assert_eq!(content_of(kind, linked), Ok("images"));
            assert_eq!(owner_of(kind, linked), Some(8));
            let image = Image {
                storage: "s1".into(),
                leaf: split_linked(kind, linked).0.into(),
                base: Some(base.into()),
                vmid: 8,
                file: PathBuf::new(),
                file_format: "raw".into(),
                format: "raw".into(),
                bytes: 0,
                ctime: 0,
            };
            assert_eq!(image.name(kind), linked);
        }
    }

    #[test]
    fn names_that_no_storage_has_are_refused() {
        let bad = |kind, name: &str| content_of(kind, name).unwrap_err();
        assert_eq!(bad(StorageKind::Dir, "50G"), "unable to parse directory volume name '50G'");
        assert_eq!(bad(StorageKind::ZfsPool, "50G"), "unable to parse zfs volume name '50G'");
        bad(StorageKind::Dir, "iso/../x.iso");
    }

    #[test]
    fn uploaded_names_are_made_harmless() {
        assert_eq!(normalise_file_name("a b+c=d(1)é~.iso"), "a_b_c_d_1___.iso");
        assert_eq!(normalise_file_name("../../etc/x.iso"), "x.iso");
        assert_eq!(normalise_file_name("C:\\temp\\y.iso"), "y.iso");
    }
}
