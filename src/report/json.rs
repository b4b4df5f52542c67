//! Records as lines of JSON: for programs on standard output, and for good in the run's folder.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::event::{Record, Sink};

use super::calm::Calm;

/// The name of the journal in a run's folder.
pub const JOURNAL: &str = "events.jsonl";

/// A sink that writes one record a line, of progress about one a second.
pub struct Json {
    to: Mutex<(Box<dyn Write + Send>, Calm)>,
}

impl Json {
    /// Returns a report that writes there.
    #[must_use]
    pub fn new(to: Box<dyn Write + Send>) -> Self {
        Self { to: Mutex::new((to, Calm::default())) }
    }
}

impl Sink for Json {
    fn emit(&self, record: &Record) {
        let (to, calm) = &mut *self.to.lock().unwrap_or_else(PoisonError::into_inner);
        calm.take(record, |record| {
            // A reader that has gone must not stop a build.
            to.write_all(&line(record)).and_then(|()| to.flush()).ok();
        });
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Json").finish_non_exhaustive()
    }
}

/// A sink that appends what [`Json`] writes to [`JOURNAL`] in a run's folder.
#[derive(Debug)]
pub struct Journal {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    calm: Calm,
    error: Option<io::Error>,
}

impl Journal {
    /// Opens the journal of the run with that folder, which must exist.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(folder.join(JOURNAL))?;
        Ok(Self::on(file))
    }

    fn on(file: File) -> Self {
        Self { state: Mutex::new(State { file, calm: Calm::default(), error: None }) }
    }

    /// Tells whether every record so far was written.
    ///
    /// # Errors
    /// The first error; nothing was written after it.
    pub fn finish(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.error.take().map_or(Ok(()), Err)
    }
}

impl Sink for Journal {
    fn emit(&self, record: &Record) {
        let State { file, calm, error } = &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        calm.take(record, |record| {
            if error.is_none() {
                // One write a record, so that a killed forge leaves whole lines.
                *error = file.write_all(&line(record)).err();
            }
        });
    }
}

fn line(record: &Record) -> Vec<u8> {
    let mut line = serde_json::to_vec(record).expect("a record has no map with keys that are not text");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;

    fn note(message: &str) -> Record {
        let event = Event::Note { step: None, message: message.to_owned() };
        Record { at: 1.5, run: "r1".to_owned(), template: "t".to_owned(), contract: None, event }
    }

    #[test]
    fn the_journal_appends_lines_that_read_back() {
        let folder = tempfile::tempdir().unwrap();
        for message in ["first", "second\nline \u{1b}[1m"] {
            Journal::open(folder.path()).unwrap().emit(&note(message));
        }
        let text = std::fs::read_to_string(folder.path().join(JOURNAL)).unwrap();
        let records: Vec<Record> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(records.len(), 2);
        assert!(
            matches!(&records[1].event, Event::Note { message, .. } if message == "second\nline \u{1b}[1m")
        );
        assert!(text.starts_with(r#"{"at":1.5,"run":"r1","template":"t","event":"note","#), "{text}");
    }

    #[test]
    fn a_full_disk_is_told_at_the_end() {
        let file = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let journal = Journal::on(file);
        journal.emit(&note("lost"));
        assert_eq!(journal.finish().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
