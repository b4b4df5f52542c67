//! Decides whether guest code runs under KVM or under QEMU's emulation.

use std::fs::OpenOptions;
use std::io;

use super::Error;
use crate::definition::Accelerator;

/// How guest code is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// By the processor.
    Kvm,
    /// By QEMU's emulation, ten to thirty times slower.
    Tcg,
}

impl Accel {
    /// Returns QEMU's name for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// The accelerator that a machine gets, and what the user should know about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The accelerator.
    pub accel: Accel,
    /// Why it is not KVM, when `auto` would have preferred that.
    pub warning: Option<String>,
}

/// What this host says about KVM.
#[derive(Debug)]
pub struct Host {
    /// The text of `/proc/cpuinfo`.
    pub cpuinfo: String,
    /// Whether `/dev/kvm` opened for reading and writing.
    pub kvm_device: io::Result<()>,
}

impl Host {
    /// Asks this host.
    #[must_use]
    pub fn probe() -> Self {
        Self {
            // Unreadable means no flags, and that means TCG.
            cpuinfo: std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default(),
            kvm_device: OpenOptions::new().read(true).write(true).open("/dev/kvm").map(drop),
        }
    }

    /// Returns why KVM cannot run guests here, or nothing if it can.
    ///
    /// The device alone proves nothing: containers and nested machines have it without the
    /// processor's support behind it, and QEMU then fails or hangs.
    fn kvm_obstacle(&self) -> Option<String> {
        if let Err(error) = &self.kvm_device {
            return Some(match error.kind() {
                io::ErrorKind::NotFound => "there is no /dev/kvm".to_owned(),
                io::ErrorKind::PermissionDenied => {
                    "/dev/kvm is not open to this user (join the group kvm)".to_owned()
                }
                _ => format!("/dev/kvm does not open: {error}"),
            });
        }
        let virtualises = |flag: &str| flag == "vmx" || flag == "svm";
        let supported = cpu_flags(&self.cpuinfo).any(virtualises);
        (!supported).then(|| "the processor offers neither vmx nor svm".to_owned())
    }
}

/// Decides how guest code is run on a host.
///
/// # Errors
/// [`Error::Unable`] when KVM is demanded and cannot run guests here.
pub fn choose(wanted: Accelerator, host: &Host) -> Result<Choice, Error> {
    let obstacle = match wanted {
        Accelerator::Tcg => return Ok(Choice { accel: Accel::Tcg, warning: None }),
        Accelerator::Auto | Accelerator::Kvm => host.kvm_obstacle(),
    };
    match obstacle {
        None => Ok(Choice { accel: Accel::Kvm, warning: None }),
        Some(why) if wanted == Accelerator::Kvm => Err(Error::Unable {
            what: "accelerator `kvm`".to_owned(),
            why,
            advice: "set `qemu.accelerator = \"auto\"` in the builder profile to emulate instead".to_owned(),
        }),
        Some(why) => Ok(Choice {
            accel: Accel::Tcg,
            warning: Some(format!("without KVM the guest is emulated, ten to thirty times slower: {why}")),
        }),
    }
}

fn cpu_flags(cpuinfo: &str) -> impl Iterator<Item = &str> {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.trim() == "flags")
        .flat_map(|(_, flags)| flags.split_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(flags: &str, kvm_device: io::Result<()>) -> Host {
        let cpuinfo = format!("model name\t: Some svm CPU\nflags\t\t: fpu {flags} sse2\nvmx flags\t: ept\n");
        Host { cpuinfo, kvm_device }
    }

    #[test]
    fn auto_takes_kvm_only_where_it_runs_guests() {
        for flag in ["vmx", "svm"] {
            let choice = choose(Accelerator::Auto, &host(flag, Ok(()))).unwrap();
            assert_eq!(choice, Choice { accel: Accel::Kvm, warning: None });
        }
        for (flags, device, reason) in [
            ("aes", Ok(()), "neither vmx nor svm"),
            ("svm_lock", Ok(()), "neither vmx nor svm"),
            ("vmx", Err(io::ErrorKind::NotFound.into()), "no /dev/kvm"),
            ("vmx", Err(io::ErrorKind::PermissionDenied.into()), "group kvm"),
            ("vmx", Err(io::Error::from_raw_os_error(19)), "does not open"),
        ] {
            let choice = choose(Accelerator::Auto, &host(flags, device)).unwrap();
            assert_eq!(choice.accel, Accel::Tcg);
            let warning = choice.warning.unwrap();
            assert!(warning.contains(reason), "{warning}");
        }
    }

    #[test]
    fn kvm_is_refused_where_it_cannot_run_guests() {
        let error = choose(Accelerator::Kvm, &host("aes", Ok(()))).unwrap_err().to_string();
        assert!(error.contains("vmx") && error.contains("qemu.accelerator"), "{error}");
        assert_eq!(choose(Accelerator::Kvm, &host("svm", Ok(()))).unwrap().accel, Accel::Kvm);
    }

    #[test]
    fn tcg_can_be_forced_without_a_warning() {
        let choice = choose(Accelerator::Tcg, &host("vmx", Ok(()))).unwrap();
        assert_eq!(choice, Choice { accel: Accel::Tcg, warning: None });
    }
}
