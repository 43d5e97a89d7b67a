//! How many guesses are worth their time.
//!
//! A step of `r` tokens takes `t(r)` seconds, as measured. If each guess is right with probability `p` once those
//! before it are, `k` guesses make `1 + p + .. + p^k` tokens, so that the best `k` is that of the highest rate. `p` is
//! counted for each class of guesses, also by guesses that were not stepped. Nothing here changes which tokens come
//! out.

use super::Guesses;

/// Kinds of guesses that are told apart.
pub(super) const CLASSES: usize = 4;

/// Most tokens of a step.
const ROWS: usize = 64;
/// Plain steps that come first: of them the fastest tells what a plain step takes.
const FIRST: usize = 3;
/// Steps after which a plain one is measured again.
const REFRESH: usize = 128;
/// What a further token of a step takes, in plain steps, where nothing is measured.
const ASSUMED: f64 = 0.15;
/// Share of a new measurement in a time.
const NEW: f64 = 0.25;
/// Share of what is assumed in a time that is not measured any more, a step.
const FADES: f64 = 0.004;
/// Share of earlier guesses in the counts, a step.
const REMEMBERED: f64 = 0.95;
/// Guessing must promise so many times the rate of plain steps.
const MARGIN: f64 = 1.03;
/// Plain steps until guesses that cost something are tried again: at first, and at most; and how many are.
const WAITS: (usize, usize) = (16, 256);
const TRIES: usize = 4;

pub(super) struct Pace {
    /// Seconds of a step by its tokens; 0 where it is not known.
    seconds: [f64; ROWS + 1],
    /// Guesses of each class that were right, and that were tried, lately.
    right: [f64; CLASSES],
    tried: [f64; CLASSES],
    /// Plain steps so far, up to [`FIRST`], and steps since the last one.
    plain: usize,
    since_plain: usize,
    /// Times that no guess was worth its cost, one after the other, and after how many some are tried.
    idle: usize,
    wait: usize,
}

impl Default for Pace {
    fn default() -> Pace {
        let (seconds, right, tried) = ([0.0; ROWS + 1], [0.0; CLASSES], [0.0; CLASSES]);
        Pace { seconds, right, tried, plain: 0, since_plain: 0, idle: 0, wait: WAITS.0 }
    }
}

impl Pace {
    /// Of up to `most` guesses of a class that are there already, how many to step.
    pub(super) fn worth(&self, most: usize, class: usize) -> usize {
        self.best(most, class, 0.0)
    }

    /// Of up to `most` guesses, each of which takes `cost` seconds (0: not known), how many to make.
    pub(super) fn worth_making(&mut self, most: usize, class: usize, cost: f64) -> usize {
        let best = self.best(most, class, cost);
        if best > 0 {
            (self.idle, self.wait) = (0, WAITS.0);
            return best;
        }
        self.idle += 1;
        if self.idle < self.wait || self.plain < FIRST {
            return 0;
        }
        (self.idle, self.wait) = (0, (self.wait * 2).min(WAITS.1));
        most.min(TRIES)
    }

    fn best(&self, most: usize, class: usize, cost: f64) -> usize {
        if self.plain < FIRST || self.since_plain >= REFRESH {
            return 0;
        }
        let p = (self.right[class] + 1.0) / (self.tried[class] + 2.0);
        let (mut best, mut rate) = (0, MARGIN / self.seconds[1]);
        let (mut tokens, mut next) = (1.0, 1.0);
        for count in 1..=most.min(ROWS - 1) {
            next *= p;
            tokens += next;
            let promised = tokens / (self.time(count + 1) + count as f64 * cost);
            if promised > rate {
                (best, rate) = (count, promised);
            }
        }
        best
    }

    /// Of guesses of several texts that are there already, how many of each to step, with at most `most` rows of the
    /// guesses and of the tokens before them; as many as may be if `always`.
    pub(super) fn share(&self, offers: &[Guesses], most: usize, always: bool) -> Vec<usize> {
        let (texts, most) = (offers.len(), most.min(ROWS));
        let mut counts = vec![0; texts];
        let unknown = self.plain < FIRST || self.since_plain >= REFRESH;
        if texts >= most || !always && (unknown || self.seconds[texts] == 0.0) {
            return counts;
        }
        let chance = |offer: &Guesses| (self.right[offer.class] + 1.0) / (self.tried[offer.class] + 2.0);
        let mut next: Vec<f64> = offers.iter().map(chance).collect();
        let (mut best, mut rows, mut tokens) = (counts.clone(), texts, texts as f64);
        let mut rate = if always { 0.0 } else { MARGIN * tokens / self.time(rows) };
        while rows < most {
            let open = (0..texts).filter(|&text| counts[text] < offers[text].count);
            let Some(text) = open.max_by(|&a, &b| next[a].total_cmp(&next[b]).then(b.cmp(&a))) else { break };
            counts[text] += 1;
            rows += 1;
            tokens += next[text];
            next[text] *= chance(&offers[text]);
            let promised = tokens / self.time(rows);
            if always || promised > rate {
                best.clone_from(&counts);
                rate = promised;
            }
        }
        best
    }

    /// A step of so many tokens took so many seconds.
    pub(super) fn stepped(&mut self, rows: usize, seconds: f64) {
        self.stepped_by(rows, rows == 1, seconds);
    }

    /// The same of several texts; `plain`: it had no guesses.
    pub(super) fn stepped_by(&mut self, rows: usize, plain: bool, seconds: f64) {
        let rows = rows.min(ROWS);
        let known = self.seconds[rows];
        if plain && self.plain < FIRST {
            self.plain += 1;
            self.seconds[rows] = if known == 0.0 { seconds } else { known.min(seconds) };
        } else if known == 0.0 {
            self.seconds[rows] = seconds;
        } else {
            // Something else may have had the machine: one step alone does not say much.
            self.seconds[rows] += NEW * (seconds.clamp(known / 2.0, known * 2.0) - known);
        }
        self.since_plain = if plain { 0 } else { self.since_plain + 1 };
        let plain = self.seconds[1];
        if plain == 0.0 {
            return;
        }
        for (other, time) in self.seconds.iter_mut().enumerate().skip(2) {
            if other != rows && *time > 0.0 {
                *time += FADES * (plain * (1.0 + ASSUMED * (other - 1) as f64) - *time);
            }
        }
    }

    /// Of `tried` guesses of a class, one after the other, the first `right` were right.
    pub(super) fn guessed(&mut self, class: usize, tried: usize, right: usize) {
        self.tried[class] = self.tried[class] * REMEMBERED + tried as f64;
        self.right[class] = self.right[class] * REMEMBERED + right as f64;
    }

    /// Seconds of a step of one token; 0 before the first.
    pub(super) fn plain_seconds(&self) -> f64 {
        self.seconds[1]
    }

    /// Seconds of a step of so many tokens: measured, or on the line between those that are.
    fn time(&self, rows: usize) -> f64 {
        let known = |&row: &usize| self.seconds[row] > 0.0;
        let below = (1..=rows).rev().find(known).unwrap_or(1);
        let more = (rows - below) as f64;
        let slope = match (rows..=ROWS).find(known) {
            Some(above) if above > below => {
                (self.seconds[above] - self.seconds[below]) / (above - below) as f64
            }
            // One was never stepped alone: the fewest that were stand for it.
            _ if self.seconds[1] == 0.0 => ASSUMED * self.seconds[below] / below as f64,
            _ => ASSUMED * self.seconds[1],
        };
        self.seconds[below] + more * slope
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_texts_share_what_pays() {
        let offers =
            [Guesses { count: 4, class: 0 }, Guesses { count: 4, class: 3 }, Guesses { count: 0, class: 0 }];
        let told = |seconds: fn(usize) -> f64| {
            let mut pace = Pace::default();
            for rows in 3..=11 {
                (0..FIRST).for_each(|_| pace.stepped_by(rows, true, seconds(rows)));
            }
            for _ in 0..50 {
                pace.guessed(0, 2, 0);
                pace.guessed(3, 4, 4);
            }
            pace
        };
        assert_eq!(told(|_| 1.0).share(&offers, 64, false), [4, 4, 0]);
        assert_eq!(told(|rows| rows as f64).share(&offers, 64, false), [0, 0, 0]);
        // The surer ones alone, where a row costs something; and no more than there is room for.
        let some = told(|rows| 1.0 + 0.1 * rows as f64);
        assert_eq!(some.share(&offers, 64, false), [0, 4, 0]);
        assert_eq!(some.share(&offers, 5, false), [0, 2, 0]);
        assert_eq!(some.share(&offers, 64, true), [4, 4, 0]);
        assert_eq!(Pace::default().share(&offers, 64, false), [0, 0, 0]);
    }

    /// A pace that knows what steps of 1 to 8 tokens take.
    fn measured(seconds: impl Fn(usize) -> f64) -> Pace {
        let mut pace = Pace::default();
        for rows in [1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 1] {
            pace.stepped(rows, seconds(rows));
        }
        pace
    }

    #[test]
    fn plain_steps_come_first() {
        let mut pace = Pace::default();
        for _ in 0..FIRST {
            assert_eq!((pace.worth(8, 0), pace.worth_making(8, 0, 0.0)), (0, 0));
            pace.stepped(1, 1.0);
        }
        assert!(pace.worth(8, 0) > 0);
    }

    #[test]
    fn the_rate_decides() {
        // A step of eight as fast as one: all guesses are worth it, however seldom right. Eight times: none is.
        let (mut flat, mut steep) = (measured(|_| 1.0), measured(|rows| rows as f64));
        for pace in [&mut flat, &mut steep] {
            for _ in 0..50 {
                pace.guessed(1, 4, 2);
            }
        }
        assert_eq!((flat.worth(7, 1), steep.worth(7, 1)), (7, 0));
    }

    #[test]
    fn guesses_that_are_wrong_end_and_classes_are_apart() {
        let mut pace = measured(|rows| 1.0 + 0.1 * (rows - 1) as f64);
        for _ in 0..50 {
            pace.guessed(0, 1, 0);
            pace.guessed(3, 7, 7);
        }
        assert_eq!((pace.worth(7, 0), pace.worth(7, 3)), (0, 7));
    }

    #[test]
    fn what_costs_too_much_is_tried_ever_more_seldom() {
        let mut pace = measured(|rows| 1.0 + 0.1 * (rows - 1) as f64);
        let mut tries = vec![];
        for step in 0..2000 {
            let count = pace.worth_making(7, 0, 10.0);
            if count > 0 {
                tries.push(step);
                pace.guessed(0, count, 0);
            }
            pace.stepped(1, 1.0);
        }
        assert!((8..14).contains(&tries.len()), "{tries:?}");
        // Once it costs nothing, and is right, it goes on.
        pace.guessed(0, 40, 40);
        assert!(pace.worth_making(7, 0, 0.001) > 0);
    }

    #[test]
    fn a_moment_does_not_decide() {
        let mut pace = measured(|_| 1.0);
        pace.stepped(4, 1000.0);
        assert!(pace.time(4) < 1.5);
        // Beyond what was measured, as is assumed.
        let beyond = pace.time(20) - pace.time(8);
        assert!((beyond - 12.0 * ASSUMED).abs() < 1e-9, "{beyond}");
    }
}
