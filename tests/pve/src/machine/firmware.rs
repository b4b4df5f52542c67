//! The UEFI images that a VM's `efidisk0` asks for.

use std::path::PathBuf;

use super::config::efi_properties;

/// Where Debian's package `ovmf` puts them; their names are those of Proxmox's own package.
const FOLDER: &str = "/usr/share/OVMF";

/// A UEFI image and the variables that a new `efidisk0` begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// The code, read-only.
    pub code: PathBuf,
    /// The variables, of the size that the flash has.
    pub vars: PathBuf,
}

/// Returns the images for an `efidisk0` value (empty: none) on that chipset.
/// Source: qemu-server `PVE/QemuServer/OVMF.pm`, `get_ovmf_files`.
#[must_use]
pub fn firmware(efidisk: &str, q35: bool) -> Firmware {
    let (code, vars) = match (efi_properties(efidisk), q35) {
        ((false, _), _) => ("OVMF_CODE.fd", "OVMF_VARS.fd"),
        ((true, false), true) => ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.fd"),
        ((true, true), true) => ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"),
        ((true, false), false) => ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
        ((true, true), false) => ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.ms.fd"),
    };
    let path = |name| PathBuf::from(FOLDER).join(name);
    Firmware { code: path(code), vars: path(vars) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_follow_type_keys_and_chipset() {
        let names = |efidisk: &str, q35| {
            let Firmware { code, vars } = firmware(efidisk, q35);
            [code, vars].map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        };
        let disk = "local-zfs:vm-9-disk-1,efitype=4m,pre-enrolled-keys=";
        assert_eq!(names(&format!("{disk}1"), true), ["OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"]);
        assert_eq!(names(&format!("{disk}0"), false), ["OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"]);
        assert_eq!(names("", true), ["OVMF_CODE.fd", "OVMF_VARS.fd"]);
    }
}
