//! Reading one file: the header, the metadata, and the table of tensors checked against the bytes that are there.

use std::collections::HashSet;
use std::fmt::Display;

use bytes::Bytes;

use crate::Error;
use crate::gguf::Tensor;
use crate::metadata::Metadata;
use crate::tensor_type::TensorType;
use crate::value::{VALUE_BYTES_MIN, Value};

pub(crate) const MAGIC: &[u8; 4] = b"GGUF";
pub(crate) const ALIGNMENT_DEFAULT: u64 = 32;
/// A huge page; files use 32, some 4096.
const ALIGNMENT_MAX: u64 = 2 << 20;
/// GGML tensors have at most four dimensions.
pub(crate) const DIMENSIONS_MAX: usize = 4;
/// The longest key the GGUF specification allows; tensor names share the limit.
pub(crate) const NAME_BYTES_MAX: u64 = 65535;
/// The shortest a key with its value, and an entry in the table of tensors, can be.
const KEY_BYTES_MIN: u64 = 8 + 4 + VALUE_BYTES_MIN;
const TENSOR_BYTES_MIN: u64 = 8 + 4 + 4 + 8;

/// What one file holds.
#[derive(Debug)]
pub(crate) struct Part {
    pub version: u32,
    pub alignment: u64,
    pub metadata: Metadata,
    pub tensors: Vec<Tensor>,
}

impl Part {
    pub(crate) fn read(file: &Bytes) -> Result<Part, Error> {
        let mut cursor = Cursor { rest: file };
        let version = read_version(&mut cursor)?;
        let tensor_count = u64::from_le_bytes(cursor.array(&"the number of tensors")?);
        let key_count = u64::from_le_bytes(cursor.array(&"the number of metadata keys")?);
        let keys_min = key_count.saturating_mul(KEY_BYTES_MIN);
        let tensors_min = tensor_count.saturating_mul(TENSOR_BYTES_MIN);
        cursor.expect(keys_min, &format_args!("metadata of {key_count} keys"))?;
        cursor.expect(tensors_min, &format_args!("a table of {tensor_count} tensors"))?;

        let mut metadata = Metadata::default();
        for index in 0..key_count {
            let key = cursor.name(&format_args!("the name of metadata key {index}"))?;
            let id = u32::from_le_bytes(cursor.array(&format_args!("the type of `{key}`"))?);
            let value = Value::read(&mut cursor, key, id)?;
            if metadata.insert(key, value).is_some() {
                return Err(Error::DuplicateKey { key: key.into() });
            }
        }
        let alignment = alignment(&metadata)?;

        let mut names = HashSet::new();
        let mut entries = Vec::new();
        for index in 0..tensor_count {
            let entry = Entry::read(&mut cursor, index)?;
            if !names.insert(entry.name) {
                return Err(Error::DuplicateTensor { name: entry.name.into() });
            }
            entries.push(entry);
        }

        let header = file.len() - cursor.rest.len();
        let data = file.slice(header.next_multiple_of(alignment as usize).min(file.len())..);
        let tensors = place(entries, alignment, data)?;
        Ok(Part { version, alignment, metadata, tensors })
    }
}

fn read_version(cursor: &mut Cursor) -> Result<u32, Error> {
    let magic: [u8; 4] = cursor.array(&"the magic \"GGUF\"")?;
    let version: [u8; 4] = cursor.array(&"the version")?;
    // Big-endian writers agree only on the version being swapped.
    let swapped = u32::from_be_bytes(version);
    match (&magic, u32::from_le_bytes(version)) {
        (b"FUGG", _) => Err(Error::BigEndian),
        (MAGIC, _) if (1..=255).contains(&swapped) => Err(Error::BigEndian),
        (MAGIC, version @ 2..=3) => Ok(version),
        (MAGIC, found) => Err(Error::Version { found }),
        _ => Err(Error::Magic { found: magic.escape_ascii().to_string() }),
    }
}

/// `general.alignment`, or the default.
pub(crate) fn alignment(metadata: &Metadata) -> Result<u64, Error> {
    let alignment = metadata.u64("general.alignment")?.unwrap_or(ALIGNMENT_DEFAULT);
    if !alignment.is_power_of_two() || !(8..=ALIGNMENT_MAX).contains(&alignment) {
        return Err(Error::Alignment { found: alignment, max: ALIGNMENT_MAX });
    }
    Ok(alignment)
}

/// One line of the table of tensors.
struct Entry<'a> {
    name: &'a str,
    shape: Vec<u64>,
    kind_id: u32,
    /// From the start of the data.
    offset: u64,
}

impl<'a> Entry<'a> {
    fn read(cursor: &mut Cursor<'a>, index: u64) -> Result<Entry<'a>, Error> {
        let name = cursor.name(&format_args!("the name of tensor {index}"))?;
        let what = &format_args!("the table entry of tensor `{name}`");
        let dimensions = u32::from_le_bytes(cursor.array(what)?);
        if dimensions as usize > DIMENSIONS_MAX {
            return Err(Error::Dimensions {
                name: name.into(),
                found: dimensions.into(),
                max: DIMENSIONS_MAX,
            });
        }
        let mut shape = Vec::with_capacity(dimensions as usize);
        for _ in 0..dimensions {
            shape.push(u64::from_le_bytes(cursor.array(what)?));
        }
        let kind_id = u32::from_le_bytes(cursor.array(what)?);
        let offset = u64::from_le_bytes(cursor.array(what)?);
        Ok(Entry { name, shape, kind_id, offset })
    }
}

/// Gives every tensor its bytes, in the order of the table.
fn place(entries: Vec<Entry>, alignment: u64, data: Bytes) -> Result<Vec<Tensor>, Error> {
    let mut by_offset: Vec<usize> = (0..entries.len()).collect();
    by_offset.sort_by_key(|&i| entries[i].offset);
    let mut placed: Vec<Option<Tensor>> = entries.iter().map(|_| None).collect();
    // The tensor that reaches furthest so far, and where it ends.
    let mut last: Option<(usize, u64)> = None;

    for (position, &i) in by_offset.iter().enumerate() {
        let Entry { name, shape, kind_id, offset } = &entries[i];
        if !offset.is_multiple_of(alignment) {
            return Err(Error::Misaligned { name: (*name).into(), offset: *offset, alignment });
        }
        let left = (data.len() as u64).saturating_sub(*offset);
        // What the tensor has at most: up to the next one, or to the end of the file.
        let room = by_offset.get(position + 1).map_or(left, |&next| left.min(entries[next].offset - offset));
        let kind = resolve(*kind_id, shape, room, left, alignment);
        let length = match data_bytes(name, shape, kind)? {
            Some(length) => length,
            None => room,
        };
        if *offset > data.len() as u64 || length > left {
            return Err(Error::OutOfFile {
                name: (*name).into(),
                kind: kind.to_string(),
                shape: shape.clone(),
                offset: *offset,
                length,
                data: data.len() as u64,
            });
        }
        let end = offset + length;
        if let Some((first, end)) = last
            && *offset < end
            && length > 0
        {
            let first = entries[first].name.into();
            return Err(Error::Overlap { first, second: (*name).into(), offset: *offset, end });
        }
        if last.is_none_or(|(_, furthest)| end > furthest) {
            last = Some((i, end));
        }
        let data = data.slice(*offset as usize..end as usize);
        placed[i] = Some(Tensor { name: (*name).into(), shape: shape.clone(), kind, data });
    }
    Ok(placed.into_iter().map(|tensor| tensor.expect("every entry has a place in the order")).collect())
}

/// The type behind an id. Where writers disagree (see `tensor_type`), the length that the tensor occupies decides: the
/// room it has, less padding.
fn resolve(id: u32, shape: &[u64], room: u64, left: u64, alignment: u64) -> TensorType {
    let length = |kind: &TensorType| data_bytes("", shape, *kind).ok().flatten();
    let fits = |kind: &TensorType| length(kind).is_some_and(|n| n <= room && room - n < alignment);
    // In a file cut short nothing may fit; then the likeliest meaning makes the better message.
    let cut = |kind: &TensorType| room == left && length(kind).is_some_and(|n| n > left);
    let kind =
        TensorType::candidates(id).find(fits).or_else(|| TensorType::candidates(id).next().filter(cut));
    kind.unwrap_or_else(|| TensorType::from_id(id))
}

/// Bytes that a tensor of this shape and type needs; `None` if the type is unknown.
pub(crate) fn data_bytes(name: &str, shape: &[u64], kind: TensorType) -> Result<Option<u64>, Error> {
    let overflow = || Error::Overflow { name: name.into(), shape: shape.into() };
    let product = |shape: &[u64]| shape.iter().try_fold(1, |n: u64, x| n.checked_mul(*x));
    product(shape).ok_or_else(overflow)?;
    let Some((block, _)) = kind.block() else { return Ok(None) };
    let row = shape.first().copied().unwrap_or(1);
    if !row.is_multiple_of(block as u64) {
        return Err(Error::RowLength { name: name.into(), row, block, kind: kind.to_string() });
    }
    let rows = product(shape.get(1..).unwrap_or_default());
    let length = kind.row_bytes(row).and_then(|n| n.checked_mul(rows?));
    length.map(Some).ok_or_else(overflow)
}

/// The bytes not yet read. `what`, in each method, is what an error says was being read.
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// Checks that so many bytes are left.
    pub(crate) fn expect(&self, needed: u64, what: &dyn Display) -> Result<(), Error> {
        let left = self.rest.len() as u64;
        if needed > left {
            return Err(Error::Truncated { what: what.to_string(), needed, left });
        }
        Ok(())
    }

    /// The next so many bytes.
    pub(crate) fn take(&mut self, bytes: u64, what: &dyn Display) -> Result<&'a [u8], Error> {
        self.expect(bytes, what)?;
        let (taken, rest) = self.rest.split_at(bytes as usize);
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self, what: &dyn Display) -> Result<[u8; N], Error> {
        let taken = self.take(N as u64, what)?;
        Ok(taken.try_into().expect("take returns as many bytes as asked"))
    }

    /// A string value; what is not UTF-8 is replaced.
    pub(crate) fn text(&mut self, what: &dyn Display) -> Result<String, Error> {
        let length = u64::from_le_bytes(self.array(what)?);
        let bytes = self.take(length, &format_args!("a string of {length} bytes in {what}"))?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    /// The name of a key or tensor, which must be short and valid UTF-8.
    fn name(&mut self, what: &dyn Display) -> Result<&'a str, Error> {
        let length = u64::from_le_bytes(self.array(what)?);
        if length > NAME_BYTES_MAX {
            return Err(Error::NameLength { what: what.to_string(), found: length, max: NAME_BYTES_MAX });
        }
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|_| Error::Utf8 { what: what.to_string() })
    }
}

#[cfg(test)]
mod tests;
