//! The recorded attention pipeline in plain loops: heads padded to 128 where the format rotates, written to
//! the cache, decoded, and attended to.

use crate::format::{FormatOps, Rotation};
use crate::rotate;

/// One side of a recorded cache.
pub(super) struct Side {
    /// `[tokens, row bytes]`
    pub(super) bytes: Vec<u8>,
    /// Decoded: `[tokens, kv_heads, width]`
    values: Vec<f32>,
    /// Values of a head: `head_dim`, for rotated formats padded to a multiple of 128.
    pub(super) width: usize,
    rotated: bool,
}

impl Side {
    /// `x` `[tokens, kv_heads, head_dim]`.
    pub(super) fn write(format: &FormatOps, x: &[f32], kv_heads: usize, head_dim: usize) -> Side {
        let rotated = format.rotation == Rotation::Head;
        let width = if rotated { head_dim.next_multiple_of(128) } else { head_dim };
        let mut values = Vec::new();
        for head in x.chunks(head_dim) {
            values.extend_from_slice(head);
            values.resize(values.len() + width - head_dim, 0.0);
        }
        let row = kv_heads * width;
        let mut bytes = vec![0; format.row_bytes(values.len())];
        for (x, row) in values.chunks_mut(row).zip(bytes.chunks_mut(format.row_bytes(row))) {
            format.encode_row(x, row);
            format.decode_row(row, x);
        }
        Side { bytes, values, width, rotated }
    }
}

/// Plain attention over decoded caches; `q` `[queries, heads, head_dim]`, answer `[queries, heads, v.width]`.
pub(super) fn attend(
    q: &[f32],
    k: &Side,
    v: &Side,
    mask: &[f32],
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
) -> Vec<f32> {
    let tokens = k.values.len() / (kv_heads * k.width);
    let mut out = Vec::new();
    for (i, q) in q.chunks(head_dim).enumerate() {
        let (mask, kv_head) = (&mask[i / heads * tokens..][..tokens], i % heads * kv_heads / heads);
        let row = |side: &Side, t: usize| (t * kv_heads + kv_head) * side.width;
        let mut q = q.to_vec();
        q.resize(k.width, 0.0);
        if k.rotated {
            q.chunks_mut(128).for_each(rotate::wht_forward);
        }
        let score = |t: usize| {
            let dot: f32 = q.iter().zip(&k.values[row(k, t)..]).map(|(q, k)| q * k).sum();
            dot / (head_dim as f32).sqrt() + mask[t]
        };
        let scores: Vec<f32> = (0..tokens).map(score).collect();
        let max = scores.iter().fold(f32::NEG_INFINITY, |max, s| max.max(*s));
        let weights: Vec<f32> = scores.iter().map(|s| (s - max).exp()).collect();
        let sum: f32 = weights.iter().sum();
        let mut y = vec![0.0; v.width];
        for (t, weight) in weights.iter().enumerate() {
            y.iter_mut().zip(&v.values[row(v, t)..]).for_each(|(y, v)| *y += weight / sum * v);
        }
        if v.rotated {
            y.chunks_mut(128).for_each(rotate::wht_inverse);
        }
        out.extend(y);
    }
    out
}
