//! An open model: the metadata and tensors of one file, or of all the parts of a split one.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::Error;
use crate::map::map;
use crate::metadata::Metadata;
use crate::read::Part;
use crate::tensor_type::TensorType;

const SPLIT_NUMBER: &str = "split.no";
const SPLIT_COUNT: &str = "split.count";
const SPLIT_TENSORS: &str = "split.tensors.count";

/// A model read from GGUF.
#[derive(Debug)]
pub struct Gguf {
    version: u32,
    alignment: u64,
    metadata: Metadata,
    tensors: Vec<Tensor>,
    by_name: HashMap<String, usize>,
}

/// A tensor in a file.
#[derive(Clone)]
pub struct Tensor {
    /// Unique in the model.
    pub name: String,
    /// In GGUF order, row length first: a weight matrix is `[inputs, outputs]`. At most four dimensions; their product
    /// fits 64 bits.
    pub shape: Vec<u64>,
    /// How the numbers are stored.
    pub kind: TensorType,
    /// The stored bytes, a view into the map. As long as `kind` and `shape` ask for; if the type is unknown, whatever
    /// lies before the next tensor.
    pub data: Bytes,
}

impl Gguf {
    /// Opens a file by mapping it into memory; no tensor is read or copied.
    ///
    /// A model may be split into files named `NAME-00001-of-00003.gguf`. Opening any part opens all of them: metadata
    /// is that of the first part without its `split.` keys, tensors are those of all parts in turn.
    ///
    /// The files must not be changed or shortened while the model or any of its tensors is in use.
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf, Error> {
        let path = path.as_ref();
        let part = open_part(path)?;
        match Split::of(&part).map_err(|error| error.in_file(path))? {
            None => Ok(Gguf::whole(part)),
            Some(split) => Gguf::join(path, part, split),
        }
    }

    /// Reads a model held in memory, such as one embedded in the program.
    ///
    /// Tensors are views into `bytes`, which should start at a multiple of [`Gguf::alignment`] if tensors are to be
    /// read as numbers in place; a map always does.
    pub fn from_bytes(bytes: Bytes) -> Result<Gguf, Error> {
        let part = Part::read(&bytes)?;
        match Split::of(&part)? {
            None => Ok(Gguf::whole(part)),
            Some(Split { index, count }) => Err(Error::SplitBytes { number: index + 1, count }),
        }
    }

    /// The version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Tensors start at a multiple of this many bytes in the file: a power of two, at least 8.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// What the file says about the model.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors, in file order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor with this name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    fn whole(part: Part) -> Gguf {
        let Part { version, alignment, mut metadata, tensors } = part;
        for key in [SPLIT_NUMBER, SPLIT_COUNT, SPLIT_TENSORS] {
            metadata.remove(key);
        }
        let by_name = tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.clone(), i)).collect();
        Gguf { version, alignment, metadata, tensors, by_name }
    }

    /// Opens the other parts of the model that `path`, already read as `part`, belongs to.
    fn join(path: &Path, part: Part, split: Split) -> Result<Gguf, Error> {
        let Split { index: opened, count } = split;
        let paths = part_paths(path, split).map_err(|error| error.in_file(path))?;
        let mut part = Some(part);
        let mut joined: Option<Part> = None;
        for (index, path) in (0..count).zip(paths) {
            let part = match part.take_if(|_| index == opened) {
                Some(part) => part,
                None if !path.exists() => return Err(Error::MissingPart { number: index + 1, count, path }),
                None => open_part(&path)?,
            };
            let check = match Split::of(&part) {
                Ok(Some(found)) if found == (Split { index, count }) => Ok(()),
                Ok(found) => {
                    let Split { index: found, count: found_count } =
                        found.unwrap_or(Split { index: 0, count: 1 });
                    Err(Error::Part { number: index, count, found, found_count })
                }
                Err(error) => Err(error),
            };
            check.map_err(|error| error.in_file(&path))?;
            match &mut joined {
                None => joined = Some(part),
                Some(first) => first.tensors.extend(part.tensors),
            }
        }
        let joined = joined.expect("a split has at least two parts");

        let expected = joined.metadata.u64(SPLIT_TENSORS).map_err(|error| error.in_file(path))?;
        let gguf = Gguf::whole(joined);
        let found = gguf.tensors.len() as u64;
        // A name that two parts share is in the list twice, but in the map once.
        if let Some((_, twice)) =
            gguf.tensors.iter().enumerate().find(|(i, tensor)| gguf.by_name[&tensor.name] != *i)
        {
            return Err(Error::DuplicateTensor { name: twice.name.clone() }.in_file(path));
        }
        match expected {
            Some(expected) if expected != found => Err(Error::PartTensors { expected, found }.in_file(path)),
            _ => Ok(gguf),
        }
    }
}

fn open_part(path: &Path) -> Result<Part, Error> {
    Part::read(&map(path)?).map_err(|error| error.in_file(path))
}

/// Which part of how many a file is.
#[derive(Clone, Copy, PartialEq)]
struct Split {
    /// From 0.
    index: u64,
    /// At least 2.
    count: u64,
}

impl Split {
    /// `None` if the file is a whole model.
    fn of(part: &Part) -> Result<Option<Split>, Error> {
        let count = u64::from(part.metadata.optional::<u16>(SPLIT_COUNT)?.unwrap_or(1));
        let index = part.metadata.u64(SPLIT_NUMBER)?.unwrap_or(0);
        match count {
            0 | 1 if index == 0 => Ok(None),
            _ if index >= count => Err(Error::PartNumber { number: index, count }),
            _ => Ok(Some(Split { index, count })),
        }
    }

    /// How the name of this part ends.
    fn suffix(&self) -> String {
        format!("-{:05}-of-{:05}.gguf", self.index + 1, self.count)
    }
}

/// Where the parts of the model are, given where one of them is.
fn part_paths(path: &Path, split: Split) -> Result<impl Iterator<Item = PathBuf>, Error> {
    let Split { index, count } = split;
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(stem) = name.strip_suffix(&split.suffix()) else {
        return Err(Error::PartName { number: index + 1, count, expected: split.suffix() });
    };
    Ok((0..count).map(move |index| path.with_file_name(format!("{stem}{}", Split { index, count }.suffix()))))
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {} ({} bytes)", self.name, self.shape, self.kind, self.data.len())
    }
}
