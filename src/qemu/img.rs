//! Disk images, through `qemu-img`.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::Error;
use super::guard::{self, Guard};
use crate::definition::DiskFormat;

/// What `qemu-img info` says of an image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Info {
    /// Its format, such as `qcow2`.
    pub format: String,
    /// The size that a guest sees, in bytes.
    pub virtual_size: u64,
    /// The bytes that it takes up on the host.
    pub actual_size: u64,
    /// The image below it, if it is an overlay.
    #[serde(rename = "full-backing-filename")]
    pub backing: Option<PathBuf>,
}

/// How an image is converted.
#[derive(Debug, Clone, Copy)]
pub struct Conversion {
    /// The source's format.
    pub from: DiskFormat,
    /// The target's format.
    pub to: DiskFormat,
    /// Whether the target is compressed; for qcow2 only.
    pub compress: bool,
}

/// Returns QEMU's name of a format.
#[must_use]
pub const fn format_name(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    }
}

/// Creates an empty disk.
///
/// # Errors
/// [`Error::Died`] with qemu-img's own words; nothing is left behind.
pub async fn create(path: &Path, format: DiskFormat, bytes: u64) -> Result<(), Error> {
    let path = absolute(path)?;
    let unfinished = Unfinished::new(&path);
    let args = ["create", "-q", "-f", format_name(format), text(&path)?, &bytes.to_string()];
    run(&args, |_| ()).await?;
    unfinished.keep();
    Ok(())
}

/// Creates a qcow2 overlay on a base that stays untouched, with another size if one is given.
///
/// # Errors
/// [`Error::Died`] with qemu-img's own words; nothing is left behind.
pub async fn create_overlay(
    base: &Path,
    base_format: DiskFormat,
    path: &Path,
    bytes: Option<u64>,
) -> Result<(), Error> {
    let (base, path) = (absolute(base)?, absolute(path)?);
    let unfinished = Unfinished::new(&path);
    let size = bytes.map(|bytes| bytes.to_string());
    let format = format_name(base_format);
    let mut args = vec!["create", "-q", "-f", "qcow2", "-F", format, "-b", text(&base)?, text(&path)?];
    args.extend(size.as_deref());
    run(&args, |_| ()).await?;
    unfinished.keep();
    Ok(())
}

/// Converts an image, flattening overlays, and flushes it to the host's disk; tells each whole
/// percent that is done.
///
/// # Errors
/// [`Error::Died`] with qemu-img's own words; nothing is left behind, also when dropped.
pub async fn convert(
    source: &Path,
    target: &Path,
    how: Conversion,
    progress: impl FnMut(u64),
) -> Result<(), Error> {
    let unfinished = write_converted(source, target, how, progress).await?;
    let doing = || format!("flushing {}", target.display());
    let file = tokio::fs::File::open(target).await.map_err(Error::io(doing()))?;
    file.sync_all().await.map_err(Error::io(doing()))?;
    unfinished.keep();
    Ok(())
}

/// An image's raw content; the file is removed when this is dropped.
#[derive(Debug)]
pub struct Unpacked {
    path: PathBuf,
    _file: Unfinished,
}

impl Unpacked {
    /// Returns where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Writes an image's raw content to a file that is only to be looked at.
///
/// # Errors
/// [`Error::Died`] with qemu-img's own words; nothing is left behind, also when dropped.
pub async fn unpack(
    source: &Path,
    from: DiskFormat,
    target: PathBuf,
    progress: impl FnMut(u64),
) -> Result<Unpacked, Error> {
    let how = Conversion { from, to: DiskFormat::Raw, compress: false };
    let file = write_converted(source, &target, how, progress).await?;
    Ok(Unpacked { path: target, _file: file })
}

/// Converts an image; the target goes again unless it is kept.
async fn write_converted(
    source: &Path,
    target: &Path,
    how: Conversion,
    progress: impl FnMut(u64),
) -> Result<Unfinished, Error> {
    let (source, target) = (absolute(source)?, absolute(target)?);
    let unfinished = Unfinished::new(&target);
    let (from, to) = (format_name(how.from), format_name(how.to));
    // Written out of order, because only then does it compress on more than one core.
    let mut args = vec!["convert", "-p", "-W", "-f", from, "-O", to];
    if how.compress {
        args.push("-c");
    }
    args.extend([text(&source)?, text(&target)?]);
    run(&args, progress).await?;
    Ok(unfinished)
}

/// Grows an image.
///
/// # Errors
/// [`Error::Died`] with qemu-img's own words.
pub async fn resize(path: &Path, format: DiskFormat, bytes: u64) -> Result<(), Error> {
    let path = absolute(path)?;
    let args = ["resize", "-q", "-f", format_name(format), text(&path)?, &bytes.to_string()];
    run(&args, |_| ()).await.map(drop)
}

/// Returns what an image is.
///
/// # Errors
/// [`Error::Died`] with qemu-img's own words.
pub async fn info(path: &Path) -> Result<Info, Error> {
    let path = absolute(path)?;
    let output = run(&["info", "--output=json", text(&path)?], |_| ()).await?;
    serde_json::from_slice(&output)
        .map_err(io::Error::from)
        .map_err(Error::io(format!("reading what qemu-img says of {}", path.display())))
}

/// Runs qemu-img, which dies with forge and with this future, and returns its standard output.
async fn run(args: &[&str], progress: impl FnMut(u64)) -> Result<Vec<u8>, Error> {
    let program = guard::find_program(Path::new("qemu-img"), "qemu-utils")?;
    let mut command = guard::armed(&program)?;
    command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (process, pipes) = Guard::spawn(command, "qemu-img").await?;
    let stdout = pipes.stdout.map(tokio::process::ChildStdout::from_std).expect("asked for");
    let stderr = pipes.stderr.map(tokio::process::ChildStderr::from_std).expect("asked for");
    let reading = || Error::io("reading what qemu-img says");
    let (stdout, mut stderr) = (stdout.map_err(reading())?, stderr.map_err(reading())?);
    let mut words = Vec::new();
    let (output, _) = tokio::try_join!(read_progress(stdout, progress), stderr.read_to_end(&mut words))
        .map_err(reading())?;
    let status = process.wait().await;
    if status.success() {
        return Ok(output);
    }
    Err(Error::Died {
        program: format!("qemu-img {}", args[0]),
        status: guard::describe(status),
        stderr: guard::last_words(&words),
    })
}

/// Reads to the end; tells each whole percent of `-p`'s `    (12.34/100%)\r` once.
async fn read_progress(
    mut stdout: impl AsyncRead + Unpin,
    mut progress: impl FnMut(u64),
) -> io::Result<Vec<u8>> {
    let (mut output, mut seen, mut last) = (Vec::new(), 0, None);
    while stdout.read_buf(&mut output).await? > 0 {
        while let Some(length) = output[seen..].iter().position(|&byte| byte == b'\r') {
            let percent = parse_percent(&output[seen..seen + length]);
            seen += length + 1;
            if percent.is_some() && percent > last {
                last = percent;
                percent.into_iter().for_each(&mut progress);
            }
        }
    }
    Ok(output)
}

fn parse_percent(line: &[u8]) -> Option<u64> {
    let line = std::str::from_utf8(line).ok()?.trim();
    let percent: f64 = line.strip_prefix('(')?.strip_suffix("/100%)")?.parse().ok()?;
    Some(percent as u64)
}

/// A file that is removed unless it is kept.
#[derive(Debug)]
struct Unfinished(Option<PathBuf>);

impl Unfinished {
    fn new(path: &Path) -> Self {
        // What is there already is not ours to remove.
        Self((!path.exists()).then(|| path.to_owned()))
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // It may never have come to be.
            std::fs::remove_file(path).ok();
        }
    }
}

/// Returns an absolute path: in a relative one, qemu-img takes a colon for the end of a protocol.
fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(Error::io("finding the working folder"))
}

fn text(path: &Path) -> Result<&str, Error> {
    let odd = || io::Error::new(io::ErrorKind::InvalidInput, "not a UTF-8 path");
    path.to_str().ok_or_else(odd).map_err(Error::io(format!("naming {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[tokio::test]
    async fn each_percent_is_told_once() {
        let mut seen = Vec::new();
        let text: &[u8] = b"    (0.00/100%)\r    (0.90/100%)\r    (41.07/100%)\r    (100.00/100%)\r\n";
        read_progress(text, |percent| seen.push(percent)).await.unwrap();
        assert_eq!(seen, [0, 41, 100]);
    }

    #[tokio::test]
    async fn images_are_made_overlaid_grown_and_flattened() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let base = path("base, with: odd name.raw");
        create(&base, DiskFormat::Raw, MIB).await.unwrap();
        std::fs::write(&base, vec![7_u8; MIB as usize]).unwrap();
        create_overlay(&base, DiskFormat::Raw, &path("over.qcow2"), Some(2 * MIB)).await.unwrap();
        resize(&path("over.qcow2"), DiskFormat::Qcow2, 3 * MIB).await.unwrap();
        let over = info(&path("over.qcow2")).await.unwrap();
        assert_eq!((over.format.as_str(), over.virtual_size), ("qcow2", 3 * MIB));
        assert_eq!(over.backing, Some(base));

        let mut percents = Vec::new();
        let how = Conversion { from: DiskFormat::Qcow2, to: DiskFormat::Qcow2, compress: true };
        convert(&path("over.qcow2"), &path("flat.qcow2"), how, |percent| percents.push(percent))
            .await
            .unwrap();
        assert_eq!(percents.last(), Some(&100));
        let flat = info(&path("flat.qcow2")).await.unwrap();
        assert_eq!((flat.virtual_size, flat.backing), (3 * MIB, None));
        assert!(flat.actual_size < MIB);
    }

    #[tokio::test]
    async fn a_raw_image_has_the_bytes_themselves() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        std::fs::write(path("base"), vec![7_u8; MIB as usize]).unwrap();
        for (from, to) in [("base", "packed"), ("packed", "flat")] {
            let [from_format, to_format] =
                [from, to].map(|name| if name == "packed" { DiskFormat::Qcow2 } else { DiskFormat::Raw });
            let how = Conversion { from: from_format, to: to_format, compress: to == "packed" };
            convert(&path(from), &path(to), how, |_| ()).await.unwrap();
        }
        assert_eq!(info(&path("flat")).await.unwrap().format, "raw");
        assert!(std::fs::read(path("flat")).unwrap() == vec![7_u8; MIB as usize]);
        let unpacked = unpack(&path("packed"), DiskFormat::Qcow2, path("look"), |_| ()).await.unwrap();
        assert!(std::fs::read(unpacked.path()).unwrap() == vec![7_u8; MIB as usize]);
        drop(unpacked);
        assert!(!path("look").exists());
    }

    #[tokio::test]
    async fn a_raw_disk_takes_back_each_block_that_is_discarded() {
        let root = tempfile::tempdir().unwrap();
        let disk = root.path().join("disk.raw");
        create(&disk, DiskFormat::Raw, MIB).await.unwrap();
        let commands = ["-c", "write -q -P 7 0 64k", "-c", "discard -q 8k 4k"];
        let mut qemu_io = crate::testing::tool("qemu-io", "qemu-utils");
        let output = qemu_io.args(["-f", "raw", "-d", "unmap"]).args(commands).arg(&disk).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let content = std::fs::read(&disk).unwrap();
        let kept: Vec<_> = content.chunks(4096).map(|block| block.iter().any(|byte| *byte != 0)).collect();
        let expected: Vec<_> = (0..256).map(|block| block < 16 && block != 2).collect();
        assert_eq!(kept, expected);
    }

    #[tokio::test]
    async fn failures_carry_qemu_imgs_words_and_leave_nothing() {
        let root = tempfile::tempdir().unwrap();
        let (source, target) = (root.path().join("none"), root.path().join("target"));
        let how = Conversion { from: DiskFormat::Raw, to: DiskFormat::Qcow2, compress: false };
        let error = convert(&source, &target, how, |_| ()).await.unwrap_err().to_string();
        assert!(error.starts_with("qemu-img convert ended with exit code 1:"), "{error}");
        assert!(error.contains("No such file"), "{error}");
        assert!(!target.exists());
    }

    #[tokio::test]
    async fn a_dropped_conversion_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let (source, target) = (root.path().join("big"), root.path().join("target"));
        create(&source, DiskFormat::Raw, 1024 * 1024 * MIB).await.unwrap();
        let how = Conversion { from: DiskFormat::Raw, to: DiskFormat::Raw, compress: false };
        {
            let (told, mut first) = tokio::sync::mpsc::unbounded_channel();
            let conversion = convert(&source, &target, how, move |_| told.send(()).unwrap());
            tokio::select! {
                result = conversion => result.unwrap(),
                _ = first.recv() => {}
            }
        }
        assert!(!target.exists());
    }
}
