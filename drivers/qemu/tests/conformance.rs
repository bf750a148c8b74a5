//! The driver against real QEMU: what every driver promises.

mod bench;

use std::os::unix::fs::MetadataExt;

use bench::Store;
use forge_driver::conformance;

#[test]
fn switch_process() {
    bench::maybe_switch();
}

forge_driver::conforms!(
    Store::new();
    a_claim_is_found_by_another_instance,
    creating_twice_makes_one,
    five_at_once_have_five_addresses,
    destroying_twice_succeeds,
    power_goes_on_and_off,
    observations_come_in_the_order_asked,
    forwards_are_exact_and_come_back,
    a_foreign_machine_is_refused,
    a_blanked_seed_holds_nothing,
);

#[tokio::test(flavor = "multi_thread")]
async fn a_large_disk_costs_no_more_than_a_small_one() {
    let store = Store::new();
    let (small, large) = (
        store.with_disks_of(20 << 30),
        store.with_disks_of(200 << 30),
    );
    let allocated = |claim| {
        let disk = store.folder(claim).join("disk.qcow2");
        std::fs::metadata(disk).expect("a disk").blocks() * 512
    };
    conformance::a_large_disk_costs_no_more_than_a_small_one(&small, &large, &allocated).await;
}
