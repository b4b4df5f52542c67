//! Volumes come, grow, are copied, linked and freed: real files behind each kind's names.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use tokio::process::Command;

use crate::sim::Sim;
use crate::worker::Worker;
use crate::world::storage::{Image, Storage, StorageKind, base_leaf, free_leaf, image_file, leaf_for};

/// Work on volumes of one node, told to a task's log where there is one.
#[derive(Clone, Copy)]
pub(crate) struct Disks<'a> {
    pub(crate) sim: &'a Arc<Sim>,
    pub(crate) node: &'a str,
    pub(crate) task: Option<&'a Worker>,
}

/// A volume that was made.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) volid: String,
    pub(crate) bytes: u64,
}

type Key = (String, String, String);

impl Disks<'_> {
    pub(crate) fn log(&self, line: &str) {
        if let Some(task) = self.task {
            task.log(line);
        }
    }

    /// A storage that can be used here and may hold disks.
    pub(crate) fn storage(&self, id: &str) -> Result<Storage, String> {
        let world = self.sim.world();
        let storage = world.usable_storage(id, self.node)?;
        if !storage.holds("images") {
            return Err(format!("storage '{id}' does not support content-type 'images'"));
        }
        Ok(storage.clone())
    }

    /// Makes an empty disk; `format` is the wanted one, where the storage has a choice.
    pub(crate) async fn allocate(
        &self,
        id: &str,
        vmid: u32,
        bytes: u64,
        format: Option<&str>,
    ) -> Result<Made, String> {
        let storage = self.storage(id)?;
        let format = format_on(&storage, format)?;
        let key = self.reserve(&storage, vmid, bytes, &format, None, None)?;
        self.create_file(&storage, &key, bytes, &format).await
    }

    /// Makes an empty disk of a given name.
    pub(crate) async fn allocate_named(
        &self,
        id: &str,
        vmid: u32,
        bytes: u64,
        format: Option<&str>,
        name: &str,
    ) -> Result<Made, String> {
        let storage = self.storage(id)?;
        if !name.starts_with(&format!("vm-{vmid}-")) {
            return Err(format!("illegal name '{name}' - should be 'vm-{vmid}-*'"));
        }
        let format = format_on(&storage, format)?;
        let leaf = leaf_for(storage.kind, vmid, name, &format);
        let key = self.reserve(&storage, vmid, bytes, &format, None, Some(leaf))?;
        self.create_file(&storage, &key, bytes, &format).await
    }

    /// Makes the volume of a cloud-init drive.
    pub(crate) async fn allocate_cloud_init(&self, id: &str, vmid: u32) -> Result<Made, String> {
        const BYTES: u64 = 4 << 20;
        let storage = self.storage(id)?;
        let format = if storage.kind.has_files() { "qcow2" } else { "raw" };
        let leaf = leaf_for(storage.kind, vmid, &format!("vm-{vmid}-cloudinit"), format);
        let key = self.reserve(&storage, vmid, BYTES, format, None, Some(leaf))?;
        self.create_file(&storage, &key, BYTES, format).await
    }

    async fn create_file(
        &self,
        storage: &Storage,
        key: &Key,
        bytes: u64,
        format: &str,
    ) -> Result<Made, String> {
        let image = self.image(key)?;
        self.log_formatting(storage, &image, "");
        let made = if format == "raw" {
            create_raw(&image.file, bytes).await
        } else {
            let size = bytes.to_string();
            let file = image.file.to_string_lossy().into_owned();
            self.qemu_img(&["create", "-q", "-f", format, &file, &size]).await
        };
        self.made_or_forget(made, key, storage)
    }

    fn made_or_forget(&self, made: Result<(), String>, key: &Key, storage: &Storage) -> Result<Made, String> {
        let mut world = self.sim.world();
        if let Err(error) = made {
            world.images.remove(key);
            return Err(error);
        }
        let image = &world.images[key];
        Ok(Made { volid: image.volid(storage.kind), bytes: image.bytes })
    }

    fn image(&self, key: &Key) -> Result<Image, String> {
        let found = self.sim.world().images.get(key).cloned();
        found.ok_or_else(|| format!("volume '{}:{}' does not exist", key.1, key.2))
    }

    /// The image behind a volume id.
    pub(crate) fn find(&self, volid: &str) -> Result<(Key, Image, Storage), String> {
        let world = self.sim.world();
        let missing = || format!("volume '{volid}' does not exist");
        let key = world.image_key(volid, self.node).ok_or_else(missing)?;
        let image = world.images.get(&key).cloned().ok_or_else(missing)?;
        let storage = world.storage(&image.storage)?.clone();
        Ok((key, image, storage))
    }

    /// Takes a free name, so that nobody else gets it.
    fn reserve(
        &self,
        storage: &Storage,
        vmid: u32,
        bytes: u64,
        format: &str,
        base: Option<&Image>,
        leaf: Option<String>,
    ) -> Result<Key, String> {
        let mut world = self.sim.world();
        let scope = storage.scope(self.node).to_owned();
        let leaf = leaf.unwrap_or_else(|| free_leaf(&world.images, &scope, storage, vmid, "vm", format));
        let root = world.root(storage, self.node);
        let used: u64 = world.images.values().filter(|i| i.storage == storage.id).map(|i| i.bytes).sum();
        let full = world.storage(&storage.id)?.full;
        if full || used + bytes > storage.size_gib << 30 && !matches!(storage.kind, StorageKind::LvmThin) {
            return Err(no_space(storage, &leaf));
        }
        let key = (scope, storage.id.clone(), leaf.clone());
        if world.images.contains_key(&key) {
            return Err(format!("volume '{}:{leaf}' already exists", storage.id));
        }
        let file = image_file(&root, storage, &leaf);
        let image = Image {
            storage: storage.id.clone(),
            leaf,
            base: base.map(|base| base.leaf.clone()),
            vmid,
            file,
            file_format: if base.is_some() { "qcow2".into() } else { format.to_owned() },
            format: format.into(),
            bytes,
            ctime: self.sim.clock.now(),
        };
        world.images.insert(key.clone(), image);
        Ok(key)
    }

    fn log_formatting(&self, storage: &Storage, image: &Image, backing: &str) {
        if !storage.kind.has_files() {
            if storage.kind == StorageKind::LvmThin {
                self.log(&format!("  Logical volume \"{}\" created.", image.leaf));
            }
            return;
        }
        let path = storage.shown_path(&image.leaf);
        let bytes = image.bytes;
        let detail = match (image.format.as_str(), backing) {
            ("raw", _) => format!("fmt=raw size={bytes} preallocation=off"),
            (_, "") => format!(
                "fmt=qcow2 cluster_size=65536 extended_l2=off preallocation=metadata compression_type=zlib \
                 size={bytes} lazy_refcounts=off refcount_bits=16"
            ),
            (_, backing) => format!(
                "fmt=qcow2 cluster_size=65536 extended_l2=off compression_type=zlib size={bytes} {backing} \
                 lazy_refcounts=off refcount_bits=16"
            ),
        };
        self.log(&format!("Formatting '{path}', {detail}"));
    }

    /// Copies a whole disk; `limit` is in KiB/s.
    pub(crate) async fn copy(
        &self,
        from: &str,
        to: &str,
        vmid: u32,
        format: Option<&str>,
        limit: Option<u64>,
    ) -> Result<Made, String> {
        let (_, source, home) = self.find(from)?;
        let storage = self.storage(to)?;
        let format = match format {
            Some(format) => format_on(&storage, Some(format))?,
            None if storage.kind.has_files() => source.format.clone(),
            None => "raw".into(),
        };
        let key = self.reserve(&storage, vmid, source.bytes, &format, None, None)?;
        let image = self.image(&key)?;
        self.log_formatting(&storage, &image, "");
        let copied = self.convert(&source, &image, &home, &storage, limit).await;
        if copied.is_err() {
            drop(tokio::fs::remove_file(&image.file).await);
        }
        self.made_or_forget(copied, &key, &storage)
    }

    async fn convert(
        &self,
        source: &Image,
        image: &Image,
        home: &Storage,
        storage: &Storage,
        limit: Option<u64>,
    ) -> Result<(), String> {
        let done = |percent: f64| {
            let part = human(image.bytes as f64 * percent / 100.0);
            self.log(&format!("transferred {part} of {} ({percent:.2}%)", human(image.bytes as f64)));
        };
        done(0.0);
        make_folder(&image.file).await?;
        if let Some(limit) = limit.filter(|limit| *limit > 0) {
            let seconds = image.bytes as f64 / 1024.0 / limit as f64;
            for percent in 1..=50 {
                if self.wait(seconds / 50.0).await.is_err() {
                    return Err(format!(
                        "copy failed: command '/usr/bin/qemu-img convert -p -n -r {limit}K -f {} -O {} {} \
                         zeroinit:{}' failed: interrupted by signal",
                        source.format,
                        image.format,
                        home.shown_path(&source.leaf),
                        storage.shown_path(&image.leaf),
                    ));
                }
                done(f64::from(percent) * 2.0);
            }
        } else {
            done(100.0);
        }
        let (from, to) = (source.file.to_string_lossy(), image.file.to_string_lossy());
        self.qemu_img(&["convert", "-q", "-f", &source.file_format, "-O", &image.file_format, &from, &to])
            .await
            .map_err(|error| format!("copy failed: {error}"))?;
        done(100.0);
        Ok(())
    }

    async fn wait(&self, seconds: f64) -> Result<(), String> {
        if let Some(task) = self.task {
            return task.sleep(seconds).await;
        }
        self.sim.clock.sleep(seconds).await;
        Ok(())
    }

    /// Makes a disk of `vmid` out of a file, for `import-from`.
    pub(crate) async fn import(
        &self,
        from: &Path,
        from_format: &str,
        to: &str,
        vmid: u32,
        format: Option<&str>,
    ) -> Result<Made, String> {
        let storage = self.storage(to)?;
        let format = format_on(&storage, format)?;
        let bytes = virtual_size(from, from_format).await?;
        let key = self.reserve(&storage, vmid, bytes, &format, None, None)?;
        let image = self.image(&key)?;
        self.log_formatting(&storage, &image, "");
        let to = image.file.to_string_lossy();
        make_folder(&image.file).await?;
        let from = from.to_string_lossy();
        let made = self.qemu_img(&["convert", "-q", "-f", from_format, "-O", &format, &from, &to]).await;
        self.made_or_forget(made, &key, &storage)
    }

    /// Makes a linked clone of a base volume.
    pub(crate) async fn link(&self, base: &str, vmid: u32) -> Result<Made, String> {
        let (_, base, storage) = self.find(base)?;
        let format = if storage.kind.has_files() { "qcow2" } else { "raw" };
        let key = self.reserve(&storage, vmid, base.bytes, format, Some(&base), None)?;
        let image = self.image(&key)?;
        if storage.kind.has_files() {
            let name = image.leaf.split('/').next_back().unwrap_or_default();
            let relative = format!("../{}", base.leaf);
            self.log(&format!("clone {}: images, {name}, {vmid} to {name} (base={relative})", base.leaf));
            let backing = format!("backing_file={relative} backing_fmt={}", base.format);
            self.log_formatting(&storage, &image, &backing);
        }
        make_folder(&image.file).await?;
        let (from, to) = (base.file.to_string_lossy(), image.file.to_string_lossy());
        let made =
            self.qemu_img(&["create", "-q", "-f", "qcow2", "-b", &from, "-F", &base.file_format, &to]).await;
        self.made_or_forget(made, &key, &storage)
    }

    /// Turns a disk into a base volume; its new volume id.
    pub(crate) async fn make_base(&self, volid: &str) -> Result<String, String> {
        let (key, image, storage) = self.find(volid)?;
        if image.is_base() {
            return Ok(volid.into());
        }
        self.rename(&key, image.clone(), &storage, base_leaf(storage.kind, &image.leaf), image.vmid).await
    }

    /// Hands a disk to another VM by renaming it; its new volume id.
    pub(crate) async fn hand_over(&self, volid: &str, vmid: u32) -> Result<String, String> {
        let (key, image, storage) = self.find(volid)?;
        let leaf = {
            let world = self.sim.world();
            free_leaf(&world.images, storage.scope(self.node), &storage, vmid, "vm", &image.format)
        };
        self.rename(&key, image, &storage, leaf, vmid).await
    }

    async fn rename(
        &self,
        key: &Key,
        mut image: Image,
        storage: &Storage,
        leaf: String,
        vmid: u32,
    ) -> Result<String, String> {
        let root = self.sim.world().root(storage, self.node);
        let file = image_file(&root, storage, &leaf);
        make_folder(&file).await?;
        tokio::fs::rename(&image.file, &file).await.map_err(|error| {
            format!(
                "rename '{}' to '{}' failed - {error}",
                storage.shown_path(&image.leaf),
                storage.shown_path(&leaf)
            )
        })?;
        image.leaf.clone_from(&leaf);
        image.file = file;
        image.vmid = vmid;
        let volid = image.volid(storage.kind);
        let mut world = self.sim.world();
        world.images.remove(key);
        world.images.insert((key.0.clone(), key.1.clone(), leaf), image);
        Ok(volid)
    }

    /// Frees a volume.
    ///
    /// # Errors
    /// The storage layer's text for a base with linked clones; LVM-thin does not notice them.
    pub(crate) async fn free(&self, volid: &str) -> Result<(), String> {
        let (key, image, storage) = self.find(volid)?;
        {
            let mut world = self.sim.world();
            if storage.kind != StorageKind::LvmThin && world.has_children(&image, &key.0) {
                return Err(format!("base volume '{}' is still in use by linked clones", image.leaf));
            }
            world.images.remove(&key);
        }
        tokio::fs::remove_file(&image.file)
            .await
            .map_err(|error| format!("unlink '{}' failed - {error}", storage.shown_path(&image.leaf)))
    }

    /// Grows a disk to `bytes`.
    pub(crate) async fn grow(&self, volid: &str, bytes: u64) -> Result<(), String> {
        let (key, image, storage) = self.find(volid)?;
        if storage.full {
            return Err(no_space(&storage, &image.leaf));
        }
        if image.is_base() && storage.kind.has_files() {
            let path = storage.shown_path(&image.leaf);
            self.log(&format!(
                "qemu-img: Could not open '{path}': Could not open '{path}': Operation not permitted"
            ));
            let format = &image.format;
            return Err(format!(
                "command '/usr/bin/qemu-img resize -f {format} {path} {bytes}' failed: exit code 1"
            ));
        }
        let file = image.file.to_string_lossy().into_owned();
        self.qemu_img(&["resize", "-q", "-f", &image.file_format, &file, &bytes.to_string()]).await?;
        if storage.kind.has_files() {
            self.log("Image resized.");
        }
        if let Some(image) = self.sim.world().images.get_mut(&key) {
            image.bytes = bytes;
        }
        Ok(())
    }

    /// Notes the size of a disk that its running machine has grown.
    pub(crate) fn note_size(&self, volid: &str, bytes: u64) {
        let mut world = self.sim.world();
        if let Some(key) = world.image_key(volid, self.node)
            && let Some(image) = world.images.get_mut(&key)
        {
            image.bytes = bytes;
        }
    }

    async fn qemu_img(&self, arguments: &[&str]) -> Result<(), String> {
        if let Some(file) = arguments.iter().rev().find(|argument| argument.starts_with('/')) {
            make_folder(Path::new(file)).await?;
        }
        let mut command = Command::new("qemu-img");
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.kill_on_drop(true).output();
        let output = match self.task {
            Some(task) => tokio::select! {
                output = child => output,
                () = task.cancelled() => return Err("interrupted by signal".into()),
            },
            None => child.await,
        };
        let output = output.map_err(|error| format!("unable to run qemu-img - {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).trim_end().to_owned())
    }
}

async fn make_folder(file: &Path) -> Result<(), String> {
    let Some(folder) = file.parent() else {
        return Ok(());
    };
    let made = tokio::fs::create_dir_all(folder).await;
    made.map_err(|error| format!("unable to create '{}' - {error}", folder.display()))
}

async fn create_raw(file: &Path, bytes: u64) -> Result<(), String> {
    make_folder(file).await?;
    let make = async { tokio::fs::File::create(file).await?.set_len(bytes).await };
    make.await.map_err(|error| format!("unable to create image: {error}"))
}

/// The format that a storage makes of a wish.
fn format_on(storage: &Storage, wanted: Option<&str>) -> Result<String, String> {
    match wanted {
        None => Ok("raw".into()),
        Some(format) if storage.kind.has_files() || format == "raw" => Ok(format.into()),
        Some(format) => Err(format!("unsupported format '{format}'")),
    }
}

fn no_space(storage: &Storage, leaf: &str) -> String {
    let path = &storage.path;
    match storage.kind {
        StorageKind::ZfsPool => format!("zfs error: cannot create '{path}/{leaf}': out of space"),
        StorageKind::LvmThin => {
            format!(
                "lvcreate '{path}/{leaf}' error: Cannot create new thin volume, free space in thin pool reached threshold."
            )
        }
        StorageKind::Rbd => {
            format!("rbd create '{leaf}' error: rbd: create error: (28) No space left on device")
        }
        _ => format!(
            "unable to create image: qemu-img: {}: Could not resize file: No space left on device",
            storage.shown_path(leaf)
        ),
    }
}

/// An amount as copies log it.
fn human(bytes: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

/// The size that a guest sees of an image file.
pub(crate) async fn virtual_size(file: &Path, format: &str) -> Result<u64, String> {
    let output = Command::new("qemu-img")
        .args(["info", "--output=json", "-f", format])
        .arg(file)
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|error| format!("unable to run qemu-img - {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim_end().to_owned());
    }
    let facts: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    facts["virtual-size"].as_u64().ok_or_else(|| "qemu-img told no size".into())
}

#[cfg(test)]
mod tests {
    use super::human;

    #[test]
    fn amounts_are_told_as_proxmox_does() {
        assert_eq!(human(0.0), "0.0 B");
        assert_eq!(human(540_672.0), "528.0 KiB");
        assert_eq!(human(1_073_741_824.0), "1.0 GiB");
    }
}
