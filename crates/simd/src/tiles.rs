//! Tiles: eight registers of sixteen rows of 64 bytes, and products of two of them (Intel AMX, since Sapphire Rapids).
//!
//! ```text
//! sums[m][n] += Σ_k a[m][k] · b[n][k]        m, n < 16, k < 32
//! ```
//!
//! a and b are bfloat16, the sums `f32`. Row m of tile a holds `a[m]`; row p of tile b holds the pairs `b[n][2p]`,
//! `b[n][2p + 1]` of every n.
//!
//! [`Emulated`] does in plain loops what [`Amx`] does in instructions, to the bit, so that what is built on tiles can be
//! tested on every processor.

#[cfg_attr(not(all(target_arch = "x86_64", target_os = "linux")), path = "tiles/no_amx.rs")]
mod amx;
mod emulated;

pub use amx::Amx;
pub(crate) use amx::available;
pub use emulated::Emulated;

/// A factor: sixteen rows of 32 bfloat16 numbers, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Tile(pub [[u8; 64]; 16]);

/// Sixteen rows of sixteen sums.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub struct Sums(pub [[f32; 16]; 16]);

impl Tile {
    /// All zero.
    pub const ZERO: Tile = Tile([[0; 64]; 16]);
}

impl Sums {
    /// All zero.
    pub const ZERO: Sums = Sums([[0.0; 16]; 16]);
}

/// The eight tile registers of a thread, each named by its number.
pub trait Tiles: Sized {
    /// The registers, if this processor has them and the system allows their use.
    ///
    /// # Panics
    ///
    /// If this thread holds them already.
    fn new() -> Option<Self>;
    /// Sets all of T to zero.
    fn zero<const T: u8>(&mut self);
    /// T becomes a factor.
    fn load<const T: u8>(&mut self, tile: &Tile);
    /// T becomes sums.
    fn load_sums<const T: u8>(&mut self, sums: &Sums);
    /// The inverse of [`Tiles::load_sums`].
    fn store_sums<const T: u8>(&self, sums: &mut Sums);
    /// Adds the product of A and B to the sums C. Three different registers.
    fn multiply_add<const C: u8, const A: u8, const B: u8>(&mut self);
}

#[cfg(test)]
mod tests;
