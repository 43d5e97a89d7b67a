//! `lapidary check-rules`: each rewrite rule held against the reference interpreter.
//!
//! In: the built-in rules and a file's. Out: one line a rule, all of it comments of the tensor language, and for each
//! rule that breaks a law a function that shows it: the output is a file that `opt --run` takes. Exit code 1 if there
//! is one, or if a rule could not be checked; a rule that is sound and never pays is told, and is no failure.

use std::fmt::Write;

use anyhow::{Result, anyhow, ensure};
use lapidary_passes::check::{Failure, Fault, Loss, Outcome, Verdict, check_rule, nodes};
use lapidary_passes::rules::USER;
use serde_json::{Value, json};

use crate::options::RuleArgs;
use crate::output::{self, Usage};

/// Check rewrite rules against the reference interpreter; print counterexamples.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lapidary check-rules\n  lapidary check-rules --rules my.rules --cases 500\n  \
    lapidary check-rules --rules my.rules > bad.ir || lapidary opt bad.ir --run --only my-rule --rules my.rules"
)]
pub(crate) struct Args {
    #[command(flatten)]
    rules: RuleArgs,
    /// Check only these rules: names separated by commas [default: the file's, without one all]
    #[arg(long, value_name = "RULES", value_delimiter = ',')]
    only: Vec<String>,
    /// Functions made for each rule
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    cases: u64,
    /// Seed of functions and inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Checks the rules.
pub(crate) fn run(args: &Args) -> Result<()> {
    let rules = args.rules.load()?;
    for name in &args.only {
        if rules.find(name).is_none() {
            let known: Vec<&str> = rules.rules().map(|r| r.name.as_str()).collect();
            let error = anyhow!("unknown rule `{name}`: expected one of {}", known.join(", "));
            return Err(Usage::new(error).into());
        }
    }
    let has_user = rules.groups().iter().any(|g| g.name == USER);
    let chosen = rules.prepared().iter().filter(|p| match args.only.is_empty() {
        true => !has_user || p.group == USER,
        false => args.only.contains(&p.rule.name),
    });
    let outcomes: Vec<Outcome> =
        chosen.map(|p| check_rule(&rules, &p.rule, args.cases as usize, args.seed)).collect();
    if args.json {
        output::print_json(&Value::Array(outcomes.iter().map(to_json).collect()))?;
    } else {
        output::print(&text(&outcomes, args)?)?;
    }
    let failed = summary(&outcomes);
    let of = match outcomes.len() {
        1 => "of 1 rule".into(),
        n => format!("of {n} rules"),
    };
    ensure!(failed.is_empty(), "{of} {}", failed.join(", "));
    Ok(())
}

/// How many rules fail, by what they fail at.
fn summary(outcomes: &[Outcome]) -> Vec<String> {
    let said = [
        (Verdict::Fails(Fault::Value), "is unsound", "are unsound"),
        (Verdict::Fails(Fault::Types), "is ill-typed", "are ill-typed"),
        (Verdict::Fails(Fault::Overflow), "overflows", "overflow"),
        (Verdict::Fails(Fault::Price), "is mispriced", "are mispriced"),
        (Verdict::NotChecked, "could not be checked", "could not be checked"),
    ];
    let counted =
        said.iter().map(|(v, one, many)| (outcomes.iter().filter(|o| o.verdict() == *v).count(), one, many));
    counted
        .filter(|(n, ..)| *n > 0)
        .map(|(n, one, many)| format!("{n} {}", if n == 1 { one } else { many }))
        .collect()
}

fn text(outcomes: &[Outcome], args: &Args) -> Result<String> {
    let mut text = String::new();
    let width = outcomes.iter().map(|o| o.rule.len()).max().unwrap_or(0).max(4);
    writeln!(
        text,
        "; {:width$}  {:13}  {:>5}  {:>8}  {:>12}  {:>12}  verdict",
        "rule", "class", "cases", "rational", "price", "shared"
    )?;
    for o in outcomes {
        let share =
            |p: Option<(f64, f64)>| p.map_or_else(|| "-".into(), |(lo, hi)| format!("{lo:.2}..{hi:.2}"));
        write!(
            text,
            "; {:width$}  {:13}  {:>5}  {:>8}  {:>12}  {:>12}",
            o.rule,
            o.class.to_string(),
            o.cases,
            o.rational,
            share(o.price),
            share(o.shared_price)
        )?;
        write!(text, "  {}", o.verdict().word())?;
        match &o.skipped {
            Some(reason) => writeln!(text, ": {reason}")?,
            None => writeln!(text)?,
        }
    }
    // Of all the built-in rules, half have one: it is said of rules that were asked for.
    let notes = args.rules.file().is_some() || !args.only.is_empty();
    for o in outcomes {
        if let Some(Failure { fault, reason, function, seed }) = &o.failure {
            writeln!(text, "\n; rule `{}`: {}", o.rule, reason.replace('\n', "\n; "))?;
            if let Some(advice) = advice(*fault) {
                writeln!(text, "; {advice}")?;
            }
            let file = args.rules.file().map_or(String::new(), |p| format!(" --rules {}", p.display()));
            writeln!(text, "; lapidary opt FILE.ir --run --seed {seed} --only {}{file}", o.rule)?;
            write!(text, "{function}")?;
        } else if let (Some(loss), true) = (o.dear.as_ref().or(o.loss.as_ref()), notes) {
            text.push_str(&note(o, loss, args)?);
        }
    }
    Ok(text)
}

/// What is likely to mend a rule.
fn advice(fault: Fault) -> Option<&'static str> {
    match fault {
        Fault::Value => None,
        Fault::Types => {
            Some("a condition on types may be missing, such as `?x: f32[..]` or `same_type(?a, ?b)`")
        }
        Fault::Overflow => Some(
            "it may be true of real numbers; of floats, what it makes overflows where what was written does not:\n\
             ; a condition may be missing, such as `range(?x) in [-40, 40]`",
        ),
        Fault::Price => {
            Some("extraction should have kept what was written: that is the compiler's fault, not the rule's")
        }
    }
}

/// Where a rule does not pay, and that extraction sees it.
fn note(o: &Outcome, loss: &Loss, args: &Args) -> Result<String> {
    let mut text = String::new();
    let Loss { function, extent, written_ns, made_ns } = loss;
    let why = match o.verdict() {
        Verdict::DoesNotPay => "is sound, but what it makes is dearer wherever it fires; here",
        Verdict::Sound | Verdict::NotChecked | Verdict::Fails(_) => {
            "does not pay where other users want an inner value, which it computes again:"
        }
    };
    writeln!(
        text,
        "\n; rule `{}` {why} {:.2} times the\n\
         ; price, {written_ns:.0} ns as written, {made_ns:.0} ns with it, {} row{}. Extraction declines it there",
        o.rule,
        made_ns / written_ns,
        extent.rows,
        if extent.rows == 1 { "" } else { "s" },
    )?;
    let file = args.rules.file().map_or(String::new(), |p| format!(" --rules {}", p.display()));
    writeln!(text, "; lapidary opt FILE.ir --rows {} --only {}{file}", extent.rows, o.rule)?;
    write!(text, "{function}")?;
    Ok(text)
}

fn to_json(o: &Outcome) -> Value {
    let share = |p: Option<(f64, f64)>| p.map_or(Value::Null, |(lo, hi)| json!({ "least": lo, "most": hi }));
    let loss = |l: &Loss| {
        json!({
            "function": l.function.to_string(),
            "nodes": nodes(&l.function),
            "rows": l.extent.rows,
            "written_ns": l.written_ns,
            "made_ns": l.made_ns,
        })
    };
    json!({
        "rule": o.rule,
        "class": o.class.to_string(),
        "cases": o.cases,
        "rational": o.rational,
        "price": share(o.price),
        "shared_price": share(o.shared_price),
        "verdict": o.verdict().word(),
        "loss": o.loss.as_ref().map(loss),
        "dear": o.dear.as_ref().map(loss),
        "skipped": o.skipped,
        "failure": o.failure.as_ref().map(|f| json!({
            "reason": f.reason,
            "function": f.function.to_string(),
            "nodes": nodes(&f.function),
            "seed": f.seed,
        })),
    })
}
