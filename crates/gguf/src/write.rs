//! Writing a GGUF file, version 3.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use bytes::Bytes;

use crate::Error;
use crate::metadata::Metadata;
use crate::read::{DIMENSIONS_MAX, MAGIC, NAME_BYTES_MAX, alignment, data_bytes};
use crate::tensor_type::TensorType;
use crate::value::write_text;

/// Collects metadata and tensors, then writes them as a GGUF file.
///
/// ```
/// use torque_gguf::{Gguf, Metadata, TensorType, Writer};
///
/// let mut metadata = Metadata::default();
/// metadata.insert("general.architecture", "llama");
/// let mut writer = Writer::new(metadata)?;
/// writer.tensor("output_norm.weight", &[2], TensorType::F32, vec![0; 8])?;
/// let gguf = Gguf::from_bytes(writer.to_bytes()?.into())?;
/// assert_eq!(gguf.tensor("output_norm.weight").unwrap().shape, [2]);
/// # Ok::<(), torque_gguf::Error>(())
/// ```
pub struct Writer<'a> {
    metadata: Metadata,
    alignment: u64,
    tensors: Vec<Entry<'a>>,
    names: HashSet<String>,
}

/// Writes a file that appears under its name only when it is complete and on the disk: until then it is a temporary file in
/// the same directory, removed if anything fails. An existing file is replaced, and maps of it stay valid.
pub fn replace_file(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut options = tempfile::Builder::new();
    options.prefix(".").suffix(".part");
    // Temporary files are private by default; a model is readable by whoever the umask allows.
    #[cfg(unix)]
    options.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = options.tempfile_in(directory)?;
    write(file.as_file_mut())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// A tensor to be written.
struct Entry<'a> {
    name: String,
    shape: Vec<u64>,
    kind: TensorType,
    length: u64,
    source: Source<'a>,
}

/// Where the bytes of a tensor come from.
pub enum Source<'a> {
    /// They are there.
    Bytes(Bytes),
    /// They are made when the tensor's turn comes, so that a large model never has to be in memory at once. The function
    /// must write exactly as many bytes as the tensor's type and shape ask for.
    #[allow(clippy::type_complexity, reason = "a name for it would say less")]
    Stream(Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + 'a>),
}

impl<'a> Source<'a> {
    /// Bytes made when they are needed.
    pub fn stream(write: impl FnOnce(&mut dyn Write) -> io::Result<()> + 'a) -> Source<'a> {
        Source::Stream(Box::new(write))
    }
}

impl From<Bytes> for Source<'_> {
    fn from(bytes: Bytes) -> Self {
        Source::Bytes(bytes)
    }
}

impl From<Vec<u8>> for Source<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        Source::Bytes(bytes.into())
    }
}

impl<'a> Writer<'a> {
    /// A file with this metadata and no tensors yet. `general.alignment`, if present, is obeyed.
    pub fn new(metadata: Metadata) -> Result<Writer<'a>, Error> {
        for (key, _) in metadata.iter() {
            check_name(&format!("the metadata key `{key:.40}`"), key)?;
        }
        let alignment = alignment(&metadata)?;
        Ok(Writer { metadata, alignment, tensors: Vec::new(), names: HashSet::new() })
    }

    /// Adds a tensor: its shape in GGUF order, row length first, and its bytes.
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        shape: &[u64],
        kind: TensorType,
        source: impl Into<Source<'a>>,
    ) -> Result<(), Error> {
        let (name, source) = (name.into(), source.into());
        check_name(&format!("the tensor name `{name:.40}`"), &name)?;
        if shape.len() > DIMENSIONS_MAX {
            return Err(Error::Dimensions { name, found: shape.len() as u64, max: DIMENSIONS_MAX });
        }
        let length = match (data_bytes(&name, shape, kind)?, &source) {
            (Some(expected), Source::Bytes(bytes)) if expected != bytes.len() as u64 => {
                let (kind, found) = (kind.to_string(), bytes.len() as u64);
                return Err(Error::SourceLength { name, kind, shape: shape.into(), expected, found });
            }
            (Some(expected), _) => expected,
            (None, Source::Bytes(bytes)) => bytes.len() as u64,
            (None, Source::Stream(_)) => return Err(Error::SourceKind { name, kind: kind.to_string() }),
        };
        if !self.names.insert(name.clone()) {
            return Err(Error::DuplicateTensor { name });
        }
        self.tensors.push(Entry { name, shape: shape.into(), kind, length, source });
        Ok(())
    }

    /// Writes the file. It appears under its name only when it is complete: until then it is a temporary file in the
    /// same directory, removed if anything fails. An existing file is replaced, and maps of it stay valid.
    pub fn write(self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let written = replace_file(path, |file| self.write_to(BufWriter::with_capacity(1 << 20, file)));
        written.map_err(|error| Error::Io { action: "write", path: path.into(), error })
    }

    /// The file as bytes in memory.
    pub fn to_bytes(self) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        self.write_to(&mut bytes).map_err(|error| Error::Io {
            action: "write",
            path: "(memory)".into(),
            error,
        })?;
        Ok(bytes)
    }

    fn write_to(self, out: impl Write) -> io::Result<()> {
        let mut out = Counted { out, bytes: 0 };
        out.write_all(MAGIC)?;
        out.write_all(&3u32.to_le_bytes())?;
        out.write_all(&(self.tensors.len() as u64).to_le_bytes())?;
        out.write_all(&(self.metadata.len() as u64).to_le_bytes())?;
        for (key, value) in self.metadata.iter() {
            write_text(key, &mut out)?;
            value.write(&mut out)?;
        }
        let mut offset = 0u64;
        for Entry { name, shape, kind, length, .. } in &self.tensors {
            write_text(name, &mut out)?;
            out.write_all(&(shape.len() as u32).to_le_bytes())?;
            for dimension in shape {
                out.write_all(&dimension.to_le_bytes())?;
            }
            out.write_all(&kind.id().to_le_bytes())?;
            out.write_all(&offset.to_le_bytes())?;
            let end =
                offset.checked_add(*length).and_then(|end| end.checked_next_multiple_of(self.alignment));
            offset = end.ok_or_else(|| io::Error::other("the tensors together overflow 64 bits"))?;
        }
        out.pad(self.alignment)?;
        for Entry { name, length, source, .. } in self.tensors {
            let start = out.bytes;
            match source {
                Source::Bytes(bytes) => out.write_all(&bytes)?,
                Source::Stream(write) => write(&mut out)?,
            }
            let found = out.bytes - start;
            if found != length {
                let message = format!("tensor `{name}` needs {length} bytes, but its source wrote {found}");
                return Err(io::Error::other(message));
            }
            out.pad(self.alignment)?;
        }
        out.flush()
    }
}

fn check_name(what: &str, name: &str) -> Result<(), Error> {
    match name.len() as u64 {
        0..=NAME_BYTES_MAX => Ok(()),
        found => Err(Error::NameLength { what: what.into(), found, max: NAME_BYTES_MAX }),
    }
}

/// Knows how many bytes went through.
struct Counted<W> {
    out: W,
    bytes: u64,
}

impl<W: Write> Counted<W> {
    /// Zeros up to a multiple of the alignment.
    fn pad(&mut self, alignment: u64) -> io::Result<()> {
        let padding = self.bytes.next_multiple_of(alignment) - self.bytes;
        io::copy(&mut io::repeat(0).take(padding), self).map(drop)
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Array, Gguf, Value};

    /// One value of every type, and an array of every type, empty and not.
    fn values() -> Vec<Value> {
        vec![
            u8::MAX.into(),
            i8::MIN.into(),
            u16::MAX.into(),
            i16::MIN.into(),
            u32::MAX.into(),
            i32::MIN.into(),
            f32::MIN_POSITIVE.into(),
            true.into(),
            false.into(),
            "".into(),
            "ünïcode \0 and more".into(),
            u64::MAX.into(),
            i64::MIN.into(),
            f64::MAX.into(),
            vec![0u8, 255].into(),
            vec![-1i8, 127].into(),
            vec![0u16, 65535].into(),
            vec![-1i16].into(),
            vec![0u32, u32::MAX].into(),
            vec![i32::MIN, 0].into(),
            vec![f32::INFINITY, -0.0].into(),
            vec![true, false].into(),
            vec!["a".to_string(), "".to_string()].into(),
            vec![u64::MAX].into(),
            vec![i64::MIN].into(),
            vec![1.0f64 / 3.0].into(),
            vec![Array::U8(vec![1]), Array::Array(vec![Array::F64(vec![])])].into(),
            Vec::<u8>::new().into(),
            Vec::<f32>::new().into(),
            Vec::<bool>::new().into(),
            Vec::<String>::new().into(),
            Vec::<Array>::new().into(),
        ]
    }

    /// Metadata of every type, and a tensor of every type.
    fn everything(alignment: u32) -> (Metadata, Vec<(TensorType, Vec<u8>)>) {
        let mut metadata: Metadata =
            values().into_iter().enumerate().map(|(i, value)| (format!("key.{i}"), value)).collect();
        metadata.insert("general.alignment", alignment);
        let bytes = |kind: TensorType| (0..3 * kind.row_bytes(256).unwrap()).map(|i| i as u8).collect();
        (metadata, TensorType::all().map(|kind| (kind, bytes(kind))).collect())
    }

    #[test]
    fn what_is_written_is_read_back() {
        for (alignment, version) in [(32, 3), (32, 2), (8, 3), (64, 3)] {
            let (metadata, tensors) = everything(alignment);
            let mut writer = Writer::new(metadata.clone()).unwrap();
            for (i, (kind, bytes)) in tensors.iter().enumerate() {
                let source = match i % 2 {
                    0 => Source::from(bytes.clone()),
                    _ => Source::stream(|out| bytes.chunks(100).try_for_each(|chunk| out.write_all(chunk))),
                };
                writer.tensor(format!("{i}"), &[256, 3], *kind, source).unwrap();
            }
            let mut file = writer.to_bytes().unwrap();
            file[4] = version;
            let gguf = Gguf::from_bytes(file.into()).unwrap();

            assert_eq!((gguf.version(), gguf.alignment()), (version.into(), alignment.into()));
            assert_eq!(gguf.metadata(), &metadata);
            assert!(gguf.metadata().iter().eq(metadata.iter()), "the order of keys");
            assert_eq!(gguf.tensors().len(), tensors.len());
            for (i, (kind, bytes)) in tensors.iter().enumerate() {
                let tensor = gguf.tensor(&i.to_string()).unwrap();
                assert_eq!((&tensor.shape[..], tensor.kind), (&[256, 3][..], *kind));
                assert_eq!(&tensor.data, bytes);
            }
        }
    }

    #[test]
    fn the_writer_refuses_what_the_reader_would() {
        #[track_caller]
        fn check<T>(result: Result<T, Error>, expected: &str) {
            assert_eq!(result.err().expect("should be refused").to_string(), expected);
        }
        let mut writer = Writer::new(Metadata::default()).unwrap();
        writer.tensor("a", &[2], TensorType::F32, vec![0; 8]).unwrap();
        check(writer.tensor("a", &[2], TensorType::F32, vec![0; 8]), "tensor `a` appears twice");
        check(
            writer.tensor("b", &[2], TensorType::F32, vec![0; 7]),
            "tensor `b` has 7 bytes, but f32 of shape [2] needs 8",
        );
        check(
            writer.tensor("b", &[33], TensorType::Q8_0, vec![]),
            "tensor `b`: row length 33 is not a multiple of 32, the block of q8_0",
        );
        check(
            writer.tensor("b", &[1; 5], TensorType::F32, vec![]),
            "tensor `b` has 5 dimensions, expected at most 4",
        );
        check(
            writer.tensor("b", &[1], TensorType::from_id(99), Source::stream(|_| Ok(()))),
            "tensor `b`: type 99 is unknown, so its data must be given as bytes",
        );
        check(
            writer.tensor("n".repeat(70_000), &[1], TensorType::F32, vec![0; 4]),
            &format!("the tensor name `{}` has 70000 bytes, expected at most 65535", "n".repeat(40)),
        );
        check(
            Writer::new(Metadata::from_iter([("general.alignment", 3u32)])),
            "metadata key `general.alignment` is 3, expected a power of two from 8 to 2097152",
        );
    }

    #[test]
    fn a_file_appears_complete_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.gguf");
        let names = || {
            std::fs::read_dir(directory.path()).unwrap().map(|x| x.unwrap().file_name()).collect::<Vec<_>>()
        };
        let write = |source: Source| {
            let mut writer = Writer::new(Metadata::default())?;
            writer.tensor("a", &[2], TensorType::F32, source)?;
            writer.write(&path)
        };

        let short = write(Source::stream(|out| out.write_all(&[0; 7]))).unwrap_err().to_string();
        assert!(short.ends_with("tensor `a` needs 8 bytes, but its source wrote 7"), "{short}");
        let failed = write(Source::stream(|_| Err(io::Error::other("no more")))).unwrap_err().to_string();
        assert_eq!(failed, format!("cannot write `{}`: no more", path.display()));
        assert!(names().is_empty());

        write(vec![1; 8].into()).unwrap();
        let old = Gguf::open(&path).unwrap();
        // Writing over a model that is open leaves the open one as it was.
        write(vec![2; 8].into()).unwrap();
        write(Source::stream(|_| Ok(()))).unwrap_err();
        assert_eq!(old.tensor("a").unwrap().data, [1; 8][..]);
        assert_eq!(Gguf::open(&path).unwrap().tensor("a").unwrap().data, [2; 8][..]);
        assert_eq!(names(), ["model.gguf"]);
        assert!(Writer::new(Metadata::default()).unwrap().write(directory.path().join("no/such")).is_err());
    }
}
