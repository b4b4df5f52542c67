//! Writes small ISO 9660 volumes with Rock Ridge and Joliet, byte for byte the same each time.
//!
//! ```text
//! sector  0..16   system area, empty
//!        16       primary volume descriptor       (names as ECMA-119, level 2, plus Rock Ridge)
//!        17       supplementary volume descriptor (names as Joliet, level 3)
//!        18       set terminator
//!        19..     path tables: primary L, M; Joliet L, M
//!         …       directories: primary, Joliet
//!         …       files, in the order of their paths
//! ```
//!
//! Linux shows the Rock Ridge names, Windows the Joliet ones. Dates are fixed, owners are 0, files
//! are readable by root only, for a seed may hold password hashes. Sources: ECMA-119, the Joliet
//! specification, IEEE P1281 (SUSP) and P1282 (RRIP, in the form that names itself `RRIP_1991A`).

use std::collections::{BTreeMap, BTreeSet};

const SECTOR: usize = 2048;
const LABEL_MAX: usize = 16;
const NAME_MAX: usize = 64;
const DEPTH_MAX: usize = 8;
const FILES_MAX: usize = 256;
const CONTENT_MAX: usize = 64 * 1024 * 1024;

/// 2024-01-01 00:00:00 UTC in the seven bytes of a directory record.
const RECORD_DATE: [u8; 7] = [124, 1, 1, 0, 0, 0, 0];
/// The same moment in the seventeen bytes of a volume descriptor.
const VOLUME_DATE: &[u8; 17] = b"2024010100000000\0";
/// No such moment.
const NO_DATE: &[u8; 17] = b"0000000000000000\0";

/// Why a volume cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// The label is not one that all readers show as it is.
    #[error("volume label `{label}` must be 1 to {LABEL_MAX} letters, digits, `_` or `-`")]
    Label {
        /// The label.
        label: String,
    },
    /// A path has an empty, special, too long or oddly spelt part.
    #[error(
        "`{path}` cannot be a path on a seed volume: each part must be 1 to {NAME_MAX} of the \
         characters A-Z a-z 0-9 . _ - and there may be {DEPTH_MAX} parts at most"
    )]
    Path {
        /// The path.
        path: String,
    },
    /// Two files have one path, or a file has the path of a folder.
    #[error("`{path}` is on the volume twice")]
    Twice {
        /// The path.
        path: String,
    },
    /// There is more than a seed volume is for.
    #[error(
        "{files} files of together {bytes} bytes are more than a seed volume holds ({FILES_MAX} files, {CONTENT_MAX} bytes)"
    )]
    TooMuch {
        /// How many files.
        files: usize,
        /// Their size together.
        bytes: usize,
    },
}

/// Returns an ISO 9660 volume with that label and those files, given as path and content.
///
/// # Errors
/// A label or path that some reader would show differently, a path given twice, or too much.
pub fn volume(label: &str, files: &[(&str, &[u8])]) -> Result<Vec<u8>, VolumeError> {
    check_label(label)?;
    let bytes = files.iter().map(|(_, content)| content.len()).sum();
    if files.len() > FILES_MAX || bytes > CONTENT_MAX {
        return Err(VolumeError::TooMuch { files: files.len(), bytes });
    }
    let root = Folder::of(files)?;
    let contents = root.contents();
    let primary = Tree::of(&root, Naming::Primary);
    let joliet = Tree::of(&root, Naming::Joliet);
    Ok(Layout::new(&primary, &joliet, &contents).write(label, &primary, &joliet, &contents))
}

fn check_label(label: &str) -> Result<(), VolumeError> {
    let fits = (1..=LABEL_MAX).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if fits { Ok(()) } else { Err(VolumeError::Label { label: label.to_owned() }) }
}

fn is_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// A folder's entries by name; files are numbered in the order of their paths.
#[derive(Default)]
struct Folder<'a>(BTreeMap<String, Node<'a>>);

enum Node<'a> {
    Folder(Folder<'a>),
    File { number: usize, content: &'a [u8] },
}

impl<'a> Folder<'a> {
    fn of(files: &[(&'a str, &'a [u8])]) -> Result<Self, VolumeError> {
        let mut root = Self::default();
        for (path, content) in files {
            let parts: Vec<&str> = path.split('/').collect();
            if parts.len() > DEPTH_MAX || !parts.iter().all(|part| is_name(part)) {
                return Err(VolumeError::Path { path: (*path).to_owned() });
            }
            let twice = || VolumeError::Twice { path: (*path).to_owned() };
            let (name, parents) = parts.split_last().expect("split yields at least one part");
            let mut folder = &mut root;
            for parent in parents {
                let node = folder.0.entry((*parent).to_owned()).or_insert(Node::Folder(Self::default()));
                let Node::Folder(inner) = node else { return Err(twice()) };
                folder = inner;
            }
            if folder.0.insert((*name).to_owned(), Node::File { number: 0, content }).is_some() {
                return Err(twice());
            }
        }
        root.number(&mut 0);
        Ok(root)
    }

    fn number(&mut self, next: &mut usize) {
        for node in self.0.values_mut() {
            match node {
                Node::Folder(folder) => folder.number(next),
                Node::File { number, .. } => {
                    *number = *next;
                    *next += 1;
                }
            }
        }
    }

    fn contents(&self) -> Vec<&'a [u8]> {
        let inner = |node: &Node<'a>| match node {
            Node::Folder(folder) => folder.contents(),
            Node::File { content, .. } => vec![*content],
        };
        self.0.values().flat_map(inner).collect()
    }
}

/// Which of the two trees of directories a name is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Naming {
    Primary,
    Joliet,
}

impl Naming {
    /// Returns the identifier of a name that is none of `taken` yet.
    fn identifier(self, name: &str, is_file: bool, taken: &BTreeSet<Vec<u8>>) -> Vec<u8> {
        if self == Self::Joliet {
            let version = if is_file { ";1" } else { "" };
            return ucs2(&format!("{name}{version}"));
        }
        (0..=FILES_MAX as u32)
            .map(|number| primary_identifier(name, is_file, number))
            .find(|identifier| !taken.contains(identifier))
            .expect("there are more numbers than files")
    }
}

/// Returns a name in the letters of ECMA-119, at most 31 long, with a number when one is needed.
fn primary_identifier(name: &str, is_file: bool, number: u32) -> Vec<u8> {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    let number = if number == 0 { String::new() } else { number.to_string() };
    let shortened = |text: &str, length: usize| -> String { text.chars().map(letter).take(length).collect() };
    if !is_file {
        return format!("{}{number}", shortened(name, 28)).into_bytes();
    }
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    format!("{}{number}.{};1", shortened(stem, 18), shortened(extension, 7)).into_bytes()
}

fn ucs2(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

/// All directories in one naming, in the order of the path table: by level, parent, identifier.
struct Tree {
    directories: Vec<Directory>,
    naming: Naming,
}

struct Directory {
    identifier: Vec<u8>,
    parent: usize,
    entries: Vec<Entry>,
}

struct Entry {
    identifier: Vec<u8>,
    name: String,
    target: Target,
}

#[derive(Clone, Copy)]
enum Target {
    Directory(usize),
    File(usize),
}

impl Tree {
    fn of(root: &Folder<'_>, naming: Naming) -> Self {
        let mut directories = vec![Directory { identifier: vec![0], parent: 0, entries: Vec::new() }];
        let mut level = vec![(0, root)];
        while !level.is_empty() {
            let mut next = Vec::new();
            for (index, folder) in level {
                let mut taken = BTreeSet::new();
                let mut named: Vec<(Vec<u8>, &String, &Node<'_>)> = Vec::new();
                for (name, node) in &folder.0 {
                    let identifier = naming.identifier(name, matches!(node, Node::File { .. }), &taken);
                    taken.insert(identifier.clone());
                    named.push((identifier, name, node));
                }
                named.sort_by(|a, b| a.0.cmp(&b.0));
                for (identifier, name, node) in named {
                    let target = match node {
                        Node::File { number, .. } => Target::File(*number),
                        Node::Folder(inner) => {
                            let child = directories.len();
                            directories.push(Directory {
                                identifier: identifier.clone(),
                                parent: index,
                                entries: Vec::new(),
                            });
                            next.push((child, inner));
                            Target::Directory(child)
                        }
                    };
                    directories[index].entries.push(Entry { identifier, name: name.clone(), target });
                }
            }
            level = next;
        }
        Self { directories, naming }
    }

    fn path_table_size(&self) -> usize {
        self.directories.iter().map(|directory| path_record_length(&directory.identifier)).sum()
    }

    /// Returns the path table with its numbers least or most significant byte first.
    fn path_table(&self, extents: &[Extent], big_endian: bool) -> Vec<u8> {
        let mut table = Vec::new();
        for (directory, extent) in self.directories.iter().zip(extents) {
            let parent = directory.parent as u16 + 1;
            table.extend([directory.identifier.len() as u8, 0]);
            if big_endian {
                table.extend(extent.sector.to_be_bytes());
                table.extend(parent.to_be_bytes());
            } else {
                table.extend(extent.sector.to_le_bytes());
                table.extend(parent.to_le_bytes());
            }
            table.extend(&directory.identifier);
            table.resize(table.len().next_multiple_of(2), 0);
        }
        table
    }

    /// Returns a directory's records, none of which crosses a sector's end.
    fn records(&self, index: usize, directories: &[Extent], files: &[Extent]) -> Vec<u8> {
        let directory = &self.directories[index];
        let rock_ridge = self.naming == Naming::Primary;
        let links = 2 + self.subdirectories(index);
        let parent_links = 2 + self.subdirectories(directory.parent);
        let mut records = vec![
            record(&[0], directories[index], true, |area| {
                if rock_ridge {
                    if index == 0 {
                        area.extend(b"SP\x07\x01\xbe\xef\x00");
                        extension_reference(area);
                    }
                    attributes(area, true, links);
                }
            }),
            record(&[1], directories[directory.parent], true, |area| {
                if rock_ridge {
                    attributes(area, true, parent_links);
                }
            }),
        ];
        for entry in &directory.entries {
            let (extent, is_folder, links) = match entry.target {
                Target::Directory(child) => (directories[child], true, 2 + self.subdirectories(child)),
                Target::File(number) => (files[number], false, 1),
            };
            records.push(record(&entry.identifier, extent, is_folder, |area| {
                if rock_ridge {
                    attributes(area, is_folder, links);
                    area.extend([b'N', b'M', 5 + entry.name.len() as u8, 1, 0]);
                    area.extend(entry.name.as_bytes());
                }
            }));
        }
        let mut area = Vec::new();
        for record in records {
            if area.len() % SECTOR + record.len() > SECTOR {
                area.resize(area.len().next_multiple_of(SECTOR), 0);
            }
            area.extend(record);
        }
        area.resize(area.len().next_multiple_of(SECTOR), 0);
        area
    }

    fn subdirectories(&self, index: usize) -> u32 {
        let is_folder = |entry: &&Entry| matches!(entry.target, Target::Directory(_));
        self.directories[index].entries.iter().filter(is_folder).count() as u32
    }
}

fn path_record_length(identifier: &[u8]) -> usize {
    (8 + identifier.len()).next_multiple_of(2)
}

/// Where a directory or a file lies.
#[derive(Debug, Clone, Copy, Default)]
struct Extent {
    sector: u32,
    bytes: u32,
}

/// Returns a directory record with what `system_use` puts into its area of that name.
fn record(
    identifier: &[u8],
    extent: Extent,
    is_folder: bool,
    system_use: impl FnOnce(&mut Vec<u8>),
) -> Vec<u8> {
    let mut record = vec![0, 0];
    both_u32(&mut record, extent.sector);
    both_u32(&mut record, extent.bytes);
    record.extend(RECORD_DATE);
    record.extend([if is_folder { 2 } else { 0 }, 0, 0]);
    both_u16(&mut record, 1);
    record.push(identifier.len() as u8);
    record.extend(identifier);
    record.resize(record.len().next_multiple_of(2), 0);
    system_use(&mut record);
    record.resize(record.len().next_multiple_of(2), 0);
    record[0] = u8::try_from(record.len()).expect("names are limited so that records fit");
    record
}

/// Announces that Rock Ridge is in use.
fn extension_reference(area: &mut Vec<u8>) {
    let identifier = b"RRIP_1991A";
    area.extend([b'E', b'R', 8 + identifier.len() as u8, 1, identifier.len() as u8, 0, 0, 1]);
    area.extend(identifier);
}

/// Appends POSIX attributes and times.
fn attributes(area: &mut Vec<u8>, is_folder: bool, links: u32) {
    area.extend(b"PX\x24\x01");
    both_u32(area, if is_folder { 0o040_500 } else { 0o100_400 });
    both_u32(area, links);
    both_u32(area, 0);
    both_u32(area, 0);
    area.extend([b'T', b'F', 5 + 3 * 7, 1, 0b1110]);
    for _ in 0..3 {
        area.extend(RECORD_DATE);
    }
}

fn both_u32(bytes: &mut Vec<u8>, value: u32) {
    bytes.extend(value.to_le_bytes());
    bytes.extend(value.to_be_bytes());
}

fn both_u16(bytes: &mut Vec<u8>, value: u16) {
    bytes.extend(value.to_le_bytes());
    bytes.extend(value.to_be_bytes());
}

/// Where everything lies.
struct Layout {
    path_tables: [[u32; 2]; 2],
    directories: [Vec<Extent>; 2],
    files: Vec<Extent>,
    sectors: u32,
}

impl Layout {
    fn new(primary: &Tree, joliet: &Tree, contents: &[&[u8]]) -> Self {
        let mut next = 19_u32;
        let mut take = |bytes: usize| {
            let sector = next;
            next += bytes.div_ceil(SECTOR) as u32;
            sector
        };
        let path_tables = [primary, joliet].map(|tree| {
            let size = tree.path_table_size();
            [take(size), take(size)]
        });
        let directories = [primary, joliet].map(|tree| {
            // A directory's size does not depend on where it lies: lay it out once with zeros.
            let (nowhere, no_files) =
                (vec![Extent::default(); tree.directories.len()], vec![Extent::default(); contents.len()]);
            (0..tree.directories.len())
                .map(|index| {
                    let bytes = tree.records(index, &nowhere, &no_files).len();
                    Extent { sector: take(bytes), bytes: bytes as u32 }
                })
                .collect::<Vec<_>>()
        });
        let files = contents
            .iter()
            .map(|content| Extent { sector: take(content.len()), bytes: content.len() as u32 })
            .collect();
        Self { path_tables, directories, files, sectors: next }
    }

    fn write(&self, label: &str, primary: &Tree, joliet: &Tree, contents: &[&[u8]]) -> Vec<u8> {
        let mut image = vec![0; self.sectors as usize * SECTOR];
        let mut put = |sector: u32, bytes: &[u8]| {
            let start = sector as usize * SECTOR;
            image[start..start + bytes.len()].copy_from_slice(bytes);
        };
        put(16, &self.descriptor(label, primary, 0));
        put(17, &self.descriptor(label, joliet, 1));
        put(18, b"\xffCD001\x01");
        for (which, tree) in [primary, joliet].into_iter().enumerate() {
            let extents = &self.directories[which];
            put(self.path_tables[which][0], &tree.path_table(extents, false));
            put(self.path_tables[which][1], &tree.path_table(extents, true));
            for (index, extent) in extents.iter().enumerate() {
                put(extent.sector, &tree.records(index, extents, &self.files));
            }
        }
        for (extent, content) in self.files.iter().zip(contents) {
            if !content.is_empty() {
                put(extent.sector, content);
            }
        }
        image
    }

    /// Returns the primary (0) or supplementary (1) volume descriptor.
    fn descriptor(&self, label: &str, tree: &Tree, which: usize) -> Vec<u8> {
        let joliet = tree.naming == Naming::Joliet;
        let text = |value: &str, length: usize| {
            let mut bytes = if joliet { ucs2(value) } else { value.as_bytes().to_vec() };
            let space: &[u8] = if joliet { b"\0 " } else { b" " };
            while bytes.len() + space.len() <= length {
                bytes.extend(space);
            }
            bytes.resize(length, 0);
            bytes
        };
        let mut bytes = vec![if joliet { 2 } else { 1 }];
        bytes.extend(b"CD001\x01\0");
        bytes.extend(text("LINUX", 32));
        bytes.extend(text(label, 32));
        bytes.extend([0; 8]);
        both_u32(&mut bytes, self.sectors);
        bytes.extend(if joliet { b"%/E" } else { b"\0\0\0" });
        bytes.extend([0; 29]);
        both_u16(&mut bytes, 1);
        both_u16(&mut bytes, 1);
        both_u16(&mut bytes, SECTOR as u16);
        both_u32(&mut bytes, tree.path_table_size() as u32);
        bytes.extend(self.path_tables[which][0].to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.path_tables[which][1].to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(record(&[0], self.directories[which][0], true, |_| ()));
        bytes.extend(text("", 128));
        bytes.extend(text("", 128));
        bytes.extend(text("", 128));
        bytes.extend(text("FORGE", 128));
        bytes.extend(text("", 37));
        bytes.extend(text("", 37));
        bytes.extend(text("", 37));
        for date in [VOLUME_DATE, VOLUME_DATE, NO_DATE, NO_DATE] {
            bytes.extend(date);
        }
        bytes.extend([1, 0]);
        bytes.resize(SECTOR, 0);
        bytes
    }
}

#[cfg(test)]
mod tests;
