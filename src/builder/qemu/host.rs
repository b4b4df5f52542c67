//! What this host gives a plan's machines: QEMU, an accelerator, firmware, patience.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::builder::Patience;
use crate::definition::{self, Accelerator, DiskFormat, Firmware as Wanted, Profile};
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::qemu::Error;
use crate::qemu::accel::{self, Accel};
use crate::qemu::firmware::{self, Ovmf};
use crate::qemu::spec::{self, Boot, Firmware, MachineSpec, OnReset, SerialNumber, UserNet, cpu_model};

/// How much longer a guest may take for everything when it is emulated.
const TCG_PATIENCE: u32 = 4;

/// This host, as one build uses it.
#[derive(Debug)]
pub struct Host {
    binary: PathBuf,
    accel: Accel,
    warning: Option<String>,
    ovmf: Option<Ovmf>,
    patience: Patience,
    /// Whether the profile says how many cores machines get.
    cores_are_given: bool,
}

/// What one machine is launched with, besides its hardware.
#[derive(Debug)]
pub struct Launch<'a> {
    /// A folder for what the machine writes besides its disks; gone when the run ends.
    pub folder: &'a Path,
    /// A file for each disk, with its format.
    pub disks: Vec<(PathBuf, DiskFormat)>,
    /// The CDs.
    pub cdroms: Vec<PathBuf>,
    /// The network behind the first interface.
    pub network: UserNet,
    /// The SMBIOS serial number.
    pub serial: Option<String>,
    /// What is booted.
    pub boot: Boot,
    /// What a reset by the guest does.
    pub on_reset: OnReset,
}

impl Host {
    /// Finds out what this host has for a machine.
    ///
    /// # Errors
    /// A failure of kind `Infrastructure` that says what is missing and how to get it.
    pub fn find(profile: &Profile, machine: &definition::Machine) -> Result<Self, Failure> {
        let qemu = profile.qemu.clone().unwrap_or_default();
        let wanted = match profile.machine.kvm {
            Some(false) => Accelerator::Tcg,
            _ => qemu.accelerator,
        };
        let choice = accel::choose(wanted, &accel::Host::probe()).kind(Kind::Infrastructure)?;
        let ovmf = match machine.firmware {
            Wanted::Bios => None,
            Wanted::Uefi => Some(firmware::find_ovmf(machine.kind).kind(Kind::Infrastructure)?),
        };
        let default_patience = if choice.accel == Accel::Tcg { TCG_PATIENCE } else { 1 };
        Ok(Self {
            binary: qemu.binary.map_or_else(|| "qemu-system-x86_64".into(), PathBuf::from),
            accel: choice.accel,
            warning: choice.warning,
            ovmf,
            patience: Patience(qemu.timeout_factor.unwrap_or(default_patience)),
            cores_are_given: profile.machine.cores.is_some(),
        })
    }

    /// Returns what the user should know about how guests run here.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Returns how guest code is run.
    #[must_use]
    pub const fn accel(&self) -> Accel {
        self.accel
    }

    /// Returns the patience that guests need here.
    #[must_use]
    pub const fn patience(&self) -> Patience {
        self.patience
    }

    /// Returns how many cores a machine gets here. QEMU's emulation of several at once now and then takes a
    /// kernel down that patches its own code (`Oops: int3`), and makes a boot hardly faster: an emulated
    /// machine gets one, unless the profile says otherwise.
    #[must_use]
    pub const fn cores(&self, machine: &definition::Machine) -> u32 {
        match self.accel {
            Accel::Tcg if !self.cores_are_given => 1,
            _ => machine.cores,
        }
    }

    /// Returns the machine keys that differ from the definition's while building here.
    #[must_use]
    pub fn overrides(
        &self,
        definition: &definition::Machine,
        effective: &definition::Machine,
    ) -> BTreeMap<String, serde_json::Value> {
        let mut overrides = BTreeMap::new();
        let cpu = cpu_model(&effective.cpu, self.accel);
        if cpu != definition.cpu {
            overrides.insert("cpu".to_owned(), cpu.into());
        }
        let cores = self.cores(effective);
        if cores != definition.cores {
            overrides.insert("cores".to_owned(), cores.into());
        }
        if effective.memory_mib != definition.memory_mib {
            overrides.insert("memory_mib".to_owned(), effective.memory_mib.into());
        }
        if self.accel == Accel::Tcg {
            overrides.insert("kvm".to_owned(), false.into());
        }
        overrides
    }

    /// Returns a machine as QEMU is to run it here.
    ///
    /// # Errors
    /// When the firmware's variables cannot be copied.
    pub fn spec(&self, machine: &definition::Machine, launch: Launch<'_>) -> Result<MachineSpec, Error> {
        let firmware = match &self.ovmf {
            None => Firmware::Bios,
            Some(ovmf) => firmware::prepare(ovmf, launch.folder)?,
        };
        let machine = definition::Machine { cores: self.cores(machine), ..machine.clone() };
        Ok(MachineSpec::new(
            &machine,
            spec::Host {
                binary: self.binary.clone(),
                accel: self.accel,
                firmware,
                disks: launch.disks,
                cdroms: launch.cdroms,
                networks: vec![launch.network],
                uuid: Uuid::new_v4(),
                serial_number: launch.serial.map(SerialNumber),
                boot: launch.boot,
                on_reset: launch.on_reset,
            },
        ))
    }
}
