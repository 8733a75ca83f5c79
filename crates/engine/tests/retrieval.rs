//! `torque eval needle` on a model that retrieves: it finds what a cache keeps, and not what a cache loses.

use serde_json::{Map, json};
use std::path::Path;
use torque_engine::evaluate::{self, Answer, Needle};
use torque_engine::gguf::Gguf;
use torque_engine::retrieval::{self, LOUD};
use torque_engine::sampler::{Sampler, SamplerParams};
use torque_engine::tokenizer::Encode;
use torque_engine::{Engine, EngineOptions, Error, Overflow, Policy, Request, SessionOptions, generate};

fn shared(file: &str) -> Gguf {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared"));
    Gguf::open(root.join(file)).unwrap_or_else(|error| panic!("{error}"))
}

fn engine(loud: f64) -> Engine {
    let options = EngineOptions { threads: Some(2), ..EngineOptions::default() };
    Engine::from_gguf(retrieval::build(&shared("demo/demo.gguf"), loud).unwrap(), &options).unwrap()
}

/// Answers to questions about facts everywhere in texts of these lengths.
fn answers(engine: &Engine, lengths: &[usize], policy: &Policy) -> Vec<Answer> {
    let needle = Needle {
        lengths: lengths.to_vec(),
        depths: vec![0, 30, 60, 100],
        trials: 2,
        seed: 1,
        text: None,
        answer: 12,
        batch: 128,
    };
    let mut answers = Vec::new();
    let policies = std::slice::from_ref(policy);
    assert!(evaluate::needle(engine, &needle, policies, &mut answers, &mut |_| true).unwrap());
    assert_eq!(answers.len(), 8 * lengths.len());
    answers
}

fn found(answers: &[Answer]) -> usize {
    answers.iter().filter(|answer| answer.is_right()).count()
}

/// No sinks and hardly a tail: whatever is asked for is sealed.
fn bare(format: &str) -> Policy {
    Policy { page: 16, ..Policy::uniform(format, format).bare() }
}

#[test]
fn a_good_cache_finds_every_fact() {
    let engine = engine(LOUD);
    for format in ["f16", "q8_0", "turbo4"] {
        for answer in answers(&engine, &[512, 2048, 4096], &Policy::uniform(format, format)) {
            // The answer is the number, and then what stood behind it.
            assert!(answer.answer.trim().starts_with(&answer.code), "{format}: {answer:?}");
        }
    }
}

#[test]
fn a_bad_cache_loses_facts() {
    let loud = engine(LOUD);
    let of_loud = found(&answers(&loud, &[2048], &bare("turbo2")));
    assert!(of_loud <= 2, "{of_loud} of 8");
    // What loses them is the format's error, in proportion to all that lies in keys and values.
    assert_eq!(found(&answers(&engine(0.0), &[2048], &bare("turbo2"))), 8);
}

#[test]
fn what_is_forgotten_is_not_found() {
    let engine = engine(LOUD);
    let (tokenizer, filler) = (engine.tokenizer(), "Now and then the baker sells a map near the river. ");
    let answer = |before: usize, behind: usize, context: usize| {
        let fact = "The access code for harbor is 482913. ";
        let text = filler.repeat(before) + fact + &filler.repeat(behind);
        let ask = json!([{ "role": "user", "content": text + "What is the access code for harbor?" }]);
        let chat = tokenizer.chat_template().unwrap().render(&ask, None, true, &Map::new()).unwrap();
        let tokens = tokenizer.encode(&chat, Encode { add_special: true, parse_special: true });
        let options =
            SessionOptions { context: Some(context), overflow: Overflow::Evict, ..SessionOptions::default() };
        let mut session = engine.session(&options).unwrap();
        session.append(&tokens).unwrap();
        assert_eq!(session.forgotten().is_empty(), context > tokens.len());
        let greedy = SamplerParams { temperature: 0.0, ..SamplerParams::default() };
        let mut sampler = Sampler::new(greedy, engine.config().vocabulary).unwrap();
        let request = Request { max_tokens: Some(8), ..Request::default() };
        let mut answer = String::new();
        generate(&mut session, tokenizer, &mut sampler, &request, &mut |piece| {
            answer += piece;
            true
        })
        .unwrap();
        answer
    };
    let check = |before: usize, behind: usize, context: usize, expected: bool| {
        let answer = answer(before, behind, context);
        assert_eq!(answer.contains("482913"), expected, "{before}, {behind}, {context}: {answer}");
    };
    check(40, 100, 4096, true);
    check(40, 100, 640, false);
    // In a sink, and in what is newer than half of the context.
    check(0, 140, 640, true);
    check(130, 10, 640, true);
}

#[test]
fn another_chat_form_is_refused() {
    let result = retrieval::build(&shared("zoo/llama-hd64.gguf"), LOUD);
    assert!(matches!(result, Err(Error::NotOneToken { text: "<|assistant|>" })));
}
