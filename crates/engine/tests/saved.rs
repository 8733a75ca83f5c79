//! Sessions on disk: they go on as if they had never stopped, and files of others are told.

use std::path::{Path, PathBuf};
use torque_engine::{
    BackendKind, Engine, EngineOptions, Error, Fault, Overflow, Policy, Session, SessionOptions,
};

fn open(name: &str, backend: BackendKind) -> Engine {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/zoo"));
    let options = EngineOptions { backend, threads: Some(2), isa: None };
    Engine::open(path.join(format!("{name}.gguf")), &options).unwrap_or_else(|error| panic!("{error}"))
}

fn options(policy: Policy) -> SessionOptions {
    SessionOptions { context: Some(192), batch: 48, policy, ..SessionOptions::default() }
}

fn short_pages(k: &str, v: &str) -> Policy {
    Policy { page: 16, sink: 16, tail: 21, snapshots: 4, ..Policy::uniform(k, v) }
}

fn text(tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| (i * i * 31 + i * 7) % 300).collect()
}

/// Bits of the logits of the next tokens, one by one, then of some at once.
fn go_on(session: &mut Session) -> Vec<u32> {
    let mut bits = Vec::new();
    for i in 0..20 {
        session.append(&[i * 13 % 300]).unwrap();
        bits.extend(session.logits().iter().map(|logit| logit.to_bits()));
    }
    session.append(&text(30)).unwrap();
    bits.extend(session.logits().iter().map(|logit| logit.to_bits()));
    bits
}

/// A file in a folder of its own.
fn file() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session.torque");
    (folder, path)
}

/// No windows, windows, a recurrent state, values in keys.
const MODELS: [&str; 4] = ["llama-hd64", "gemma3", "qwen35", "deepseek2"];

#[test]
fn a_loaded_session_goes_on_to_the_bit() {
    let (_folder, path) = file();
    for (name, (kind, backend)) in MODELS.iter().flat_map(|name| BackendKind::ALL.map(|kind| (name, kind))) {
        let engine = open(name, backend);
        let decaying = short_pages("q8_0", "turbo4").with_decay("balanced").unwrap();
        let by_age = Policy { guided: false, ..decaying.clone() };
        for policy in
            [Policy::default(), short_pages("f32", "f16"), short_pages("turbo3", "turbo2"), decaying, by_age]
        {
            // Nothing, an open tail alone, pages and a tail; cut into a page, where a model can be.
            for (tokens, cut) in [(0, 0), (7, 7), (77, 77), (101, 101), (120, 43)] {
                let what = format!("{name} on {kind}, {}/{}, {tokens} cut to {cut}", policy.k, policy.v);
                let mut session = engine.session(&options(policy.clone())).unwrap();
                session.append(&text(tokens)).unwrap();
                session.rewind(cut);
                session.save(&path, &what).unwrap();
                let (mut loaded, note) = Session::load(&engine, &path, &options(policy.clone())).unwrap();
                assert_eq!(note, what);
                let same = |a: &Session, b: &Session| {
                    assert_eq!(a.tokens(), b.tokens(), "{what}");
                    assert_eq!(a.kv_bytes(), b.kv_bytes(), "{what}");
                    assert_eq!(a.kv_read_bytes(), b.kv_read_bytes(), "{what}");
                    let bits = |s: &Session| s.logits().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert!(bits(a) == bits(b), "{what}");
                };
                same(&session, &loaded);
                assert!(go_on(&mut session) == go_on(&mut loaded), "{what}");
                same(&session, &loaded);
                // Both go back the same way, to where what was saved must serve.
                for to in [60, 31] {
                    assert_eq!(session.rewind(to), loaded.rewind(to), "{what}");
                    assert!(go_on(&mut session) == go_on(&mut loaded), "{what}, back to {to}");
                }
                same(&session, &loaded);
            }
        }
    }
}

#[test]
fn a_session_may_go_on_in_a_larger_context() {
    let (_folder, path) = file();
    let engine = open("llama-hd64", BackendKind::Cpu);
    let policy = short_pages("turbo3", "turbo3");
    let mut session = engine.session(&options(policy.clone())).unwrap();
    session.append(&text(100)).unwrap();
    session.save(&path, "").unwrap();
    let larger = SessionOptions { context: Some(512), batch: 64, policy, ..SessionOptions::default() };
    let (mut loaded, _) = Session::load(&engine, &path, &larger).unwrap();
    assert_eq!(loaded.context(), 512);
    for token in text(20) {
        session.append(&[token]).unwrap();
        loaded.append(&[token]).unwrap();
        assert_eq!(session.logits(), loaded.logits());
    }
}

#[test]
fn what_is_of_something_else_is_told() {
    let (folder, path) = file();
    let engine = open("llama-hd64", BackendKind::Cpu);
    let policy = short_pages("turbo4", "turbo3");
    let mut session = engine.session(&options(policy.clone())).unwrap();
    session.append(&text(100)).unwrap();
    session.save(&path, "").unwrap();
    let check = |engine: &Engine, options: &SessionOptions, parts: &[&str]| {
        let error = Session::load(engine, &path, options).err().expect("it is of something else");
        let Error::Saved { fault, .. } = &error else { panic!("{error}") };
        assert!(!fault.is_damage(), "{error}");
        for part in parts.iter().chain(&["session.torque"]) {
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
    };
    check(&open("llama-hd128-rope3", BackendKind::Cpu), &options(policy.clone()), &["of another model"]);
    check(&open("llama-q-Q4_0", BackendKind::Cpu), &options(policy.clone()), &["of another model"]);
    check(&engine, &SessionOptions { context: Some(99), ..options(policy.clone()) }, &["100", "99", "-c"]);
    for (policy, parts) in [
        (Policy { k: "f16".into(), ..policy.clone() }, ["`-ctk` turbo4", "f16"]),
        (Policy { v: "q8_0".into(), ..policy.clone() }, ["`-ctv` turbo3", "q8_0"]),
        (Policy { page: 32, ..policy.clone() }, ["`--kv-page` 16", "32"]),
        (Policy { tail: 0, ..policy.clone() }, ["`--kv-tail` 21", "0"]),
        (policy.clone().with_preset("boundary", true).unwrap(), ["`--kv-preset` none", "first2"]),
        (policy.clone().with_decay("balanced").unwrap(), ["`--kv-decay` none", "turbo2"]),
    ] {
        check(&engine, &options(policy), &parts);
    }
    // The same weights on another backend are the same model.
    let scalar = open("llama-hd64", BackendKind::Scalar);
    assert!(Session::load(&scalar, &path, &options(policy.clone())).is_ok());
    let missing = folder.path().join("missing");
    let error = Session::load(&engine, &missing, &options(policy)).err().unwrap();
    assert!(matches!(&error, Error::Saved { fault: Fault::Io(_), .. }), "{error}");
}

#[test]
fn a_rotary_embedding_of_another_context_is_told() {
    let (_folder, path) = file();
    let engine = open("phi3-longrope", BackendKind::Cpu);
    let original = engine.config().ropes[0].original_context;
    assert!(original > 0, "a model with factors for short and long contexts");
    let of = |context| SessionOptions {
        context: Some(context),
        batch: 16,
        policy: Policy::default(),
        ..SessionOptions::default()
    };
    let mut session = engine.session(&of(original)).unwrap();
    session.append(&text(20)).unwrap();
    session.save(&path, "").unwrap();
    assert!(Session::load(&engine, &path, &of(original - 1)).is_ok());
    let error = Session::load(&engine, &path, &of(original + 1)).err().unwrap().to_string();
    assert!(error.contains("rotary") && error.contains(&format!("-c {original}")), "{error}");
}

#[test]
fn only_a_session_is_replaced_and_only_by_a_whole_one() {
    let (folder, path) = file();
    let engine = open("llama-hd64", BackendKind::Cpu);
    let options = options(Policy::default());
    let mut session = engine.session(&options).unwrap();
    session.append(&text(30)).unwrap();
    session.save(&path, "first").unwrap();
    session.append(&text(3)).unwrap();
    session.save(&path, "second").unwrap();
    let (loaded, note) = Session::load(&engine, &path, &options).unwrap();
    assert_eq!((loaded.tokens().len(), &note[..]), (33, "second"));
    assert_eq!(folder.path().read_dir().unwrap().count(), 1, "nothing else is left behind");

    let refused = |path: &Path, part: &str| {
        let error = session.save(path, "").unwrap_err().to_string();
        assert!(error.contains(part) && error.contains(path.to_str().unwrap()), "{error}");
    };
    let other = folder.path().join("model.gguf");
    std::fs::write(&other, "GGUF and much more").unwrap();
    refused(&other, "something else is there");
    assert_eq!(std::fs::read(&other).unwrap(), b"GGUF and much more");
    refused(folder.path(), "something else is there");
    refused(&folder.path().join("no/folder"), "No such file");
    // An empty file is nothing.
    std::fs::write(&other, "").unwrap();
    session.save(&other, "").unwrap();
    #[cfg(unix)]
    {
        refused(Path::new("/dev/full"), "something else is there");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        session.save(&link, "third").unwrap();
        assert!(link.is_symlink());
        assert_eq!(Session::load(&engine, &path, &options).unwrap().1, "third");
    }
}

#[test]
fn a_session_that_has_forgotten_goes_on_to_the_bit() {
    let (_folder, path) = file();
    for name in MODELS {
        let engine = open(name, BackendKind::Cpu);
        for overflow in [Overflow::Shift, Overflow::Evict] {
            let decaying = short_pages("q8_0", "turbo4").with_decay("balanced").unwrap();
            for policy in [short_pages("f32", "f16"), decaying] {
                let what = format!("{name}, {overflow:?}, {}", policy.k);
                let options = SessionOptions { context: Some(96), overflow, ..options(policy) };
                let mut session = engine.session(&options).unwrap();
                session.append(&text(250)).unwrap();
                assert!(session.forgotten().len() > 100 && session.tokens() == text(250), "{what}");
                session.save(&path, "").unwrap();
                let (mut loaded, _) = Session::load(&engine, &path, &options).unwrap();
                assert_eq!((loaded.forgotten(), loaded.tokens()), (session.forgotten(), session.tokens()));
                assert!(go_on(&mut session) == go_on(&mut loaded), "{what}");
                assert_eq!(session.kv_bytes(), loaded.kv_bytes(), "{what}");
                // Both go back the same way.
                assert_eq!(session.rewind(280), loaded.rewind(280), "{what}");
                assert!(go_on(&mut session) == go_on(&mut loaded), "{what}");
                // In a context that stops it has the room that is left.
                let stops = SessionOptions { overflow: Overflow::Stop, ..options.clone() };
                let (mut stopping, _) = Session::load(&engine, &path, &stops).unwrap();
                let room = 96 - (250 - stopping.forgotten().len());
                assert!(!stopping.is_full() && stopping.append(&text(room + 1)).is_err(), "{what}");
                stopping.append(&text(room)).unwrap();
                assert!(stopping.is_full(), "{what}");
            }
        }
    }
}
