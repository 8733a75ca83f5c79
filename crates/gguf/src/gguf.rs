//! An open model: the metadata and tensors of one file, or of all the parts of a split one.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::Error;
use crate::map::map;
use crate::metadata::Metadata;
use crate::read::{Part, alignment, data_bytes};
use crate::tensor_type::TensorType;

const SPLIT_NUMBER: &str = "split.no";
const SPLIT_COUNT: &str = "split.count";
const SPLIT_TENSORS: &str = "split.tensors.count";

/// A model read from GGUF. Cloning shares the map.
#[derive(Clone, Debug)]
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

    /// A model of tensors that are in memory already, and need not lie in one piece.
    pub fn from_tensors(metadata: Metadata, tensors: Vec<Tensor>) -> Result<Gguf, Error> {
        let alignment = alignment(&metadata)?;
        for Tensor { name, shape, kind, data } in &tensors {
            let found = data.len() as u64;
            if let Some(expected) = data_bytes(name, shape, *kind)?.filter(|expected| *expected != found) {
                let (name, kind, shape) = (name.clone(), kind.to_string(), shape.clone());
                return Err(Error::SourceLength { name, kind, shape, expected, found });
            }
        }
        let mut gguf = Gguf { version: 3, alignment, metadata, tensors: Vec::new(), by_name: HashMap::new() };
        gguf.append(tensors)?;
        Ok(gguf)
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

    /// The whole model that `path`, already read as `part`, is a part of.
    fn join(path: &Path, part: Part, split: Split) -> Result<Gguf, Error> {
        let paths = split.paths(path).map_err(|error| error.in_file(path))?;
        let mut opened = Some(part);
        let mut next = |path: &Path, place: Split| match opened.take_if(|_| place == split) {
            Some(part) => Ok(part),
            None if !path.exists() => {
                Err(Error::MissingPart { number: place.index + 1, count: place.count, path: path.into() })
            }
            None => {
                let part = open_part(path)?;
                place.check(&part).map_err(|error| error.in_file(path))?;
                Ok(part)
            }
        };

        let mut paths = paths.into_iter();
        let (first_path, place) = paths.next().expect("a split has at least two parts");
        let first = next(&first_path, place)?;
        let expected = first.metadata.u64(SPLIT_TENSORS).map_err(|error| error.in_file(&first_path))?;
        let mut gguf = Gguf::whole(first);
        for (path, place) in paths {
            gguf.append(next(&path, place)?.tensors).map_err(|error| error.in_file(&path))?;
        }

        let found = gguf.tensors.len() as u64;
        match expected {
            Some(expected) if expected != found => {
                Err(Error::PartTensors { expected, found }.in_file(&first_path))
            }
            _ => Ok(gguf),
        }
    }

    /// Adds tensors.
    fn append(&mut self, tensors: Vec<Tensor>) -> Result<(), Error> {
        for tensor in tensors {
            if self.by_name.insert(tensor.name.clone(), self.tensors.len()).is_some() {
                return Err(Error::DuplicateTensor { name: tensor.name });
            }
            self.tensors.push(tensor);
        }
        Ok(())
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

    /// Checks that a file is this part.
    fn check(self, part: &Part) -> Result<(), Error> {
        let found = match Split::of(part)? {
            Some(found) if found == self => return Ok(()),
            Some(found) => format!("part {} of {}", found.index + 1, found.count),
            None => "a whole model".into(),
        };
        Err(Error::Part { number: self.index + 1, count: self.count, found })
    }

    /// How the name of this part ends.
    fn suffix(self) -> String {
        format!("-{:05}-of-{:05}.gguf", self.index + 1, self.count)
    }

    /// Where each part of the model is, given that this one is at `path`.
    fn paths(self, path: &Path) -> Result<Vec<(PathBuf, Split)>, Error> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(stem) = name.strip_suffix(&self.suffix()) else {
            return Err(Error::PartName {
                number: self.index + 1,
                count: self.count,
                expected: self.suffix(),
            });
        };
        let places = (0..self.count).map(|index| Split { index, ..self });
        Ok(places.map(|place| (path.with_file_name(format!("{stem}{}", place.suffix())), place)).collect())
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {} ({} bytes)", self.name, self.shape, self.kind, self.data.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Writer;

    /// Every `.gguf` file of the shared data.
    fn shared_files() -> Vec<PathBuf> {
        let shared = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared"));
        let list =
            |folder| std::fs::read_dir(shared.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        let files = ["zoo", "vocab", "demo"].into_iter().flat_map(list);
        files.filter(|path| path.extension().is_some_and(|x| x == "gguf")).collect()
    }

    #[test]
    fn real_files_open_and_tensors_have_the_length_of_their_type_and_shape() {
        let files = shared_files();
        assert!(files.len() > 50, "{files:?}");
        for path in files {
            let gguf = Gguf::open(&path).unwrap_or_else(|error| panic!("{error}"));
            assert!(gguf.metadata().string("general.architecture").unwrap().is_some(), "{path:?}");
            let mut bytes = 0;
            for tensor in gguf.tensors() {
                let rows: u64 = tensor.shape[1..].iter().product();
                let expected = tensor.kind.row_bytes(tensor.shape[0]).expect("no unknown types") * rows;
                assert_eq!(tensor.data.len() as u64, expected, "{path:?} {tensor:?}");
                assert!(tensor.data.as_ptr().addr().is_multiple_of(gguf.alignment() as usize));
                bytes += tensor.data.len().next_multiple_of(gguf.alignment() as usize);
            }
            // Nothing in these files is unaccounted for.
            let last =
                gguf.tensors().iter().map(|tensor| tensor.data.as_ptr().addr() + tensor.data.len()).max();
            let first = gguf.tensors().iter().map(|tensor| tensor.data.as_ptr().addr()).min();
            let span = last.zip(first).map_or(0, |(last, first)| last - first);
            assert_eq!(span.next_multiple_of(gguf.alignment() as usize), bytes, "{path:?}");
        }
    }

    #[test]
    fn tensors_in_memory_are_a_model() {
        let tensor = |name: &str, bytes: usize| Tensor {
            name: name.into(),
            shape: vec![2, 3],
            kind: TensorType::F32,
            data: vec![0; bytes].into(),
        };
        let open = |tensors| Gguf::from_tensors(Metadata::default(), tensors);
        let gguf = open(vec![tensor("a", 24), tensor("b", 24)]).unwrap();
        assert_eq!((gguf.tensors().len(), gguf.tensor("b").unwrap().data.len()), (2, 24));
        let error = |tensors| open(tensors).unwrap_err().to_string();
        assert_eq!(error(vec![tensor("a", 24), tensor("a", 24)]), "tensor `a` appears twice");
        assert!(error(vec![tensor("a", 23)]).contains("23"), "{}", error(vec![tensor("a", 23)]));
    }

    #[test]
    fn turboquant_weights_are_recognised() {
        for (name, kind) in [("llama-q-TQ3_1S", "tq3_1s"), ("llama-q-TQ4_1S", "tq4_1s")] {
            let path = shared_files().into_iter().find(|path| path.file_stem().unwrap() == name).unwrap();
            let gguf = Gguf::open(path).unwrap();
            assert_eq!(gguf.tensor("blk.0.ffn_up.weight").unwrap().kind.name(), kind);
        }
    }

    /// Writes a part with these `split.` keys and f32 tensors of one element, whose value is the length of their name.
    fn write_part(path: &Path, keys: &[(&str, u32)], tensors: &[&str]) {
        let mut metadata: Metadata =
            keys.iter().map(|(key, value)| (format!("split.{key}"), *value)).collect();
        metadata.insert("file", path.file_name().unwrap().to_str().unwrap());
        let mut writer = Writer::new(metadata).unwrap();
        for name in tensors {
            let one = (name.len() as f32).to_le_bytes();
            writer.tensor(*name, &[1], TensorType::F32, one.to_vec()).unwrap();
        }
        writer.write(path).unwrap();
    }

    /// A directory with a model in three parts.
    fn split_model() -> (tempfile::TempDir, [PathBuf; 3]) {
        let directory = tempfile::tempdir().unwrap();
        let paths = [1, 2, 3].map(|i| directory.path().join(format!("tiny-0000{i}-of-00003.gguf")));
        write_part(&paths[0], &[("no", 0), ("count", 3), ("tensors.count", 4)], &[]);
        write_part(&paths[1], &[("no", 1), ("count", 3), ("tensors.count", 4)], &["a", "bb", "ccc"]);
        write_part(&paths[2], &[("no", 2), ("count", 3), ("tensors.count", 4)], &["dddd"]);
        (directory, paths)
    }

    #[test]
    fn any_part_opens_the_whole_model() {
        let (directory, paths) = split_model();
        for path in &paths {
            let gguf = Gguf::open(path).unwrap();
            assert_eq!(gguf.metadata().string("file").unwrap(), Some("tiny-00001-of-00003.gguf"));
            assert_eq!(gguf.metadata().len(), 1, "no `split.` keys");
            for (i, name) in ["a", "bb", "ccc", "dddd"].into_iter().enumerate() {
                assert_eq!(gguf.tensors()[i].name, name);
                assert_eq!(gguf.tensor(name).unwrap().data, (i as f32 + 1.0).to_le_bytes()[..]);
            }
        }
        // One part of one is a whole model under any name.
        let single = directory.path().join("single.gguf");
        write_part(&single, &[("no", 0), ("count", 1), ("tensors.count", 1)], &["a"]);
        assert_eq!(Gguf::open(single).unwrap().tensors().len(), 1);
    }

    #[test]
    fn broken_splits_name_the_part() {
        /// Breaks a sound split and opens its second part.
        #[track_caller]
        fn check(break_it: impl FnOnce(&[PathBuf; 3]), file: usize, expected: &str) {
            let (directory, paths) = split_model();
            break_it(&paths);
            let found = Gguf::open(&paths[1]).unwrap_err().to_string();
            let expected = expected.replace("DIR", &directory.path().display().to_string());
            match file {
                0 => assert_eq!(found, expected),
                _ => assert_eq!(found, format!("`{}`: {expected}", paths[file - 1].display())),
            }
        }
        let part = |number, count| [("no", number), ("count", count), ("tensors.count", 4)];
        check(
            |paths| std::fs::remove_file(&paths[2]).unwrap(),
            0,
            "part 3 of 3 is missing: no file `DIR/tiny-00003-of-00003.gguf`",
        );
        check(
            |paths| write_part(&paths[2], &part(1, 3), &["dddd"]),
            3,
            "this is part 2 of 3, expected part 3 of 3",
        );
        check(|paths| write_part(&paths[0], &[], &[]), 1, "this is a whole model, expected part 1 of 3");
        check(
            |paths| write_part(&paths[2], &part(2, 3), &["dddd", "e"]),
            1,
            "`split.tensors.count` is 4, but the parts have 5 tensors",
        );
        check(|paths| write_part(&paths[2], &part(2, 3), &["a"]), 3, "tensor `a` appears twice");
        check(|paths| write_part(&paths[1], &part(3, 3), &[]), 2, "`split.no` is 3, but `split.count` is 3");
        check(
            |paths| write_part(&paths[1], &part(1, 4), &[]),
            2,
            "the file says it is part 2 of 4, so its name must end in `-00002-of-00004.gguf`",
        );
        check(
            |paths| write_part(&paths[1], &part(1, 70_000), &[]),
            2,
            "metadata key `split.count` is u32 70000, expected u16",
        );
        check(
            |paths| std::fs::write(&paths[0], b"GG").unwrap(),
            1,
            "the magic \"GGUF\" needs 4 bytes, but the file has 2 left: truncated, or the number is wrong",
        );
        let bytes = |paths: &[PathBuf; 3]| Bytes::from(std::fs::read(&paths[1]).unwrap());
        let error = Gguf::from_bytes(bytes(&split_model().1)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "part 2 of 3 of a split model, expected a whole one; open it from its files"
        );
    }

    #[test]
    fn files_that_cannot_be_opened_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing.gguf");
        let error = Gguf::open(&missing).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot open `{}`: ", missing.display())), "{error}");
        let error = Gguf::open(directory.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("`{}`", directory.path().display())), "{error}");
    }
}
