//! Attention over sealed pages and the open tail.
//!
//! Work is cut into units: some query rows of one KV head against a run of pages. Each unit leaves a
//! partial result (maximum, sum, weighted values) for each of its queries; partials merge by
//! log-sum-exp. Few rows (decode): runs are short, so that long contexts spread over threads even with
//! one KV head, and codes are decoded in registers. Many rows (prefill): a unit takes all pages, and
//! each page is decoded once into a tile that all its queries share.
//!
//! Sparse V: with few rows, the ends of a long sequence go first, and most weights are there. What they leave tells the units
//! between them which pages weigh little: of those, values are not read. Their mean, which lies beside them, stands for them, so that
//! only the differences between the weights inside a page are lost. For every query, with w its weights, w̄ their mean in a page,
//! n the pages, b the bits of a value and s [`Plan::sparse_v`], a page is left out if
//! `Σ (w − w̄)² ≤ s·4⁻ᵇ/n · Σ w²`, the right sum over what is known so far. So what is lost of all pages, `Σ (w − w̄) v̂` over values
//! v̂ without their mean, is at most `√(s·4⁻ᵇ Σw² Σ‖v̂‖²)`; and where weights do not know values, its square is on average at
//! most s times what the format adds if it is the best there can be ([`torque_quant::FormatOps::least_error`]).

use crate::elementwise;
use crate::pool::Pool;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use torque_backend::host::{self, Store, Tensor};
use torque_backend::{Attention, Segment};
use torque_kv::{LayerPlan, PageId, Side};
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
    /// Of one between the ends of a sequence, which unit is the first of the two ends, for the same queries.
    ends: usize,
}

/// Numbers of a query beside its values: the largest score, and relative to it the sum of weights and that of their squares.
const STATE: usize = 3;
type State = [f32; STATE];

/// Partial results: for each unit, `[queries]` of [`State`], `[queries, width]`, as wide as what values are read from, and at the end, if
/// masses are wanted, `[spans, heads of a group]` of the weights of a span for the last row, relative to the state.
#[derive(Default)]
pub struct Partials {
    /// Those that go first, then those between them.
    units: Vec<Unit>,
    /// How many go first.
    first: usize,
    values: Vec<f32>,
    /// Values of a unit, the same for all.
    unit_size: usize,
    /// The last of them, which are masses.
    masses: usize,
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
    /// Of every piece and every query of the last row, the sum of weights and what score they are relative to.
    sums: Vec<[f32; 2]>,
}

/// Parts of values, of which some could have been left out, and those that were.
#[derive(Debug, Default)]
pub struct Skipped {
    parts: AtomicU64,
    skipped: AtomicU64,
}

impl Skipped {
    /// All, and those that were left out.
    pub fn counts(&self) -> [u64; 2] {
        [&self.parts, &self.skipped].map(|count| count.load(Ordering::Relaxed))
    }

    fn add(&self, [parts, skipped]: [u64; 2], sparse: bool) {
        if sparse {
            self.parts.fetch_add(parts, Ordering::Relaxed);
            self.skipped.fetch_add(skipped, Ordering::Relaxed);
        }
    }
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
    skipped: &Skipped,
    cache: &mut Store,
    attention: &Attention<Vec<f32>>,
    segments: &[Segment],
    q: &Tensor,
    out: &mut Tensor,
) {
    let store = &*cache;
    let plan = &store.plan.layers[attention.layer];
    let group = attention.heads / plan.shape.heads;
    let widths = Side::BOTH.map(|side| plan.side(side).head_dim);
    partials.plan(store, plan, group, segments);
    let Partials { units, first, values, unit_size, masses } = partials;

    let (ends, between) = units.split_at(*first);
    let (of_ends, of_others) = values.split_at_mut(*first * *unit_size);
    let sparse = !between.is_empty();
    let shared = SharedKernels::of(level);
    let op = Op { level, shared, store, attention, plan, segments, group, widths, masses: *masses };
    pool.for_chunks(of_ends, *unit_size, |i, values| {
        let next = ends.get(i + 1);
        let counts = SCRATCH.with_borrow_mut(|scratch| op.run(&ends[i], next, None, q, scratch, values));
        skipped.add(counts, sparse);
    });
    let of_ends = &*of_ends;
    pool.for_chunks(of_others, *unit_size, |i, values| {
        let unit = &between[i];
        let known = [0, 1].map(|end| &of_ends[(unit.ends + end) * *unit_size..][..*unit_size]);
        let next = between.get(i + 1);
        let counts = SCRATCH.with_borrow_mut(|scratch| op.run(unit, next, Some(known), q, scratch, values));
        skipped.add(counts, sparse);
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
                let (state, out) = values.split_at(STATE * unit.rows.len() * group);
                let query = (row - unit.rows.start) * group + head % group;
                let [max, sum, _] = state.as_chunks::<STATE>().0[query];
                (max, sum, &out[query * v_width..][..v_width])
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
    if op.masses > 0 {
        for (page, mass) in op.page_masses(units, values.chunks_exact(unit_size)) {
            cache.add_mass(page, mass);
        }
    }
}

/// Adds to a query's state what is known of other keys, but for the sum of their weights: scores are relative to the largest
/// of all then.
fn learn([max, _, squares]: &mut State, [other_max, _, other_squares]: State) {
    let largest = max.max(other_max);
    if largest > f32::NEG_INFINITY {
        let [a, b] = [*max, other_max].map(|max| (2.0 * (max - largest)).exp());
        (*squares, *max) = (*squares * a + other_squares * b, largest);
    }
}

impl Partials {
    /// Cuts the work into units, the same way whatever the number of threads.
    fn plan(&mut self, store: &Store, plan: &LayerPlan, group: usize, segments: &[Segment]) {
        let sparse = store.plan.sparse_v > 0.0;
        self.units.clear();
        let mut between = Vec::new();
        let most_rows = (QUERIES / group).clamp(1, ROWS);
        let pages = (RUN * 8 / group).clamp(RUN_MIN, RUN);
        for (index, segment) in segments.iter().enumerate() {
            let spans = segment.sequence.spans(plan.window_class).len();
            let run = if segment.rows.len() <= FEW_ROWS { pages } else { spans.max(1) };
            let runs = spans.div_ceil(run).max(1);
            for kv_head in 0..plan.shape.heads {
                for first in segment.rows.clone().step_by(most_rows) {
                    let ends = self.units.len();
                    let rows = first..segment.rows.end.min(first + most_rows);
                    for i in 0..runs {
                        let spans = i * run..spans.min((i + 1) * run);
                        // The tail goes with the last run.
                        let tail = i + 1 == runs;
                        let unit = Unit { segment: index, kv_head, rows: rows.clone(), spans, tail, ends };
                        if sparse && i > 0 && !tail { between.push(unit) } else { self.units.push(unit) }
                    }
                }
            }
        }
        self.first = self.units.len();
        self.units.append(&mut between);
        let rows = self.units.iter().map(|unit| unit.rows.len()).max().unwrap_or(0);
        let spans = self.units.iter().map(|unit| unit.spans.len()).max().unwrap_or(0);
        let guided = store.plan.guides(plan);
        self.masses = if guided { spans * group } else { 0 };
        self.unit_size = (rows * group * (STATE + plan.side(Side::V).head_dim) + self.masses).max(1);
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
    /// Masses of a unit, if they are wanted.
    masses: usize,
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

    /// One unit's partial results into `values`. `next` is the unit that this thread will probably run next. If partial results of
    /// other units with these queries are `known`, it may leave values out: says of how many parts, and how many it did.
    fn run(
        &self,
        unit: &Unit,
        next: Option<&Unit>,
        known: Option<[&[f32]; 2]>,
        q: &Tensor,
        scratch: &mut Scratch,
        values: &mut [f32],
    ) -> [u64; 2] {
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

        let (values, masses) = values.split_at_mut(values.len() - self.masses);
        let (state, out) = values.split_at_mut(STATE * queries);
        let (state, out) = (state.as_chunks_mut().0, &mut out[..queries * v_width]);
        scratch.sums.clear();
        state.fill([f32::NEG_INFINITY, 0.0, 0.0]);
        out.fill(0.0);
        for known in known.into_iter().flatten() {
            state.iter_mut().zip(known.as_chunks().0).for_each(|(state, known)| learn(state, *known));
        }
        // What a page may lose of the squares of all weights, but for its format.
        let pages = segment.sequence.spans(self.plan.window_class).len();
        let allowed = known.map(|_| self.store.plan.sparse_v / pages as f32);
        let first = segment.position() + unit.rows.start - segment.rows.start;
        let positions = first..first + unit.rows.len();
        let (mut pieces, mut counts, mut skips) = (self.pieces(unit).peekable(), [0, 0], false);
        while let Some(piece) = pieces.next() {
            let next = pieces.peek().copied().or_else(|| self.pieces(next?).next());
            let next = next.map_or(&[][..], |next| next.sides[0].head.bytes);
            // Values that will not be read are not asked for: a page is probably as its neighbour.
            let next = if skips { [next; 2] } else { [piece.sides[1].head.bytes, next] };
            let [parts, skipped] = self.piece(&piece, next, &positions, allowed, scratch, state, out);
            (counts, skips) = ([counts[0] + parts, counts[1] + skipped], skipped > 0);
        }
        let last_row = state[queries - self.group..].iter().cycle();
        for ((mass, [sum, max]), [largest, ..]) in masses.iter_mut().zip(&scratch.sums).zip(last_row) {
            *mass = if max == largest { *sum } else { sum * (max - largest).exp() };
        }
        counts
    }

    /// What the last row of every segment gives each page, a KV head at a time, from the partial results of units.
    fn page_masses<'v>(
        &self,
        units: &[Unit],
        values: impl Iterator<Item = &'v [f32]> + Clone,
    ) -> Vec<(PageId, f32)> {
        let last_rows = units
            .iter()
            .zip(values)
            .filter(|(unit, _)| unit.rows.end == self.segments[unit.segment].rows.end);
        // The head of each segment that a query of a unit belongs to, and what the unit has of it.
        let heads = |unit: &Unit| {
            let first = unit.segment * self.attention.heads + unit.kv_head * self.group;
            first..first + self.group
        };
        let states = |unit: &Unit, values: &'v [f32]| {
            let queries = (unit.rows.len() - 1) * self.group..unit.rows.len() * self.group;
            &values.as_chunks::<STATE>().0[queries]
        };
        let mut totals = vec![[f32::NEG_INFINITY, 0.0]; self.segments.len() * self.attention.heads];
        if let Some(sinks) = self.attention.sinks {
            totals.iter_mut().zip(sinks.iter().cycle()).for_each(|(total, sink)| *total = [*sink, 1.0]);
        }
        for (unit, values) in last_rows.clone() {
            for ([max, total], [own, sum, _]) in totals[heads(unit)].iter_mut().zip(states(unit, values)) {
                let largest = max.max(*own);
                if largest > f32::NEG_INFINITY {
                    *total = *total * (*max - largest).exp() + sum * (own - largest).exp();
                    *max = largest;
                }
            }
        }
        let mut masses = Vec::new();
        for (unit, values) in last_rows {
            let states = states(unit, values).iter().zip(&totals[heads(unit)]);
            let shares: Vec<f32> =
                states.map(|([own, ..], [max, total])| (own - max).exp() / total).collect();
            let of_unit = values[values.len() - self.masses..].chunks_exact(self.group);
            let spans =
                &self.segments[unit.segment].sequence.spans(self.plan.window_class)[unit.spans.clone()];
            masses.extend(spans.iter().zip(of_unit).map(|(span, masses)| {
                (span.page, masses.iter().zip(&shares).map(|(mass, share)| mass * share).sum())
            }));
        }
        masses
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

    /// Adds a piece's keys and values to the running results of queries at `positions`. `next` is what is read after each. It may leave
    /// the values out where that loses no more than `allowed`: says whether they are such as could be, and whether it did.
    fn piece(
        &self,
        piece: &Piece,
        next: [&[u8]; 2],
        positions: &Range<usize>,
        allowed: Option<f32>,
        scratch: &mut Scratch,
        state: &mut [State],
        out: &mut [f32],
    ) -> [u64; 2] {
        let (level, group) = (self.level, self.group);
        let [k_dim, v_width] = self.widths;
        let end = piece.start + piece.len;
        let window = self.plan.shape.window.unwrap_or(usize::MAX);
        // Nobody sees it: all keys come after the last query, or have left the first one's window.
        if piece.start >= positions.end || end.saturating_add(window) <= positions.start + 1 {
            if self.masses > 0 {
                scratch.sums.extend(std::iter::repeat_n([0.0, f32::NEG_INFINITY], group));
            }
            return [0, 0];
        }
        let queries = positions.len() * group;
        let in_registers = queries <= REGISTER_QUERIES;
        let Scratch { q, scores, shifts, codes, split, weights, tile, mean, sums, .. } = scratch;
        scores.resize(queries * piece.tokens, 0.0);
        shifts.clear();
        shifts.resize(queries, 0.0);

        let (kernels, k_mean, part) = self.stored(piece, Side::K, next[0]);
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
        let Stored { head, mean_bytes } = piece.sides[1];
        let allowed = allowed.filter(|_| mean_bytes > 0).map(|most| most * head.format.least_error());
        let mut skips = allowed.is_some();
        let of_queries = scores.chunks_exact_mut(piece.tokens).zip(&mut *shifts).zip(&mut *state);
        for (((scores, shift), state), out) in of_queries.zip(out.chunks_exact_mut(v_width)) {
            let [own, squares, factor] = (self.shared.softmax_step)(scores, *shift, state);
            *shift = own;
            if factor != 1.0 {
                elementwise::scale(level, factor, out);
            }
            // Values of a whole page, without their mean, add up to zero.
            let even = if masked { 0.0 } else { own * own / piece.tokens as f32 };
            skips &= allowed.is_some_and(|most| squares - even <= most * state[2]);
        }

        if self.masses > 0 {
            let last_row = shifts.iter().zip(&*state).skip(queries - group);
            sums.extend(last_row.map(|(sum, [max, ..])| [*sum, *max]));
        }

        let (kernels, v_mean, part) = self.stored(piece, Side::V, next[1]);
        read_mean(level, v_mean, mean);
        if skips {
            elementwise::add_outer(level, shifts, mean, out);
            return [1, 1];
        }
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
        [u64::from(mean_bytes > 0), 0]
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
