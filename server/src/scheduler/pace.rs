//! How many tokens of prompts a step takes, by how long steps take.
//!
//! In: the times of steps. Out: a number of tokens that makes a step with answers about twice as long as one without.
//! Prompts take a pass over the weights, however few their tokens are, and more with each token, by no law that holds
//! for every machine: so each of some lengths has a time of its own, the longest that is short enough is taken, and the
//! next one beyond it is tried once. What took too long is believed for a while, not for ever: something else may have
//! had the machine. Where the pass alone takes longer than there is room for, it takes tokens along that add a
//! tenth to a quarter to it. Nothing here changes which tokens come out.

use std::time::Duration;

/// Weight of the newest measurement.
const NEWEST: f64 = 0.2;
/// How much of what one length's time changes by others' do: more keys or other programs make all longer.
const DRIFT: f64 = 0.95;
/// The most times that one measurement may differ from what is known: something else may have had the machine.
const OUTLIER: f64 = 2.0;
/// Tokens of prompts in a step while nothing was measured yet.
const START: usize = 16;
/// The fewest tokens of prompts in a step.
const LEAST: usize = 4;
/// The longest that prompts may make a step, in times of a step without.
const SHARE: f64 = 1.25;
/// What prompts' tokens may add to their pass, in times of it, where it alone takes longer: the more if steps stay
/// below three times one without.
const ALONG: [f64; 2] = [0.1, 0.25];
const THREE: f64 = 1.45;
/// The same of a prompt's last tokens, after which it takes no more steps.
const ENDS: f64 = 0.4;
/// What is left, after a step that it was too long for, of a length's time: one that was too long by half is tried
/// again some 140 steps later.
const FORGOTTEN: f64 = 0.997;

/// Times of steps so far.
pub(super) struct Pace {
    /// Rows of a call.
    chunk: usize,
    /// The most tokens, if that was said.
    fixed: Option<usize>,
    /// Seconds of a step of answers alone, by their number.
    decode: Vec<Option<f64>>,
    /// By prompts' tokens, each length about 1.4 times the one before.
    prompts: Vec<Length>,
}

/// So many tokens of prompts.
struct Length {
    tokens: usize,
    /// Seconds that they add to a step, if that is known.
    time: Option<f64>,
    /// Whether that was too long some steps ago, and is less by now than was measured.
    forgotten: bool,
}

impl Pace {
    pub(super) fn new(chunk: usize, fixed: Option<usize>) -> Pace {
        let doubled = (0..).map(|i| LEAST << i).take_while(|&length| length < chunk);
        let lengths = doubled.flat_map(|length| [length, length * 3 / 2]).filter(|&length| length < chunk);
        let prompts =
            lengths.chain([chunk]).map(|tokens| Length { tokens, time: None, forgotten: false }).collect();
        Pace { chunk, fixed, decode: vec![], prompts }
    }

    /// Tokens of prompts in a step with so many answers, where so many of the oldest prompt are left.
    pub(super) fn budget(&mut self, answers: usize, left: usize) -> usize {
        if answers == 0 {
            return self.chunk;
        }
        if let Some(fixed) = self.fixed {
            return fixed.max(1);
        }
        let Some(decode) = self.decode(answers) else { return START.min(self.chunk) };
        // A pass is as long as the fewest tokens, or else about as an answer.
        let pass = match self.prompts[0].time {
            Some(time) => time,
            None => self.decode(1).unwrap_or(decode),
        };
        let along = (THREE * decode).clamp((1.0 + ALONG[0]) * pass, (1.0 + ALONG[1]) * pass);
        let tokens = self.longest((SHARE * decode).max(along));
        let ends = (1.0 + ENDS) * pass;
        let whole = self.prompts.iter().rposition(|length| length.time.is_some_and(|time| time <= ends));
        // One that was never tried is.
        let next = whole.and_then(|at| self.prompts.get(at + 1)).filter(|next| next.time.is_none());
        let whole = next.or(whole.and_then(|at| self.prompts.get(at)));
        if whole.is_some_and(|length| left <= length.tokens) { tokens.max(left) } else { tokens }
    }

    /// The longest that takes at most so many seconds, or one that may.
    fn longest(&mut self, most: f64) -> usize {
        let short = |length: &Length| length.time.is_some_and(|time| time <= most);
        let long = |length: &Length| length.time.is_some_and(|time| time > most);
        let at = match self.prompts.iter().rposition(short) {
            Some(at) => (at + 1).min(self.prompts.len() - 1),
            // From where it starts on, or below what was too long.
            None => {
                let start = self.prompts.iter().rposition(|length| length.tokens <= START).unwrap_or(0);
                let too_long = self.prompts.iter().position(long).unwrap_or(self.prompts.len());
                start.min(too_long.saturating_sub(1))
            }
        };
        let at = if long(&self.prompts[at]) { at.saturating_sub(1) } else { at };
        // Two calls in place of one take twice as long at most.
        let twice = 2.0 * self.prompts[at].time.unwrap_or(f64::INFINITY);
        if let Some(next) = self.prompts[at + 1..].iter_mut().find(|length| long(length)) {
            next.time = next.time.map(|time| FORGOTTEN * time.min(twice));
            next.forgotten = true;
        }
        self.prompts[at].tokens
    }

    /// Seconds of a step of so many answers, or of the number nearest to it that was measured.
    fn decode(&self, answers: usize) -> Option<f64> {
        let known = self.decode.iter().enumerate().filter_map(|(count, time)| Some((count, (*time)?)));
        known.min_by_key(|(count, _)| count.abs_diff(answers)).map(|(_, time)| time)
    }

    /// A step of so many answers and tokens of prompts took so long.
    pub(super) fn note(&mut self, answers: usize, prompts: usize, time: Duration) {
        let time = time.as_secs_f64();
        if prompts == 0 {
            if answers > 0 {
                if self.decode.len() <= answers {
                    self.decode.resize(answers + 1, None);
                }
                self.decode[answers] = mix(self.decode[answers], time);
            }
            return;
        }
        // Where answers alone were never measured they are half of it.
        let decode = if answers == 0 { 0.0 } else { self.decode(answers).unwrap_or(time / 2.0) };
        let added = (time - decode).max(time / 10.0);
        let Some(own) = self.prompts.iter().position(|length| prompts <= length.tokens) else { return };
        let known = self.prompts[own].time.filter(|_| !self.prompts[own].forgotten);
        if let Some(known) = known {
            let drift = 1.0 + DRIFT * NEWEST * ((added / known).clamp(1.0 / OUTLIER, OUTLIER) - 1.0);
            self.prompts.iter_mut().for_each(|length| length.time = length.time.map(|time| time * drift));
        }
        self.prompts[own] = Length { time: mix(known, added), forgotten: false, ..self.prompts[own] };
    }
}

/// What is known, and a new measurement.
fn mix(known: Option<f64>, new: f64) -> Option<f64> {
    let mixed = |known: f64| known + NEWEST * (new.clamp(known / OUTLIER, known * OUTLIER) - known);
    Some(known.map_or(new, mixed))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens of a long prompt.
    const MANY: usize = 100_000;

    /// A machine where a call takes as long as reading the weights, and more with more rows.
    fn step(answers: usize, prompts: usize, pass: f64) -> Duration {
        let call =
            |pass: f64, rows: usize, each: f64| if rows == 0 { 0.0 } else { pass + rows as f64 * each };
        Duration::from_secs_f64(call(0.080, answers, 0.004) + call(pass, prompts, 0.002))
    }

    /// Goes on for so many steps; the budgets of the last ones, one for each step.
    fn go_on(pace: &mut Pace, steps: usize, answers: usize, time: impl Fn(usize) -> Duration) -> Vec<usize> {
        (0..steps)
            .map(|_| {
                let budget = pace.budget(answers, MANY);
                pace.note(answers, budget, time(budget));
                budget
            })
            .collect()
    }

    #[test]
    fn prompts_take_about_as_long_as_answers() {
        let mut pace = Pace::new(512, None);
        assert_eq!((pace.budget(0, MANY), pace.budget(1, MANY)), (512, START));
        for _ in 0..20 {
            pace.note(0, 512, step(0, 512, 0.080));
            pace.note(8, 0, step(8, 0, 0.080));
        }
        // Not once is a step three times as long, from the first on.
        let budgets = go_on(&mut pace, 50, 8, |budget| step(8, budget, 0.080));
        let longest = budgets.iter().copied().max().unwrap_or(0);
        assert!(step(8, longest, 0.080) < 3 * step(8, 0, 0.080), "{budgets:?}");
        let others = budgets[10..].iter().filter(|budget| !(20..=40).contains(*budget));
        assert!(others.count() <= 1, "{budgets:?}");
        assert_eq!(Pace::new(512, Some(64)).budget(3, MANY), 64);
    }

    #[test]
    fn a_pass_that_takes_long_takes_many_tokens_along() {
        let mut pace = Pace::new(512, None);
        pace.note(0, 512, step(0, 512, 0.160));
        pace.note(1, 0, step(1, 0, 0.160));
        let budgets = go_on(&mut pace, 50, 1, |budget| step(1, budget, 0.160));
        assert!((12..=30).contains(&budgets[49]), "{budgets:?}");
    }

    #[test]
    fn answers_are_measured_by_their_number() {
        let mut pace = Pace::new(512, None);
        for answers in [1, 8, 1, 8] {
            pace.note(answers, 0, step(answers, 0, 0.020));
            go_on(&mut pace, 20, answers, |budget| step(answers, budget, 0.020));
        }
        // 1.25 of 84 and of 112 ms, less 20, at 2 a token: 42 and 60.
        let budgets = [1, 3, 6, 9].map(|answers| pace.budget(answers, MANY));
        assert!(budgets[..2].iter().all(|budget| (32..=48).contains(budget)), "{budgets:?}");
        assert!(budgets[2..].iter().all(|budget| (48..=64).contains(budget)), "{budgets:?}");
        // What took long once does not stop prompts.
        pace.note(1, 32, Duration::from_secs(9));
        assert!(pace.budget(1, MANY) >= 16, "{}", pace.budget(1, MANY));
    }

    #[test]
    fn prompts_go_on_as_fast_while_steps_get_longer() {
        let mut pace = Pace::new(512, None);
        pace.note(4, 0, Duration::from_millis(85));
        // A pass takes long, and longer the more keys there are.
        let mut keys = 0;
        let mut steps = 0;
        while keys < 4000 {
            let budget = pace.budget(4, MANY);
            let pass = 0.150 + budget as f64 * 0.0006;
            pace.note(4, budget, Duration::from_secs_f64(0.085 + pass * (1.0 + keys as f64 / 10_000.0)));
            keys += budget;
            steps += 1;
        }
        assert!(steps < 250, "{steps}");
        // What ends a prompt goes at once.
        let (part, end) = (pace.budget(4, MANY), pace.budget(4, 32));
        assert!(part < 32 && end == 32, "{part}, {end}");
    }

    #[test]
    fn few_tokens_that_take_what_many_do_are_left_behind() {
        // As on a machine whose calls of up to 64 rows all take as long.
        let machine = |budget: usize| Duration::from_secs_f64(0.090 + 0.110 * budget.div_ceil(64) as f64);
        let mut pace = Pace::new(512, None);
        pace.note(1, 0, Duration::from_millis(90));
        // Something else had the machine at first.
        pace.note(1, 16, Duration::from_millis(500));
        pace.note(1, 4, Duration::from_millis(200));
        let budgets = go_on(&mut pace, 400, 1, machine);
        assert_eq!(budgets[399], 64, "{budgets:?}");
        let longer = budgets.iter().filter(|&&budget| budget > 64).count();
        assert!(longer <= 4, "{budgets:?}");
    }
}
