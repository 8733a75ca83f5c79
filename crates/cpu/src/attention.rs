//! Attention over sealed pages and the open tail.
//!
//! Work is cut into units: some query rows of one KV head against a run of pages. Each unit leaves a
//! partial result (maximum, sum, weighted values) for each of its queries; partials merge by
//! log-sum-exp. Few rows (decode): runs are short, so that long contexts spread over threads even with
//! one KV head, and codes are decoded in registers. Many rows (prefill): a unit takes all pages, and
//! each page is decoded once into a tile that all its queries share.

use crate::elementwise;
use crate::pool::Pool;
use std::cell::RefCell;
use std::ops::Range;
use torque_backend::host::{self, Store, Tensor};
use torque_backend::{Attention, Segment};
use torque_kv::{LayerPlan, Side};
use torque_quant::attend::Part;
use torque_quant::attend::whole::{Codes, Split};
use torque_quant::gemm::Matrix;
use torque_quant::{FormatOps, Kernels, SharedKernels, rotate};
use torque_simd::{Isa, Level, dispatch};

/// The most query rows of a unit.
const ROWS: usize = 64;
/// The most queries (rows × heads of a group) of a unit of more than one row, so that their partial results
/// and scores stay in cache.
const QUERIES: usize = 512;
/// Query rows up to which a segment is cut into runs of pages.
const FEW_ROWS: usize = 8;
/// Pages in such a run, and the fewest where many heads share a KV head and every page is more work.
const RUN: usize = 8;
const RUN_MIN: usize = 4;
/// Queries (rows × heads of a group) up to which codes are decoded in registers.
const REGISTER_QUERIES: usize = 16;

/// Rows of one KV head of a segment against some of its pages.
struct Unit {
    segment: usize,
    kv_head: usize,
    /// Rows of the batch.
    rows: Range<usize>,
    /// Indices into the spans the layer holds.
    spans: Range<usize>,
    tail: bool,
}

/// Partial results: for each unit, `[queries]` of (maximum, sum), then `[queries, width]`, as wide as what
/// values are read from.
#[derive(Default)]
pub struct Partials {
    units: Vec<Unit>,
    values: Vec<f32>,
    /// Values of a unit, the same for all.
    unit_size: usize,
}

#[derive(Default)]
struct Scratch {
    q: Vec<f32>,
    scores: Vec<f32>,
    /// Of every query, what its scores lack (the product with the page's mean), and then the sum of its weights.
    shifts: Vec<f32>,
    codes: Codes,
    split: Split,
    weights: Split,
    tile: Vec<f32>,
    mean: Vec<f32>,
    value: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Writes keys and values of a segment to its tail.
pub fn append(
    pool: &Pool,
    level: Level,
    store: &mut Store,
    layer: usize,
    segment: &Segment,
    kv: [&Tensor; 2],
) {
    let first = segment.position() - segment.sequence.tail_start();
    for (tail, tokens) in store.tails_mut(segment.sequence.slot, layer).iter_mut().zip(kv) {
        let (rotation, format) = (tail.rotation().cloned(), tail.row_format());
        let (bytes, head_bytes) = tail.heads_mut();
        let heads = bytes.len() / head_bytes;
        let head_dim = tokens.width() / heads;
        let row_bytes = format.row_bytes(head_dim);
        let write_head = |head: usize, out: &mut [u8]| {
            let mut values = vec![0.0; head_dim];
            for (row, out) in segment.rows.clone().zip(out[first * row_bytes..].chunks_exact_mut(row_bytes)) {
                values.copy_from_slice(&tokens.row(row)[head * head_dim..][..head_dim]);
                if let Some(rotation) = &rotation {
                    rotation.forward(&mut values);
                }
                store_row(level, format, &values, out);
            }
        };
        if segment.rows.len() == 1 {
            bytes.chunks_exact_mut(head_bytes).enumerate().for_each(|(head, out)| write_head(head, out));
        } else {
            pool.for_chunks(bytes, head_bytes, write_head);
        }
    }
}

/// A tail row: f16, or whatever the side's exact format is.
fn store_row(level: Level, format: &FormatOps, values: &[f32], out: &mut [u8]) {
    if format.name != "f16" {
        return format.encode_row(values, out);
    }
    dispatch!(level, |isa| isa.run(
        #[inline(always)]
        || for (x, out) in values.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            isa.store_f16(isa.load(x), out);
        }
    ));
}

/// See [`torque_backend::Backend::attention`].
pub fn attention(
    pool: &Pool,
    level: Level,
    partials: &mut Partials,
    store: &Store,
    attention: &Attention<Vec<f32>>,
    segments: &[Segment],
    q: &Tensor,
    out: &mut Tensor,
) {
    let plan = &store.plan.layers[attention.layer];
    let group = attention.heads / plan.shape.heads;
    let widths = Side::BOTH.map(|side| plan.side(side).head_dim);
    partials.plan(plan, group, segments);
    let Partials { units, values, unit_size } = partials;

    let op = Op { level, shared: SharedKernels::of(level), store, attention, plan, segments, group, widths };
    pool.for_chunks(values, *unit_size, |i, values| {
        let unit = &units[i];
        SCRATCH.with_borrow_mut(|scratch| op.run(unit, units.get(i + 1), q, scratch, values));
    });

    // Merge: one job a row.
    let (width, units, values, unit_size) = (out.width(), &*units, &*values, *unit_size);
    let v_rotation = op.rotation(Side::V);
    let [v_dim, v_width] = [plan.shape.head_dim[1], widths[1]];
    let merge_row = |row: usize, out: &mut [f32], value: &mut Vec<f32>| {
        value.resize(v_width, 0.0);
        for (head, out) in out.chunks_exact_mut(v_dim).enumerate() {
            let of_head = units.iter().zip(values.chunks_exact(unit_size));
            let of_head = of_head.filter(|(u, _)| u.kv_head == head / group && u.rows.contains(&row));
            let parts = of_head.map(|(unit, values)| {
                let (state, out) = values.split_at(2 * unit.rows.len() * group);
                let query = (row - unit.rows.start) * group + head % group;
                (state[2 * query], state[2 * query + 1], &out[query * v_width..][..v_width])
            });
            let sink = attention.sinks.map(|sinks| sinks[head]);
            let max = parts.clone().map(|(max, ..)| max).chain(sink).fold(f32::NEG_INFINITY, f32::max);
            let mut total = sink.map_or(0.0, |sink| (sink - max).exp());
            value.fill(0.0);
            for (part_max, sum, part) in parts {
                let factor = (part_max - max).exp();
                total += factor * sum;
                elementwise::add_scaled(level, factor, part, value);
            }
            elementwise::scale(level, 1.0 / total, value);
            if let Some(rotation) = &v_rotation {
                rotation.inverse(value);
            }
            // All of it, or the channels of the key that are the value.
            out.copy_from_slice(&value[..v_dim]);
        }
    };
    let merge_row = |row: usize, out: &mut [f32]| {
        SCRATCH.with_borrow_mut(|scratch| merge_row(row, out, &mut scratch.value));
    };
    if out.rows() == 1 {
        merge_row(0, out.data_mut());
    } else {
        pool.for_chunks(out.data_mut(), width, merge_row);
    }
}

impl Partials {
    /// Cuts the work into units, the same way whatever the number of threads.
    fn plan(&mut self, plan: &LayerPlan, group: usize, segments: &[Segment]) {
        self.units.clear();
        let most_rows = (QUERIES / group).clamp(1, ROWS);
        let pages = (RUN * 8 / group).clamp(RUN_MIN, RUN);
        for (index, segment) in segments.iter().enumerate() {
            let spans = segment.sequence.spans(plan.window_class).len();
            let run = if segment.rows.len() <= FEW_ROWS { pages } else { spans.max(1) };
            let runs = spans.div_ceil(run).max(1);
            for kv_head in 0..plan.shape.heads {
                for first in segment.rows.clone().step_by(most_rows) {
                    let rows = first..segment.rows.end.min(first + most_rows);
                    for i in 0..runs {
                        let spans = i * run..spans.min((i + 1) * run);
                        // The tail goes with the last run.
                        let tail = i + 1 == runs;
                        self.units.push(Unit { segment: index, kv_head, rows: rows.clone(), spans, tail });
                    }
                }
            }
        }
        let rows = self.units.iter().map(|unit| unit.rows.len()).max().unwrap_or(0);
        self.unit_size = (rows * group * (2 + plan.side(Side::V).head_dim)).max(1);
        self.values.resize(self.units.len() * self.unit_size, 0.0);
    }
}

struct Op<'a> {
    level: Level,
    shared: SharedKernels,
    store: &'a Store,
    attention: &'a Attention<'a, Vec<f32>>,
    plan: &'a LayerPlan,
    segments: &'a [Segment<'a>],
    group: usize,
    /// Values of a head of what K and V are read from.
    widths: [usize; 2],
}

/// Keys and values of one head, some consecutive tokens.
#[derive(Clone, Copy)]
struct Piece<'a> {
    /// Position of the first token.
    start: usize,
    /// Tokens stored.
    tokens: usize,
    /// Tokens that belong to the sequence: the first of those.
    len: usize,
    /// K, V.
    sides: [Stored<'a>; 2],
}

/// Keys or values of a [`Piece`].
#[derive(Clone, Copy)]
struct Stored<'a> {
    head: host::Stored<'a>,
    mean_bytes: usize,
}

impl Op<'_> {
    fn rotation(&self, side: Side) -> Option<rotate::Head> {
        let side = self.plan.side(side);
        side.rotated.then(|| rotate::Head::new(side.head_dim).expect("checked by Plan::new"))
    }

    /// One unit's partial results into `values`. `next` is the unit that this thread will probably run next.
    fn run(&self, unit: &Unit, next: Option<&Unit>, q: &Tensor, scratch: &mut Scratch, values: &mut [f32]) {
        let segment = &self.segments[unit.segment];
        let [k_dim, v_width] = self.widths;
        let queries = unit.rows.len() * self.group;
        // Queries of this KV head, row by row, scaled and in the keys' domain.
        scratch.q.clear();
        for row in unit.rows.clone() {
            scratch
                .q
                .extend_from_slice(&q.row(row)[unit.kv_head * self.group * k_dim..][..self.group * k_dim]);
        }
        if let Some(rotation) = self.rotation(Side::K) {
            rotation.forward(&mut scratch.q);
        }
        elementwise::scale(self.level, self.attention.scale, &mut scratch.q);
        scratch.split.clear();

        let (state, out) = values.split_at_mut(2 * queries);
        let out = &mut out[..queries * v_width];
        state.as_chunks_mut::<2>().0.fill([f32::NEG_INFINITY, 0.0]);
        out.fill(0.0);
        let first = segment.position() + unit.rows.start - segment.rows.start;
        let positions = first..first + unit.rows.len();
        let mut pieces = self.pieces(unit).peekable();
        while let Some(piece) = pieces.next() {
            let next = pieces.peek().copied().or_else(|| self.pieces(next?).next());
            let next = next.map_or(&[][..], |next| next.sides[0].head.bytes);
            self.piece(&piece, next, &positions, scratch, state, out);
        }
    }

    /// Sealed pages, then the tail in pieces as long as a page.
    fn pieces(&self, unit: &Unit) -> impl Iterator<Item = Piece<'_>> {
        let (sequence, page) = (self.segments[unit.segment].sequence, self.store.plan.page);
        let sealed = sequence.spans(self.plan.window_class)[unit.spans.clone()].iter();
        let sealed = sealed.map(move |span| {
            let sides = Side::BOTH.map(|side| {
                let part = self.store.part(*span, self.attention.layer, side);
                let side = self.plan.side(side);
                let head = part.head(side, unit.kv_head);
                Stored { head, mean_bytes: side.mean_bytes(part.format) }
            });
            Piece { start: span.start, tokens: page, len: span.len, sides }
        });
        let tail = (0..if unit.tail { sequence.tail_len() } else { 0 }).step_by(page);
        sealed.chain(tail.map(move |from| {
            let tokens = page.min(sequence.tail_len() - from);
            let sides = Side::BOTH.map(|side| {
                let tail = self.store.tail(sequence.slot, self.attention.layer, side);
                Stored { head: tail.stored(unit.kv_head, from, tokens), mean_bytes: 0 }
            });
            Piece { start: sequence.tail_start() + from, tokens, len: tokens, sides }
        }))
    }

    /// The kernels, the page mean and the blocks of a side of a piece.
    fn stored<'a>(&self, piece: &Piece<'a>, side: Side, next: &'a [u8]) -> (Kernels, &'a [u8], Part<'a>) {
        let Stored { head, mean_bytes } = piece.sides[side as usize];
        let (mean, bytes) = head.bytes.split_at(mean_bytes);
        let head_dim = self.widths[side as usize];
        let part = Part { bytes, planes: head.planes, tokens: piece.tokens, head_dim, next };
        ((head.format.kernels)(self.level), mean, part)
    }

    /// Adds a piece's keys and values to the running results of queries at `positions`. `next` is what is read after it.
    fn piece(
        &self,
        piece: &Piece,
        next: &[u8],
        positions: &Range<usize>,
        scratch: &mut Scratch,
        state: &mut [f32],
        out: &mut [f32],
    ) {
        let (level, group) = (self.level, self.group);
        let [k_dim, v_width] = self.widths;
        let end = piece.start + piece.len;
        let window = self.plan.shape.window.unwrap_or(usize::MAX);
        // Nobody sees it: all keys come after the last query, or have left the first one's window.
        if piece.start >= positions.end || end.saturating_add(window) <= positions.start + 1 {
            return;
        }
        let queries = positions.len() * group;
        let in_registers = queries <= REGISTER_QUERIES;
        let Scratch { q, scores, shifts, codes, split, weights, tile, mean, .. } = scratch;
        scores.resize(queries * piece.tokens, 0.0);
        shifts.clear();
        shifts.resize(queries, 0.0);

        let (kernels, k_mean, part) = self.stored(piece, Side::K, piece.sides[1].head.bytes);
        read_mean(level, k_mean, mean);
        let mut decoded = false;
        let whole = (kernels.unpack[0])(part, codes);
        if whole || in_registers {
            match whole {
                true => (self.shared.scores)(codes, q, split, scores),
                false => (kernels.scores)(part, q, scores),
            }
            if !mean.is_empty() {
                elementwise::dots(level, q, mean, shifts);
            }
        } else {
            tile.resize(piece.tokens * k_dim, 0.0);
            (kernels.decode_tile)(part, tile);
            decoded = self.plan.shape.values_in_keys;
            add_mean(level, mean, tile);
            let matrix = |values, rows| Matrix { values, stride: k_dim, rows };
            (self.shared.product)(matrix(q, queries), matrix(tile, piece.tokens), k_dim, scores);
        }
        if let Some(cap) = self.attention.softcap {
            for (scores, shift) in scores.chunks_exact_mut(piece.tokens).zip(&mut *shifts) {
                elementwise::shift(level, std::mem::take(shift), scores);
            }
            elementwise::softcap(level, cap, scores);
        }
        let masked = piece.len < piece.tokens
            || end > positions.start + 1
            || piece.start.saturating_add(window) < positions.end;
        if masked {
            for (position, scores) in positions.clone().zip(scores.chunks_exact_mut(group * piece.tokens)) {
                let visible = (position + 1).saturating_sub(window).max(piece.start)..end.min(position + 1);
                for scores in scores.chunks_exact_mut(piece.tokens) {
                    for (key, score) in (piece.start..).zip(scores) {
                        if !visible.contains(&key) {
                            *score = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
        let states = state.as_chunks_mut::<2>().0.iter_mut();
        let of_queries = scores.chunks_exact_mut(piece.tokens).zip(&mut *shifts).zip(states);
        for (((scores, shift), [max, sum]), out) in of_queries.zip(out.chunks_exact_mut(v_width)) {
            let [own, factor] = (self.shared.softmax_step)(scores, *shift, max, sum);
            *shift = own;
            if factor != 1.0 {
                elementwise::scale(level, factor, out);
            }
        }

        let (kernels, v_mean, part) = self.stored(piece, Side::V, next);
        read_mean(level, v_mean, mean);
        let whole = (kernels.unpack[1])(part, codes);
        if whole || in_registers {
            match whole {
                true => (self.shared.accumulate)(codes, scores, weights, out),
                false => (kernels.accumulate)(part, scores, out),
            }
            if !mean.is_empty() {
                elementwise::add_outer(level, shifts, mean, out);
            }
        } else {
            // Values that lie in the keys are in the tile already.
            if !decoded {
                tile.resize(piece.tokens * v_width, 0.0);
                (kernels.decode_tile)(part, tile);
                add_mean(level, mean, tile);
            }
            (self.shared.accumulate_tile)(tile, piece.tokens, v_width, scores, out);
        }
    }
}

/// The mean of a page, a multiple of sixteen numbers, or none.
fn read_mean(level: Level, bytes: &[u8], mean: &mut Vec<f32>) {
    mean.resize(bytes.len() / 2, 0.0);
    dispatch!(level, |isa| isa.run(
        #[inline(always)]
        || for (x, out) in bytes.as_chunks().0.iter().zip(mean.as_chunks_mut().0) {
            isa.store(isa.load_f16(x), out);
        }
    ));
}

fn add_mean(level: Level, mean: &[f32], tile: &mut [f32]) {
    if !mean.is_empty() {
        tile.chunks_exact_mut(mean.len()).for_each(|row| elementwise::add(level, mean, row));
    }
}
