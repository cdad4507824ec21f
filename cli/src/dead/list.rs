//! `pixfleet dead list` and `show`.

use std::ops::ControlFlow;

use anyhow::bail;
use comfy_table::{ContentArrangement, Table, presets};
use pixfleet_shared::queue::{DeadLetter, Death, Queue};

use super::{
    filter::Filter,
    letter::{Shown, moment, whole},
    look::{Reasons, each, in_words},
};
use crate::{exit::Exit, output, results::terminal::stdout_width, words::count};

/// Rows of a table, where nobody says how many.
const ROWS: usize = 50;
const HEADER: [&str; 9] =
    ["id", "batch", "provider", "models", "reason", "class", "attempts", "died at", "message"];

/// Lists what passes `filter`, and counts all of it by reason.
///
/// # Errors
/// When the queue is away.
pub(super) async fn list(
    queue: &dyn Queue,
    filter: &Filter,
    limit: Option<usize>,
    json: bool,
) -> anyhow::Result<Exit> {
    let limit = limit.unwrap_or(if json { usize::MAX } else { ROWS });
    let (mut reasons, mut rows, mut shown) = (Reasons::new(), Vec::new(), 0);
    let looked = each(queue, filter, async |letter| {
        *reasons.entry(letter.death.reason).or_default() += 1;
        if shown < limit {
            shown += 1;
            let letter = Shown::of(&letter);
            if json { output::json(&letter)? } else { rows.push(letter.cells()) }
        }
        // Whoever reads lines needs no count.
        Ok(if json && shown == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    });
    looked.await?;
    if json {
        return Ok(Exit::Done);
    }
    if !rows.is_empty() {
        output::text(table(&rows, stdout_width()))?;
    }
    let all: u64 = reasons.values().sum();
    let hidden = all - shown as u64;
    let rest = if hidden > 0 { format!(" ({} not shown: --limit)", count(hidden)) } else { String::new() };
    output::line(format!("{}{rest}", in_words(&reasons)))?;
    Ok(Exit::Done)
}

fn table(rows: &[[String; 9]], width: Option<u16>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).force_no_tty().set_header(HEADER).add_rows(rows);
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    table.trim_fmt() + "\n"
}

/// Shows all letters whose id begins with `id`: a job may have died more than once.
///
/// # Errors
/// When there is none, or the queue is away.
pub(super) async fn show(queue: &dyn Queue, id: &str, json: bool) -> anyhow::Result<Exit> {
    let (filter, mut found) = (Filter::of_id(id), 0);
    let looked = each(queue, &filter, async |letter| {
        if json {
            output::json(&whole(&letter)?)?;
        } else {
            let gap = if found > 0 { "\n" } else { "" };
            output::text(format!("{gap}{}", text(&letter)?))?;
        }
        found += 1;
        Ok(ControlFlow::Continue(()))
    });
    looked.await?;
    if found == 0 {
        bail!(
            "no dead letter has an id that begins with `{id}`: `pixfleet dead list` shows those that there are"
        );
    }
    Ok(Exit::Done)
}

fn text(letter: &DeadLetter) -> anyhow::Result<String> {
    let whole = whole(letter)?;
    let Death { reason, class, message, status, worker, at } = &letter.death;
    let unknown = || "-".to_owned();
    let mut lines = vec![
        ("id", letter.id().to_string()),
        ("reason", reason.as_str().to_owned()),
        ("class", class.clone().unwrap_or_else(unknown)),
        ("said last", if message.is_empty() { unknown() } else { message.clone() }),
        ("status", status.map_or_else(unknown, |status| status.to_string())),
        ("attempts", whole["attempts"].to_string()),
        ("worker", worker.clone().unwrap_or_else(unknown)),
        ("died at", at.map_or_else(unknown, moment)),
    ];
    if let Some(bytes) = whole.get("bytes") {
        lines.push(("message", format!("no job: {bytes} bytes; `pixfleet dead export` writes them")));
    }
    let mut text: String = lines.iter().map(|(name, value)| format!("{name:<10}{value}\n")).collect();
    if let Some(job) = whole.get("job") {
        text += &format!("job       {}\n", serde_json::to_string_pretty(job)?.replace('\n', "\n          "));
    }
    Ok(text)
}
