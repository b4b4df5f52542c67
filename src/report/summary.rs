//! The end of a run: what was made and proven, where the time went; or what failed, and where
//! the evidence lies.

use std::path::Path;

use crate::event::{Outcome, Span, Worker};

use super::Verbosity;
use super::state::{End, Run};
use super::text::{self, Look};
use super::view;

/// Returns the closing lines of a run.
pub(super) fn closing(run: &Run, look: Look, verbosity: Verbosity, evidence: &[String]) -> Vec<String> {
    let Some(end) = &run.end else { return Vec::new() };
    let mut lines = Vec::new();
    match &end.outcome {
        Outcome::Done | Outcome::Warned { .. } | Outcome::Skipped { .. } => {
            made(run, end, look, verbosity, &mut lines);
        }
        Outcome::Failed { .. } | Outcome::Cancelled => failed(run, end, look, evidence, &mut lines),
    }
    lines
}

fn made(run: &Run, end: &End, look: Look, verbosity: Verbosity, lines: &mut Vec<String>) {
    let seconds = text::lasted(end.seconds);
    let done = if run.is_proof { "is proven" } else { "is made" };
    lines.push(look.strong(&format!("{} {done}, in {seconds}", run.template)));
    lines.extend(end.artifact.iter().map(|folder| format!("  template  {folder}")));
    lines.extend(proven(run).map(|proven| format!("  proven    {proven}")));
    if !run.not_proven.is_empty() {
        let (count, names) = (run.not_proven.len(), run.not_proven.join("; "));
        lines.push(format!("  {}", look.odd(&format!("not proven: {count}, namely {names}"))));
    }
    match run.warnings {
        0 => {}
        1 => lines.push(format!("  {}", look.odd("1 warning, above"))),
        more => lines.push(format!("  {}", look.odd(&format!("{more} warnings, above")))),
    }
    if verbosity == Verbosity::Quiet {
        return;
    }
    lines.push(text::fit(&format!("  plan      {}", run.plan), look.width));
    lines.push(format!("  run       {}", run.folder));
    lines.push(String::new());
    lines.push("  where the time went".to_owned());
    lines.extend(timeline(run, end, look));
}

/// Returns how many checks hold, and in which steps.
fn proven(run: &Run) -> Option<String> {
    let steps: Vec<_> = run.steps.iter().filter(|step| step.passed > 0).collect();
    let total: usize = steps.iter().map(|step| step.passed).sum();
    let parts: Vec<String> = steps.iter().map(|step| format!("{} {}", step.passed, step.title)).collect();
    match parts.len() {
        0 => None,
        1 => Some(view::holding(total)),
        _ => Some(format!("{}: {}", view::holding(total), parts.join(", "))),
    }
}

/// Returns the timeline as a table: each step, then each kind of worker; both parts add up to the
/// run's whole time, and what no span covers has a row of its own.
fn timeline(run: &Run, end: &End, look: Look) -> Vec<String> {
    let mut steps: Vec<(&str, f64, Vec<Worker>)> = Vec::new();
    let mut workers: Vec<(Worker, f64)> = Vec::new();
    for span in &end.spans {
        match steps.iter_mut().find(|(step, ..)| *step == span.step) {
            Some((_, seconds, who)) => {
                *seconds += span.seconds;
                if !who.contains(&span.worker) {
                    who.push(span.worker);
                }
            }
            None => steps.push((&span.step, span.seconds, vec![span.worker])),
        }
        match workers.iter_mut().find(|(worker, _)| *worker == span.worker) {
            Some((_, seconds)) => *seconds += span.seconds,
            None => workers.push((span.worker, span.seconds)),
        }
    }
    workers.sort_by(|a, b| b.1.total_cmp(&a.1));
    let unknown = unaccounted(&end.spans, end.seconds);
    let mut rows: Vec<Row> = steps
        .into_iter()
        .map(|(step, seconds, who)| Row::new(run.title(step), seconds, names(&who)))
        .collect();
    rows.extend(unknown.map(|seconds| Row::new("not accounted for", seconds, String::new())));
    rows.push(Row::new("all", end.seconds, String::new()));
    let by_step = rows.len();
    rows.extend(workers.iter().map(|(worker, seconds)| Row::new(name(*worker), *seconds, String::new())));
    let mut lines = table(&rows, end.seconds, look);
    lines.insert(by_step, String::new());
    lines
}

/// Returns the time that no span covers, where it is a hundredth of the whole or more.
fn unaccounted(spans: &[Span], whole: f64) -> Option<f64> {
    let missing = whole - spans.iter().map(|span| span.seconds).sum::<f64>();
    (missing >= whole / 100.0 && missing >= 0.05).then_some(missing)
}

struct Row {
    title: String,
    seconds: f64,
    who: String,
}

impl Row {
    fn new(title: &str, seconds: f64, who: String) -> Self {
        Self { title: title.to_owned(), seconds, who }
    }
}

fn table(rows: &[Row], whole: f64, look: Look) -> Vec<String> {
    let widest = rows.iter().map(|row| text::columns(&row.title)).max().unwrap_or(0);
    // Indent, time, share and workers take the rest.
    let title = widest.min(look.width.saturating_sub(44).max(16));
    rows.iter()
        .map(|row| {
            let name = text::fit(&row.title, title);
            let pad = title - text::columns(&name);
            let share = if whole > 0.0 { row.seconds / whole * 100.0 } else { 0.0 };
            let time = text::lasted(row.seconds);
            let line = format!("    {name}{:pad$}  {time:>11}  {share:>3.0} %  {}", "", row.who);
            line.trim_end().to_owned()
        })
        .collect()
}

fn names(workers: &[Worker]) -> String {
    workers.iter().map(|worker| name(*worker)).collect::<Vec<_>>().join(", ")
}

const fn name(worker: Worker) -> &'static str {
    match worker {
        Worker::Forge => "forge",
        Worker::Guest => "guest",
        Worker::Download => "download",
        Worker::Hash => "hashing",
        Worker::Qemu => "qemu",
        Worker::Node => "node",
    }
}

fn failed(run: &Run, end: &End, look: Look, evidence: &[String], lines: &mut Vec<String>) {
    let after = text::lasted(end.seconds);
    let verb = if end.outcome == Outcome::Cancelled { "was stopped" } else { "failed" };
    let step = run.fatal_step();
    let place = step.map(|step| format!(" in {} ({})", step.id, step.title)).unwrap_or_default();
    lines.push(look.bad(&format!("{} {verb}{place} after {after}", run.template)));
    let told = step.is_some_and(|step| matches!(step.outcome, Some(Outcome::Failed { .. })));
    if let (Outcome::Failed { error }, false) = (&end.outcome, told) {
        lines.extend(text::hang("  ", error, look.width));
    }
    if let Some(step) = step.filter(|step| !step.tail.is_empty() && end.outcome != Outcome::Cancelled) {
        lines.push("  the last lines:".to_owned());
        lines.extend(step.tail.iter().map(|line| format!("  {} {line}", look.faint("│"))));
    }
    if !run.folder.is_empty() {
        let names = if evidence.is_empty() { String::new() } else { format!(": {}", evidence.join(", ")) };
        lines.extend(text::hang("  evidence  ", &format!("{}{names}", run.folder), look.width));
    }
    for (what, error) in &run.leftovers {
        lines.extend(text::hang("  left over ", &format!("{what}: {error}"), look.width));
    }
}

/// Returns one line for each of several runs, after the last of them.
pub(super) fn all<'a>(runs: impl Iterator<Item = &'a Run>, look: Look) -> Vec<String> {
    let runs: Vec<&Run> = runs.collect();
    let what = if runs.iter().any(|run| run.is_proof) { "contracts hold" } else { "templates made" };
    let good = |run: &&&Run| matches!(&run.end, Some(end) if succeeded(&end.outcome));
    let mut lines =
        vec![look.strong(&format!("{} of {} {what}", runs.iter().filter(good).count(), runs.len()))];
    for run in &runs {
        let (mark, rest) = match &run.end {
            Some(end) if succeeded(&end.outcome) => {
                let place = end.artifact.as_deref().unwrap_or_default();
                (look.good("✓"), format!("{}  {place}", text::lasted(end.seconds)))
            }
            Some(end) => {
                let step = run.fatal_step().map(|step| step.id.as_str()).unwrap_or_default();
                (look.bad("✗"), format!("{}  {step}", text::lasted(end.seconds)))
            }
            None => (look.bad("✗"), "did not end".to_owned()),
        };
        lines.push(format!("  {mark} {}  {rest}", run.template).trim_end().to_owned());
    }
    lines
}

const fn succeeded(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Done | Outcome::Warned { .. } | Outcome::Skipped { .. })
}

/// Returns the files in a run's folder and in those of its machines, relative to it, sorted; none where
/// it cannot be read.
pub(super) fn evidence(folder: &str) -> Vec<String> {
    let mut names = Vec::new();
    for entry in Path::new(folder).read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        match entry.file_type() {
            // What a build works on is no evidence, and is removed.
            Ok(kind) if kind.is_dir() && name != "work" => {
                let inner = entry.path().read_dir().into_iter().flatten().flatten();
                let files = inner.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
                names.extend(files.map(|file| format!("{name}/{}", file.file_name().to_string_lossy())));
            }
            // The lock says nothing to people.
            Ok(kind) if kind.is_file() && name != "lock" => names.push(name),
            _ => {}
        }
    }
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_with(spans: Vec<Span>, seconds: f64) -> Run {
        let end = End { outcome: Outcome::Done, seconds, artifact: None, spans };
        Run { template: "t".to_owned(), end: Some(end), ..Run::default() }
    }

    fn span(step: &str, worker: Worker, start: f64, seconds: f64) -> Span {
        Span { step: step.to_owned(), worker, start, seconds }
    }

    fn rows(spans: Vec<Span>, seconds: f64) -> Vec<String> {
        let run = run_with(spans, seconds);
        timeline(&run, run.end.as_ref().unwrap(), Look::plain(80))
    }

    #[test]
    fn what_is_not_proven_stands_beside_what_is() {
        let mut run = run_with(Vec::new(), 10.0);
        let closing = |run: &Run| closing(run, Look::plain(80), Verbosity::Quiet, &[]).join("\n");
        assert!(!closing(&run).contains("not proven"));
        run.not_proven = vec!["a holds".to_owned(), "b holds".to_owned()];
        assert!(closing(&run).contains("\n  not proven: 2, namely a holds; b holds"), "{}", closing(&run));
    }

    #[test]
    fn a_step_with_two_workers_is_one_row_and_both_parts_add_up() {
        let spans = vec![
            span("a", Worker::Forge, 0.0, 1.0),
            span("b", Worker::Guest, 1.0, 6.0),
            span("a", Worker::Qemu, 7.0, 3.0),
        ];
        let shown: Vec<String> = rows(spans, 10.0)
            .iter()
            .map(|row| row.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            shown,
            [
                "a 4.0 s 40 % forge, qemu",
                "b 6.0 s 60 % guest",
                "all 10 s 100 %",
                "",
                "guest 6.0 s 60 %",
                "qemu 3.0 s 30 %",
                "forge 1.0 s 10 %"
            ]
        );
    }

    #[test]
    fn a_gap_in_the_spans_is_said() {
        let with_gap = rows(vec![span("a", Worker::Guest, 0.0, 9.0)], 10.0);
        assert!(with_gap.iter().any(|row| row.contains("not accounted for") && row.contains("1.0 s")));
        let whole = rows(vec![span("a", Worker::Guest, 0.0, 9.95)], 10.0);
        assert!(!whole.iter().any(|row| row.contains("not accounted for")));
    }

    #[test]
    fn evidence_names_the_files_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["serial.log", "console.png"] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        std::fs::create_dir(folder.path().join("clone")).unwrap();
        std::fs::write(folder.path().join("clone/serial.log"), "x").unwrap();
        let names = ["clone/serial.log", "console.png", "serial.log"];
        assert_eq!(evidence(&folder.path().display().to_string()), names);
        assert!(evidence("/nonexistent").is_empty());
    }
}
