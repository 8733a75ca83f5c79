//! Where there are no tiles in instructions.

use super::{Sums, Tile, Tiles};

/// Nothing: this kind of processor, or this system, has no such registers.
#[derive(Debug)]
pub enum Amx {}

impl Tiles for Amx {
    fn new() -> Option<Amx> {
        None
    }
    fn zero<const T: u8>(&mut self) {
        match *self {}
    }
    fn load<const T: u8>(&mut self, _: &Tile) {
        match *self {}
    }
    fn load_sums<const T: u8>(&mut self, _: &Sums) {
        match *self {}
    }
    fn store_sums<const T: u8>(&self, _: &mut Sums) {
        match *self {}
    }
    fn multiply_add<const C: u8, const A: u8, const B: u8>(&mut self) {
        match *self {}
    }
}

/// Never.
pub fn available() -> bool {
    false
}
