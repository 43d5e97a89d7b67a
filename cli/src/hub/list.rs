//! `lapidary list`: the models in the cache, by the names that `-m` takes.

use std::fmt::Write;

use anyhow::Result;
use lapidary::hub::cache::Kind;
use lapidary_models::Family;
use serde_json::{Value, json};

use super::{error, hub};
use crate::output;

/// List the models in the shared Hugging Face cache, by the names that -m takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints them.
pub(crate) fn run(args: &Args) -> Result<()> {
    let hub = hub()?;
    let cache = hub.cache();
    let (mut rows, mut others) = (Vec::new(), 0);
    for held in cache.models().map_err(error)? {
        let what = match &held.kind {
            Kind::Folder(model) if Family::of(model).is_none() => {
                others += 1;
                continue;
            }
            Kind::Folder(model) => model.as_str(),
            Kind::Gguf => "GGUF",
            Kind::Adapter => "LoRA adapter",
            Kind::Text => "tokenizer alone",
            Kind::BrokenOff => "broken off: `lapidary pull` goes on",
        };
        rows.push((held.name.to_string(), held.bytes, what.to_string(), held.path));
    }
    if args.json {
        let row = |(name, bytes, what, path): &(String, u64, String, _)| {
            json!({
                "name": name, "bytes": bytes, "kind": what, "path": path,
            })
        };
        return output::print_json(&Value::Array(rows.iter().map(row).collect()));
    }
    let width = rows.iter().map(|(name, ..)| name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, bytes, what, _) in &rows {
        writeln!(text, "{name:width$}  {:>10}  {what}", output::bytes(*bytes))?;
    }
    output::print(&text)?;
    if rows.is_empty() {
        output::note(
            "note",
            &format!("no models in {}: `lapidary pull NAME` fetches one", cache.root.display()),
        );
    }
    if others > 0 {
        output::note("note", &format!("not listed: {others} of other families, which lapidary does not run"));
    }
    Ok(())
}
