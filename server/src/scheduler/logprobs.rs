//! Log-probabilities of tokens: of the model's own distribution, before temperature and everything else.

/// Of one place of a text.
#[derive(Clone, Debug)]
pub(crate) struct Logprobs {
    /// The token that is there.
    pub(crate) id: u32,
    /// Its log-probability.
    pub(crate) logprob: f32,
    /// The most likely tokens, with theirs.
    pub(crate) top: Vec<(u32, f32)>,
    /// Where it begins, in bytes of the answer's tokens.
    pub(crate) at: usize,
}

/// The least that is told: what JSON has no infinity for.
const LEAST: f32 = -9999.0;

/// Of a token in a row of logits, and of the `top` most likely ones. Sums go in order of ids: the same bits each time.
pub(super) fn of(logits: &[f32], id: u32, top: usize) -> Logprobs {
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(x));
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    let log = sum.ln();
    let logprob = |x: f32| ((f64::from(x) - f64::from(max) - log) as f32).max(LEAST);
    let before = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut best: Vec<(u32, f32)> = vec![];
    if top > 0 {
        for (id, &x) in (0..).zip(logits) {
            if best.len() < top || best.last().is_some_and(|least| x > least.1) {
                let at = best.partition_point(|other| before(other, &(id, x)).is_lt());
                best.insert(at, (id, x));
                best.truncate(top);
            }
        }
    }
    let top = best.into_iter().map(|(id, x)| (id, logprob(x))).collect();
    Logprobs { id, logprob: logprob(logits[id as usize]), top, at: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_add_up_and_the_likely_come_first() {
        let logits = [1.0, 3.0, 3.0, -2.0, 2.0];
        let told = of(&logits, 3, 3);
        assert_eq!(told.top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [1, 2, 4]);
        let sum: f32 = (0..5).map(|id| of(&logits, id, 0).logprob.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        assert_eq!(of(&[0.0, f32::NEG_INFINITY], 1, 0).logprob, LEAST);
    }
}
