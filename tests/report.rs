//! What a human sees of a run, and what a program sees: golden texts from recorded events.

#![expect(clippy::unwrap_used, reason = "a test may fail so")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use forge::event::{Event, Record, Sink};
use forge::report::{self, Json, Lines, Tee, Terminal, Verbosity};
use indicatif::InMemoryTerm;
use jiff::Timestamp;

const SINGLE: [&str; 1] = ["ubuntu-noble"];
const PARALLEL: [&str; 2] = ["ubuntu-noble", "debian-13"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn records(name: &str) -> Vec<Record> {
    let path = root().join("tests/golden/report").join(name).with_extension("jsonl");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

/// Compares with a golden file; `UPDATE_GOLDEN=1` writes it.
fn assert_golden(path: &Path, actual: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        expected == actual,
        "{} differs (UPDATE_GOLDEN=1 writes it); now it is:\n{actual}",
        path.display()
    );
}

fn golden(name: &str) -> PathBuf {
    root().join("tests/golden/report").join(name)
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn shown(screen: &InMemoryTerm) -> String {
    screen.contents() + "\n"
}

/// Shows the first events up to (and with) a time and draws the live view.
fn frame(name: &str, templates: &[&str], until: f64, screen: &InMemoryTerm) {
    let report = Terminal::new(screen, &names(templates), Verbosity::Normal, false);
    for record in records(name).iter().filter(|record| record.at <= until) {
        report.emit(record);
    }
    report.draw();
    // The view goes with its report, the screen must be read before.
    std::mem::forget(report);
}

fn whole(name: &str, templates: &[&str], width: u16, verbosity: Verbosity) -> String {
    let screen = InMemoryTerm::new(300, width);
    let report = Terminal::new(&screen, &names(templates), verbosity, false);
    for record in &records(name) {
        report.emit(record);
        report.draw();
    }
    report.finish();
    shown(&screen)
}

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn plain(name: &str, templates: &[&str], verbosity: Verbosity) -> String {
    let buffer = Buffer::default();
    let clock = || "2026-03-01T12:00:00Z".parse::<Timestamp>().unwrap();
    let report = Lines::with_clock(Box::new(buffer.clone()), &names(templates), verbosity, clock);
    for record in &records(name) {
        report.emit(record);
    }
    report.finish();
    buffer.text()
}

#[test]
fn plain_lines_say_what_still_runs() {
    static NOW: AtomicI64 = AtomicI64::new(0);
    let clock = || Timestamp::from_second(NOW.load(Ordering::Relaxed)).unwrap();
    let buffer = Buffer::default();
    let report = Lines::with_clock(Box::new(buffer.clone()), &names(&SINGLE), Verbosity::Normal, clock);
    let records = records("build");
    let started =
        records.iter().position(|record| matches!(record.event, Event::StepStarted { .. })).unwrap();
    records[..=started].iter().for_each(|record| report.emit(record));
    NOW.store(300, Ordering::Relaxed);
    report.still();
    let text = buffer.text();
    let Event::StepStarted { title, .. } = &records[started].event else { unreachable!() };
    assert!(text.ends_with(&format!("00:05:00Z still: {title}, for 5 min 00 s\n")), "{text}");

    records[started + 1..].iter().for_each(|record| report.emit(record));
    let whole = buffer.text();
    report.still();
    assert_eq!(buffer.text(), whole, "nothing runs any more");
}

#[test]
fn live_view_of_a_download() {
    for width in [80, 120] {
        let screen = InMemoryTerm::new(30, width);
        frame("build", &SINGLE, 40.6, &screen);
        assert_golden(&golden(&format!("build.download-{width}.txt")), &shown(&screen));
    }
}

#[test]
fn live_view_of_an_installation() {
    for width in [40, 80, 120] {
        let screen = InMemoryTerm::new(30, width);
        frame("build", &SINGLE, 252.2, &screen);
        assert_golden(&golden(&format!("build.install-{width}.txt")), &shown(&screen));
    }
}

#[test]
fn live_view_of_two_runs() {
    let screen = InMemoryTerm::new(30, 80);
    frame("parallel", &PARALLEL, 9.5, &screen);
    assert_golden(&golden("parallel.live-80.txt"), &shown(&screen));
}

#[test]
fn a_low_terminal_shows_fewer_lines_and_does_not_scroll() {
    let screen = InMemoryTerm::new(6, 80);
    frame("build", &SINGLE, 252.2, &screen);
    let text = shown(&screen);
    assert!(text.contains("▸ installing from the medium"), "{text}");
    assert!(text.contains("Processing triggers"), "{text}");
    let lower = InMemoryTerm::new(3, 80);
    frame("parallel", &PARALLEL, 9.5, &lower);
    assert!(shown(&lower).contains("▸ installing from the medium"), "{}", shown(&lower));
}

#[test]
fn terminal_report_of_a_build() {
    for width in [80, 120] {
        let text = whole("build", &SINGLE, width, Verbosity::Normal);
        assert_golden(&golden(&format!("build.terminal-{width}.txt")), &text);
    }
}

#[test]
fn terminal_report_with_v_shows_output_whole() {
    assert_golden(&golden("build.terminal-v.txt"), &whole("build", &SINGLE, 140, Verbosity::Verbose));
}

#[test]
fn quiet_reports_say_warnings_failures_and_the_result() {
    assert_golden(&golden("build.terminal-q.txt"), &whole("build", &SINGLE, 80, Verbosity::Quiet));
    assert_golden(&golden("build.lines-q.txt"), &plain("build", &SINGLE, Verbosity::Quiet));
    assert_golden(&golden("failure.terminal-q.txt"), &whole("failure", &SINGLE, 80, Verbosity::Quiet));
}

#[test]
fn terminal_report_of_a_failure() {
    assert_golden(&golden("failure.terminal-80.txt"), &whole("failure", &SINGLE, 80, Verbosity::Normal));
}

#[test]
fn terminal_report_of_a_cancelled_run() {
    assert_golden(&golden("cancelled.terminal-80.txt"), &whole("cancelled", &SINGLE, 80, Verbosity::Normal));
}

#[test]
fn terminal_report_of_two_runs() {
    assert_golden(&golden("parallel.terminal-80.txt"), &whole("parallel", &PARALLEL, 80, Verbosity::Normal));
}

#[test]
fn plain_lines() {
    for (name, templates) in
        [("build", &SINGLE[..]), ("failure", &SINGLE), ("cancelled", &SINGLE), ("parallel", &PARALLEL)]
    {
        let text = plain(name, templates, Verbosity::Normal);
        assert!(!text.contains('\x1b') && !text.contains('\r'), "{name}");
        assert_golden(&golden(&format!("{name}.lines.txt")), &text);
    }
}

#[test]
fn a_thousand_progress_events_in_a_second_are_one_line() {
    let buffer = Buffer::default();
    let report = Lines::new(Box::new(buffer.clone()), &[], Verbosity::Normal);
    let progress = |n: u64| {
        let at = n as f64 / 1000.0;
        let event = format!(
            r#"{{"at":{at},"run":"r","template":"t","event":"progress","step":"f","done":{n},"total":1000,"unit":"bytes"}}"#
        );
        serde_json::from_str(&event).unwrap()
    };
    let started = r#"{"at":0,"run":"r","template":"t","event":"step_started","step":"f","title":"fetching"}"#;
    report.emit(&serde_json::from_str(started).unwrap());
    (0..=1000).for_each(|n| report.emit(&progress(n)));
    assert_eq!(buffer.text().lines().count(), 1 + 1, "{}", buffer.text());
}

#[test]
fn colour_marks_what_matters_and_guests_cannot_bring_their_own() {
    let screen = InMemoryTerm::new(300, 120);
    let report = Terminal::new(&screen, &names(&SINGLE), Verbosity::Verbose, true);
    for record in &records("failure") {
        report.emit(record);
    }
    let colored = String::from_utf8(screen.contents_formatted()).unwrap();
    let failing = colored.lines().find(|line| line.contains("hardening") && line.contains('✗')).unwrap();
    assert!(failing.contains("[1;31m✗") || failing.contains("[31;1m✗"), "{failing:?}");
    let guest = colored.lines().find(|line| line.contains("Failed to enable unit")).unwrap();
    assert!(!guest.contains("[31m"), "{guest:?}");
}

#[test]
fn suspend_takes_the_view_away_and_brings_it_back() {
    let screen = InMemoryTerm::new(30, 80);
    let report = Terminal::new(&screen, &names(&SINGLE), Verbosity::Normal, false);
    records("build").iter().filter(|record| record.at < 40.0).for_each(|record| report.emit(record));
    report.draw();
    assert!(screen.contents().contains('▸'));
    let during = report.suspend(|| screen.contents());
    assert!(!during.contains('▸'), "{during}");
    assert!(screen.contents().contains('▸'));
    report.finish();
    assert!(!screen.contents().contains('▸'), "{}", screen.contents());
}

#[test]
fn json_is_one_record_a_line_that_reads_back() {
    let buffer = Buffer::default();
    let report = Json::new(Box::new(buffer.clone()));
    for name in ["build", "failure", "cancelled", "parallel"] {
        for record in &records(name) {
            report.emit(record);
        }
    }
    let again: Vec<Record> = buffer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(matches!(again[0].event, Event::RunStarted { format: forge::event::FORMAT_VERSION, .. }));
    assert!(
        buffer
            .text()
            .contains(r#""event":"step_finished","step":"seal","outcome":"warned","message":"2 MiB"#)
    );
}

#[test]
fn json_tells_of_a_download_once_a_second_and_of_its_end() {
    let buffer = Buffer::default();
    let report = Json::new(Box::new(buffer.clone()));
    let folder = tempfile::tempdir().unwrap();
    let journal = report::Journal::open(folder.path()).unwrap();
    let mut events =
        vec![r#"{"at":0,"run":"r","template":"t","event":"step_started","step":"f","title":"x"}"#.to_owned()];
    events.extend((0..=3050).map(|n| {
        let at = f64::from(n) / 1000.0;
        format!(
            r#"{{"at":{at},"run":"r","template":"t","event":"progress","step":"f","done":{n},"total":3050,"unit":"bytes"}}"#
        )
    }));
    events.push(
        r#"{"at":3.06,"run":"r","template":"t","event":"step_finished","step":"f","outcome":"done","seconds":3}"#
            .to_owned(),
    );
    for event in &events {
        let record = serde_json::from_str(event).unwrap();
        report.emit(&record);
        journal.emit(&record);
    }
    let text = buffer.text();
    let done: Vec<u64> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["done"].as_u64())
        .collect();
    assert_eq!(done, [0, 1000, 2000, 3000, 3050]);
    assert_eq!(std::fs::read_to_string(folder.path().join(report::JOURNAL)).unwrap(), text);
}

#[test]
fn the_committed_event_schema_is_current_and_events_obey_it() {
    let schema = report::events_schema();
    let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    assert_golden(&root().join("schema/events.schema.json"), &text);

    let validator = jsonschema::validator_for(&schema).unwrap();
    for name in ["build", "failure", "cancelled", "parallel"] {
        for record in records(name) {
            let value = serde_json::to_value(&record).unwrap();
            validator.validate(&value).unwrap_or_else(|error| panic!("{value}: {error}"));
        }
    }
    for wrong in [
        r#"{"at":0,"run":"r","template":"t","event":"unheard_of"}"#,
        r#"{"at":0,"run":"r","template":"t","event":"output","step":"s"}"#,
        r#"{"at":0,"run":"r","template":"t","event":"step_finished","step":"s","seconds":1}"#,
        r#"{"run":"r","template":"t","event":"note","step":null,"message":"m"}"#,
    ] {
        assert!(!validator.is_valid(&serde_json::from_str(wrong).unwrap()), "{wrong}");
    }
}

#[test]
fn a_tee_gives_each_record_to_all() {
    let (first, second) = (Buffer::default(), Buffer::default());
    let sink = |buffer: &Buffer| Arc::new(Json::new(Box::new(buffer.clone()))) as Arc<dyn Sink>;
    let tee = Tee(vec![sink(&first), sink(&second)]);
    for record in &records("cancelled") {
        tee.emit(record);
    }
    assert!(!first.text().is_empty());
    assert_eq!(first.text(), second.text());
}
