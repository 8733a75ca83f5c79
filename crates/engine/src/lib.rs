//! Engine and Session: the wall between inference and its users.
