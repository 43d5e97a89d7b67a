//! A turn of one answer alone: its next tokens are guessed by a model and stepped together, as long as that pays.

use lapidary_runtime::{Prediction, Speculation};

use super::Scheduler;
use super::running::Running;
use crate::error::ApiError;

impl Scheduler {
    /// Steps the only answer that is made, if guesses may be made and nothing else is to be done: whether it was.
    pub(super) fn turn_alone(&mut self) -> bool {
        let Some(mut speculation) = self.speculation.take() else { return false };
        let alone = match &self.running[..] {
            [running] if running.job.most > 0 && running.speaking() == 1 && running.stepped() == 1 => {
                self.running.pop()
            }
            _ => None,
        };
        let turned = alone.is_some();
        if let Some(mut running) = alone {
            let told = speculation.told();
            match self.speak(&mut running, &mut speculation) {
                Ok(true) => self.running.push(running),
                Ok(false) => self.release(running),
                Err(error) => {
                    let _ = running.job.events.send(super::Event::Failed(error));
                    self.release(running);
                }
            }
            let now = speculation.told();
            self.metrics.guessed_tokens.add(now.guessed - told.guessed);
            self.metrics.guessed_right.add(now.right - told.right);
        }
        self.speculation = Some(speculation);
        turned
    }

    /// Some tokens of the one answer that has not ended: whether the job goes on.
    fn speak(&mut self, running: &mut Running, speculation: &mut Speculation) -> Result<bool, ApiError> {
        let said = |error: lapidary_runtime::Error| ApiError::internal(error.to_string());
        let mut parts = running.voices.iter_mut().zip(&mut running.sequences).enumerate();
        let Some((index, (voice, Some(sequence)))) = parts.find(|(_, (voice, _))| voice.ended.is_none())
        else {
            return Ok(false);
        };
        let room = (sequence.context() - sequence.position()).min(self.engine.most_guessed());
        let room = room.min(voice.most_more()) - 1;
        let tokens = speculation.guess(sequence.tokens(), voice.last()[0], room).map_err(said)?;
        let (mut chosen, mut failed) = (vec![], None);
        let events = &running.job.events;
        let greedy = voice.wants_argmax();
        let stepped = self.engine.decode_guessed_by(sequence, tokens, greedy, &mut |_, prediction| {
            match prediction {
                Prediction::Token(token) => voice.take(token),
                Prediction::Logits(logits) => voice.choose(logits),
            }
            let token = voice.chosen_token();
            let event = voice.advance().map_err(|error| failed = Some(error)).ok()?;
            chosen.extend(token);
            if let Some(event) = event {
                let _ = events.send(event);
            }
            token.filter(|_| voice.ended.is_none())
        });
        self.metrics.steps.add(1);
        stepped.map_err(said)?;
        if let Some(error) = failed {
            return Err(error);
        }
        speculation.learn(&chosen);
        let ended = voice.ended.is_some();
        self.share(running);
        if ended {
            self.end_of(running, index);
        }
        Ok(self.spoke(running, 1, chosen.len()))
    }
}
