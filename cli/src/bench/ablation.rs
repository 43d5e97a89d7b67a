//! `lapidary bench --ablation`: what each rule buys, in tokens a second.
//!
//! In: a model, a length of prompt, a depth. Out: for each rule and group of rules without which any kernel differs,
//! and for no rules at all, decode and prefill beside those of all rules. The two take turns; a ratio is the median of
//! the turns' ratios.

use anyhow::{Result, anyhow};
use serde_json::{Value, json};

use super::phase::{Phase, time};
use super::{Args, cpu_name, median};
use crate::model::Engine;
use crate::options::{CompileArgs, ModelArgs};
use crate::output::{self, Usage};
use crate::weights::FormatOrFile;

/// A row of the table.
struct Row {
    /// What is left out: a rule, `group NAME` or `all`.
    without: String,
    /// Tokens a second, and of what all rules give: of decode and of prefill.
    decode: (f64, f64),
    prefill: (f64, f64),
}

/// What is left out, and how.
enum Left {
    Everything,
    Group(String, Vec<String>),
    Rule(String),
}

impl Left {
    fn name(&self) -> String {
        match self {
            Left::Everything => "everything".into(),
            Left::Group(name, _) => format!("group {name}"),
            Left::Rule(name) => name.clone(),
        }
    }

    fn of(&self, compile: &CompileArgs) -> CompileArgs {
        let mut other = compile.clone();
        match self {
            Left::Everything => other.without_passes(),
            Left::Group(_, rules) => rules.iter().for_each(|rule| other.disable(rule)),
            Left::Rule(rule) => other.disable(rule),
        }
        other
    }
}

/// Measures and prints.
pub(super) fn run(args: &Args, phases: &[Phase], needed: usize, threads: usize) -> Result<()> {
    let decode = phases.iter().copied().find(|p| matches!(p, Phase::Decode { .. }));
    let prefill =
        phases.iter().copied().filter(|p| matches!(p, Phase::Prefill(_))).max_by_key(|p| p.tokens());
    let (Some(decode), Some(prefill)) = (decode, prefill) else {
        return Err(
            Usage::new(anyhow!("--ablation: expected --prompt-tokens and --gen-tokens above 0")).into()
        );
    };
    let format = args.weights.first().map(FormatOrFile::format).transpose()?;
    let compile = args.compile.at_least(needed);
    let model = |compile: CompileArgs| ModelArgs {
        model: args.model.clone(),
        verify: false,
        trust: Default::default(),
        threads: Some(threads),
        weights: args.others.with(format),
        residence: args.residence,
        compile,
    };
    let selection = compile.selection()?;
    let mut left = vec![Left::Everything];
    let mut fired: Vec<String> = vec![];
    let mut base = Engine::new(&model(compile.clone()))?;
    for (rule, _) in base.functions().iter().flat_map(|f| &f.saturation.fired) {
        if !fired.contains(rule) {
            fired.push(rule.clone());
        }
    }
    for group in selection.rules().groups() {
        let rules = group.rules.iter().map(|r| r.name.clone()).filter(|r| fired.contains(r));
        let rules: Vec<String> = rules.collect();
        if rules.len() > 1 {
            left.push(Left::Group(group.name.clone(), rules));
        }
    }
    left.extend(fired.into_iter().map(Left::Rule));
    let bar = output::bar(left.len() as u64, "measuring", output::Unit::Steps);
    let mut rows = vec![];
    let mut without_effect = vec![];
    let mut of_all = (vec![], vec![]);
    for left in &left {
        let mut other = Engine::new(&model(left.of(&compile)))?;
        bar.inc(1);
        if same_plan(&base, &other) {
            without_effect.push(left.name());
            continue;
        }
        let mut rates = [(vec![], vec![]), (vec![], vec![])];
        // One more, the first, which brings code and weights near.
        for repetition in 0..=args.repeat {
            for (at, phase) in [decode, prefill].into_iter().enumerate() {
                let rate = |engine: &mut Engine| -> Result<f64> {
                    Ok(phase.all_tokens() as f64
                        / time(&mut engine.session, phase, &mut || ())?.as_secs_f64())
                };
                // Turns change sides: who comes second finds the machine warmer.
                let (all, less) = if repetition % 2 == 0 {
                    (rate(&mut base)?, rate(&mut other)?)
                } else {
                    let less = rate(&mut other)?;
                    (rate(&mut base)?, less)
                };
                if repetition > 0 {
                    rates[at].0.push(less);
                    rates[at].1.push(less / all);
                    if at == 0 { of_all.0.push(all) } else { of_all.1.push(all) }
                }
            }
        }
        let [decode, prefill] = rates.map(|(rate, ratio)| (median(&rate), median(&ratio)));
        rows.push(Row { without: left.name(), decode, prefill });
    }
    bar.finish_and_clear();
    rows.sort_by(|a, b| a.decode.1.total_cmp(&b.decode.1));
    let all = (median(&of_all.0), median(&of_all.1));
    if args.json {
        let row = |r: &Row| -> Value {
            json!({
                "without": r.without,
                "decode_tokens_per_s": r.decode.0, "decode_ratio": r.decode.1,
                "prefill_tokens_per_s": r.prefill.0, "prefill_ratio": r.prefill.1,
            })
        };
        return output::print_json(&json!({
            "machine": { "cpu": cpu_name(), "threads": threads },
            "weights": base.format.to_string(),
            "decode": { "tokens": decode.tokens(), "depth": decode.depth(), "tokens_per_s": all.0 },
            "prefill": { "tokens": prefill.tokens(), "tokens_per_s": all.1 },
            "ablation": rows.iter().map(row).collect::<Vec<_>>(),
            "without_effect": without_effect,
        }));
    }
    let mut text = format!(
        "{}, {threads} threads, {}: decode of {} tokens at depth {}, prefill of {}\n\n{:<24}{:>12}{:>8}{:>14}{:>8}\n",
        cpu_name(),
        base.format,
        decode.tokens(),
        decode.depth(),
        prefill.tokens(),
        "without",
        "decode tok/s",
        "of all",
        "prefill tok/s",
        "of all"
    );
    text.push_str(&format!("{:<24}{:>12.1}{:>8}{:>14.1}{:>8}\n", "nothing", all.0, "1.00", all.1, "1.00"));
    for r in &rows {
        let (decode, prefill) = (r.decode, r.prefill);
        text.push_str(&format!(
            "{:<24}{:>12.1}{:>8.2}{:>14.1}{:>8.2}\n",
            r.without, decode.0, decode.1, prefill.0, prefill.1
        ));
    }
    if !without_effect.is_empty() {
        text.push_str(&format!("the same kernels without: {}\n", without_effect.join(", ")));
    }
    output::print(&text)
}

/// Whether two models have the same kernels.
fn same_plan(a: &Engine, b: &Engine) -> bool {
    a.functions()
        .iter()
        .zip(b.functions())
        .all(|(a, b)| a.variants.iter().zip(&b.variants).all(|(a, b)| a.function.body == b.function.body))
}
