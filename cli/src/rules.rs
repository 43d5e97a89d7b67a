//! `lapidary rules`: the rewrite rules, as the compiler has them.

use std::fmt::Write;

use anyhow::{Result, anyhow};
use lapidary_passes::rules::{self, GROUPS, Rule, Search};
use serde_json::{Value, json};

use crate::output::{self, Usage};

/// List the rewrite rules: what each fuses, and how exact it is.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lapidary rules\n  lapidary rules --show softcap --json")]
pub(crate) struct Args {
    /// Show one rule with its patterns
    #[arg(long, value_name = "NAME")]
    show: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the rules.
pub(crate) fn run(args: &Args) -> Result<()> {
    let all = || GROUPS.iter().flat_map(|g| g.rules.iter().map(move |r| (g.name, r)));
    if let Some(name) = &args.show {
        let Some((group, rule)) = all().find(|(_, r)| r.name == name) else {
            let known: Vec<&str> = rules::all().map(|r| r.name).collect();
            let error = anyhow!("unknown rule `{name}`: expected one of {}", known.join(", "));
            return Err(Usage::new(error).into());
        };
        return if args.json {
            output::print_json(&to_json(group, rule, true))
        } else {
            output::print(&show(group, rule))
        };
    }
    if args.json {
        return output::print_json(&Value::Array(all().map(|(g, r)| to_json(g, r, false)).collect()));
    }
    let name_width = all().map(|(_, r)| r.name.len()).max().unwrap_or(0);
    let class_width = all().map(|(_, r)| r.class.to_string().len()).max().unwrap_or(0);
    let group_width = all().map(|(g, _)| g.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (group, rule) in all() {
        let class = rule.class.to_string();
        let name = rule.name;
        writeln!(text, "{name:name_width$}  {group:group_width$}  {class:class_width$}  {}", rule.algebra)?;
    }
    output::print(&text)
}

fn to_json(group: &str, rule: &Rule, patterns: bool) -> Value {
    let mut value = json!({
        "name": rule.name,
        "group": group,
        "class": rule.class.to_string(),
        "algebra": rule.algebra,
    });
    if patterns {
        let (lhs, rhs) = match &rule.search {
            Search::Patterns { lhs, rhs, .. } => (lhs.iter().map(|l| tidy(l)).collect(), Some(tidy(rhs))),
            Search::Group(_) => (Vec::new(), None),
        };
        value["lhs"] = json!(lhs);
        value["rhs"] = json!(rhs);
    }
    value
}

/// A rule for people.
fn show(group: &str, rule: &Rule) -> String {
    let mut text = format!("{}\n  group  {group}\n  class  {}\n  {}\n", rule.name, rule.class, rule.algebra);
    match &rule.search {
        Search::Patterns { lhs, rhs, .. } => {
            for left in *lhs {
                text.push_str(&format!("  {}\n", tidy(left)));
            }
            text.push_str(&format!("    => {}\n", tidy(rhs)));
        }
        Search::Group(_) => text.push_str("  searches the whole graph: no one pattern says it\n"),
    }
    text
}

/// A pattern on one line.
fn tidy(pattern: &str) -> String {
    pattern.split_whitespace().collect::<Vec<_>>().join(" ")
}
