//! Commutativity of patterns: every spelling of a left side, so that the graph itself is never commuted.

/// The most spellings of one left side.
pub(crate) const MOST_SPELLINGS: usize = 4096;

/// How many spellings [`commuted`] gives at most, without giving them.
pub(crate) fn spellings(pattern: &str) -> usize {
    let commuting = ["(add ", "(mul ", "(and "].iter().map(|op| pattern.matches(op).count()).sum::<usize>();
    1usize.checked_shl(commuting as u32).filter(|_| commuting < 60).unwrap_or(usize::MAX)
}

/// Every way to write a pattern by swapping operands of `add`, `mul` and `and`, the given one first.
pub fn commuted(pattern: &str) -> Vec<String> {
    enum Term {
        Leaf(String),
        Node(Vec<Term>),
    }
    fn parse(tokens: &mut std::vec::IntoIter<String>) -> Term {
        match tokens.next() {
            Some(t) if t == "(" => {
                let mut items = vec![];
                while tokens.as_slice().first().is_some_and(|t| t != ")") {
                    items.push(parse(tokens));
                }
                tokens.next();
                Term::Node(items)
            }
            Some(t) => Term::Leaf(t),
            None => unreachable!("unbalanced pattern"),
        }
    }
    fn spell(term: &Term) -> Vec<String> {
        let items = match term {
            Term::Leaf(text) => return vec![text.clone()],
            Term::Node(items) => items,
        };
        let mut rows: Vec<Vec<String>> = vec![vec![]];
        for item in items {
            let forms = spell(item);
            rows = rows
                .iter()
                .flat_map(|r| forms.iter().map(move |f| [&r[..], std::slice::from_ref(f)].concat()))
                .collect();
        }
        let commutes =
            rows.first().is_some_and(|r| r.len() == 3 && matches!(r[0].as_str(), "add" | "mul" | "and"));
        let mut all: Vec<String> = rows.iter().map(|r| format!("({})", r.join(" "))).collect();
        if commutes {
            all.extend(rows.iter().filter(|r| r[1] != r[2]).map(|r| format!("({} {} {})", r[0], r[2], r[1])));
        }
        all
    }
    let spaced = pattern.replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<String> = spaced.split_whitespace().map(str::to_owned).collect();
    let mut forms = spell(&parse(&mut tokens.into_iter()));
    let mut seen = std::collections::HashSet::new();
    forms.retain(|f| seen.insert(f.clone()));
    forms
}

#[cfg(test)]
mod tests {
    use super::commuted;

    #[test]
    fn commuting() {
        assert_eq!(
            commuted("(mul ?a (add ?b 1.0))"),
            [
                "(mul ?a (add ?b 1.0))",
                "(mul ?a (add 1.0 ?b))",
                "(mul (add ?b 1.0) ?a)",
                "(mul (add 1.0 ?b) ?a)",
            ]
        );
        assert_eq!(commuted("(mul ?x ?x)"), ["(mul ?x ?x)"]);
        assert_eq!(commuted("(sub ?a ?b)"), ["(sub ?a ?b)"]);
    }
}
