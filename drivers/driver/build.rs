//! Rebuilds this crate when a template or a playbook changes: they are embedded in it.

fn main() {
    for folder in ["templates", "playbooks"] {
        println!("cargo::rerun-if-changed=../../{folder}");
    }
}
