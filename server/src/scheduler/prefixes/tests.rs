//! The tree beside a naive model: the beginnings of all texts, each with what is held of its last token.

use std::collections::BTreeMap;
use std::convert::Infallible;

use proptest::prelude::*;

use super::tree::{Reach, Rows, Text, Tree};

const WINDOW: usize = 4;

/// Of each position the tokens up to it, which are what its rows depend on, and whether windows' are there.
#[derive(Clone, Debug)]
struct Written(Vec<(Vec<u32>, bool)>);

impl Rows for Written {
    type Error = Infallible;

    fn split_off(&mut self, at: usize) -> Result<Self, Infallible> {
        Ok(Written(self.0.split_off(at)))
    }

    fn bytes(&self) -> usize {
        // Pages of two positions.
        self.0.len().next_multiple_of(2)
    }
}

#[derive(Clone, Debug)]
enum Act {
    Insert(Vec<u32>, usize, usize),
    Touch(Vec<u32>),
    Forget(Vec<u32>),
    Shrink(usize),
}

/// Of a position: whether windows' rows are held and it was prefilled, and whether they ever were, of any text.
#[derive(Clone, Copy, Debug)]
struct Held {
    last: (bool, bool),
    ever: bool,
}

/// By the tokens up to a position.
type Model = BTreeMap<Vec<u32>, Held>;

fn insert(tree: &mut Tree<Written>, model: &mut Model, text: &Text<'_>, now: u64) {
    let make = |range: std::ops::Range<usize>, windows| {
        Ok::<_, Infallible>(Written(range.map(|at| (text.tokens[..=at].to_vec(), windows)).collect()))
    };
    let Ok(()) = tree.insert(text, now, make);
    for at in 0..text.tokens.len() {
        let new = (at >= text.windows_from, at < text.prefilled);
        let held = Held { last: new, ever: new.0 };
        let held = model.entry(text.tokens[..=at].to_vec()).or_insert(held);
        held.ever |= new.0;
        if new.0 >= held.last.0 && new.1 >= held.last.1 {
            held.last = new;
        }
    }
}

/// What the model has of a text: how much is the same, and the longest beginning whose next token finds its window.
fn known(model: &Model, tokens: &[u32], windows: fn(&Held) -> bool) -> Reach {
    let held: Vec<bool> = (0..tokens.len()).map_while(|at| model.get(&tokens[..=at]).map(windows)).collect();
    let finds = |&end: &usize| (end.saturating_sub(WINDOW - 1)..end).all(|at| held[at]);
    Reach { usable: (0..=held.len()).rev().find(finds).unwrap_or(0), common: held.len() }
}

/// What is found of a text, after checking that its rows are its own.
fn found(tree: &Tree<Written>, tokens: &[u32]) -> (Reach, usize) {
    let reach = tree.reach(tokens);
    let (rows, prefilled) = tree.rows(&tokens[..reach.usable]);
    let positions: Vec<_> = rows.iter().flat_map(|rows| &rows.0).take(reach.usable).collect();
    assert_eq!(positions.len(), reach.usable);
    for (at, (written, windows)) in positions.into_iter().enumerate() {
        assert_eq!(written, &tokens[..=at]);
        assert!(*windows || at + WINDOW <= reach.usable, "{at} of {}", reach.usable);
    }
    (reach, prefilled)
}

fn tokens() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0..3u32, 1..20)
}

fn act() -> impl Strategy<Value = Act> {
    let insert = (tokens(), 0..20usize, 0..20usize).prop_map(|(tokens, prefilled, windows)| {
        let (prefilled, windows) = (prefilled.min(tokens.len()), windows.min(tokens.len()));
        // Half of the texts have all that there can be.
        let windows = if windows % 2 == 0 { 0 } else { windows };
        Act::Insert(tokens, prefilled, windows)
    });
    prop_oneof![
        4 => insert,
        1 => tokens().prop_map(Act::Touch),
        1 => tokens().prop_map(Act::Forget),
        1 => (0..60usize).prop_map(Act::Shrink),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_longest_beginning_is_found(
        acts in prop::collection::vec(act(), 1..24),
        asked in prop::collection::vec(tokens(), 1..6),
    ) {
        let (mut tree, mut model) = (Tree::new(WINDOW), Model::new());
        let mut texts = vec![];
        for (now, act) in (1..).zip(acts) {
            if let Act::Insert(tokens, prefilled, windows_from) = act {
                let text = Text { tokens: &tokens, prefilled, windows_from };
                insert(&mut tree, &mut model, &text, now);
                texts.push(tokens);
            }
        }
        for tokens in asked.iter().chain(&texts) {
            let (reach, prefilled) = found(&tree, tokens);
            prop_assert_eq!(reach, known(&model, tokens, |held| held.last.0));
            let made = (0..reach.usable).take_while(|&at| model[&tokens[..=at]].last.1).count();
            prop_assert_eq!(prefilled, made);
        }
    }

    #[test]
    fn what_is_forgotten_is_no_more_and_what_is_left_is_right(
        acts in prop::collection::vec(act(), 1..40),
        asked in prop::collection::vec(tokens(), 1..6),
    ) {
        let (mut tree, mut model) = (Tree::new(WINDOW), Model::new());
        let mut texts = vec![];
        for (now, act) in (1..).zip(acts) {
            match act {
                Act::Insert(tokens, prefilled, windows_from) => {
                    let text = Text { tokens: &tokens, prefilled, windows_from };
                    insert(&mut tree, &mut model, &text, now);
                    texts.push(tokens);
                }
                Act::Touch(tokens) => tree.touch(&tokens, now),
                Act::Forget(tokens) => {
                    let before = tree.len();
                    prop_assert_eq!(tree.forget(&tokens), tree.len() < before);
                }
                Act::Shrink(most) => while tree.bytes() > most {
                    let oldest = tree.oldest();
                    tree.forget_oldest();
                    prop_assert!(oldest.is_some());
                },
            }
            for tokens in asked.iter().chain(&texts) {
                let (reach, known) = (found(&tree, tokens).0, known(&model, tokens, |held| held.ever));
                prop_assert!(reach.common <= known.common && reach.usable <= known.usable);
            }
        }
        while tree.oldest().is_some() {
            tree.forget_oldest();
        }
        prop_assert_eq!((tree.bytes(), tree.len()), (0, 0));
    }
}

#[test]
fn what_texts_have_in_common_is_there_once_and_the_oldest_leaf_goes_first() {
    let (mut tree, mut model) = (Tree::new(0), Model::new());
    let system: Vec<u32> = (0..100).collect();
    for chat in 0..5u32 {
        let tokens: Vec<u32> = system.iter().copied().chain([200 + chat; 10]).collect();
        let text = Text { tokens: &tokens, prefilled: tokens.len(), windows_from: 0 };
        insert(&mut tree, &mut model, &text, u64::from(chat) + 1);
    }
    assert_eq!((tree.bytes(), tree.len()), (150, 6));
    let chat = |chat: u32| system.iter().copied().chain([200 + chat; 10]).collect::<Vec<u32>>();
    tree.touch(&chat(0), 9);
    tree.forget_oldest();
    let left = |chat_: u32| tree.reach(&chat(chat_)).usable;
    assert_eq!([0, 1, 2].map(left), [110, 100, 110]);
}
