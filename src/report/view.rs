//! Text of single events and of the live view, as pure functions of what is known.

use crate::event::{Event, Outcome, Record, Unit};

use super::Verbosity;
use super::state::{Progress, Run, Step};
use super::text::{self, Look};

/// How many lines of output the live view shows at most.
const LIVE_TAIL: usize = 4;

/// Returns the lines that an event leaves on the screen for good, before any prefix.
pub(super) fn kept(run: &Run, record: &Record, look: Look, verbosity: Verbosity) -> Vec<String> {
    let quiet = verbosity == Verbosity::Quiet;
    match &record.event {
        Event::RunStarted { builder, builder_from, .. } if !quiet => {
            let template = look.strong(&record.label());
            vec![format!("{} {template} on {builder} ({builder_from})", verb(record))]
        }
        Event::Note { message, .. } if !quiet => text::hang("· ", message, look.width),
        Event::Retry { attempt, of, reason, .. } if !quiet => {
            text::hang("· ", &format!("trying again, {attempt} of {of}: {reason}"), look.width)
        }
        Event::Undone { what, error: None } if !quiet => {
            text::hang("· ", &format!("removed {what}"), look.width)
        }
        Event::Undone { what, error: Some(error) } => warning(&format!("left over: {what}: {error}"), look),
        Event::Warning { message, .. } => warning(message, look),
        Event::Output { step, line } if verbosity == Verbosity::Verbose => {
            let line = text::clean(line);
            vec![format!("  {} {line}", look.faint(&format!("{} │", Step::short_id(step))))]
        }
        Event::Check { name, passed, detail, .. } if !passed || verbosity == Verbosity::Verbose => {
            check(name, *passed, detail, look)
        }
        Event::StepFinished { step, outcome, seconds } => {
            finished(run, step, outcome, *seconds, look, verbosity)
        }
        _ => Vec::new(),
    }
}

/// Returns what the run does with its template.
pub(super) const fn verb(record: &Record) -> &'static str {
    if record.contract.is_some() { "proving" } else { "building" }
}

fn warning(message: &str, look: Look) -> Vec<String> {
    marked("! ", text::hang("! ", message, look.width), |mark| look.odd(mark))
}

fn check(name: &str, passed: bool, detail: &str, look: Look) -> Vec<String> {
    let mark = if passed { "✓ " } else { "✗ " };
    let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
    let message = format!("check {name}{detail}");
    let paint = |mark: &str| if passed { look.good(mark) } else { look.bad(mark) };
    marked(mark, text::hang(mark, &message, look.width), paint)
}

/// Paints the mark at the beginning of the first line.
fn marked(mark: &str, mut lines: Vec<String>, paint: impl Fn(&str) -> String) -> Vec<String> {
    if let Some(rest) = lines.first().and_then(|first| first.strip_prefix(mark)) {
        lines[0] = format!("{}{rest}", paint(mark));
    }
    lines
}

/// Returns a finished step folded to a line; a failure is followed by its error.
fn finished(
    run: &Run,
    id: &str,
    outcome: &Outcome,
    seconds: f64,
    look: Look,
    verbosity: Verbosity,
) -> Vec<String> {
    let title = run.title(id);
    let held = run.step(id).map_or(0, |step| step.passed);
    let checks = if held > 0 { format!("  {}", holding(held)) } else { String::new() };
    let after = look.faint(&format!("  {}{checks}", text::lasted(seconds)));
    let quiet = verbosity == Verbosity::Quiet;
    match outcome {
        Outcome::Done if !quiet => vec![format!("{} {title}{after}", look.good("✓"))],
        Outcome::Skipped { reason } if !quiet => {
            let lines = text::hang("– ", &format!("{title}: skipped, {reason}"), look.width);
            lines.iter().map(|line| look.faint(line)).collect()
        }
        Outcome::Warned { message } => {
            let mut lines = vec![format!("{} {title}{after}", look.odd("!"))];
            lines.extend(text::hang("  ", message, look.width));
            lines
        }
        Outcome::Failed { error } => {
            let mut lines = vec![format!("{} {title}{after}", look.bad("✗"))];
            lines.extend(text::hang("  ", error, look.width));
            lines
        }
        Outcome::Cancelled => vec![format!("{} {title}, stopped{after}", look.bad("✗"))],
        Outcome::Done | Outcome::Skipped { .. } => Vec::new(),
    }
}

/// Returns `1 check holds` or `42 checks hold`.
pub(super) fn holding(count: usize) -> String {
    if count == 1 { "1 check holds".to_owned() } else { format!("{count} checks hold") }
}

/// Returns the live lines of a run: its running steps, how far they are, their last output.
pub(super) fn live(run: &Run, now: f64, look: Look, tail: usize) -> Vec<String> {
    run.active().flat_map(|step| live_step(step, now, look, tail)).collect()
}

fn live_step(step: &Step, now: f64, look: Look, tail: usize) -> Vec<String> {
    let elapsed = format!("  {}", text::growing(now - step.start));
    let title = text::fit(&step.title, look.width.saturating_sub(2 + text::columns(&elapsed)));
    let mut lines = vec![format!("{} {title}{}", look.accent("▸"), look.faint(&elapsed))];
    if let Some(progress) = &step.progress {
        lines.push(live_progress(progress, now, look));
    }
    if step.passed + step.failed > 0 {
        let failed = if step.failed > 0 { format!(", {} not", step.failed) } else { String::new() };
        lines.push(format!("  {}{failed}", holding(step.passed)));
    }
    let shown = step.tail.len().min(tail).min(LIVE_TAIL);
    for line in step.tail.iter().skip(step.tail.len() - shown) {
        let line = text::fit(line, look.width.saturating_sub(4));
        lines.push(format!("  {}", look.faint(&format!("│ {line}"))));
    }
    lines
}

fn live_progress(progress: &Progress, now: f64, look: Look) -> String {
    let mut line = String::from("  ");
    if let Some(share) = progress.share() {
        let length = look.width.saturating_sub(56).min(24);
        let full = (share * length as f64) as usize;
        if length >= 8 {
            line += &look.accent(&"━".repeat(full));
            line += &look.faint(&"─".repeat(length - full));
            line += "  ";
        }
    }
    line += &progress_parts(progress, now).join("  ");
    text::fit(&line, look.width)
}

/// Returns what there is to say of a progress: share, amount, rate and time left (or for how long
/// nothing has come), label.
pub(super) fn progress_parts(progress: &Progress, now: f64) -> Vec<String> {
    let mut parts = Vec::new();
    // Rounded down: 100 % is said when it is done.
    parts.extend(progress.share().map(|share| format!("{} %", (share * 100.0) as u64)));
    match (progress.unit, progress.total) {
        (Unit::Bytes, Some(total)) => parts.push(text::bytes_of(progress.done, total)),
        (Unit::Bytes, None) => parts.push(text::human_bytes(progress.done)),
        (Unit::Stages, Some(total)) => parts.push(format!("stage {} of {total}", progress.done)),
        (Unit::Stages, None) => parts.push(format!("stage {}", progress.done)),
        (Unit::Percent, _) => {}
    }
    match (progress.unit, progress.stalled(now)) {
        (Unit::Bytes, Some(seconds)) => parts.push(format!("nothing for {}", text::growing(seconds))),
        (Unit::Bytes, None) => {
            parts.extend(progress.rate().map(|rate| format!("{}/s", text::human_bytes(rate as u64))));
            parts.extend(progress.left().map(|left| format!("{} left", text::growing(left.ceil()))));
        }
        (Unit::Stages | Unit::Percent, _) => {}
    }
    parts.extend(progress.label.clone());
    parts
}
