//! Sessions on disk.
//!
//! ```text
//! "torqueKV"  version u32  header bytes u32  checksum u64  header (JSON)
//! sections: tokens, logits, and those of the sequence in the order of `SavedSequence::sections`, each
//!   bytes u64  checksum u64  data
//! ```
//!
//! All numbers are little-endian. A checksum is XXH3 of what follows it, seeded with the number of the section. A page is a
//! section (one for each window class), so damage is told page by page. Files come from strangers too: what a checksum
//! lets through is checked against the plan of the cache before anything is taken from it.
//!
//! A file is read, not mapped: its checksums touch every byte anyway, a page is copied to its place while it lies in the
//! processor's cache, and nobody who shortens the file can take memory from a running session.

use crate::engine::Engine;
use crate::error::Error;
use crate::session::{Session, SessionOptions};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use torque_kv::{BadSequence, Policy, SavedSequence, Section};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const MAGIC: [u8; 8] = *b"torqueKV";

/// The version of the format. What a page's bytes mean is part of it: formats, their order, the means.
const VERSION: u32 = 2;

/// What decides whether a session can go on here, and what its sections are.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    /// The model's name, to tell.
    model: String,
    /// [`crate::model_file::ModelFile::fingerprint`].
    fingerprint: String,
    /// Tokens that the session could grow to, to tell.
    context: usize,
    /// Hash of the rotary embeddings' frequencies, which depend on the context in some models.
    ropes: String,
    policy: Policy,
    sequence: SavedSequence,
    /// Whether there are logits.
    logits: bool,
    /// What the one who saved it wants to have again.
    note: String,
}

/// Why a file cannot be loaded as a session.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Fault {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("not a session that was saved")]
    NotASession,
    #[error("version {0} of the format; this program reads version {VERSION}")]
    Version(u32),
    #[error("of another model, `{saved}` ({saved_hash}); open is `{open}` ({open_hash})")]
    Model { saved: String, saved_hash: String, open: String, open_hash: String },
    #[error("saved with `{flag}` {saved}; asked for is {asked}")]
    Policy { flag: &'static str, saved: String, asked: String },
    #[error("{tokens} tokens, and the context has room for {context}; see `-c`")]
    Context { tokens: usize, context: usize },
    #[error(
        "made in a context of {saved} tokens; in one of {asked} this model has another rotary embedding (`-c {saved}`)"
    )]
    Rope { saved: usize, asked: usize },
    #[error("damaged: {0}")]
    Damaged(String),
}

impl Fault {
    /// Whether the file is of no use to anybody; else it is sound, but of something else.
    pub fn is_damage(&self) -> bool {
        matches!(self, Fault::Damaged(_))
    }
}

impl From<BadSequence> for Fault {
    fn from(bad: BadSequence) -> Fault {
        Fault::Damaged(format!("its header tells of {bad}"))
    }
}

impl Session {
    /// Writes the session to a file, with a note for whoever loads it; returns the bytes of the file. It appears when it is
    /// complete; until then, and if anything fails, what was there under its name stays. Only a session is replaced.
    pub fn save(&self, path: impl AsRef<Path>, note: &str) -> Result<u64, Error> {
        let path = path.as_ref();
        check_target(path)?;
        // A link stays one: what it leads to is replaced.
        let target = path.canonicalize().unwrap_or_else(|_| path.into());
        let mut bytes = 0;
        let written = torque_gguf::replace_file(&target, |file| {
            let mut file = BufWriter::new(file);
            bytes = self.write(note, &mut file)?;
            file.flush()
        });
        written.map_err(|source| Error::Save { path: path.into(), source })?;
        Ok(bytes)
    }

    /// A session as it was saved, to the bit, and the note. It goes on in a context of its own; the options must be of the
    /// policy it was saved with. The random state of a sampler is not part of it.
    pub fn load(
        engine: &Engine,
        path: impl AsRef<Path>,
        options: &SessionOptions,
    ) -> Result<(Session, String), Error> {
        let in_file = |fault| Error::Saved { path: path.as_ref().into(), fault };
        let mut file = Reader::open(path.as_ref()).map_err(in_file)?;
        let header = file.header().map_err(in_file)?;
        check_model(&header, engine).map_err(in_file)?;
        let mut session = engine.session(options)?;
        session.read(header, &mut file).map(|note| (session, note)).map_err(in_file)
    }

    fn write(&self, note: &str, out: &mut dyn Write) -> io::Result<u64> {
        let (sequence, sections) = self.running().saved(self.sequence);
        let header = Header {
            model: self.file.name(),
            fingerprint: self.file.fingerprint(),
            context: self.context(),
            ropes: ropes(self),
            policy: self.policy().clone(),
            sequence,
            logits: !self.logits.is_empty(),
            note: note.into(),
        };
        let header = serde_json::to_vec(&header)?;
        let length = u32::try_from(header.len()).map_err(|_| io::Error::other("the note is too long"))?;
        out.write_all(&MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        out.write_all(&length.to_le_bytes())?;
        out.write_all(&xxh3_64(&header).to_le_bytes())?;
        out.write_all(&header)?;
        let (mut total, mut number) = (24 + header.len() as u64, 0);
        let mut section = |data: &[u8]| {
            out.write_all(&(data.len() as u64).to_le_bytes())?;
            out.write_all(&xxh3_64_with_seed(data, number).to_le_bytes())?;
            (total, number) = (total + 16 + data.len() as u64, number + 1);
            out.write_all(data)
        };
        section(&self.tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<_>>())?;
        section(&self.logits.iter().flat_map(|logit| logit.to_le_bytes()).collect::<Vec<_>>())?;
        let mut buffer = Vec::new();
        for (what, bytes) in sections {
            buffer.resize(bytes, 0);
            self.running().export(self.sequence, what, &mut buffer);
            section(&buffer)?;
        }
        Ok(total)
    }

    /// Makes an empty session what a file holds; the note.
    fn read(&mut self, header: Header, file: &mut Reader<impl Read>) -> Result<String, Fault> {
        if let Some((flag, saved, asked)) = difference(&header.policy, self.policy()) {
            return Err(Fault::Policy { flag, saved, asked });
        }
        header.sequence.sections(self.plan())?;
        let (tokens, context) = (header.sequence.held_tokens(), self.context());
        if tokens > context {
            return Err(Fault::Context { tokens, context });
        }
        if header.ropes != ropes(self) {
            return Err(Fault::Rope { saved: header.context, asked: context });
        }
        let values = |bytes: Vec<u8>| bytes.as_chunks().0.iter().map(|x| u32::from_le_bytes(*x)).collect();
        let bytes = (header.sequence.len as u64).saturating_mul(4);
        let tokens: Vec<u32> = values(file.section_of(|| "its list of tokens".into(), bytes)?);
        if let Some(token) = tokens.iter().find(|token| **token as usize >= self.vocabulary) {
            return Err(Fault::Damaged(format!("token {token} is not one of {}", self.vocabulary)));
        }
        let mut section = vec![0; if header.logits { 4 * self.vocabulary } else { 0 }];
        file.section(|| "its row of logits".into(), &mut section)?;
        let logits: Vec<u32> = values(section);
        self.running().restore(self.sequence, &header.sequence, &tokens, &mut |section, out| {
            let name = || match section {
                Section::Page { span, .. } => {
                    let tokens = header.sequence.places(span);
                    format!("page {span} (tokens {} to {})", tokens.start, tokens.end - 1)
                }
                Section::Tail => "its open tail".into(),
                Section::State { layer } => format!("the state of recurrent layer {layer}"),
            };
            file.section(name, out)
        })?;
        file.end()?;
        self.tokens = tokens;
        self.logits = logits.into_iter().map(f32::from_bits).collect();
        Ok(header.note)
    }
}

/// Whether a session may be saved there: nothing is, or a session.
pub fn check_target(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Save { path: path.into(), source };
    let metadata = match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
            folder.read_dir().map_err(failed)?;
            return Ok(());
        }
        metadata => metadata.map_err(failed)?,
    };
    let starts_as_one = || {
        let mut magic = [0; MAGIC.len()];
        File::open(path)?.read_exact(&mut magic).map(|()| magic == MAGIC)
    };
    match metadata.is_file() && (metadata.len() == 0 || starts_as_one().unwrap_or(false)) {
        true => Ok(()),
        false => Err(Error::NotReplaced { path: path.into() }),
    }
}

fn check_model(header: &Header, engine: &Engine) -> Result<(), Fault> {
    let file = engine.file();
    let (saved_hash, open_hash) = (header.fingerprint.clone(), file.fingerprint());
    if saved_hash == open_hash {
        return Ok(());
    }
    Err(Fault::Model { saved: header.model.clone(), saved_hash, open: file.name(), open_hash })
}

/// Hash of the rotary embeddings' frequencies.
fn ropes(session: &Session) -> String {
    let frequencies = session.running().rope_frequencies();
    let bytes: Vec<u8> = frequencies.iter().flat_map(|frequency| frequency.to_le_bytes()).collect();
    format!("{:016x}", xxh3_64(&bytes))
}

/// The first difference of two policies: the flag that says it, and what it is in both.
fn difference(saved: &Policy, asked: &Policy) -> Option<(&'static str, String, String)> {
    let said = |policy: &Policy| {
        // What is read of a cache does not matter to what it holds.
        let Policy { k, v, sink, tail, page, snapshots, sparse_v: _, guided, layers, tiers } = policy.clone();
        let guided = guided && !tiers.is_empty();
        let many = |text: String| if text == "[]" { "none".into() } else { text };
        [
            ("-ctk", k),
            ("-ctv", v),
            ("--kv-sink", sink.to_string()),
            ("--kv-tail", tail.to_string()),
            ("--kv-page", page.to_string()),
            ("--kv-preset", many(format!("{layers:?}"))),
            ("--kv-decay", many(format!("{tiers:?}"))),
            ("--kv-policy", format!("snapshots = {snapshots}, guided = {guided}")),
        ]
    };
    let mut both = said(saved).into_iter().zip(said(asked));
    both.find(|(saved, asked)| saved != asked).map(|((flag, saved), (_, asked))| (flag, saved, asked))
}

/// A file that is read section by section.
struct Reader<R> {
    file: R,
    /// Sections read.
    sections: u64,
}

impl Reader<BufReader<File>> {
    fn open(path: &Path) -> Result<Self, Fault> {
        Ok(Reader { file: BufReader::new(File::open(path)?), sections: 0 })
    }
}

impl<R: Read> Reader<R> {
    fn header(&mut self) -> Result<Header, Fault> {
        let mut magic = [0; MAGIC.len()];
        match self.file.read_exact(&mut magic) {
            Ok(()) if magic == MAGIC => {}
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error.into()),
            _ => return Err(Fault::NotASession),
        }
        let what = || "its header".to_string();
        let mut start = [0; 16];
        self.fill(what, &mut start[..4])?;
        let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
        let version = number(&start[..4]);
        if version != VERSION {
            return Err(Fault::Version(version));
        }
        self.fill(what, &mut start[4..])?;
        let (length, checksum) = (number(&start[4..8]), &start[8..]);
        let mut header = Vec::new();
        self.file.by_ref().take(length.into()).read_to_end(&mut header)?;
        if header.len() < length as usize {
            return Err(cut_off(what()));
        }
        if xxh3_64(&header).to_le_bytes() != checksum {
            return Err(changed(what()));
        }
        serde_json::from_slice(&header).map_err(|error| Fault::Damaged(format!("{}: {error}", what())))
    }

    /// Reads the next section, which must be as long as `out`.
    fn section(&mut self, what: impl Fn() -> String, out: &mut [u8]) -> Result<(), Fault> {
        let checksum = self.section_start(&what, out.len() as u64)?;
        self.fill(&what, out)?;
        self.section_end(&what, checksum, out)
    }

    /// Reads the next section, of a length that only the header says: what is not in the file takes no memory.
    fn section_of(&mut self, what: impl Fn() -> String, bytes: u64) -> Result<Vec<u8>, Fault> {
        let checksum = self.section_start(&what, bytes)?;
        let mut out = Vec::new();
        self.file.by_ref().take(bytes).read_to_end(&mut out)?;
        if (out.len() as u64) < bytes {
            return Err(cut_off(what()));
        }
        self.section_end(&what, checksum, &out).map(|()| out)
    }

    /// The checksum of the next section.
    fn section_start(&mut self, what: &impl Fn() -> String, bytes: u64) -> Result<u64, Fault> {
        let mut start = [0; 16];
        self.fill(what, &mut start)?;
        let [length, checksum] = *start.as_chunks().0 else { unreachable!("sixteen bytes are two numbers") };
        match u64::from_le_bytes(length) == bytes {
            true => Ok(u64::from_le_bytes(checksum)),
            false => Err(Fault::Damaged(format!("{} has another length", what()))),
        }
    }

    fn section_end(&mut self, what: &impl Fn() -> String, checksum: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.sections += 1;
        match xxh3_64_with_seed(bytes, self.sections - 1) == checksum {
            true => Ok(()),
            false => Err(changed(what())),
        }
    }

    fn end(&mut self) -> Result<(), Fault> {
        match self.file.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(Fault::Damaged("it goes on after its end".into())),
        }
    }

    fn fill(&mut self, what: impl Fn() -> String, out: &mut [u8]) -> Result<(), Fault> {
        self.file.read_exact(out).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => cut_off(what()),
            _ => error.into(),
        })
    }
}

fn cut_off(what: String) -> Fault {
    Fault::Damaged(format!("{what} is cut off"))
}

fn changed(what: String) -> Fault {
    Fault::Damaged(format!("{what} does not match its checksum"))
}

#[cfg(test)]
mod tests;
