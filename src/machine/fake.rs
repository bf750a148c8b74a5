//! The guest of a fake machine.
