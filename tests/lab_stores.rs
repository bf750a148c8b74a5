//! One hundred fresh stores, eight processes at once in each: as many as no race should survive.

mod common;

#[test]
fn lab_point_01_in_100_stores() {
    assert_eq!(common::stores::inconsistent(100), Vec::<String>::new());
}
