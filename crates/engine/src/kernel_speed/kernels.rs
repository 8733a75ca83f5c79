//! The kernels that are measured, and what each is given.

use super::Source;
use bytes::Bytes;
use std::hint::black_box;
use torque_backend::suite::from_host;
use torque_backend::{Backend, MatrixData};
use torque_cpu::Cpu;
use torque_quant::attend::Part;
use torque_quant::attend::whole::{Codes, Split, plane_bytes, planes_apart, tile, tiled};
use torque_quant::gemm::Matrix;
use torque_quant::{FormatOps, SharedKernels};
use torque_simd::Level;

/// Encoded bytes that stream past a kernel: much more than caches hold.
pub(super) const STREAM: usize = 256 << 20;
/// Bytes of a run of a kernel that streams.
const PIECE: usize = 8 << 20;
/// Inputs of weights.
const COLUMNS: usize = 2048;
/// Outputs of weights that stay in cache: so many that the products of many tokens outweigh what is done once a token.
pub(super) const ROWS: usize = 512;
/// The size of a head of the KV cache, and tokens of a page.
const HEAD_DIM: usize = 128;
const TOKENS: usize = 128;

/// A kernel that is measured, on all formats that it takes.
pub(super) struct Kernel {
    pub name: &'static str,
    pub count: usize,
    pub from: Source,
    pub unit: &'static str,
    pub takes: fn(&FormatOps) -> bool,
    pub work: fn(&Setting, &Kernel) -> Work,
}

/// What a kernel is measured on.
pub(super) struct Setting {
    pub format: &'static FormatOps,
    pub level: Level,
    /// Encoded numbers: [`STREAM`] bytes, fewer in tests.
    pub stream: Bytes,
    /// Outputs of weights that stay in cache: [`ROWS`].
    pub rows: usize,
}

/// A run of a kernel, and what it does.
pub(super) struct Work {
    pub bytes: usize,
    pub multiply_adds: usize,
    pub run: Box<dyn FnMut()>,
}

const fn kernel(
    name: &'static str,
    count: usize,
    from: Source,
    unit: &'static str,
    takes: fn(&FormatOps) -> bool,
    work: fn(&Setting, &Kernel) -> Work,
) -> Kernel {
    Kernel { name, count, from, unit, takes, work }
}

const WEIGHTS: fn(&FormatOps) -> bool = |format| format.weights;
const KV: fn(&FormatOps) -> bool = |format| format.kv;
/// What a prompt multiplies are decoded tiles, whatever the cache holds.
const TILE: fn(&FormatOps) -> bool = |format| format.kv && format.name == "f32";

/// Every kernel that is measured.
pub(super) static KERNELS: &[Kernel] = &[
    kernel("product", 1, Source::Memory, "GB/s", WEIGHTS, product),
    kernel("product", 4, Source::Memory, "GB/s", WEIGHTS, product),
    kernel("product", 1, Source::Cache, "GB/s", WEIGHTS, product),
    kernel("product", 4, Source::Cache, "GB/s", WEIGHTS, product),
    kernel("product", 128, Source::Cache, "GFLOP/s", WEIGHTS, product),
    kernel("scores", 1, Source::Memory, "GB/s", KV, scores),
    kernel("scores", 4, Source::Memory, "GB/s", KV, scores),
    kernel("scores", 8, Source::Memory, "GB/s", KV, scores),
    kernel("accumulate", 1, Source::Memory, "GB/s", KV, accumulate),
    kernel("accumulate", 4, Source::Memory, "GB/s", KV, accumulate),
    kernel("accumulate", 8, Source::Memory, "GB/s", KV, accumulate),
    kernel("decode_tile", 1, Source::Memory, "GB/s", KV, decode_tile),
    kernel("seal", 1, Source::Cache, "GB/s", KV, seal),
    kernel("scores_tile", 256, Source::Cache, "GFLOP/s", TILE, scores_tile),
    kernel("accumulate_tile", 256, Source::Cache, "GFLOP/s", TILE, accumulate_tile),
];

/// Gaussian-like values in a format, over and over.
pub(super) fn stream(format: &FormatOps, len: usize) -> Bytes {
    let (block, bytes) = format.head_block(HEAD_DIM);
    let x: Vec<f32> = (0..COLUMNS).map(|i| ((i * 37 + 11) % 64) as f32 / 32.0 - 1.0).collect();
    let mut unit = vec![0; COLUMNS / block * bytes];
    for (x, block) in x.chunks_exact(block).zip(unit.chunks_exact_mut(bytes)) {
        (format.encode_rotated)(x, block);
    }
    if tiled(format.rotation, TOKENS, HEAD_DIM) {
        // A whole part: of a nested format the planes come after all of its tiles.
        unit = unit.repeat(TOKENS * HEAD_DIM / COLUMNS);
        let rows = unit.clone();
        let plane = plane_bytes(TOKENS, HEAD_DIM);
        let (tiles, planes) = unit.split_at_mut(rows.len() - planes_apart(format, TOKENS, HEAD_DIM) * plane);
        let mut planes: Vec<_> = planes.chunks_exact_mut(plane).collect();
        tile(&rows, bytes, HEAD_DIM / block, tiles, &mut planes);
    }
    Bytes::from(unit.repeat(len / unit.len()))
}

/// The bytes as a page's part of one head, the last so many planes, before which something else is read.
fn part<'a>(bytes: &'a [u8], planes: usize, next: &'a [u8]) -> Part<'a> {
    let plane = plane_bytes(TOKENS, HEAD_DIM);
    let (bytes, apart) = bytes.split_at(bytes.len() - planes * plane);
    let mut part = Part { bytes, tokens: TOKENS, head_dim: HEAD_DIM, next, ..Part::default() };
    part.planes.iter_mut().zip(apart.chunks_exact(plane)).for_each(|(to, plane)| *to = plane);
    part
}

impl Setting {
    /// Pieces of the stream, of whole units of so many bytes: many from memory, or one unit from a cache. One after
    /// the other, again and again.
    fn pieces(&self, from: Source, unit: usize) -> impl FnMut() -> Bytes + use<> {
        let stream = self.stream.clone();
        let (piece, pieces) = match from {
            Source::Memory => {
                let piece = PIECE.min(stream.len() / 2) / unit * unit;
                (piece, stream.len() / piece)
            }
            Source::Cache => (unit, 1),
        };
        let mut next = 0;
        move || {
            next = (next + 1) % pieces;
            stream.slice(next * piece..(next + 1) * piece)
        }
    }

    /// Bytes of a page's part of one head.
    fn part_bytes(&self) -> usize {
        let (block, bytes) = self.format.head_block(HEAD_DIM);
        TOKENS * HEAD_DIM / block * bytes
    }

    /// Work on parts of the KV cache, some of whose planes lie apart.
    fn parts(&self, kernel: &Kernel, planes: usize, mut run: impl FnMut(Part<'_>) + 'static) -> Work {
        let size = self.part_bytes();
        let mut pieces = self.pieces(kernel.from, size);
        let mut following = pieces();
        let bytes = following.len();
        let run = Box::new(move || {
            let piece = std::mem::replace(&mut following, pieces());
            let next = piece.chunks_exact(size).skip(1).chain([&following[..]]);
            for (bytes, next) in piece.chunks_exact(size).zip(next) {
                run(part(black_box(bytes), planes, next));
            }
        });
        Work { bytes, multiply_adds: bytes / size * TOKENS * HEAD_DIM * kernel.count, run }
    }
}

/// Products of weights and so many tokens, as the backend does them: the one place here that knows how.
fn product(setting: &Setting, kernel: &Kernel) -> Work {
    let row = setting.format.row_bytes(COLUMNS);
    let mut pieces =
        setting.pieces(kernel.from, if kernel.from == Source::Memory { row } else { setting.rows * row });
    let backend = Cpu::new(Some(1), Some(setting.level.name())).expect("the level is there");
    let (format, tokens) = (setting.format, kernel.count);
    let bytes = pieces().len();
    let rows = bytes / row;
    let x = from_host(&backend, tokens, &vec![1.0; tokens * COLUMNS]);
    let mut out = from_host(&backend, tokens, &vec![0.0; tokens * rows]);
    let run = move || {
        let matrix = backend.matrix(MatrixData { format, rows, columns: COLUMNS, bytes: pieces() });
        backend.linear(&x, &mut [(black_box(&matrix), &mut out)]);
    };
    Work { bytes, multiply_adds: rows * COLUMNS * tokens, run: Box::new(run) }
}

/// Scores as attention takes them: in whole numbers where codes can be unpacked.
fn scores(setting: &Setting, kernel: &Kernel) -> Work {
    let (q, mut out) = (vec![1.0; kernel.count * HEAD_DIM], vec![0.0; kernel.count * TOKENS]);
    let kernels = (setting.format.kernels)(setting.level);
    let scores = SharedKernels::of(setting.level).scores;
    let (mut codes, mut split) = (Codes::default(), Split::default());
    setting.parts(kernel, planes_apart(setting.format, TOKENS, HEAD_DIM), move |part| {
        match (kernels.unpack[0])(part, &mut codes) {
            true => scores(&codes, &q, &mut split, black_box(&mut out)),
            false => (kernels.scores)(part, &q, black_box(&mut out)),
        }
    })
}

fn accumulate(setting: &Setting, kernel: &Kernel) -> Work {
    let weights = vec![1.0 / TOKENS as f32; kernel.count * TOKENS];
    let mut out = vec![0.0; kernel.count * HEAD_DIM];
    let kernels = (setting.format.kernels)(setting.level);
    let accumulate = SharedKernels::of(setting.level).accumulate;
    let (mut codes, mut room) = (Codes::default(), Split::default());
    setting.parts(kernel, planes_apart(setting.format, TOKENS, HEAD_DIM), move |part| {
        // Sums that grow from run to run would end in infinity.
        out.fill(0.0);
        match (kernels.unpack[1])(part, &mut codes) {
            true => accumulate(&codes, &weights, &mut room, black_box(&mut out)),
            false => (kernels.accumulate)(part, &weights, black_box(&mut out)),
        }
    })
}

fn decode_tile(setting: &Setting, kernel: &Kernel) -> Work {
    let mut tile = vec![0.0; TOKENS * HEAD_DIM];
    let decode = (setting.format.kernels)(setting.level).decode_tile;
    let work = setting.parts(kernel, 0, move |part| decode(part, black_box(&mut tile)));
    Work { multiply_adds: 0, ..work }
}

/// Encoding a page's part, which is rotated and without its mean.
fn seal(setting: &Setting, _: &Kernel) -> Work {
    let format = setting.format;
    // Floats take any number of values as a block.
    let (block, bytes) = match format.is_float() {
        true => (HEAD_DIM, format.row_bytes(HEAD_DIM)),
        false => format.head_block(HEAD_DIM),
    };
    let x: Vec<f32> = (0..TOKENS * HEAD_DIM).map(|i| ((i * 37 + 11) % 64) as f32 / 32.0 - 1.0).collect();
    let mut out = vec![0; x.len() / block * bytes];
    let input = x.len() * size_of::<f32>();
    let encode = (format.kernels)(setting.level).encode;
    let run = move || encode(black_box(&x), block, black_box(&mut out));
    Work { bytes: input, multiply_adds: 0, run: Box::new(run) }
}

/// Scores of a prompt's queries, of keys that are decoded.
fn scores_tile(setting: &Setting, kernel: &Kernel) -> Work {
    let queries = kernel.count;
    let (q, tile) = (vec![1.0; queries * HEAD_DIM], vec![1.0; TOKENS * HEAD_DIM]);
    let mut out = vec![0.0; queries * TOKENS];
    let product = SharedKernels::of(setting.level).product;
    let bytes = tile.len() * size_of::<f32>();
    let run = move || {
        let matrix = |values, rows| Matrix { values, stride: HEAD_DIM, rows };
        product(matrix(black_box(&q), queries), matrix(&tile, TOKENS), HEAD_DIM, black_box(&mut out));
    };
    Work { bytes, multiply_adds: queries * TOKENS * HEAD_DIM, run: Box::new(run) }
}

fn accumulate_tile(setting: &Setting, kernel: &Kernel) -> Work {
    let queries = kernel.count;
    let (tile, weights) = (vec![1.0; TOKENS * HEAD_DIM], vec![1.0 / TOKENS as f32; queries * TOKENS]);
    let mut out = vec![0.0; queries * HEAD_DIM];
    let accumulate = SharedKernels::of(setting.level).accumulate_tile;
    let bytes = tile.len() * size_of::<f32>();
    let run = move || {
        out.fill(0.0);
        accumulate(black_box(&tile), TOKENS, HEAD_DIM, &weights, black_box(&mut out));
    };
    Work { bytes, multiply_adds: queries * TOKENS * HEAD_DIM, run: Box::new(run) }
}
