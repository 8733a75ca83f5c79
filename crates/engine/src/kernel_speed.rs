//! Speed of single kernels, on one thread, beside what the machine allows: for whoever makes one faster.
//!
//! Every number is the fastest of many short runs, so it says what the code can do, not what a busy machine leaves of
//! it. The limit of a kernel is the longer of two times: that of reading its bytes from memory, and that of its
//! multiplications ([`Limits`]); in caches, the second alone.

mod kernels;
mod limits;

pub use limits::{Limits, Memory, Multiply};

use crate::error::Error;
use kernels::{KERNELS, Kernel, ROWS, STREAM, Setting, Work, stream};
use serde::Serialize;
use std::time::{Duration, Instant};
use torque_cpu::Cpu;
use torque_quant::{FORMATS, FormatOps};
use torque_simd::Level;

/// Time spent on one number.
const PATIENCE: Duration = Duration::from_millis(40);

/// Where the encoded bytes of a kernel come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Memory, as when a token is decoded.
    Memory,
    /// A cache, where many tokens use them again.
    Cache,
}

/// The speed of a kernel.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub kernel: &'static str,
    /// Tokens or queries at once.
    pub count: usize,
    /// Of what format.
    pub format: &'static str,
    /// On what instruction set.
    pub isa: &'static str,
    /// Where from.
    pub from: Source,
    /// The speed, in `unit`.
    pub speed: f64,
    /// `GB/s` of encoded bytes (of the numbers to encode, when sealing), or `GFLOP/s`.
    pub unit: &'static str,
    /// The limit, in `unit`.
    pub limit: f64,
    /// `speed / limit`.
    pub of_limit: f64,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What the machine allows.
    pub limits: Limits,
    /// Kernels, format by format.
    pub kernels: Vec<Row>,
}

/// Measures the kernels whose names contain one of the filters, on the formats whose names contain one, on
/// instruction sets by name; all, where none is given. Before each, `progress(done, all)` says whether to go on.
pub fn measure(
    filters: &[String],
    isas: &[String],
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Report, Error> {
    let chosen = chosen(filters)?;
    let levels = levels(isas)?;
    let all = chosen.len() * levels.len();
    let mut go_on = |done| progress(done, all);
    let mut report =
        Report { limits: Limits::measure(&levels, torque_cpu::physical_cores()), kernels: Vec::new() };
    for same_format in chosen.chunk_by(|a, b| std::ptr::eq(a.0, b.0)) {
        let format = same_format[0].0;
        let stream = stream(format, STREAM);
        for &level in &levels {
            let setting = Setting { format, level, stream: stream.clone(), rows: ROWS };
            for (_, kernel) in same_format {
                if !go_on(report.kernels.len()) {
                    return Ok(report);
                }
                report.kernels.push(Row::measure(&setting, kernel, &report.limits));
            }
        }
    }
    Ok(report)
}

/// What the filters choose. Names of kernels and of formats are chosen apart. A whole name means just that: turbo3 is not
/// turbo3_tcq.
fn chosen(filters: &[String]) -> Result<Vec<(&'static FormatOps, &'static Kernel)>, Error> {
    let is_kernel = |filter: &str| KERNELS.iter().any(|kernel| kernel.name.contains(filter));
    let is_format = |filter: &str| FORMATS.iter().any(|format| format.name.contains(filter));
    if let Some(unknown) = filters.iter().find(|filter| !is_kernel(filter) && !is_format(filter)) {
        let mut kernels: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
        kernels.dedup();
        let formats: Vec<_> = FORMATS.iter().map(|format| format.name).collect();
        let known = format!("{} of formats {}", kernels.join(" "), formats.join(" "));
        return Err(Error::NoSuchKernel { filter: unknown.clone(), known });
    }
    let names: Vec<_> = KERNELS.iter().map(|k| k.name).chain(FORMATS.iter().map(|f| f.name)).collect();
    let chooses = |filter: &str, name: &str| match names.contains(&filter) {
        true => name == filter,
        false => name.contains(filter),
    };
    let wanted = |name: &str, is_one: &dyn Fn(&str) -> bool| {
        let mut filters = filters.iter().filter(|filter| is_one(filter)).peekable();
        filters.peek().is_none() || filters.any(|filter| chooses(filter, name))
    };
    let formats = FORMATS.iter().filter(|format| wanted(format.name, &is_format));
    let kernels = |format| {
        let takes = move |kernel: &&Kernel| (kernel.takes)(format) && wanted(kernel.name, &is_kernel);
        KERNELS.iter().filter(takes).map(move |kernel| (format, kernel))
    };
    let chosen: Vec<_> = formats.flat_map(kernels).collect();
    match chosen.is_empty() {
        true => Err(Error::NoKernels { filters: filters.join(",") }),
        false => Ok(chosen),
    }
}

fn levels(isas: &[String]) -> Result<Vec<Level>, Error> {
    if isas.is_empty() {
        return Ok(Level::all_available());
    }
    // The backend knows what this machine lacks, and says so.
    let level = |name: &String| {
        Cpu::new(Some(1), Some(name))?;
        Ok(Level::from_name(name).expect("the backend has found it"))
    };
    isas.iter().map(level).collect()
}

/// Seconds of the fastest run. The first one warms caches up.
fn fastest(mut run: impl FnMut()) -> f64 {
    run();
    let (start, mut fastest) = (Instant::now(), f64::MAX);
    while start.elapsed() < PATIENCE {
        let run_start = Instant::now();
        run();
        fastest = fastest.min(run_start.elapsed().as_secs_f64());
    }
    fastest
}

impl Row {
    fn measure(setting: &Setting, kernel: &Kernel, limits: &Limits) -> Row {
        let Work { bytes, multiply_adds, mut run } = (kernel.work)(setting, kernel);
        let seconds = fastest(&mut run);
        let multiply = limits.multiply.iter().find(|limit| limit.isa == setting.level.name());
        let multiply = multiply.expect("every level in use was measured");
        let format = setting.format;
        let rate = match multiply.tiles {
            _ if kernel.name != "product" => multiply.float,
            Some(tiles) if format.has_tiles() && kernel.count >= torque_quant::tiles::TOKENS => tiles,
            _ if format.rounds_activations() => multiply.whole,
            _ => multiply.float,
        };
        let operations = 2.0 * multiply_adds as f64 / 1e9;
        let amount = if kernel.unit == "GB/s" { bytes as f64 / 1e9 } else { operations };
        let reading = match kernel.from {
            Source::Cache if multiply_adds > 0 => 0.0,
            _ => bytes as f64 / 1e9 / limits.read,
        };
        let least = reading.max(operations / rate);
        Row {
            kernel: kernel.name,
            count: kernel.count,
            format: setting.format.name,
            isa: setting.level.name(),
            from: kernel.from,
            speed: amount / seconds,
            unit: kernel.unit,
            limit: amount / least,
            of_limit: least / seconds,
        }
    }
}

#[cfg(test)]
mod tests;
