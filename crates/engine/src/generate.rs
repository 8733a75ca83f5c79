//! Text from a session: sample, append, repeat.

use crate::error::Error;
use crate::sampler::Sampler;
use crate::session::Session;
use std::time::{Duration, Instant};
use torque_tokenizer::Tokenizer;

/// When a generation ends.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Most tokens to generate; until the context is full if `None`.
    pub max_tokens: Option<usize>,
    /// Go on when the model ends its turn.
    pub ignore_eos: bool,
    /// Stop where the text would contain one of these; it is left out.
    pub stop: Vec<String>,
    /// Show control tokens in the text.
    pub show_special: bool,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended its turn.
    EndOfTurn,
    /// A stop string.
    Stop,
    /// As many tokens as asked for.
    Length,
    /// The context is full.
    Context,
    /// The receiver wanted no more.
    Cancelled,
}

/// What a generation did.
#[derive(Clone, Copy, Debug)]
pub struct Generation {
    /// Tokens generated.
    pub tokens: usize,
    /// Time from the first sample to the last token.
    pub time: Duration,
    /// Why it ended.
    pub finish: Finish,
}

/// Continues a session, which must have tokens. `text` gets the whole characters that each token
/// completes, possibly none, and says whether to go on.
pub fn generate(
    session: &mut Session,
    tokenizer: &Tokenizer,
    sampler: &mut Sampler,
    request: &Request,
    text: &mut dyn FnMut(&str) -> bool,
) -> Result<Generation, Error> {
    if session.logits().is_empty() {
        return Err(Error::EmptyPrompt);
    }
    let start = Instant::now();
    let mut detokenizer = tokenizer.continuing_detokenizer(request.show_special);
    let mut stops = StopFilter::new(&request.stop);
    let mut tokens = 0;
    let finish = loop {
        if request.max_tokens.is_some_and(|max| tokens >= max) {
            break Finish::Length;
        }
        if session.is_full() {
            break Finish::Context;
        }
        let token = sampler.sample(session.logits());
        sampler.accept(token);
        tokens += 1;
        if tokenizer.is_end_of_generation(token) && !request.ignore_eos {
            break Finish::EndOfTurn;
        }
        let (piece, stopped) = stops.push(&detokenizer.push(token));
        if !text(&piece) {
            break Finish::Cancelled;
        }
        if stopped {
            break Finish::Stop;
        }
        session.append(&[token])?;
    };
    if finish != Finish::Stop && finish != Finish::Cancelled {
        let rest = stops.push(&detokenizer.flush()).0 + &stops.flush();
        if !rest.is_empty() {
            text(&rest);
        }
    }
    Ok(Generation { tokens, time: start.elapsed(), finish })
}

/// Holds back text that may become a stop string.
struct StopFilter<'a> {
    stops: &'a [String],
    held: String,
}

impl<'a> StopFilter<'a> {
    fn new(stops: &'a [String]) -> Self {
        StopFilter { stops, held: String::new() }
    }

    /// Text that can be shown, and whether a stop string followed it.
    fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(at) = self.stops.iter().filter(|s| !s.is_empty()).filter_map(|s| self.held.find(s)).min()
        {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        // The longest tail of the text that begins a stop string stays.
        let keep = (self.held.char_indices().map(|(at, _)| at))
            .find(|&at| self.stops.iter().any(|s| s.starts_with(&self.held[at..])))
            .unwrap_or(self.held.len());
        let rest = self.held.split_off(keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_strings_never_show() {
        let check = |stops: &[&str], pieces: &[&str], expected: &str, stopped: bool| {
            let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
            let mut filter = StopFilter::new(&stops);
            let (mut shown, mut hit) = (String::new(), false);
            for piece in pieces {
                let (text, stop) = filter.push(piece);
                shown += &text;
                hit |= stop;
                if stop {
                    break;
                }
            }
            if !hit {
                shown += &filter.flush();
            }
            assert_eq!((shown.as_str(), hit), (expected, stopped), "{stops:?} {pieces:?}");
        };
        check(&[], &["a", "b"], "ab", false);
        check(&["END"], &["a E", "N", "D b"], "a ", true);
        check(&["END"], &["a E", "N", "X"], "a ENX", false);
        check(&["\n\n", "##"], &["x\n", "#", "#"], "x\n", true);
        check(&["aab"], &["a", "a", "a", "b"], "a", true);
        check(&["é!"], &["caf", "é", "s"], "cafés", false);
    }
}
