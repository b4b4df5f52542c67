//! Finds OVMF through QEMU's firmware descriptors (QEMU `docs/interop/firmware.json`).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Error;
use super::spec::Firmware;
use crate::definition::Chipset;

/// A flash image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Flash {
    /// Its file.
    #[serde(rename = "filename")]
    pub path: PathBuf,
    /// The file's format; descriptors may leave it out.
    #[serde(default)]
    pub format: FlashFormat,
}

/// A flash image's format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlashFormat {
    /// Raw bytes.
    #[default]
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

impl FlashFormat {
    /// Returns QEMU's name for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// An OVMF build: its code, and the variables that each machine gets a copy of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ovmf {
    /// The code.
    pub code: Flash,
    /// The template of the variables.
    pub vars: Flash,
}

/// Where distributions without descriptors have OVMF.
const WELL_KNOWN: [(&str, &str); 5] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/qemu/edk2-x86_64-code.fd", "/usr/share/qemu/edk2-i386-vars.fd"),
];

/// Finds OVMF without Secure Boot for a chipset on this host.
///
/// # Errors
/// [`Error::NotInstalled`] when there is none.
pub fn find_ovmf(chipset: Chipset) -> Result<Ovmf, Error> {
    find_in(&descriptor_folders(), chipset).or_else(well_known).ok_or_else(|| Error::NotInstalled {
        program: "OVMF (UEFI firmware without Secure Boot)".to_owned(),
        package: "ovmf",
    })
}

/// Copies the variables into a machine's folder, which is made if need be, and returns the machine's
/// firmware.
///
/// # Errors
/// [`Error::Io`] when the copy fails.
pub fn prepare(ovmf: &Ovmf, folder: &Path) -> Result<Firmware, Error> {
    let path = folder.join(format!("efi-vars.{}", ovmf.vars.format.name()));
    let copied = fs::create_dir_all(folder)
        .and_then(|()| fs::copy(&ovmf.vars.path, &path))
        // The template may be read-only, and its mode came along.
        .and_then(|_| fs::set_permissions(&path, fs::Permissions::from_mode(0o600)));
    copied.map_err(Error::io(format!("copying {} to {}", ovmf.vars.path.display(), path.display())))?;
    Ok(Firmware::Uefi { code: ovmf.code.clone(), vars: Flash { path, format: ovmf.vars.format } })
}

/// Returns the folders of descriptors, the weakest first.
fn descriptor_folders() -> Vec<PathBuf> {
    let own = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config")));
    let mut folders = vec![PathBuf::from("/usr/share/qemu/firmware"), PathBuf::from("/etc/qemu/firmware")];
    folders.extend(own.map(|own| own.join("qemu/firmware")));
    folders
}

/// Returns the first fitting OVMF whose files exist: descriptors are taken by file name over all
/// folders, and one in a stronger folder hides its namesake in a weaker one, even when it is empty.
fn find_in(folders: &[PathBuf], chipset: Chipset) -> Option<Ovmf> {
    let mut descriptors: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for entry in folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten() {
        if entry.path().extension().is_some_and(|ending| ending == "json") {
            descriptors.insert(entry.file_name(), entry.path());
        }
    }
    descriptors
        .into_values()
        .filter_map(|path| fs::read_to_string(path).ok())
        .filter_map(|text| parse_descriptor(&text, chipset))
        .find(|ovmf| ovmf.code.path.is_file() && ovmf.vars.path.is_file())
}

fn well_known() -> Option<Ovmf> {
    let flash = |path: &str| Flash { path: path.into(), format: FlashFormat::Raw };
    WELL_KNOWN
        .iter()
        .map(|(code, vars)| Ovmf { code: flash(code), vars: flash(vars) })
        .find(|ovmf| ovmf.code.path.is_file() && ovmf.vars.path.is_file())
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Descriptor {
    interface_types: Vec<String>,
    mapping: Mapping,
    targets: Vec<Target>,
    features: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mapping {
    device: String,
    /// Absent in older descriptors, and then `split`.
    mode: Option<String>,
    executable: Flash,
    nvram_template: Flash,
}

#[derive(Deserialize)]
struct Target {
    architecture: String,
    machines: Vec<String>,
}

/// Returns the OVMF of a descriptor if it fits: UEFI in two flash images, for `x86_64`, the chipset,
/// and neither Secure Boot nor SMM. What forge does not understand does not fit.
fn parse_descriptor(text: &str, chipset: Chipset) -> Option<Ovmf> {
    let descriptor: Descriptor = serde_json::from_str(text).ok()?;
    let mapping = descriptor.mapping;
    let unwanted = |feature: &String| {
        ["secure-boot", "enrolled-keys", "requires-smm"].contains(&feature.as_str())
            // Confidential guests have firmware of their own.
            || feature == "amd-sev-snp"
            || feature == "intel-tdx"
    };
    let fits = descriptor.interface_types.iter().any(|kind| kind == "uefi")
        && mapping.device == "flash"
        && mapping.mode.is_none_or(|mode| mode == "split")
        && descriptor.targets.iter().any(|target| target.takes(chipset))
        && !descriptor.features.iter().any(unwanted);
    fits.then_some(Ovmf { code: mapping.executable, vars: mapping.nvram_template })
}

impl Target {
    fn takes(&self, chipset: Chipset) -> bool {
        // Any version of the chipset: descriptors name machines by patterns that end in a star.
        let machine = match chipset {
            Chipset::Q35 => "pc-q35-",
            Chipset::I440fx => "pc-i440fx-",
        };
        let matches =
            |pattern: &String| pattern.strip_suffix('*').is_some_and(|start| machine.starts_with(start));
        self.architecture == "x86_64" && self.machines.iter().any(matches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(code: &str, features: &str, machines: &str, extra: &str) -> String {
        format!(
            r#"{{"description": "x", "interface-types": ["uefi"], "tags": [],
            "mapping": {{"device": "flash", {extra}
              "executable": {{"filename": "{code}", "format": "raw"}},
              "nvram-template": {{"filename": "{code}.vars", "format": "qcow2"}}}},
            "targets": [{{"architecture": "x86_64", "machines": [{machines}]}}],
            "features": [{features}]}}"#
        )
    }

    fn fits(text: &str) -> bool {
        parse_descriptor(text, Chipset::Q35).is_some()
    }

    #[test]
    fn only_plain_uefi_for_the_chipset_fits() {
        let plain = descriptor("/c", r#""acpi-s3""#, r#""pc-q35-*""#, "");
        let ovmf = parse_descriptor(&plain, Chipset::Q35).unwrap();
        assert_eq!(ovmf.code, Flash { path: "/c".into(), format: FlashFormat::Raw });
        assert_eq!(ovmf.vars, Flash { path: "/c.vars".into(), format: FlashFormat::Qcow2 });
        assert!(parse_descriptor(&plain, Chipset::I440fx).is_none());
        assert!(fits(&descriptor("/c", "", r#""pc-i440fx-*", "pc-*""#, r#""mode": "split","#)));

        for feature in ["secure-boot", "enrolled-keys", "requires-smm"] {
            assert!(!fits(&descriptor("/c", &format!("\"{feature}\""), r#""pc-q35-*""#, "")), "{feature}");
        }
        assert!(!fits(&descriptor("/c", "", r#""microvm*""#, "")));
        assert!(!fits(&descriptor("/c", "", r#""pc-q35-*""#, r#""mode": "stateless","#)));
        assert!(!fits(&plain.replace("x86_64", "i386")));
        assert!(!fits(&plain.replace("\"uefi\"", "\"bios\"")));
        assert!(!fits("not json"));
    }

    #[test]
    fn names_decide_and_stronger_folders_hide_weaker_ones() {
        let root = tempfile::tempdir().unwrap();
        let folders: Vec<PathBuf> = ["usr", "etc"].map(|name| root.path().join(name)).into();
        let code = |name: &str| {
            let path = root.path().join(name);
            fs::write(&path, "").unwrap();
            fs::write(root.path().join(format!("{name}.vars")), "").unwrap();
            path
        };
        let put = |folder: usize, name: &str, code: &Path| {
            fs::create_dir_all(&folders[folder]).unwrap();
            let text = descriptor(code.to_str().unwrap(), "", r#""pc-q35-*""#, "");
            fs::write(folders[folder].join(name), text).unwrap();
        };
        let found = || find_in(&folders, Chipset::Q35).map(|ovmf| ovmf.code.path);
        assert_eq!(found(), None);

        let (a, b, c) = (code("a"), code("b"), code("c"));
        put(0, "60-x.json", &a);
        put(1, "70-y.json", &b);
        put(0, "10-gone.json", Path::new("/nowhere/code"));
        assert_eq!(found(), Some(a));
        put(1, "60-x.json", &c);
        assert_eq!(found(), Some(c));
        fs::write(folders[1].join("60-x.json"), "").unwrap();
        assert_eq!(found(), Some(b));
    }

    #[test]
    fn variables_are_copied_and_writable() {
        let folder = tempfile::tempdir().unwrap();
        let template = folder.path().join("template");
        fs::write(&template, "vars").unwrap();
        fs::set_permissions(&template, fs::Permissions::from_mode(0o444)).unwrap();
        let flash = Flash { path: template, format: FlashFormat::Raw };
        let ovmf = Ovmf { code: flash.clone(), vars: flash };
        let Firmware::Uefi { vars, .. } = prepare(&ovmf, folder.path()).unwrap() else { panic!() };
        assert_eq!(fs::read(&vars.path).unwrap(), b"vars");
        assert_eq!(fs::metadata(&vars.path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
