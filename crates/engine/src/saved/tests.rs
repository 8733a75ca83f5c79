use super::*;
use crate::synthetic::{self, SHAPES};
use crate::{BackendKind, EngineOptions};

/// A model with layers that have windows, and a session of it that is saved: pages of several ages, an open tail.
fn saved() -> (Engine, SessionOptions, Session, Vec<u8>) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/zoo/gemma3.gguf");
    let engine = Engine::open(path, &EngineOptions { threads: Some(1), ..EngineOptions::default() }).unwrap();
    let policy = Policy { page: 16, sink: 16, tail: 5, ..Policy::uniform("turbo4", "q8_0") };
    let policy = policy.with_decay("balanced").unwrap();
    let options = SessionOptions { context: Some(128), batch: 32, policy, ..SessionOptions::default() };
    let mut session = engine.session(&options).unwrap();
    session.append(&(0..91).map(|i| i * 37 % 300).collect::<Vec<_>>()).unwrap();
    let mut bytes = Vec::new();
    let length = session.write("a note", &mut bytes).unwrap();
    assert_eq!(length, bytes.len() as u64);
    (engine, options, session, bytes)
}

fn load(bytes: &[u8], engine: &Engine, options: &SessionOptions) -> Result<(Session, String), Fault> {
    let mut file = Reader { file: bytes, sections: 0 };
    let header = file.header()?;
    check_model(&header, engine)?;
    let mut session = engine.session(options).unwrap();
    session.read(header, &mut file).map(|note| (session, note))
}

#[test]
fn every_kind_of_damage_is_told() {
    let (engine, options, session, bytes) = saved();
    let (loaded, note) = load(&bytes, &engine, &options).unwrap();
    assert_eq!((loaded.tokens(), loaded.logits(), &note[..]), (session.tokens(), session.logits(), "a note"));

    let check = |bytes: &[u8], what: &str| match load(bytes, &engine, &options).err() {
        Some(fault) => fault,
        None => panic!("{what} is not noticed"),
    };
    let mut told = std::collections::BTreeSet::new();
    for at in (0..600).chain((600..bytes.len()).step_by(397)) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x10;
        let fault = check(&flipped, &format!("byte {at}"));
        assert_eq!(fault.is_damage(), at >= 12, "byte {at}: {fault}");
        told.insert(fault.to_string());
    }
    for what in
        ["not a session", "version", "header", "tokens", "logits", "page 0 (tokens 0 to 15)", "open tail"]
    {
        assert!(told.iter().any(|fault| fault.contains(what)), "{what}: {told:#?}");
    }
    for length in (0..600).chain((600..bytes.len()).step_by(397)).chain([bytes.len() - 1]) {
        let fault = check(&bytes[..length], &format!("an end at {length}"));
        let text = fault.to_string();
        assert!(length < 8 || fault.is_damage() && text.ends_with("is cut off"), "{length}: {text}");
    }
    assert!(check(&[&bytes[..], &[0]].concat(), "more").to_string().contains("goes on after its end"));
}

#[test]
fn a_page_in_the_place_of_another_is_told() {
    let (engine, options, _, bytes) = saved();
    // Where each section starts.
    let length = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let header = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let mut starts = vec![24 + header];
    while let Some(last) = starts.last().filter(|last| **last < bytes.len()) {
        starts.push(last + 16 + length(*last));
    }
    // Neither tokens and logits nor the file's end.
    let pages = &starts[2..starts.len() - 1];
    let mut pairs = pages.iter().flat_map(|a| pages.iter().map(move |b| (*a, *b)));
    let (a, b) = pairs.find(|(a, b)| a < b && length(*a) == length(*b)).expect("two pages of one length");
    let mut copied = bytes.clone();
    copied.copy_within(a..a + 16 + length(a), b);
    assert_ne!(copied, bytes);
    let fault = load(&copied, &engine, &options).err().expect("a page is in another's place").to_string();
    assert!(fault.contains("page") && fault.contains("checksum"), "{fault}");
}

/// A file with another header, whose checksum is right.
fn with_header(bytes: &[u8], header: &[u8]) -> Vec<u8> {
    let length = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let new_length = (header.len() as u32).to_le_bytes();
    [&bytes[..12], &new_length, &xxh3_64(header).to_le_bytes(), header, &bytes[24 + length..]].concat()
}

#[test]
fn headers_that_lie_are_refused() {
    let (engine, options, _, bytes) = saved();
    let length = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[24..24 + length]).unwrap();
    assert_eq!(with_header(&bytes, header.as_bytes()), bytes);
    // Every number of the header in turn becomes others.
    let digits: Vec<_> = header.char_indices().filter(|(_, c)| c.is_ascii_digit()).map(|(i, _)| i).collect();
    let mut refused = 0;
    let mut from = 0;
    while from < digits.len() {
        let mut to = from + 1;
        while to < digits.len() && digits[to] == digits[to - 1] + 1 {
            to += 1;
        }
        for number in ["0", "1", "3", "16", "17", "4096", "18446744073709551615", "-1", "\"\"", "[]"] {
            let (start, end) = (digits[from], digits[to - 1] + 1);
            let lie = format!("{}{number}{}", &header[..start], &header[end..]);
            let found = load(&with_header(&bytes, lie.as_bytes()), &engine, &options);
            refused += usize::from(found.is_err());
        }
        from = to;
    }
    assert!(refused > 100, "{refused}");
    for (part, lie, told) in [
        ("\"len\":91", "\"len\":90", "another length"),
        ("\"len\":91", "\"len\":115", "another length"),
        ("\"spans\":[16,", "\"spans\":[17,", "page of another length"),
        ("\"spans\":[16,", "\"spans\":[", "tail of another length"),
        ("\"held\":[", "\"held\":[0,", "other windows"),
        ("\"snapshots\":[]", "\"snapshots\":[16]", "snapshots"),
        ("\"note\":", "\"remark\":", "remark"),
        ("\"sink\",", "{\"tier\":2},", "age"),
    ] {
        assert!(header.contains(part), "{part}: {header}");
        let lie = header.replace(part, lie);
        let fault = load(&with_header(&bytes, lie.as_bytes()), &engine, &options).err().unwrap();
        assert!(fault.is_damage() && fault.to_string().contains(told), "{part}: {fault}");
    }
    // It has forgotten what its length does not allow, another number of pages is kept, those moved beyond the rest, or
    // there are not as many tokens in the file.
    for (len, gap, told) in [
        (91, r#"{"kept":1,"tokens":92,"moved":0}"#, "tail of another length"),
        (u64::MAX, r#"{"kept":1,"tokens":18446744073709551615,"moved":0}"#, "tail of another length"),
        (191, r#"{"kept":2,"tokens":100,"moved":0}"#, "forgotten"),
        (191, r#"{"kept":1,"tokens":100,"moved":101}"#, "forgotten"),
        (191, r#"{"kept":1,"tokens":100,"moved":100}"#, "list of tokens"),
        (u64::MAX, r#"{"kept":1,"tokens":18446744073709551524,"moved":0}"#, "list of tokens"),
    ] {
        let lie = header.replace("\"len\":91", &format!("\"len\":{len},\"gap\":{gap}"));
        let fault = load(&with_header(&bytes, lie.as_bytes()), &engine, &options).err().unwrap();
        assert!(fault.is_damage() && fault.to_string().contains(told), "{gap}: {fault}");
    }
}

/// A disk with room for so many bytes.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = bytes.len().min(self.0);
        self.0 -= written;
        if written == 0 && !bytes.is_empty() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(written) }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_told_and_the_session_goes_on() {
    let (_, _, mut session, bytes) = saved();
    for room in (0..bytes.len()).step_by(1013).chain([bytes.len() - 1]) {
        let error = session.write("a note", &mut Full(room)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{room}");
    }
    assert_eq!(session.write("a note", &mut Full(bytes.len())).unwrap(), bytes.len() as u64);
    session.append(&[1, 2, 3]).unwrap();
}

#[test]
fn other_models_have_other_fingerprints() {
    let fingerprint = |shape: &str, format: &str| {
        let shape = SHAPES.iter().find(|known| known.name == shape).unwrap();
        let gguf = synthetic::build(shape, torque_quant::by_name(format).unwrap(), 2).unwrap();
        let options = EngineOptions { backend: BackendKind::Scalar, ..EngineOptions::default() };
        Engine::from_gguf(gguf, &options).unwrap().file().fingerprint()
    };
    let known = fingerprint("tiny", "q8_0");
    assert_eq!(known, fingerprint("tiny", "q8_0"));
    for (shape, format) in [("tiny", "q4_0"), ("tiny-moe", "q8_0")] {
        assert_ne!(known, fingerprint(shape, format), "{shape} {format}");
    }
}
