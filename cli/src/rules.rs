//! `lapidary rules`: the rewrite rules, as the compiler has them.
//!
//! In: the built-in rules, and a file's. Out: a list, or one rule as a rule file has it: what is printed parses back.

use std::fmt::Write;

use anyhow::{Result, anyhow};
use lapidary_passes::rules::{Group, Rule, Search};
use serde_json::{Value, json};

use crate::options::RuleArgs;
use crate::output::{self, Usage};

/// List the rewrite rules: what each fuses, and how exact it is.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lapidary rules\n  lapidary rules --show softcap > my.rules\n  \
    lapidary rules --rules my.rules")]
pub(crate) struct Args {
    /// Show one rule as a rule file has it
    #[arg(long, value_name = "NAME")]
    show: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    rules: RuleArgs,
}

/// Prints the rules.
pub(crate) fn run(args: &Args) -> Result<()> {
    let rules = args.rules.load()?;
    let of = |g: &'_ Group| -> Vec<(String, std::sync::Arc<Rule>)> {
        g.rules.iter().map(|r| (g.name.clone(), std::sync::Arc::clone(r))).collect()
    };
    let all: Vec<_> = rules.groups().iter().flat_map(of).collect();
    if let Some(name) = &args.show {
        let Some((group, rule)) = all.iter().find(|(_, r)| r.name == *name) else {
            let known: Vec<&str> = rules.rules().map(|r| r.name.as_str()).collect();
            let error = anyhow!("unknown rule `{name}`: expected one of {}", known.join(", "));
            return Err(Usage::new(error).into());
        };
        return if args.json {
            output::print_json(&to_json(group, rule, true))
        } else {
            output::print(&rule.to_string())
        };
    }
    if args.json {
        return output::print_json(&Value::Array(all.iter().map(|(g, r)| to_json(g, r, false)).collect()));
    }
    let name_width = all.iter().map(|(_, r)| r.name.len()).max().unwrap_or(0);
    let class_width = all.iter().map(|(_, r)| r.class.to_string().len()).max().unwrap_or(0);
    let group_width = all.iter().map(|(g, _)| g.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (group, rule) in &all {
        let class = rule.class.to_string();
        let name = &rule.name;
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
        match &rule.search {
            Search::Patterns { lhs, rhs, when } => {
                value["lhs"] = json!(lhs.iter().map(ToString::to_string).collect::<Vec<_>>());
                value["rhs"] = json!(rhs.to_string());
                value["if"] = json!(when.iter().map(ToString::to_string).collect::<Vec<_>>());
            }
            Search::Native(native) => value["native"] = json!(native.name),
        }
        value["text"] = json!(rule.to_string());
    }
    value
}
