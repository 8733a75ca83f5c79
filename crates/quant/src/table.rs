//! What each format costs: bits, and relative squared error on two kinds of data.

use crate::format::{FORMATS, FormatOps, Rotation};
use crate::rotate::{self, Pcg64};

/// One format's line.
#[derive(Clone, Debug)]
pub struct Row {
    /// The format.
    pub format: &'static FormatOps,
    /// Bits a value.
    pub bits: f64,
    /// `Σ (x − decoded)² / Σ x²` on Gaussian rows of 256.
    pub gaussian: f64,
    /// The same on Gaussian rows of 256 with [`OUTLIERS`] channels thirty times as large.
    pub outliers: f64,
}

/// Channels of 256 that stick out.
pub const OUTLIERS: [usize; 4] = [20, 66, 84, 110];

const ROWS: usize = 128;
const CHANNELS: usize = 256;

/// The lines of all formats. The data are the same on every call.
pub fn table() -> Vec<Row> {
    let gaussian = gaussian_rows();
    let mut outliers = gaussian.clone();
    for row in outliers.chunks_mut(CHANNELS) {
        OUTLIERS.iter().for_each(|channel| row[*channel] *= 30.0);
    }
    let row = |format: &'static FormatOps| Row {
        format,
        bits: format.bits(),
        gaussian: relative_error(format, &gaussian),
        outliers: relative_error(format, &outliers),
    };
    FORMATS.iter().map(row).collect()
}

/// `Σ (x − decoded)² / Σ x²` over rows of whole blocks, in the numbers' own domain.
pub fn relative_error(format: &FormatOps, x: &[f32]) -> f64 {
    let (mut bytes, mut y) = (vec![0; format.row_bytes(x.len())], vec![0.0; x.len()]);
    format.encode_row(x, &mut bytes);
    format.decode_row(&bytes, &mut y);
    if format.rotation == Rotation::Head {
        y.chunks_mut(format.block).for_each(rotate::wht_inverse);
    }
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = x.iter().zip(&y).map(|(x, y)| square(x - y)).sum();
    error / x.iter().map(|x| square(*x)).sum::<f64>()
}

/// `[ROWS, CHANNELS]` of N(0, 1), by Box and Muller's method.
fn gaussian_rows() -> Vec<f32> {
    let mut rng = Pcg64::seed(7);
    let mut uniform = || (f64::from(rng.next_u32()) + 0.5) / 4_294_967_296.0;
    let mut normal = || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    (0..ROWS * CHANNELS).map(|_| normal() as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Errors measured elsewhere, with other data and encoders of the same formats.
    #[test]
    fn errors_are_as_measured_elsewhere() {
        let known = [
            ("q8_0", 3e-5, 1.4e-4),
            ("q6_k", 0.00031, 0.0012),
            ("q5_k", 0.0013, 0.0027),
            ("tq4_1s", 0.0053, 0.0041),
            ("q4_k", 0.0051, 0.0088),
            ("q4_0", 0.0074, 0.0148),
            ("iq4_nl", 0.0062, 0.0121),
            ("turbo4", 0.0092, 0.0),
            ("tq3_1s", 0.0226, 0.0107),
            ("q3_k", 0.0228, 0.0133),
            ("turbo3", 0.0338, 0.0305),
            ("turbo3_tcq", 0.0216, 0.0),
            ("q2_k", 0.0879, 0.0459),
            ("turbo4_tcq", 0.0057, 0.0),
            ("turbo2", 0.1183, 0.0820),
            ("turbo2_tcq", 0.0807, 0.0),
        ];
        let table = table();
        for row in &table {
            println!("{:10} {:7.4} {:.7} {:.7}", row.format.name, row.bits, row.gaussian, row.outliers);
        }
        for (name, gaussian, outliers) in known {
            let row = table.iter().find(|row| row.format.name == name).unwrap();
            let near = |found: f64, known: f64| known == 0.0 || (found / known - 1.0).abs() < 0.1;
            assert!(near(row.gaussian, gaussian) && near(row.outliers, outliers), "{row:?}");
        }
    }
}
