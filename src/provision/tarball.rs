//! Packs a file or folder into a tar archive for the guest's `tar`.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// An entry of an archive.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Its name in the archive, in bytes, without a leading slash.
    pub(super) name: Vec<u8>,
    pub(super) content: EntryContent,
    pub(super) mode: u32,
}

#[derive(Debug, Clone)]
pub(super) enum EntryContent {
    Folder,
    /// Where a link points.
    Link(Vec<u8>),
    /// A file as it is.
    File(PathBuf),
    /// Rendered text.
    Text(String),
}

/// Returns a file's or a folder's entries in order of their names; `name` is what a file becomes.
///
/// Without a mode, a file has 0755 if its owner may execute it and 0644 otherwise, whatever the
/// user's umask made of the checkout. A folder's own entry is left out: it may exist in the guest
/// with a mode of its own.
pub(super) fn entries(source: &Path, name: &[u8], mode: Option<u32>) -> io::Result<Vec<Entry>> {
    if !fs::metadata(source)?.is_dir() {
        return Ok(vec![file_entry(source, name.to_vec(), mode)?]);
    }
    let mut entries = Vec::new();
    add_folder(source, b"", mode, &mut entries)?;
    Ok(entries)
}

fn file_entry(path: &Path, name: Vec<u8>, mode: Option<u32>) -> io::Result<Entry> {
    let executable = fs::metadata(path)?.permissions().mode() & 0o100 != 0;
    let mode = mode.unwrap_or(if executable { 0o755 } else { 0o644 });
    Ok(Entry { name, content: EntryContent::File(path.to_owned()), mode })
}

fn add_folder(folder: &Path, prefix: &[u8], mode: Option<u32>, entries: &mut Vec<Entry>) -> io::Result<()> {
    let mut children = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    children.sort_by_key(fs::DirEntry::file_name);
    for child in children {
        let (path, kind) = (child.path(), child.file_type()?);
        let name = [prefix, child.file_name().as_bytes()].concat();
        if kind.is_dir() {
            entries.push(Entry { name: name.clone(), content: EntryContent::Folder, mode: 0o755 });
            add_folder(&path, &[&name[..], b"/"].concat(), mode, entries)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&path)?.as_os_str().as_bytes().to_vec();
            entries.push(Entry { name, content: EntryContent::Link(target), mode: 0o777 });
        } else if kind.is_file() {
            entries.push(file_entry(&path, name, mode)?);
        } else {
            let text = format!("{} is neither a file, a folder nor a link", path.display());
            return Err(io::Error::other(text));
        }
    }
    Ok(())
}

/// Writes the entries as a POSIX archive, owned by `owner` as (user, group).
pub(super) fn write(entries: &[Entry], owner: (&str, &str), to: &mut impl Write) -> io::Result<()> {
    for entry in entries {
        match &entry.content {
            EntryContent::Folder => head(entry, b'5', &[], 0, owner, to)?,
            EntryContent::Link(target) => head(entry, b'2', target, 0, owner, to)?,
            EntryContent::Text(text) => {
                head(entry, b'0', &[], text.len() as u64, owner, to)?;
                body(&mut text.as_bytes(), text.len() as u64, to)?;
            }
            EntryContent::File(path) => {
                let mut file = File::open(path)?;
                let size = file.metadata()?.len();
                head(entry, b'0', &[], size, owner, to)?;
                body(&mut file, size, to)?;
            }
        }
    }
    to.write_all(&[0; 1024])
}

fn body(from: &mut dyn Read, size: u64, to: &mut impl Write) -> io::Result<()> {
    let copied = io::copy(&mut from.take(size), to)?;
    if copied != size {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file shrank while it was read"));
    }
    to.write_all(&[0; 512][..padding(size)])
}

fn padding(size: u64) -> usize {
    (512 - (size % 512) as usize) % 512
}

/// Writes an entry's header; what the old fields cannot hold stands in a pax record before it.
fn head(
    entry: &Entry,
    kind: u8,
    link: &[u8],
    size: u64,
    owner: (&str, &str),
    to: &mut impl Write,
) -> io::Result<()> {
    let mut pax = Vec::new();
    for (key, value, room) in [("path", &entry.name[..], 100), ("linkpath", link, 100)] {
        if value.len() > room {
            pax.extend(pax_record(key, value));
        }
    }
    // 11 octal digits hold less than 8 GiB.
    if size >= 1 << 33 {
        pax.extend(pax_record("size", size.to_string().as_bytes()));
    }
    if !pax.is_empty() {
        to.write_all(&header(b"pax", b'x', &[], pax.len() as u64, 0o644, ("", "")))?;
        to.write_all(&pax)?;
        to.write_all(&[0; 512][..padding(pax.len() as u64)])?;
    }
    to.write_all(&header(&entry.name, kind, link, size & ((1 << 33) - 1), entry.mode, owner))
}

/// Returns `LENGTH KEY=VALUE\n`, where the length counts itself (POSIX pax, "Extended Header").
fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if rest + length.to_string().len() > length {
        length += 1;
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// Returns a `ustar` header block.
fn header(name: &[u8], kind: u8, link: &[u8], size: u64, mode: u32, owner: (&str, &str)) -> [u8; 512] {
    let mut block = [0_u8; 512];
    let mut put = |at: usize, room: usize, text: &[u8]| {
        let length = text.len().min(room);
        block[at..at + length].copy_from_slice(&text[..length]);
    };
    put(0, 100, name);
    put(100, 8, format!("{mode:07o}").as_bytes());
    put(108, 8, b"0000000");
    put(116, 8, b"0000000");
    put(124, 12, format!("{size:011o}").as_bytes());
    put(136, 12, b"00000000000");
    put(148, 8, b"        ");
    put(156, 1, &[kind]);
    put(157, 100, link);
    put(257, 8, b"ustar\x0000");
    put(265, 32, owner.0.as_bytes());
    put(297, 32, owner.1.as_bytes());
    let sum: u32 = block.iter().copied().map(u32::from).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_records_count_themselves() {
        for length in [1, 86, 87, 88, 89, 90, 200, 985, 986, 987, 988, 989, 990] {
            let record = pax_record("path", &vec![b'a'; length]);
            let said: usize = String::from_utf8_lossy(&record).split(' ').next().unwrap().parse().unwrap();
            assert_eq!(said, record.len(), "{length}");
        }
    }

    #[test]
    fn blocks_are_padded() {
        assert_eq!([0, 1, 511, 512, 513].map(padding), [0, 511, 1, 0, 511]);
    }
}
