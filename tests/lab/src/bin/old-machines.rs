//! `old-machines FOLDER COUNT`: makes a store of docker-machine's with so many machines in FOLDER, every other of them at
//! 127.99.0.0/16, and is the engine of all others until its standard input ends. `ready` says that it answers.

use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;

use forge_lab::old::{OldStore, engine};

fn main() {
    let mut words = std::env::args().skip(1);
    let (Some(folder), Some(Ok(count))) = (
        words.next().map(PathBuf::from),
        words.next().map(|count| count.parse()),
    ) else {
        eprintln!("usage: old-machines FOLDER COUNT");
        std::process::exit(2);
    };
    let issued = OldStore::at(&folder).many(count);
    engine(SocketAddr::from(([0, 0, 0, 0], 2376)), &issued);
    println!("ready");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
