//! Storages of a node, their content, uploads and downloads.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::fs::File;

use super::{Allow, Endpoint, NODE, run, vmid};
use crate::access::{Access, Identity};
use crate::answer::{Answer, Failure, nothing};
use crate::disk::{Disks, virtual_size};
use crate::download;
use crate::http::upload::real_path;
use crate::schema::{Param, split_list};
use crate::sim::Call;
use crate::sparse::SparseFile;
use crate::worker::Worker;
use crate::world::World;
use crate::world::storage::{Storage, content_folder, content_of, normalise_file_name, owner_of};

const STORAGE: Param = Param::named("storage", "pve-storage-id").path();
const SEE: Allow = Allow::Any("/storage/{storage}", &["Datastore.Audit", "Datastore.AllocateSpace"]);
const ALGORITHMS: &[&str] = &["md5", "sha1", "sha224", "sha256", "sha384", "sha512"];
const CHECKSUM: &[Param] = &[
    Param::text("checksum").needs("checksum-algorithm").opt(),
    Param::choice("checksum-algorithm", ALGORITHMS).needs("checksum").opt(),
];
const CONTENT: Param = Param::choice("content", &["iso", "vztmpl", "import"]).format("pve-storage-content");
const FILENAME: Param = Param::text("filename").max_len(255);
const URL: &[Param] = &[Param::text("url").matches("https?://.*"), Param::flag("verify-certificates").opt()];

pub(crate) static ENDPOINTS: &[Endpoint] = &[
    Endpoint::new("GET", "/nodes/{node}/storage", Allow::All, run!(list))
        .takes(&[
            NODE,
            &[
                Param::named("content", "pve-storage-content-list").opt(),
                Param::flag("enabled").opt(),
                Param::flag("format").opt(),
                Param::named("storage", "pve-storage-id").opt(),
                Param::named("target", "pve-node").opt(),
            ],
        ])
        .protected(),
    Endpoint::new("GET", "/nodes/{node}/storage/{storage}/status", SEE, run!(status))
        .takes(&[NODE, &[STORAGE]])
        .protected(),
    Endpoint::new("GET", "/nodes/{node}/storage/{storage}/content", SEE, run!(content))
        .takes(&[NODE, &[STORAGE, Param::named("content", "pve-storage-content").opt(), vmid("vmid").opt()]])
        .protected(),
    Endpoint::new(
        "POST",
        "/nodes/{node}/storage/{storage}/content",
        Allow::Has("/storage/{storage}", &["Datastore.AllocateSpace"]),
        run!(allocate),
    )
    .takes(&[
        NODE,
        &[
            STORAGE,
            Param::text("filename"),
            Param::choice("format", &["raw", "qcow2", "subvol", "vmdk"]).needs("size").opt(),
            Param::text("size").matches("\\d+[MG]?"),
            vmid("vmid"),
        ],
    ])
    .protected(),
    Endpoint::new("GET", "/nodes/{node}/storage/{storage}/content/{volume*}", Allow::All, run!(volume))
        .takes(&[NODE, &[STORAGE.opt(), Param::text("volume").path()]])
        .protected(),
    Endpoint::new("DELETE", "/nodes/{node}/storage/{storage}/content/{volume*}", Allow::All, run!(delete))
        .takes(&[
            NODE,
            &[STORAGE.opt(), Param::text("volume").path(), Param::int("delay").min(1.0).max(30.0).opt()],
        ])
        .protected(),
    Endpoint::new(
        "POST",
        "/nodes/{node}/storage/{storage}/upload",
        Allow::Has("/storage/{storage}", &["Datastore.AllocateTemplate"]),
        run!(upload),
    )
    .takes(&[
        NODE,
        &[
            STORAGE,
            CONTENT,
            FILENAME,
            Param::text("tmpfilename").matches("/var/tmp/pveupload-[0-9a-f]+").opt(),
        ],
        CHECKSUM,
    ])
    .protected(),
    Endpoint::new(
        "POST",
        "/nodes/{node}/storage/{storage}/download-url",
        Allow::Special(may_download),
        run!(download_url),
    )
    .takes(&[NODE, &[STORAGE, CONTENT, FILENAME, Param::text("compression").opt()], URL, CHECKSUM])
    .protected(),
    Endpoint::new("GET", "/nodes/{node}/query-url-metadata", Allow::Special(may_ask), run!(metadata))
        .takes(&[NODE, URL]),
];

fn may_ask(access: &Access, who: &Identity, given: &serde_json::Map<String, Value>) -> Result<(), Failure> {
    let node = super::fill("/nodes/{node}", given);
    let may = access.has(who, &node, "Sys.AccessNetwork")
        || access.has(who, "/", "Sys.Audit") && access.has(who, "/", "Sys.Modify");
    if may { Ok(()) } else { Err(Failure::forbidden_bare()) }
}

fn may_download(
    access: &Access,
    who: &Identity,
    given: &serde_json::Map<String, Value>,
) -> Result<(), Failure> {
    let storage = super::fill("/storage/{storage}", given);
    if !access.has(who, &storage, "Datastore.AllocateTemplate") {
        return Err(Failure::forbidden_bare());
    }
    may_ask(access, who, given)
}

/// Used and total bytes.
pub(crate) fn space(world: &World, storage: &Storage, node: &str) -> (u64, u64) {
    let scope = storage.scope(node);
    let images = world.images.iter().filter(|((on, id, _), _)| on == scope && *id == storage.id);
    let images: u64 = images.map(|(_, image)| image.bytes).sum();
    let files: u64 = world
        .uploaded(storage, node)
        .iter()
        .filter_map(|(.., path)| path.metadata().ok())
        .map(|meta| meta.len())
        .sum();
    let total = storage.size_gib << 30;
    let used = if storage.full { total } else { (images + files).min(total) };
    (used, total)
}

fn facts(world: &World, storage: &Storage, node: &str) -> Value {
    let (used, total) = space(world, storage, node);
    json!({
        "type": storage.kind.name(), "content": storage.content.join(","),
        "shared": u8::from(storage.shared), "enabled": u8::from(!storage.disabled),
        "active": u8::from(!storage.disabled), "total": total, "used": used, "avail": total - used,
    })
}

async fn list(call: Call) -> Answer {
    let world = call.sim.world();
    let args = &call.args;
    let wanted = |storage: &&Storage| {
        let held = world.access.held(&call.who, &format!("/storage/{}", storage.id));
        let seen = held.contains_key("Datastore.Audit") || held.contains_key("Datastore.AllocateSpace");
        let holds = |list: &str| split_list(list).any(|content| storage.holds(content));
        seen && storage.on(&call.node)
            && args.get("storage").is_none_or(|id| id == storage.id)
            && args.get("target").is_none_or(|node| storage.shared && storage.on(node))
            && args.get("content").is_none_or(holds)
            && !(args.flag("enabled") && storage.disabled)
    };
    let rows = world.storages.iter().filter(wanted).map(|storage| {
        let mut row = facts(&world, storage, &call.node);
        row["storage"] = json!(storage.id);
        let share = |key: &str| row[key].as_u64().unwrap_or(0) as f64;
        row["used_fraction"] = json!(share("used") / share("total").max(1.0));
        row
    });
    Ok(rows.collect::<Value>().into())
}

async fn status(call: Call) -> Answer {
    let world = call.sim.world();
    let storage = world.storage(call.args.text("storage"));
    let storage = storage.map_err(|_| Failure::parameter("storage", "No such storage."))?;
    Ok(facts(&world, storage, &call.node).into())
}

/// Makes a disk of a name that the caller chose; its size is in KiB or as its suffix says.
async fn allocate(call: Call) -> Answer {
    let (name, size) = (call.args.text("filename"), call.args.text("size"));
    let unit = if size.ends_with('G') {
        30
    } else if size.ends_with('M') {
        20
    } else {
        10
    };
    let count: u64 = size
        .trim_end_matches(['M', 'G'])
        .parse()
        .map_err(|_| Failure::parameter("size", format!("unable to parse size '{size}'")))?;
    let (plain, told) = match name.rsplit_once('.') {
        Some((plain, format @ ("raw" | "qcow2" | "vmdk"))) => (plain, Some(format)),
        _ => (name, None),
    };
    let format = call.args.get("format");
    if let (Some(format), Some(told)) = (format, told.filter(|told| Some(*told) != format)) {
        let text = format!("different storage formats ({format} != {told})");
        return Err(Failure::parameter("format", text));
    }
    let disks = Disks { sim: &call.sim, node: &call.node, task: None };
    let storage = call.args.text("storage");
    let made = disks.allocate_named(storage, call.args.vmid(), count << unit, format.or(told), plain).await?;
    Ok(json!(made.volid).into())
}

async fn content(call: Call) -> Answer {
    let world = call.sim.world();
    let storage = world.usable_storage(call.args.text("storage"), &call.node)?;
    let wanted = |content: &str| call.args.get("content").is_none_or(|only| only == content);
    let owner = call.args.number("vmid");
    let mut rows = Vec::new();
    if wanted("images") {
        let scope = storage.scope(&call.node);
        let images = world.images.iter().filter(|((on, id, _), _)| on == scope && *id == storage.id);
        for (_, image) in images.filter(|(_, image)| owner.is_none_or(|owner| owner == u64::from(image.vmid)))
        {
            let used = image.file.metadata().map_or(0, |meta| meta.len().min(image.bytes));
            let parent = image.base.as_ref().map(|base| {
                if storage.kind.has_files() { format!("../{base}") } else { format!("{base}@__base__") }
            });
            let mut row = json!({
                "volid": image.volid(storage.kind), "content": "images", "format": image.format,
                "size": image.bytes, "vmid": image.vmid, "ctime": image.ctime, "parent": parent,
            });
            if storage.kind.has_files() {
                row["used"] = json!(used);
            }
            rows.push(row);
        }
    }
    if storage.kind.has_files() && owner.is_none() {
        let files = world.uploaded(storage, &call.node).into_iter();
        rows.extend(files.filter(|(_, content, _)| wanted(content)).filter_map(file_row));
    }
    Ok(Value::Array(rows).into())
}

fn file_row((volid, content, path): (String, &'static str, PathBuf)) -> Option<Value> {
    let meta = path.metadata().ok()?;
    let since = meta.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    let extension = path.extension().and_then(|text| text.to_str()).unwrap_or_default();
    let format = match content {
        "vztmpl" => match extension {
            "gz" => "tgz",
            "zst" => "tzst",
            "xz" => "txz",
            "bz2" => "tbz2",
            other => other,
        },
        "import" => extension,
        other => {
            if other == "snippets" {
                "snippet"
            } else {
                "iso"
            }
        }
    };
    Some(json!({
        "volid": volid, "content": content, "format": format, "size": meta.len(), "ctime": since.as_secs(),
    }))
}

/// The volume in the path, with or without its storage.
fn volid(call: &Call) -> Result<String, Failure> {
    let (storage, volume) = (call.args.text("storage"), call.args.text("volume"));
    match volume.split_once(':') {
        Some((id, _)) if id != storage => {
            Err(Failure::parameter("volume", format!("storage ID mismatch ({id} != {storage})\n")))
        }
        Some(_) => Ok(volume.into()),
        None => Ok(format!("{storage}:{volume}")),
    }
}

/// Content and owner of the volume in the path.
fn volume_facts(call: &Call) -> Result<(String, Storage, &'static str, Option<u32>), Failure> {
    let volid = volid(call)?;
    let world = call.sim.world();
    let (id, name) = volid.split_once(':').expect("it was just put together");
    let storage = world.usable_storage(id, &call.node)?.clone();
    let content = content_of(storage.kind, name)?;
    let owner = (content == "images").then(|| owner_of(storage.kind, name)).flatten();
    Ok((volid, storage, content, owner))
}

async fn volume(call: Call) -> Answer {
    let (volid, storage, ..) = volume_facts(&call)?;
    let world = call.sim.world();
    let path = format!("/storage/{}", storage.id);
    world.access.check_any(&call.who, &path, &["Datastore.AllocateSpace", "Datastore.Audit"])?;
    let Some((volume, bytes)) = world.volume(&volid, &call.node) else {
        return Err(Failure::died(format!("volume_size_info on '{volid}' failed - no format")));
    };
    let name = volid.split_once(':').map_or("", |(_, name)| name);
    Ok(json!({
        "path": storage.shown_path(name), "size": bytes, "used": bytes, "format": volume.format,
    })
    .into())
}

async fn delete(call: Call) -> Answer {
    let (volid, storage, content, owner) = volume_facts(&call)?;
    {
        let world = call.sim.world();
        let path = format!("/storage/{}", storage.id);
        match (content, owner) {
            ("images", Some(vmid)) if world.vms.contains_key(&vmid) => {
                world.access.check(&call.who, &path, &["Datastore.AllocateSpace"])?;
                if world.vms[&vmid].node == call.node {
                    let text = format!(
                        "cannot remove image, a guest with VMID '{vmid}' exists!\nYou can delete the image from the guest's hardware pane"
                    );
                    return Err(Failure::died(text));
                }
            }
            ("images", _) => world.access.check(&call.who, &path, &["Datastore.AllocateSpace"])?,
            _ => world.access.check(&call.who, &path, &["Datastore.Allocate"])?,
        }
    }
    let node = call.node.clone();
    let upid = call.fork("imgdel", &storage.id.clone(), move |worker| async move {
        worker.fault_point().await?;
        let shown = storage.shown_path(volid.split_once(':').map_or("", |(_, name)| name));
        if content == "images" {
            Disks { sim: &worker.sim, node: &node, task: Some(&worker) }.free(&volid).await?;
        } else {
            let found = worker.sim.world().volume(&volid, &node);
            match found {
                Some((volume, _)) => tokio::fs::remove_file(&volume.path)
                    .await
                    .map_err(|error| format!("unlink '{shown}' failed - {error}"))?,
                None => worker.log(format!("disk image '{shown}' does not exist")),
            }
        }
        worker.log(format!("Removed volume '{volid}'"));
        Ok(())
    });
    let Some(delay) = call.args.number("delay") else {
        return Ok(json!(upid).into());
    };
    let mut waited = 0.0;
    while waited < delay as f64 {
        if call.sim.world().task(&upid).is_some_and(|task| task.end.is_some()) {
            return nothing();
        }
        call.sim.clock.sleep(0.1).await;
        waited += 0.1;
    }
    Ok(json!(upid).into())
}

/// The storage for a file of this content, and the file's name on it.
fn target(call: &Call) -> Result<(Storage, String), Failure> {
    let args = &call.args;
    let world = call.sim.world();
    let id = args.text("storage");
    let storage = world.usable_storage(id, &call.node)?;
    let content = args.text("content");
    if !storage.kind.has_files() {
        return Err(format!("can't upload to storage type '{}'", storage.kind.name()).into());
    }
    if !storage.holds(content) {
        return Err(format!("storage '{id}' does not support '{content}' content").into());
    }
    let name = normalise_file_name(args.text("filename"));
    let lower = name.to_lowercase();
    let ends = |all: &[&str], name: &str| all.iter().any(|ending| name.ends_with(ending));
    let good = match content {
        "iso" => ends(&[".iso", ".img"], &lower),
        "vztmpl" => {
            ends(&[".tar.gz", ".tar.xz", ".tar.zst", ".tar.bz2"], &lower)
                || world.release.major() >= 9 && ends(&[".tar"], &lower)
        }
        _ => ends(&[".ova", ".qcow2", ".raw", ".vmdk"], &name),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-.+=_".contains(c);
    if content == "import" && !args.text("filename").chars().all(plain) {
        return Err(Failure::parameter("filename", "invalid filename or wrong extension"));
    }
    if !good {
        return Err(Failure::parameter("filename", "wrong file extension"));
    }
    Ok((storage.clone(), name))
}

/// Real and shown path of a file on a storage.
fn paths(call: &Call, storage: &Storage, name: &str) -> (PathBuf, String) {
    let folder = content_folder(call.args.text("content")).unwrap_or_default();
    let real = call.sim.world().root(storage, &call.node).join(folder).join(name);
    (real, format!("{}/{folder}/{name}", storage.path))
}

async fn upload(call: Call) -> Answer {
    let (storage, name) = target(&call)?;
    let (real, shown) = paths(&call, &storage, &name);
    let temporary = call.args.text("tmpfilename").to_owned();
    let from = real_path(&call.sim, &temporary);
    let checksum = wanted_checksum(&call);
    let import =
        (call.args.text("content") == "import").then(|| name.rsplit('.').next().unwrap_or("").to_owned());
    let node = call.node.clone();
    call.task("imgcopy", "", move |worker| async move {
        worker.log(format!("starting file import from: {temporary}"));
        let done = async {
            if let Some(format) = import.filter(|format| format != "ova") {
                check_import(&from, &format, &temporary).await?;
            }
            if let Some((algorithm, wanted)) = checksum {
                check_file(&worker, &from, &algorithm, &wanted, "calculating checksum...", "").await?;
            }
            let bytes = from.metadata().map_or(0, |meta| meta.len());
            worker.log(format!("target node: {node}"));
            worker.log(format!("target file: {shown}"));
            worker.log(format!("file size is: {bytes}"));
            worker.log(format!("command: cp -- {temporary} {shown}"));
            let copied = copy_file(&worker, &storage.id, &from, (&real, &shown)).await;
            if copied.is_err() {
                // Also where there was a whole file before.
                drop(tokio::fs::remove_file(&real).await);
            }
            copied?;
            worker.log("finished file import successfully");
            Ok(())
        };
        let result = done.await;
        drop(tokio::fs::remove_file(&from).await);
        result
    })
}

/// In how many pieces a file is copied, and the seconds between two.
const PIECES: u64 = 4;
const PIECE_SECONDS: f64 = 0.2;

/// Copies as `cp` does: over what is there, and seen to grow by everybody.
///
/// # Errors
/// A full storage, which shows in the middle.
async fn copy_file(
    worker: &Worker,
    storage: &str,
    from: &Path,
    (to, shown): (&Path, &str),
) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("import failed: {error}");
    if let Some(folder) = to.parent() {
        tokio::fs::create_dir_all(folder).await.map_err(failed)?;
    }
    let mut source = File::open(from).await.map_err(failed)?;
    let mut target = SparseFile::create(to).await.map_err(failed)?;
    let length = from.metadata().map_err(failed)?.len();
    for piece in 0..PIECES {
        let (start, end) = (length * piece / PIECES, length * (piece + 1) / PIECES);
        target.copy(&mut source, end - start).await.map_err(failed)?;
        target.flush().await.map_err(failed)?;
        if piece == 0 {
            worker.fault_point().await?;
        }
        if worker.sim.world().storage(storage)?.full {
            return Err(format!("import failed: cp: error writing '{shown}': No space left on device"));
        }
        worker.sleep(PIECE_SECONDS).await?;
    }
    Ok(())
}

fn wanted_checksum(call: &Call) -> Option<(String, String)> {
    let algorithm = call.args.get("checksum-algorithm")?;
    Some((algorithm.into(), call.args.get("checksum")?.into()))
}

/// Images for import are opened to see that they are what their names say.
async fn check_import(file: &std::path::Path, format: &str, shown: &str) -> Result<(), String> {
    match virtual_size(file, format).await {
        Ok(_) => Ok(()),
        Err(error) => {
            let real = file.to_string_lossy();
            Err(error.replace(real.as_ref(), shown))
        }
    }
}

async fn move_file(from: &std::path::Path, to: &std::path::Path) -> Result<(), String> {
    let moved = async {
        if let Some(folder) = to.parent() {
            tokio::fs::create_dir_all(folder).await?;
        }
        tokio::fs::rename(from, to).await
    };
    moved.await.map_err(|error| format!("import failed: {error}"))
}

/// Compares a file's digest; the log's line is completed when it is right.
async fn check_file(
    worker: &Worker,
    file: &std::path::Path,
    algorithm: &str,
    wanted: &str,
    line: &str,
    suffix: &str,
) -> Result<(), String> {
    worker.log(line);
    let got = download::digest(file, algorithm).await?;
    if !got.eq_ignore_ascii_case(wanted) {
        return Err(format!("checksum mismatch: got '{got}' != expect '{wanted}'{suffix}"));
    }
    let more = if suffix.is_empty() {
        "OK, checksum verified"
    } else {
        "OK, got correct file already, no need to download"
    };
    if let Some(last) = worker.sim.world().task_mut(&worker.upid).and_then(|task| task.log.last_mut()) {
        last.push_str(more);
    }
    Ok(())
}

async fn download_url(call: Call) -> Answer {
    let (storage, name) = target(&call)?;
    let (real, shown) = paths(&call, &storage, &name);
    let url = call.args.text("url").to_owned();
    let checksum = wanted_checksum(&call);
    let decompress = call.args.has("compression") && call.args.text("content") == "vztmpl";
    call.task("download", &name.clone(), move |worker| async move {
        worker.fault_point().await?;
        if decompress {
            return Err("decompression not supported for vztmpl".into());
        }
        worker.log(format!("downloading {url} to {shown}"));
        if real.exists() {
            let Some((algorithm, wanted)) = checksum else {
                return Err(format!("refusing to override existing file '{shown}'"));
            };
            let line = "calculating checksum of existing file...";
            return check_file(&worker, &real, &algorithm, &wanted, line, ", aborting").await;
        }
        if worker.sim.world().storage(&storage.id)?.full {
            return Err("download failed: exit code 3".into());
        }
        let temporary = real.with_file_name(format!("{name}.tmp_dwnl.{}", worker.upid.pid));
        let shown_temporary = format!("{shown}.tmp_dwnl.{}", worker.upid.pid);
        let fetched = async {
            download::fetch(&worker, &url, &temporary, &shown_temporary).await?;
            if let Some((algorithm, wanted)) = checksum {
                check_file(&worker, &temporary, &algorithm, &wanted, "calculating checksum...", "").await?;
            }
            move_file(&temporary, &real).await
        };
        let fetched = fetched.await;
        if fetched.is_err() {
            drop(tokio::fs::remove_file(&temporary).await);
        }
        fetched?;
        worker.log(format!("download of '{url}' to '{shown}' finished"));
        Ok(())
    })
}

async fn metadata(call: Call) -> Answer {
    let url = call.args.text("url").to_owned();
    let found = download::head(&url).await.map_err(Failure::died)?;
    let name = url.split(['?', '#']).next().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
    Ok(json!({ "filename": name, "size": found.length, "mimetype": found.media }).into())
}
