//! `explain`, `why-not`, `opt --what-if` and `--cost`: what they print holds, and what is wrong is refused.

use lapidary_ir::{Function, text};
use lapidary_passes::explain::{Step, replay};
use lapidary_passes::rules::Class;
use serde_json::Value;

use super::command::{lapidary, lapidary_with};

fn parsed(text: &Value) -> Function {
    text::parse_module(text.as_str().unwrap()).unwrap().functions.remove(0)
}

fn pairs(object: &Value) -> Vec<(String, String)> {
    let object = object.as_object().unwrap();
    object.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned())).collect()
}

/// Applies the printed steps to the printed input; the rules, in order.
fn replayed(kernel: &Value) -> Vec<String> {
    assert!(kernel["gap"].is_null(), "{kernel:#}");
    let mut function = parsed(&kernel["input"]);
    let mut rules = vec![];
    for step in kernel["steps"].as_array().unwrap() {
        let string = |field: &str| step[field].as_str().unwrap().to_owned();
        let at = (step["at"].as_u64().unwrap() as usize).into();
        assert_eq!(text::node(&function, at), string("from"));
        let printed = Step {
            rule: string("rule"),
            group: string("group"),
            class: Class::Exact,
            algebra: string("algebra"),
            lhs: string("lhs").parse().unwrap(),
            also: pairs(&step["also"])
                .iter()
                .map(|(v, t)| (v.parse().unwrap(), t.parse().unwrap()))
                .collect(),
            rhs: string("rhs").parse().unwrap(),
            bindings: pairs(&step["bindings"]),
            at,
            from: string("from"),
            to: at,
            into: string("into"),
            function: Function::default(),
        };
        function = replay(&function, &printed).unwrap();
        assert_eq!(function.to_string(), string("function"));
        rules.push(string("rule"));
    }
    assert_eq!(function.to_string(), kernel["output"].as_str().unwrap());
    rules
}

/// With `--steps` the text has the function after every step, and the last of them is the output.
#[test]
fn steps_are_printed_whole() {
    let args = ["explain", "--fn", "layer_local", "--rows", "1", "attention"];
    let steps = lapidary(&[&args[..], &["--json"]].concat()).json()[0]["kernels"][0]["steps"].clone();
    let text = lapidary(&[&args[..], &["--steps"]].concat()).ok();
    let mut rest = text.as_str();
    for step in steps.as_array().unwrap() {
        let function = step["function"].as_str().unwrap();
        rest = rest.split_once(function).unwrap_or_else(|| panic!("{function}")).1;
    }
    assert!(steps.as_array().unwrap().len() > 5 && rest.contains("output:"), "{rest}");
    assert!(lapidary(&args).ok().len() < text.len() / 2);
}

#[test]
fn explain_replays_the_attention_of_a_local_layer() {
    for rows in ["1", "512"] {
        let found =
            lapidary(&["explain", "--fn", "layer_local", "attention", "--rows", rows, "--json"]).json();
        let kernels = found[0]["kernels"].as_array().unwrap();
        assert_eq!(kernels.len(), 1);
        let rules = replayed(&kernels[0]);
        for rule in ["scores-scale", "scores-softcap", "window-mask", "gqa", "softmax-bounded", "attention"] {
            assert!(rules.iter().any(|r| r == rule), "{rule}: {rules:?}");
        }
        let best = &kernels[0]["alternatives"][0];
        assert!(best["extra_ns"].as_f64().unwrap() > 0.0);
        assert!(kernels[0]["cost"]["predicted_ns"].as_f64().unwrap() > 0.0);
        let source = kernels[0]["source"].as_array().unwrap();
        assert!(source.iter().any(|op| op["text"].as_str().unwrap().contains("tanh")), "{source:?}");
    }
}

#[test]
fn explain_replays_every_kernel_and_names_weights() {
    let found = lapidary(&["explain", "--json", "--rows", "1"]).json();
    let mut weights = vec![];
    for function in found.as_array().unwrap() {
        for kernel in function["kernels"].as_array().unwrap() {
            replayed(kernel);
            weights.extend(kernel["weights"].as_array().unwrap().clone());
        }
    }
    for name in ["self_attn.q_proj.weight", "mlp.gate_proj.weight", "mlp.down_proj.weight"] {
        assert!(weights.iter().any(|w| w == name), "{name}");
    }
    assert_eq!(found[1]["prefixes"][0], "model.layers.0.");
}

#[test]
fn explain_reads_files_and_rules_and_refuses_what_is_not_there() {
    let source = "function f(%x: f32[T,8] rows) {\n    return y=(mul (tanh (div %x 30.0)) 30.0)\n}\n";
    let text = lapidary_with(&["explain", "-"], source.as_bytes()).ok();
    assert!(text.contains("1. softcap (reassociating)") && text.contains("(softcap 30.0 %x)"), "{text}");
    lapidary(&["explain", "--fn", "head", "nothing"]).fails(&["nothing", "expected one of"]);
    lapidary(&["explain", "--fn", "nowhere"]).fails(&["nowhere", "layer_local"]);
    assert_eq!(lapidary(&["explain", "a", "b"]).code, Some(2));
}

/// Values shared at every step, as many as a file may have: nothing is followed once for each of its uses.
#[test]
fn explain_ends_on_long_chains() {
    let chain = |first: &str, step: &str, length: usize, last: &str| {
        let mut source = format!("function f(%x: f32[T,8] rows) {{\n    v0 = {first}\n");
        for at in 1..length {
            let line = step.replace('@', &format!("v{}", at - 1));
            source.push_str(&format!("    v{at} = {line}\n"));
        }
        source + &format!("    return y={}\n}}\n", last.replace('@', &format!("v{}", length - 1)))
    };
    for source in [
        chain("(add 1.5 2.5)", "(mul @ @)", 100, "(mul %x @)"),
        chain("(tanh %x)", "(add @ @)", 1000, "@"),
        chain("(tanh %x)", "(mul (tanh @) @)", 500, "@"),
    ] {
        let begun = std::time::Instant::now();
        lapidary_with(&["explain", "--rows", "1", "-"], source.as_bytes()).ok();
        assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
    }
}

#[test]
fn why_not_tells_what_failed_or_where_a_pattern_stopped() {
    // Refused: no softcap bounds the scores.
    let source = "function f(%x: f32[T,8] rows) {\n    m = (max %x 1)\n    e = (exp (sub %x m))\n    \
        return y=(div e (sum e 1))\n}\n";
    let found = lapidary_with(&["why-not", "softmax-bounded", "-", "--json"], source.as_bytes()).json();
    assert_eq!(found[0]["fired"], 0);
    let refused = &found[0]["refused"][0];
    assert_eq!(refused["predicate"], "range(?s) in [-60, 60]");
    assert!(refused["seen"].as_str().unwrap().contains("[-inf, inf]"), "{refused}");
    // Stopped: the divisor is no constant that the multiplier repeats.
    let source = "function f(%x: f32[T,8] rows) {\n    return y=(mul (exp (div %x 30.0)) 30.0)\n}\n";
    let found = lapidary_with(&["why-not", "softcap", "-", "--json"], source.as_bytes()).json();
    let near = &found[0]["nearest"][0];
    assert_eq!(near["expected"], "(tanh (div ?x ?c))");
    assert!(near["stopped_at"].as_str().unwrap().contains("(exp v0)"), "{near}");
    assert_eq!(near["matched"], 1);
    // Fired.
    let text = lapidary(&["why-not", "--fn", "layer_local", "window-mask"]).ok();
    assert!(text.contains("fired once"), "{text}");
    // Left out.
    let args = ["why-not", "--fn", "layer_local", "window-mask", "--disable", "window-mask"];
    let text = lapidary(&args).ok();
    assert!(text.contains("does not run here"), "{text}");
    assert_eq!(lapidary(&["why-not", "nothing"]).code, Some(2));
}

#[test]
fn what_if_prices_the_plan_for_another_machine() {
    let changed = |plan: &Value| {
        let kernels = plan[0]["kernels"].as_array().unwrap();
        kernels.iter().any(|k| k["before"] != k["after"])
    };
    let ns = |plan: &Value, field: &str| plan[0][field].as_f64().unwrap();
    // Plans are of the CPU that code is for, not of the machine that the test runs on.
    for cpu in ["native", "x86-64-v2", "x86-64-v3", "x86-64-v4-bf16", "x86-64-v4-amx", "aarch64"] {
        let with = |rows: &str, figures: &str| {
            let of = ["opt", "--fn", "layer_local", "--json", "--calibration", "none", "--cpu", cpu];
            lapidary(&[&of[..], &["--rows", rows, "--what-if", figures]].concat()).json()
        };
        let same = with("1", "cores=2");
        assert_eq!(same[0]["before_ns"], same[0]["after_ns"], "{cpu}");
        assert!(!changed(&same), "{cpu}");
        let faster = with("1", "cores=16,bandwidth=200");
        assert!(ns(&faster, "after_ns") < ns(&faster, "before_ns"), "{cpu}");
        assert!(ns(&faster, "after_ns") <= ns(&faster, "kept_ns") * (1.0 + 1e-9), "{cpu}");
        // An epilogue that costs nothing to speak of where prompts are prefilled, beside a kernel of its own that costs
        // far too much, or the other way round: whichever the plan has, one of the two is another plan.
        let of = |gelu: &str, kernel: &str| with("512", &format!("gelu={gelu},transcendental={kernel}"));
        let (cheap, dear) = (of("0.1", "100"), of("100", "0.1"));
        assert!(changed(&cheap) != changed(&dear), "{cpu}: {cheap:#} {dear:#}");
        for plan in [cheap, dear].iter().filter(|plan| changed(plan)) {
            assert!(ns(plan, "after_ns") < ns(plan, "kept_ns"), "{cpu}: {plan:#}");
        }
    }
    for bad in ["cores", "cores=0", "cores=x", "width=3"] {
        assert_eq!(lapidary(&["opt", "--what-if", bad]).code, Some(2), "{bad}");
    }
}

#[test]
fn a_cost_model_changes_what_is_chosen_and_nothing_of_the_result() {
    let kernels = |cost: &str| {
        let args = ["opt", "--fn", "layer_local", "--rows", "1", "--json", "--cost", cost];
        lapidary(&args).json()[0]["kernels"].as_array().unwrap().len()
    };
    let counts = ["roofline", "flops", "bytes", "nodes"].map(kernels);
    assert!(counts.iter().all(|&n| counts[3] <= n), "{counts:?}");
    let text = |cost: &str| lapidary(&["run", "--temp", "0", "-n", "8", "--cost", cost, "It is"]).ok();
    let roofline = text("roofline");
    for cost in ["flops", "bytes", "nodes"] {
        assert_eq!(text(cost), roofline, "{cost}");
    }
}

#[test]
fn measured_prices_are_kept_and_give_the_same_plan_again() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let mut command = super::command::binary();
        let output = command.env("XDG_CACHE_HOME", dir.path()).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let args = ["opt", "--fn", "layer_local", "--chunk", "4", "--context", "64", "--cost", "measured"];
    let body = |text: String| text.lines().filter(|l| !l.contains(" µs")).collect::<Vec<_>>().join("\n");
    let predicted = |text: &str| text.lines().find(|l| l.contains("predicted")).map(str::to_owned);
    let first = run(&args);
    let files: Vec<_> =
        std::fs::read_dir(dir.path().join("lapidary")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let kept = std::fs::read_to_string(&files[0]).unwrap();
    assert!(kept.lines().count() > 10, "{kept}");
    let second = run(&args);
    assert_eq!(predicted(&first), predicted(&second));
    assert_eq!(body(first), body(second));
    assert_eq!(std::fs::read_to_string(&files[0]).unwrap(), kept);
    // A price says which form is taken: this one says that unfused is free.
    let cheap = kept.lines().skip(1).map(|l| l.split(' ').next().unwrap().to_owned() + " 1\n");
    let flat: String = std::iter::once(kept.lines().next().unwrap().to_owned() + "\n").chain(cheap).collect();
    std::fs::write(&files[0], flat).unwrap();
    assert_ne!(predicted(&run(&args)), predicted(&run(&args[..args.len() - 2])));
    // What the file holds otherwise is no reason to fail.
    std::fs::write(&files[0], "nonsense\n\0").unwrap();
    run(&args);
    // Code that does not run here cannot be timed here.
    lapidary(&["opt", "--cost", "measured", "--cpu", "aarch64"]).fails(&["aarch64", "measured"]);
}
