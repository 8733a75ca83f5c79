//! Checks the formats, the rotation and the attention pipeline against recorded vectors.
//!
//! A file is a safetensors file; its metadata says what it records:
//!
//! - `type`: a format. `CASE.input` f32 `[rows, k]`, `CASE.encoded` u8 `[rows, row bytes]`, `CASE.decoded`
//!   f32 `[rows, k]`; for rotated formats `CASE.decoded_unrotated`, after the inverse rotation; where the
//!   quantiser of whole tensors searches longer, `CASE.encoded_quantize`.
//! - `op`: the rotation. `gG.fwd`, `gG.inv` for groups of G, each with `.input` and `.output`;
//!   `innerq.*` with a scale a channel; `auto192.*` in groups of 64.
//! - `graph`: attention. `hD.q`, `hD.k`, `hD.v`, `hD.mask`, and for every pair `hD.K.V.k_bytes`, `.v_bytes`, `.out`.
//!
//! Bytes must be equal, decoded values equal to the bit, attention outputs equal to
//! rounding, as one vector.

mod attention;
mod turbo4_published;

use crate::format::{self, Format, FormatOps, Rotation};
use crate::formats::Iq4Nl;
use crate::rotate;
use attention::{Side, attend};
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use turbo4_published::Turbo4Published;

/// What one recorded tensor said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The format, `rotation`, or `attention`.
    pub subject: String,
    /// The case and the part of it, such as `gauss.encoded`.
    pub case: String,
    /// Bytes or values that differ; 0 or 1 for a whole attention output.
    pub differing: usize,
    /// How many were compared.
    pub total: usize,
}

impl Outcome {
    /// Whether all agreed.
    pub fn passed(&self) -> bool {
        self.differing == 0
    }
}

/// Why a file of vectors could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum ConformanceError {
    /// Not a safetensors file.
    #[error("not a safetensors file: {0}")]
    File(#[from] SafeTensorError),
    /// The metadata does not say what is recorded.
    #[error("the metadata has none of `type`, `op` and `graph`")]
    Kind,
    /// A format that is not in the list.
    #[error("unknown format `{0}`")]
    Format(String),
    /// A tensor that a case needs.
    #[error("tensor `{tensor}`: expected {expected}, found {found}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// Type and shape it should have.
        expected: String,
        /// Type and shape it has, or that it is missing.
        found: String,
    },
}

/// Checks one file, given whole.
pub fn verify(file: &[u8]) -> Result<Vec<Outcome>, ConformanceError> {
    let (_, header) = SafeTensors::read_metadata(file)?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let vectors = Vectors(SafeTensors::deserialize(file)?);
    let mut outcomes = if let Some(name) = metadata.get("type") {
        vectors.format(&recorded_format(name)?)?
    } else if metadata.contains_key("op") {
        vectors.rotation()?
    } else if metadata.contains_key("graph") {
        vectors.attention()?
    } else {
        return Err(ConformanceError::Kind);
    };
    outcomes.sort_by(|a, b| a.case.cmp(&b.case));
    Ok(outcomes)
}

/// The format as recorded: our own, but for turbo4, which has better levels here.
fn recorded_format(name: &str) -> Result<FormatOps, ConformanceError> {
    if name == Turbo4Published::NAME {
        return Ok(FormatOps::of::<Turbo4Published>());
    }
    format::by_name(name).copied().ok_or_else(|| ConformanceError::Format(name.to_owned()))
}

struct Vectors<'a>(SafeTensors<'a>);

impl Vectors<'_> {
    /// Names of the cases: everything before the last dot of the tensors called `*.part`.
    fn cases(&self, part: &str) -> Vec<String> {
        let case = |name: &&str| name.strip_suffix(part)?.strip_suffix('.').map(str::to_owned);
        self.0.names().iter().filter_map(case).collect()
    }

    /// A tensor of so many dimensions, its shape, and its bytes.
    fn tensor(&self, name: &str, dtype: Dtype, dims: usize) -> Result<(Vec<usize>, &[u8]), ConformanceError> {
        let expected = || format!("{dtype:?} of {dims} dimensions");
        let error =
            |found: String| ConformanceError::Tensor { tensor: name.into(), expected: expected(), found };
        let view = self.0.tensor(name).map_err(|_| error("none".into()))?;
        if view.dtype() != dtype || view.shape().len() != dims || view.shape().contains(&0) {
            return Err(error(format!("{:?} {:?}", view.dtype(), view.shape())));
        }
        Ok((view.shape().to_vec(), view.data()))
    }

    fn f32(&self, name: &str, dims: usize) -> Result<(Vec<usize>, Vec<f32>), ConformanceError> {
        let (shape, bytes) = self.tensor(name, Dtype::F32, dims)?;
        Ok((shape, floats(bytes)))
    }

    /// A tensor of a given shape, as bytes; an error if it has another.
    fn shaped(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&[u8], ConformanceError> {
        let (found, bytes) = self.tensor(name, dtype, shape.len())?;
        if found != shape {
            let (expected, found) = (format!("{dtype:?} {shape:?}"), format!("{found:?}"));
            return Err(ConformanceError::Tensor { tensor: name.into(), expected, found });
        }
        Ok(bytes)
    }

    fn shaped_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ConformanceError> {
        Ok(floats(self.shaped(name, Dtype::F32, shape)?))
    }

    fn format(&self, format: &FormatOps) -> Result<Vec<Outcome>, ConformanceError> {
        let mut outcomes = Vec::new();
        let mut push = |case: String, (differing, total)| {
            outcomes.push(Outcome { subject: format.name.to_owned(), case, differing, total });
        };
        for case in self.cases("input") {
            let name = |part: &str| format!("{case}.{part}");
            let (shape, input) = self.f32(&name("input"), 2)?;
            let [rows, k] = shape[..] else { unreachable!("two dimensions") };
            if !format.fits(k) {
                let expected = format!("rows of whole blocks of {}", format.block);
                return Err(ConformanceError::Tensor {
                    tensor: name("input"),
                    expected,
                    found: format!("{k}"),
                });
            }
            let row_bytes = format.row_bytes(k);

            let encoded = self.shaped(&name("encoded"), Dtype::U8, &[rows, row_bytes])?;
            push(name("encoded"), (differing_bytes(format, &input, encoded, k), encoded.len()));

            let quantized = name("encoded_quantize");
            if format.name == Iq4Nl::NAME && self.0.names().contains(&quantized.as_str()) {
                let searched = FormatOps { encode: Iq4Nl::encode_searched, ..*format };
                let encoded = self.shaped(&quantized, Dtype::U8, &[rows, row_bytes])?;
                push(quantized, (differing_bytes(&searched, &input, encoded, k), encoded.len()));
            }

            let decoded = self.shaped_f32(&name("decoded"), &[rows, k])?;
            let mut y = vec![0.0; rows * k];
            encoded.chunks(row_bytes).zip(y.chunks_mut(k)).for_each(|(row, y)| format.decode_row(row, y));
            push(name("decoded"), (count(y.iter().zip(&decoded), same), y.len()));

            if format.rotation == Rotation::Head {
                let expected = self.shaped_f32(&name("decoded_unrotated"), &[rows, k])?;
                y.chunks_mut(128).for_each(rotate::wht_inverse);
                push(name("decoded_unrotated"), (count(y.iter().zip(&expected), same), y.len()));
            }
        }
        Ok(outcomes)
    }

    fn rotation(&self) -> Result<Vec<Outcome>, ConformanceError> {
        let mut outcomes = Vec::new();
        for case in self.cases("input") {
            let (shape, mut x) = self.f32(&format!("{case}.input"), 2)?;
            let expected = self.shaped_f32(&format!("{case}.output"), &shape)?;
            let (kind, inverse) = (case.split('.').next().unwrap_or_default(), case.ends_with(".inv"));
            let group = match kind {
                "g32" => 32,
                "g64" | "auto192" => 64,
                _ => 128,
            };
            let scale = match kind {
                "innerq" => self.shaped_f32("innerq.scale_inv", &[group])?,
                _ => vec![1.0; group],
            };
            if !shape[1].is_multiple_of(group) {
                let (expected, found) = (format!("rows of groups of {group}"), format!("{shape:?}"));
                return Err(ConformanceError::Tensor { tensor: format!("{case}.input"), expected, found });
            }
            for x in x.chunks_mut(group) {
                if inverse {
                    rotate::wht_inverse(x);
                }
                x.iter_mut().zip(&scale).for_each(|(x, c)| *x *= c);
                if !inverse {
                    rotate::wht_forward(x);
                }
            }
            let differing = count(x.iter().zip(&expected), same);
            outcomes.push(Outcome { subject: "rotation".into(), case, differing, total: x.len() });
        }
        Ok(outcomes)
    }

    fn attention(&self) -> Result<Vec<Outcome>, ConformanceError> {
        let mut outcomes = Vec::new();
        for pair in self.cases("out") {
            let name = |part: &str| format!("{pair}.{part}");
            let [size, k_name, v_name] = pair.split('.').collect::<Vec<_>>()[..] else {
                return Err(ConformanceError::Format(pair));
            };
            let (k_format, v_format) = (recorded_format(k_name)?, recorded_format(v_name)?);
            let (q_shape, mut q) = self.f32(&format!("{size}.q"), 3)?;
            let (k_shape, k) = self.f32(&format!("{size}.k"), 3)?;
            let v = self.shaped_f32(&format!("{size}.v"), &k_shape)?;
            let [queries, heads, head_dim] = q_shape[..] else { unreachable!("three dimensions") };
            let [tokens, kv_heads] = k_shape[..2] else { unreachable!("three dimensions") };
            let whole = |format: &FormatOps| format.rotation == Rotation::Head || format.fits(head_dim);
            if k_shape[2] != head_dim
                || !heads.is_multiple_of(kv_heads)
                || !whole(&k_format)
                || !whole(&v_format)
            {
                let expected = format!("heads like those of {q_shape:?}, whole blocks each");
                let found = format!("{k_shape:?}");
                return Err(ConformanceError::Tensor { tensor: format!("{size}.k"), expected, found });
            }
            let mask = self.shaped_f32(&format!("{size}.mask"), &[queries, tokens])?;
            let k = Side::write(&k_format, &k, kv_heads, head_dim);
            let v = Side::write(&v_format, &v, kv_heads, head_dim);
            for (part, side) in [("k_bytes", &k), ("v_bytes", &v)] {
                let expected = self.shaped(&name(part), Dtype::U8, &[tokens, side.bytes.len() / tokens])?;
                let differing = count(side.bytes.iter().zip(expected), |a, b| a == b);
                let (subject, total) = ("attention".into(), expected.len());
                outcomes.push(Outcome { subject, case: name(part), differing, total });
            }

            let expected = self.shaped_f32(&name("out"), &[queries, heads, v.width])?;
            // The recording multiplies such keys by a rounded query.
            let query_format = match k_name {
                "q8_0" | "q4_0" => Some("q8_0"),
                "f16" => Some("f16"),
                _ => None,
            };
            if let Some(format) = query_format.and_then(format::by_name) {
                let mut row = vec![0; format.row_bytes(q.len())];
                format.encode_row(&q, &mut row);
                format.decode_row(&row, &mut q);
            }
            let out = attend(&q, &k, &v, &mask, heads, kv_heads, head_dim);
            // Where a side is f16 the recording multiplies and sums in half precision.
            let tolerance = if k_name == "f16" || v_name == "f16" { 2e-3 } else { 1e-5 };
            let near = distance(&out, &expected) <= tolerance * distance(&expected, &[]);
            let (subject, differing) = ("attention".into(), usize::from(!near));
            outcomes.push(Outcome { subject, case: name("out"), differing, total: 1 });
        }
        Ok(outcomes)
    }
}

/// How many bytes of the blocks of `x`, rows of k values, are not as `expected`.
fn differing_bytes(format: &FormatOps, x: &[f32], expected: &[u8], k: usize) -> usize {
    let mut bytes = vec![0; expected.len()];
    let rows = x.chunks(k).zip(bytes.chunks_mut(format.row_bytes(k)));
    rows.for_each(|(x, row)| format.encode_row(x, row));
    let blocks = bytes.chunks(format.bytes).zip(expected.chunks(format.bytes));
    let differing = blocks.zip(x.chunks(format.block)).map(|((found, expected), x)| {
        // The recording leaves the codes of blocks without a scale undefined.
        let blank = format.name == Iq4Nl::NAME && x.iter().all(|x| x.abs() < 1e-15);
        let compared = if blank { 2 } else { found.len() };
        count(found[..compared].iter().zip(expected), |a, b| a == b)
    });
    differing.sum()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// The length of `a − b`, what is missing of b being zero.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let b = b.iter().chain(std::iter::repeat(&0.0));
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt()
}

/// How many pairs are not the same.
fn count<A, B>(pairs: impl Iterator<Item = (A, B)>, same: impl Fn(A, B) -> bool) -> usize {
    pairs.map(|(a, b)| usize::from(!same(a, b))).sum()
}

/// The same bits, or both NaN.
fn same(a: &f32, b: &f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    fn files() -> Vec<PathBuf> {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/conformance"));
        let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
        files.retain(|f| f.extension().is_some_and(|e| e == "safetensors"));
        files.sort();
        files
    }

    #[test]
    fn every_file_passes() {
        let mut failures = Vec::new();
        for path in files() {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            match verify(&std::fs::read(&path).unwrap()) {
                Ok(outcomes) => {
                    assert!(!outcomes.is_empty(), "{name}");
                    failures.extend(outcomes.into_iter().filter(|o| !o.passed()).map(|o| format!("{o:?}")));
                }
                Err(error) => failures.push(format!("{name}: {error}")),
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }

    #[test]
    fn a_corrupted_byte_fails() {
        for path in files() {
            let mut file = std::fs::read(&path).unwrap();
            let (length, header) = SafeTensors::read_metadata(&file).unwrap();
            let tensors = header.tensors();
            let exact = |name: &str| {
                ["gauss.encoded", "gauss.decoded", ".output", "_bytes"].iter().any(|end| name.ends_with(end))
            };
            let exact: Vec<_> = tensors.iter().filter(|(name, _)| exact(name)).collect();
            assert!(exact.len() >= 2, "{}", path.display());
            for (name, tensor) in exact {
                let last = 8 + length + tensor.data_offsets.1 - 1;
                file[last] ^= 0x40;
                let failed = verify(&file).unwrap().iter().filter(|o| !o.passed()).count();
                assert!(failed > 0, "{name} of {}", path.display());
                file[last] ^= 0x40;
            }
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(matches!(verify(b"nonsense"), Err(ConformanceError::File(_))));
        assert!(matches!(verify(b"\x02\0\0\0\0\0\0\0{}"), Err(ConformanceError::Kind)));
    }
}
