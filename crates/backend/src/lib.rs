//! The ops a device must provide, and their scalar reference.
