//! Templates that would run for hours, fill the memory or overflow the stack: each is an error of one line within a
//! second and a bound of memory, on a thread's own small stack. Each comes with a tame twin that renders.

use std::time::{Duration, Instant};

use lapidary_models::{ChatTemplate, Message, SpecialTokens};

use crate::peak;

/// The most that a rendering may hold: the template's own text many times over, and this.
const BOUND: usize = 48 << 20;
/// The longest that an error may take; the build has no optimisations to speak of.
const SECOND: Duration = Duration::from_secs(1);
/// Attempts of which the fastest counts: others may have the CPU.
const ATTEMPTS: usize = 4;

fn render(source: &str) -> Result<String, String> {
    let special = SpecialTokens::of(&[("bos_token", "<bos>")]);
    ChatTemplate::new(source, &special).render(&[Message::new("user", "hi")], true).map_err(|e| e.to_string())
}

/// Renders, more than once if that was slow.
fn attempt(source: &str) -> (Result<String, String>, Duration, usize) {
    let mut last = once(source.into());
    for _ in 1..ATTEMPTS {
        if last.1 < SECOND {
            break;
        }
        last = once(source.into());
    }
    last
}

/// Renders on a stack of 2 MiB, which is what a thread has.
fn once(source: String) -> (Result<String, String>, Duration, usize) {
    let work = move || {
        let start = Instant::now();
        let (result, held) = peak(|| render(&source));
        (result, start.elapsed(), held)
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(work).unwrap().join().unwrap()
}

/// Refused, in time, in memory.
#[track_caller]
fn refused(what: &str, source: String) {
    let (result, time, held) = attempt(&source);
    let line = result.map(|text| text.len()).expect_err(what);
    assert!(!line.contains('\n') && line.len() < 4096 && line.contains("chat"), "{what}: {line:?}");
    assert!(time < SECOND, "{what}: {time:?}: {line}");
    assert!(held < BOUND, "{what}: {held} bytes: {line}");
}

/// Renders, or is refused: in time, in memory.
#[track_caller]
fn harmless(what: &str, source: String) {
    let (result, time, held) = attempt(&source);
    if let Err(line) = &result {
        assert!(!line.contains('\n') && line.len() < 4096, "{what}: {line:?}");
    }
    assert!(time < SECOND && held < BOUND, "{what}: {time:?}, {held} bytes");
}

fn loops(n: usize, body: &str) -> String {
    format!("{{% for i in range({n}) %}}{body}{{% endfor %}}")
}

#[test]
fn endless_work() {
    refused("loops in loops", loops(99_999, &loops(99_999, "{{ i }}")));
    refused("empty loops in loops", loops(99_999, &loops(99_999, "")));
    refused("a huge range", loops(1_000_000_000, "x"));
    refused("a list of a huge range", "{{ range(10 ** 12) | list | length }}".into());
    refused(
        "a macro that calls itself twice",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}".into(),
    );
    refused(
        "a recursive loop",
        "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{{ loop([[1]]) }}{% endfor %}".into(),
    );
    let long = "{% set s = 'ab' * 200000 %}{% set t = 'ab' * 200000 %}";
    refused("comparisons of long texts", format!("{long}{}", loops(99_999, "{% if s == t %}{% endif %}")));
    refused(
        "searches of long texts",
        format!("{long}{}", loops(99_999, "{% if s.find('x') == 1 %}{% endif %}")),
    );
    refused("stripping by a long set", format!("{long}{}", loops(99_999, "{% if s.strip(t) %}{% endif %}")));
    refused("counts", format!("{long}{}", loops(99_999, "{% if s.count('aa') %}{% endif %}")));
    refused("sorts", format!("{long}{}", loops(99_999, "{% if [s, t, s, t] | sort %}{% endif %}")));
    refused("JSON", format!("{long}{}", loops(99_999, "{% if s | tojson %}{% endif %}")));
    assert_eq!(render(&loops(3, "{{ i }}")).unwrap(), "012");
}

#[test]
fn growing_texts() {
    let doubled = |step: &str| {
        format!("{{% set ns = namespace(s='ab') %}}{}", loops(64, &format!("{{% set ns.s = {step} %}}")))
    };
    refused("doubling by ~", doubled("ns.s ~ ns.s"));
    refused("doubling by +", doubled("ns.s + ns.s"));
    refused("doubling by *", doubled("ns.s * 2"));
    refused("doubling by join", doubled("[ns.s, ns.s] | join"));
    refused("doubling by a method join", doubled("''.join([ns.s, ns.s])"));
    refused("doubling by replace", doubled("ns.s | replace('a', 'aab')"));
    refused("doubling by a method replace", doubled("ns.s.replace('a', 'aa').replace('b', 'bb')"));
    refused("doubling by replace of nothing", doubled("ns.s.replace('', ns.s)"));
    refused("doubling by format", doubled("'%s%s' | format(ns.s, ns.s)"));
    refused("doubling by a method format", doubled("'{0}{0}'.format(ns.s)"));
    refused("doubling by indent", doubled("(ns.s ~ '\n') | indent(1000, true)"));
    refused("doubling by a list", doubled("[ns.s, ns.s] | string"));
    refused("doubling by JSON", doubled("[ns.s, ns.s] | tojson"));
    refused("one huge text", "{{ 'x' * 10 ** 10 }}".into());
    refused("one huge padding", "{{ '%1000000000d' | format(1) }}".into());
    refused("one huge padding by a method", "{{ '{:1000000000}'.format(1) }}".into());
    refused(
        "one huge padding from an argument",
        "{{ '{:{}}'.format(1, 10 ** 9) }}{{ '%*d' | format(10 ** 9, 1) }}".into(),
    );
    refused("one huge list", "{{ ([1] * 10 ** 10) | length }} {{ ([1] * 10 ** 9) | list | length }}".into());
    refused("one huge indent", "{{ [1] | tojson(indent=1000000000) }}".repeat(20_000));
    let block =
        format!("{{% set x %}}{}{{% endset %}}{{{{ x | length }}}}", loops(99_999, &"y".repeat(10_000)));
    refused("10 KB written into a block 100,000 times", block);
    refused("10 KB written 100,000 times", loops(100_000, &"y".repeat(10_000)));
    refused(
        "10 KB printed 100,000 times",
        format!("{{% set s = '{}' %}}{}", "y".repeat(10_000), loops(100_000, "{{ s }}")),
    );
    refused("unrolled doubling", format!("{{% set s = 'ab' %}}{}", "{% set s = s ~ s %}".repeat(60)));
    let macros =
        "{% macro f(n) %}{{ 'x' * n }}{{ caller() }}{% endmacro %}{% call f(10 ** 9) %}{% endcall %}";
    refused("a macro's text", macros.into());
    let doubled = "{% set ns = namespace(s='a') %}{% for i in range(3) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}\
                   {{ ns.s }}";
    assert_eq!(render(doubled).unwrap(), "aaaaaaaa");
}

#[test]
fn values_within_values() {
    let nested = |step: &str, then: &str| {
        format!(
            "{{% set ns = namespace(x=[1]) %}}{}{then}",
            loops(9_000, &format!("{{% set ns.x = {step} %}}"))
        )
    };
    for then in [
        "",
        "{{ ns.x }}",
        "{{ ns.x | tojson }}",
        "{{ ns.x == ns.x }}",
        "{{ ns.x | pprint }}",
        "{{ ns.x ~ '' }}",
    ] {
        refused("nested lists", nested("[ns.x]", then));
        refused("nested dicts", nested("{'a': ns.x}", then));
        refused("nested tuples", nested("(ns.x,)", then));
        refused("doubled lists", nested("[ns.x, ns.x]", then));
    }
    for step in [
        "ns.x[0:]",
        "ns.x | reverse",
        "ns.x + [1]",
        "ns.x * 1",
        "ns.x | batch(1) | list",
        "dict(a=ns.x)",
        "[ns.x][::-1]",
    ] {
        harmless(step, nested(step, "{{ ns.x | length }}{{ ns.x | list | length }}"));
    }
    refused("a namespace within itself", "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}".into());
    refused("in a list", "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns }}".into());
    refused("in a dict", "{% set ns = namespace() %}{% set ns.a = {'b': (ns, 1)} %}{{ ns | tojson }}".into());
    refused(
        "by another",
        "{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}{{ a }}{{ a == b }}".into(),
    );
    refused("by a list", "{% set ns = namespace() %}{% set l = [ns] %}{% set ns.l = l %}{{ l }}".into());
    refused("by a tuple target", "{% set ns = namespace() %}{% set ns.a, ns.b = ns, 1 %}{{ ns }}".into());
    refused(
        "in a block",
        "{% if true %}{%- set ns = namespace() -%}{%-set ns.a=ns-%}{{ ns }}{% endif %}".into(),
    );
    refused(
        "namespaces in namespaces",
        format!("{{% set a = 1 %}}{}", "{% set a = namespace(a=a) %}".repeat(9_000)),
    );
    refused("unrolled lists", format!("{{% set x = 1 %}}{}{{{{ x }}}}", "{% set x = [x] %}".repeat(9_000)));
    harmless(
        "unrolled views",
        format!("{{% set x = [1] %}}{}{{{{ x | list }}}}", "{% set x = x[0:] %}".repeat(9_000)),
    );
    harmless(
        "what a loop remembers",
        "{% for i in range(9) %}{{ loop.changed(loop) }}{{ loop }}{% endfor %}".into(),
    );
    let macro_lists = "{% macro f(x) %}{{ f([x]) }}{% endmacro %}{{ f(1) }}";
    refused("lists handed on by a macro", macro_lists.into());
    assert_eq!(render("{% set ns = namespace(x=[1]) %}{% set ns.x = [ns.x] %}{{ ns.x }}").unwrap(), "[[1]]");
}

#[test]
fn sources_that_recurse() {
    for n in [1_000, 100_000] {
        for (what, open, middle, close) in [
            ("parentheses", "(", "1", ")"),
            ("brackets", "[", "1", "]"),
            ("braces", "{1:", "1", "}"),
            ("nots", "not ", "1", ""),
            ("minuses", "- ", "1", ""),
            ("sums", "1 + ", "1", ""),
            ("concatenations", "1 ~ ", "1", ""),
            ("powers", "2 ** ", "1", ""),
            ("comparisons", "1 < ", "1", ""),
            ("ors", "0 or ", "1", ""),
            ("conditions", "1 if 1 else ", "1", ""),
            ("subscripts", "", "x", "[0]"),
            ("attributes", "", "messages", ".a"),
            ("calls", "", "range", "()"),
            ("filters", "", "1", "|abs"),
            ("tests", "", "1", " is odd"),
            ("slices", "", "'x'", "[0:]"),
            ("calls in calls", "range(", "1", ")"),
            ("texts side by side", "'a' ", "1", ""),
            ("commas", "1,", "1", ""),
        ] {
            let expression = format!("{}{middle}{}", open.repeat(n), close.repeat(n));
            harmless(what, format!("{{{{ {expression} }}}}"));
            harmless(what, format!("{{% set x = {expression} %}}{{{{ x }}}}"));
            harmless(what, format!("{{% if {expression} %}}{{% endif %}}"));
            if n > 50_000 {
                refused(what, format!("{{{{ {expression} }}}}"));
            }
        }
    }
    let n = 100_000;
    for (what, open, close) in [
        ("ifs", "{% if 1 %}", "{% endif %}"),
        ("fors", "{% for i in [1] %}", "{% endfor %}"),
        ("withs", "{% with %}", "{% endwith %}"),
        ("generations", "{% generation %}", "{% endgeneration %}"),
        ("macros", "{% macro f() %}", "{% endmacro %}"),
        ("blocks", "{% set x %}", "{% endset %}"),
        ("filter blocks", "{% filter upper %}", "{% endfilter %}"),
        ("elses", "{% if 1 %}{% else %}", "{% endif %}"),
        ("targets", "{% set (", ""),
    ] {
        refused(what, format!("{}{}", open.repeat(n), close.repeat(n)));
        refused(what, format!("{}{}", open.repeat(2_000), close.repeat(2_000)));
    }
    refused("branches", format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(n)));
    harmless("branches", format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(399)));
    refused(
        "targets in targets",
        format!("{{% for {}a{} in [1] %}}{{% endfor %}}", "(".repeat(n), ")".repeat(n)),
    );
    harmless("comments", "{# x #}".repeat(n));
    harmless("raw blocks", "{% raw %}{{{% endraw %}".repeat(n / 4));
    harmless("open tags", "{{".repeat(n));
    harmless("open comments", "{#".repeat(n));
    harmless("open raw blocks", "{% raw %}".repeat(n));
    harmless("quotes", format!("{{{{ {} }}}}", "'".repeat(n)));
    harmless("escapes", format!("{{{{ '{}", "\\".repeat(n)));
    refused("a huge source", "x".repeat(3 << 20));
    assert_eq!(render("{{ ((((1)))) }}{{ not not true }}").unwrap(), "1True");
}
