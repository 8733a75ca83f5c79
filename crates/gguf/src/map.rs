//! The memory map: the one place in this crate that needs `unsafe`.

use std::fs::File;
use std::path::Path;

use bytes::Bytes;

use crate::Error;

/// The whole file as bytes, read from disk only where it is touched.
#[allow(unsafe_code)]
pub(crate) fn map(path: &Path) -> Result<Bytes, Error> {
    let failed = |action| move |error| Error::Io { action, path: path.into(), error };
    let file = File::open(path).map_err(failed("open"))?;
    // SAFETY: the map is private to this process and read-only, and its pages stay mapped while a `Bytes` refers to
    // them. The operator guarantees the rest, as with any mapped file: that nobody changes or shortens a model file
    // while it is in use (replacing it by a new file of the same name, as `Writer` does, is fine).
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(failed("map"))?;
    Ok(Bytes::from_owner(map))
}
