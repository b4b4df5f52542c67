//! Looks for secrets on a raw disk image: in one pass, in constant memory, past its holes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use aho_corasick::{AhoCorasick, Input, MatchKind};
use regex::bytes::Regex;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Finding, SHAPES, Value};

/// How much is read at a time.
const CHUNK: usize = 1024 * 1024;

/// How far from its start a shape is followed.
const SHAPE_REACH: usize = 512;

/// How many places of one finding are named.
const PLACES_SHOWN: usize = 3;

/// Looks for those values, and for shapes whose digests are not among the public ones. A value that is the
/// hash of a wanted password must be somewhere on the disk, and is no finding.
///
/// `progress` gets how many bytes are behind and how many there are, holes included. Dropping the future ends
/// the search.
///
/// # Errors
/// When the image cannot be read.
pub async fn scan(
    path: &Path,
    values: &[Value],
    public: &BTreeSet<String>,
    mut progress: impl FnMut(u64, u64),
) -> io::Result<Vec<Finding>> {
    let file = File::open(path)?;
    let total = file.metadata()?.len();
    let search = Search::new(values, public);
    let stop = CancellationToken::new();
    let _stop_on_drop = stop.clone().drop_guard();
    let (sender, mut receiver) = watch::channel(0);
    let work = tokio::task::spawn_blocking(move || search.run(&file, total, &stop, &sender));
    // The sender goes when the work has ended.
    while receiver.changed().await.is_ok() {
        progress(*receiver.borrow_and_update(), total);
    }
    work.await.map_err(io::Error::other).flatten()
}

/// What is looked for.
#[derive(Debug)]
struct Search {
    automaton: AhoCorasick,
    /// What each of the automaton's texts belongs to.
    needles: Vec<Needle>,
    shapes: Vec<(&'static str, Regex)>,
    public: BTreeSet<String>,
    wanted: BTreeSet<String>,
    /// How many bytes from its start on may decide whether something is found.
    reach: usize,
}

#[derive(Debug)]
enum Needle {
    /// A value of that name.
    Value(String),
    /// The start of the shape at that place in the list.
    Shape(usize),
}

/// Where something was found.
#[derive(Debug, Default)]
struct Places {
    first: Vec<u64>,
    count: u64,
}

impl Search {
    fn new(values: &[Value], public: &BTreeSet<String>) -> Self {
        let (mut texts, mut needles, mut shapes) = (Vec::new(), Vec::new(), Vec::new());
        for value in values.iter().filter(|value| !value.is_password) {
            texts.push(value.text());
            needles.push(Needle::Value(value.name.clone()));
        }
        for shape in SHAPES.iter().filter(|shape| shape.on_disk) {
            texts.extend(shape.starts);
            needles.extend(shape.starts.iter().map(|_| Needle::Shape(shapes.len())));
            let regex = format!("^(?-u:{})", shape.regex);
            shapes.push((shape.name, Regex::new(&regex).expect("the shape is a regex")));
        }
        let reach = texts.iter().map(|text| text.len()).max().unwrap_or(0).max(SHAPE_REACH);
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&texts)
            .expect("these are few short texts");
        let wanted = values.iter().filter(|value| value.is_password).map(|value| value.text().to_owned());
        Self { automaton, needles, shapes, public: public.clone(), wanted: wanted.collect(), reach }
    }

    /// Reads a file from one end to the other.
    fn run(
        &self,
        file: &File,
        total: u64,
        stop: &CancellationToken,
        done: &watch::Sender<u64>,
    ) -> io::Result<Vec<Finding>> {
        let mut found = BTreeMap::new();
        let mut window = Vec::with_capacity(CHUNK + self.reach);
        let mut behind = 0;
        while let Some((start, end)) = next_data(file, behind, total)? {
            // What is in a hole is zero: nothing reaches across one.
            window.clear();
            let mut read_to = start;
            while read_to < end {
                if stop.is_cancelled() {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                let kept = window.len();
                window.resize(kept + (end - read_to).min(CHUNK as u64) as usize, 0);
                file.read_exact_at(&mut window[kept..], read_to)?;
                let base = read_to - kept as u64;
                read_to += (window.len() - kept) as u64;
                let is_last = read_to == end;
                let settled = if is_last { window.len() } else { window.len().saturating_sub(self.reach) };
                self.look(&window, settled, base, &mut found);
                window.drain(..settled);
                done.send_replace(read_to);
            }
            behind = end;
        }
        Ok(found.into_iter().map(|(name, places)| Finding { place: places.describe(), name }).collect())
    }

    /// Finds what begins in the first `settled` bytes of a window, which begins at `base`.
    fn look(&self, window: &[u8], settled: usize, base: u64, found: &mut BTreeMap<String, Places>) {
        let mut from = 0;
        while let Some(at) = self.automaton.find(Input::new(window).span(from..window.len())) {
            if at.start() >= settled {
                return;
            }
            from = at.start() + 1;
            let name = match &self.needles[at.pattern().as_usize()] {
                Needle::Value(name) => name,
                Needle::Shape(shape) => {
                    let (name, regex) = &self.shapes[*shape];
                    let end = window.len().min(at.start() + self.reach);
                    match regex.find(&window[at.start()..end]) {
                        Some(text) if !self.is_known(text.as_bytes()) => *name,
                        _ => continue,
                    }
                }
            };
            found.entry(name.to_owned()).or_default().add(base + at.start() as u64);
        }
    }

    /// Tells whether a shape's match is everybody's, or a password that is wanted.
    fn is_known(&self, text: &[u8]) -> bool {
        let text: Vec<u8> = text.iter().copied().filter(|byte| !b" \t\r\n\x0b\x0c".contains(byte)).collect();
        let digest = format!("{:x}", bytes::Bytes::copy_from_slice(&Sha256::digest(&text)));
        self.public.contains(&digest)
            || std::str::from_utf8(&text).is_ok_and(|text| self.wanted.contains(text))
    }
}

impl Places {
    fn add(&mut self, place: u64) {
        self.count += 1;
        if self.first.len() < PLACES_SHOWN {
            self.first.push(place);
        }
    }

    fn describe(&self) -> String {
        let first: Vec<_> = self.first.iter().map(u64::to_string).collect();
        let bytes = if first.len() == 1 { "byte" } else { "bytes" };
        let text = format!("{bytes} {}", first.join(", "));
        match self.count - first.len() as u64 {
            0 => text,
            more => format!("{text} and {more} more"),
        }
    }
}

/// Returns where the file next has data, from `behind` on.
fn next_data(file: &File, behind: u64, total: u64) -> io::Result<Option<(u64, u64)>> {
    if behind >= total {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(behind)) {
        // A hole lasts to the end.
        Err(Errno::NXIO) => return Ok(None),
        start => start?,
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
    Ok(Some((start, end.min(total))))
}
