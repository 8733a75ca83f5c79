//! Retrieval: a fact hidden in a long text, and a question about it that the model answers in its own chat form.

use super::{Step, digest};
use crate::engine::Engine;
use crate::error::Error;
use crate::generate::{Request, generate};
use crate::sampler::{Sampler, SamplerParams};
use crate::session::SessionOptions;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use torque_kv::Policy;
use torque_tokenizer::Encode;

/// What is asked: a fact at every depth of texts of every length.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Needle {
    /// Tokens of the prompts, about.
    pub lengths: Vec<usize>,
    /// Where facts lie, in percent of the text.
    pub depths: Vec<usize>,
    /// Questions for each length and depth.
    pub trials: usize,
    /// What words, numbers and sentences are drawn from.
    pub seed: u64,
    /// The text; sentences made up for the purpose if `None`.
    pub text: Option<String>,
    /// Tokens of an answer at most.
    pub answer: usize,
    /// Tokens processed at once.
    pub batch: usize,
}

/// A question and what came back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// What the cache was sealed in.
    pub policy: Policy,
    /// Tokens of the prompt that were asked for.
    pub length: usize,
    /// Where the fact lay, in percent of the text.
    pub depth: usize,
    /// Which of several questions.
    pub trial: usize,
    /// Tokens of the prompt.
    pub tokens: usize,
    /// The number that was hidden.
    pub code: String,
    /// What the model said.
    pub answer: String,
}

impl Answer {
    /// Whether the answer has the number.
    pub fn is_right(&self) -> bool {
        self.digits() == self.code.len()
    }

    /// How many digits of the number, from the first on, the answer has in a row.
    pub fn digits(&self) -> usize {
        (0..=self.code.len()).rev().find(|&n| self.answer.contains(&self.code[..n])).unwrap_or(0)
    }
}

/// How well a policy retrieves.
#[derive(Clone, Debug, Serialize)]
pub struct Retrieval {
    /// What the policy is called.
    pub name: String,
    /// What the cache was sealed in.
    pub policy: Policy,
    /// Bytes of a sealed token, all layers.
    pub bytes_per_token: f64,
    /// The fraction of right answers.
    pub found: f64,
    /// The fraction of right digits.
    pub digits: f64,
    /// Columns of the grid.
    pub lengths: Vec<usize>,
    /// Rows of the grid.
    pub depths: Vec<usize>,
    /// The fraction of right answers, for each depth a list over the lengths.
    pub grid: Vec<Vec<f64>>,
}

impl Retrieval {
    /// What the answers with a policy say.
    pub fn new(
        engine: &Engine,
        needle: &Needle,
        name: &str,
        policy: &Policy,
        answers: &[Answer],
    ) -> Result<Retrieval, Error> {
        let mean = |lengths: &[usize], depths: &[usize], score: &dyn Fn(&Answer) -> f64| {
            let scores: Vec<f64> = (answers.iter())
                .filter(|a| a.policy == *policy && a.trial < needle.trials)
                .filter(|a| lengths.contains(&a.length) && depths.contains(&a.depth))
                .map(score)
                .collect();
            scores.iter().sum::<f64>() / scores.len().max(1) as f64
        };
        let right = |answer: &Answer| f64::from(u8::from(answer.is_right()));
        let digits = |answer: &Answer| answer.digits() as f64 / answer.code.len() as f64;
        let row = |&depth: &usize| -> Vec<f64> {
            needle.lengths.iter().map(|&length| mean(&[length], &[depth], &right)).collect()
        };
        Ok(Retrieval {
            name: name.into(),
            policy: policy.clone(),
            bytes_per_token: engine.plan(policy)?.bytes_per_token(),
            found: mean(&needle.lengths, &needle.depths, &right),
            digits: mean(&needle.lengths, &needle.depths, &digits),
            lengths: needle.lengths.clone(),
            depths: needle.depths.clone(),
            grid: needle.depths.iter().map(row).collect(),
        })
    }
}

/// Asks everything with every policy, and adds the answers that `answers` lacks. Whether all is done, and not stopped by `step`.
pub fn needle(
    engine: &Engine,
    needle: &Needle,
    policies: &[Policy],
    answers: &mut Vec<Answer>,
    step: &mut dyn FnMut(Step<Answer>) -> bool,
) -> Result<bool, Error> {
    let sentences = needle.text.as_deref().map_or_else(|| made_up(needle.seed), cut);
    if sentences.is_empty() {
        return Err(Error::EmptyText);
    }
    let mut todo = Vec::new();
    for policy in policies {
        for &length in &needle.lengths {
            for &depth in &needle.depths {
                todo.extend((0..needle.trials).map(|trial| (policy, length, depth, trial)));
            }
        }
    }
    todo.retain(|&(policy, length, depth, trial)| {
        let place = (policy, length, depth, trial);
        !answers.iter().any(|a| (&a.policy, a.length, a.depth, a.trial) == place)
    });
    let (mut done, of) = (0, todo.iter().map(|(_, length, ..)| length).sum());
    let greedy = SamplerParams { temperature: 0.0, ..SamplerParams::default() };
    for (policy, length, depth, trial) in todo {
        let question = Question::new(needle.seed, length, depth, trial);
        let tokens = prompt(engine, needle, &sentences, &question)?;
        let context = Some(tokens.len() + needle.answer);
        let options = SessionOptions {
            context,
            batch: needle.batch,
            policy: policy.clone(),
            ..SessionOptions::default()
        };
        let mut session = engine.session(&options)?;
        let read = session
            .append_with(&tokens, &mut |n| step(Step::Tokens { done: (done + n).min(done + length), of }))?;
        if read < tokens.len() {
            return Ok(false);
        }
        let sampler = Sampler::new(greedy.clone(), engine.config().vocabulary);
        let mut sampler = sampler.expect("the default chain at temperature 0 is valid");
        let request = Request { max_tokens: Some(needle.answer), ..Request::default() };
        let mut answer = String::new();
        generate(&mut session, engine.tokenizer(), &mut sampler, &request, &mut |piece| {
            answer += piece;
            true
        })?;
        done += length;
        let Question { code, .. } = question;
        let policy = policy.clone();
        answers.push(Answer { policy, length, depth, trial, tokens: tokens.len(), code, answer });
        let last = answers.last().expect("just pushed");
        if !(step(Step::Tokens { done, of }) && step(Step::Finished(last))) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A fact, and where it goes.
struct Question {
    length: usize,
    depth: usize,
    word: &'static str,
    code: String,
    /// The sentence the text begins with, as a part of all.
    first: f64,
}

impl Question {
    fn new(seed: u64, length: usize, depth: usize, trial: usize) -> Question {
        let place = [seed, length as u64, depth as u64, trial as u64].map(u64::to_le_bytes);
        let mut rng = StdRng::seed_from_u64(digest(place.iter().map(|bytes| &bytes[..])));
        let word = WORDS[rng.random_range(0..WORDS.len())];
        let code = rng.random_range(100_000..1_000_000).to_string();
        Question { length, depth, word, code, first: rng.random_range(0.0..1.0) }
    }

    fn fact(&self) -> String {
        format!("The access code for {} is {}.", self.word, self.code)
    }

    fn ask(&self) -> String {
        format!("What is the access code for {}?", self.word)
    }
}

/// The prompt of a question: as much text as fits, the fact between two of its sentences, and the question.
fn prompt(
    engine: &Engine,
    needle: &Needle,
    sentences: &[String],
    question: &Question,
) -> Result<Vec<u32>, Error> {
    let tokenizer = engine.tokenizer();
    let template = tokenizer.chat_template().ok_or(Error::NoChatTemplate)?;
    let render = |content: &str| {
        let messages = json!([{ "role": "user", "content": content }]);
        // Models that can think before they answer are asked not to.
        let extra = Map::from_iter([("enable_thinking".to_string(), false.into())]);
        template.render(&messages, None, true, &extra)
    };
    let plain = Encode { add_special: false, parse_special: false };
    let chat = Encode { add_special: true, parse_special: true };
    let whole = |text: &str| -> Result<Vec<u32>, Error> {
        if !reads_documents(engine) {
            return Ok(tokenizer.encode(&render(&format!("{text}\n\n{}", question.ask()))?, chat));
        }
        let mut tokens = tokenizer.encode(text, Encode { add_special: true, ..plain });
        tokens.extend(tokenizer.encode(&render(&question.ask())?, Encode { add_special: false, ..chat }));
        Ok(tokens)
    };
    let needed = whole(&question.fact())?.len() + needle.answer;
    let room = question.length.checked_sub(needed).filter(|room| *room > 0);
    let room = room.ok_or(Error::NeedleTooLong { needed, length: question.length })?;

    // Sentences from some one on, and where each begins, in tokens.
    let first = (question.first * sentences.len() as f64) as usize;
    let (mut text, mut starts, mut tokens) = (Vec::new(), Vec::new(), 0);
    for sentence in sentences.iter().cycle().skip(first) {
        let length = tokenizer.encode(&format!(" {sentence}"), plain).len();
        if tokens + length > room {
            break;
        }
        starts.push(tokens);
        text.push(&sentence[..]);
        tokens += length;
    }
    starts.push(tokens);
    let wanted = tokens * question.depth / 100;
    let place = (0..starts.len()).min_by_key(|&i| starts[i].abs_diff(wanted)).expect("there is a start");
    let fact = question.fact();
    text.insert(place, &fact);
    whole(&text.join(" "))
}

/// Whether texts stand before a conversation rather than in it. The demo model was trained so, on documents that begin with a token
/// of this name; models for chat expect a text inside the message that asks about it.
fn reads_documents(engine: &Engine) -> bool {
    let tokenizer = engine.tokenizer();
    tokenizer.bos().is_some_and(|bos| tokenizer.token_bytes(bos) == b"<|doc|>")
}

/// The sentences of a text, roughly.
fn cut(text: &str) -> Vec<String> {
    let lines = text.lines().flat_map(|line| line.split_inclusive(". "));
    lines.map(|sentence| sentence.trim().to_string()).filter(|sentence| !sentence.is_empty()).collect()
}

/// Sentences that mean nothing in particular, more than any context holds before they repeat.
fn made_up(seed: u64) -> Vec<String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut pick = |words: &[&'static str]| words[rng.random_range(0..words.len())];
    let mut sentence = || {
        let (who, does, what) = (pick(WHO), pick(DOES), pick(WHAT));
        format!("{} the {who} {does} {what} {}.", pick(WHEN), pick(WHERE))
    };
    (0..4096).map(|_| sentence()).collect()
}

/// What codes are of. Each is one thing everybody knows, and none is part of another or of [`made_up`] sentences.
const WORDS: &[&str] = &[
    "anchor", "basket", "candle", "desert", "engine", "falcon", "garden", "harbor", "island", "jacket",
    "kettle", "lantern", "marble", "needle", "orchid", "pepper", "quartz", "ribbon", "saddle", "temple",
    "umbrella", "violin", "window", "yellow",
];

const WHEN: &[&str] = &[
    "In the morning",
    "After the rain",
    "Before noon",
    "Late in the year",
    "On most days",
    "Every spring",
    "When it is cold",
    "Now and then",
    "As in other years",
    "At the end of the week",
];
const WHO: &[&str] = &[
    "baker",
    "teacher",
    "old sailor",
    "carpenter",
    "young clerk",
    "driver",
    "doctor",
    "painter",
    "miller",
    "neighbor",
    "librarian",
    "shepherd",
];
const DOES: &[&str] = &[
    "looks for",
    "talks about",
    "carries",
    "thinks of",
    "writes about",
    "repairs",
    "draws",
    "sells",
    "remembers",
    "counts",
];
const WHAT: &[&str] = &[
    "a pair of shoes",
    "the gray horse",
    "some bread",
    "a long letter",
    "the wooden boat",
    "two chairs",
    "a map",
    "the broken clock",
    "a song",
    "fresh apples",
    "a warm coat",
    "the small bridge",
];
const WHERE: &[&str] = &[
    "near the river",
    "in front of the school",
    "behind the hill",
    "at the market",
    "by the road",
    "in the kitchen",
    "under the trees",
    "on the way home",
    "beside the church",
    "not far from the sea",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineOptions;

    #[test]
    fn answers_are_judged_by_their_digits() {
        let check = |text: &str, digits: usize| {
            let answer = Answer {
                policy: Policy::default(),
                length: 512,
                depth: 50,
                trial: 0,
                tokens: 500,
                code: "482913".into(),
                answer: text.into(),
            };
            assert_eq!((answer.digits(), answer.is_right()), (digits, digits == 6), "{text}");
        };
        check("The access code for harbor is 482913.", 6);
        check("It is 482919.", 5);
        check("48, perhaps", 2);
        check("913", 0);
        check("", 0);
    }

    /// The demo model, its documents begun by a token of this name.
    fn engine(bos: &[u8; 7]) -> Engine {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/demo/demo.gguf");
        let mut bytes = std::fs::read(path).unwrap();
        let at = bytes.windows(7).position(|window| window == b"<|doc|>").unwrap();
        bytes[at..at + 7].copy_from_slice(bos);
        let gguf = torque_gguf::Gguf::from_bytes(bytes.into()).unwrap();
        Engine::from_gguf(gguf, &EngineOptions::default()).unwrap()
    }

    #[test]
    fn prompts_are_in_the_form_the_model_knows() {
        let needle = Needle {
            lengths: vec![],
            depths: vec![],
            trials: 1,
            seed: 3,
            text: None,
            answer: 20,
            batch: 128,
        };
        let sentences = made_up(3);
        let text = |engine: &Engine, depth: usize| {
            let question = Question::new(3, 400, depth, 0);
            let tokens = prompt(engine, &needle, &sentences, &question).unwrap();
            assert!(tokens.len() <= 380 && tokens.len() > 340, "{}", tokens.len());
            (engine.tokenizer().decode(&tokens, true), question.fact(), question.ask())
        };
        let demo = engine(b"<|doc|>");
        let [(first, ..), (middle, ..), (last, ..)] = [0, 50, 100].map(|depth| {
            let (text, fact, ask) = text(&demo, depth);
            assert_eq!(text.matches(&fact).count(), 1, "{text}");
            assert!(text.starts_with("<|doc|>"), "{text}");
            assert!(text.ends_with(&format!(".\n<|user|>{ask}<|assistant|>")), "{text}");
            let at = text.find(&fact).unwrap() as f64 / (text.find("<|user|>").unwrap() - fact.len()) as f64;
            assert!((at - depth as f64 / 100.0).abs() < 0.06, "{at} for {depth} %");
            (text, fact, ask)
        });
        assert!(first != middle && middle != last);

        // Any other model is given the text in the message that asks.
        let (text, fact, ask) = text(&engine(b"<|bos|>"), 100);
        assert!(text.starts_with("<|bos|>\n<|user|>"), "{text}");
        assert!(text.ends_with(&format!(" {fact}\n\n{ask}<|assistant|>")), "{text}");
    }

    #[test]
    fn texts_are_cut_at_their_sentences() {
        assert_eq!(cut("One is 3.14. Two\n\nThree.  \n"), ["One is 3.14.", "Two", "Three."]);
    }

    #[test]
    fn sentences_are_many_and_hide_no_word() {
        let mut sentences = made_up(1);
        assert_eq!(sentences, made_up(1));
        assert!(sentences.iter().all(|sentence| WORDS.iter().all(|word| !sentence.contains(word))));
        sentences.sort();
        sentences.dedup();
        assert!(sentences.len() > 4000, "{}", sentences.len());
    }
}
