//! From the drives that somebody asks for to drives that have volumes.

use super::rights::allocation;
use crate::disk::Disks;
use crate::hypervisor::Volume;
use crate::world::config::{Drive, Keys, drives, size_text};
use crate::world::storage::owner_of;

const EFI_4M: u64 = 540_672;
const EFI_2M: u64 = 131_072;
const TPM: u64 = 4 << 20;

/// What one drive became.
pub(crate) struct Ready {
    pub(crate) drive: Drive,
    /// A volume made for it, to be freed when the rest fails.
    pub(crate) made: Option<String>,
}

/// Gives a drive its volume: a new one, an import, or one that is there; `others` are the VM's keys.
///
/// # Errors
/// The text for the task or the answer.
pub(crate) async fn ready(
    disks: Disks<'_>,
    vmid: u32,
    key: &str,
    wanted: &Drive,
    others: &Keys,
    template: bool,
) -> Result<Ready, String> {
    let mut drive = wanted.clone();
    if !drive.has_volume() {
        return Ok(Ready { drive, made: None });
    }
    let (storage, rest) = wanted.file.split_once(':').unwrap_or((&wanted.file, ""));
    if rest == "cloudinit" {
        let other = self::drives(others).into_iter().find(|(at, other)| at != key && other.is_cloud_init());
        if let Some((at, _)) = other {
            return Err(format!("{key} - cloud-init drive is already attached at '{at}'"));
        }
        let made = disks.allocate_cloud_init(storage, vmid).await?;
        drive.file.clone_from(&made.volid);
        drive.options.insert("media".into(), "cdrom".into());
        drive.options.remove("format");
        disks.log(&format!("{key}: successfully created disk '{}'", drive.print(key)));
        return Ok(Ready { drive, made: Some(made.volid) });
    }
    let Some(gib) = allocation(rest) else {
        return existing(disks, drive);
    };
    let format = drive.options.remove("format");
    let made = if let Some(source) = drive.options.remove("import-from") {
        import(disks, &source, storage, vmid, format.as_deref()).await?
    } else {
        let bytes = match key {
            "efidisk0" if drive.options.get("efitype").is_some_and(|kind| kind == "4m") => EFI_4M,
            "efidisk0" => EFI_2M,
            "tpmstate0" => TPM,
            _ => (gib * f64::from(1_u32 << 30)) as u64,
        };
        let made = disks.allocate(storage, vmid, bytes, format.as_deref()).await?;
        if key == "efidisk0" {
            let all = format!("{:.1} KiB", bytes as f64 / 1024.0);
            disks.log(&format!("transferred 0.0 B of {all} (0.00%)"));
            (0..2).for_each(|_| disks.log(&format!("transferred {all} of {all} (100.00%)")));
        }
        made
    };
    drive.options.insert("size".into(), size_text(made.bytes));
    // A template's new disk becomes a base at once.
    drive.file = if template { disks.make_base(&made.volid).await? } else { made.volid };
    let made = drive.file.clone();
    disks.log(&format!("{key}: successfully created disk '{}'", drive.print(key)));
    Ok(Ready { drive, made: Some(made) })
}

fn existing(disks: Disks<'_>, mut drive: Drive) -> Result<Ready, String> {
    let world = disks.sim.world();
    let found = world.volume(&drive.file, disks.node);
    let (_, bytes) = found.ok_or_else(|| format!("volume '{}' does not exist", drive.file))?;
    if !drive.is_cloud_init() {
        drive.options.insert("size".into(), size_text(bytes));
    }
    Ok(Ready { drive, made: None })
}

async fn import(
    disks: Disks<'_>,
    source: &str,
    storage: &str,
    vmid: u32,
    format: Option<&str>,
) -> Result<crate::disk::Made, String> {
    let found = disks.sim.world().volume(source, disks.node);
    let Some((Volume { path, format: from }, _)) = found else {
        let world = disks.sim.world();
        let (id, name) = source.split_once(':').unwrap_or((source, ""));
        return Err(format!("failed to stat '{}'", world.storage(id)?.shown_path(name)));
    };
    disks.import(&path, &from, storage, vmid, format).await
}

/// Whether a volume is this VM's own.
pub(crate) fn owns(disks: Disks<'_>, volid: &str, vmid: u32) -> bool {
    let world = disks.sim.world();
    let Some((id, name)) = volid.split_once(':') else {
        return false;
    };
    world.storage(id).is_ok_and(|storage| owner_of(storage.kind, name) == Some(vmid))
}
