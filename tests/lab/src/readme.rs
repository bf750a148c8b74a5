//! The examples of the README, which two test programs share: the tour is run on real machines, the rest without.

use std::fs;
use std::path::Path;

/// The language of the blocks that make up the tour.
const TOUR: &str = "sh";

/// A block of code.
#[derive(Clone, Debug)]
pub struct Block {
    /// What stands behind its opening fence.
    pub language: String,
    /// What stands between its fences.
    pub text: String,
}

impl Block {
    /// Whether it is of the tour, which goes from one block to the next on the same machines.
    pub fn on_tour(&self) -> bool {
        self.language == TOUR
    }

    /// Its first line, by which tests name it.
    pub fn first(&self) -> &str {
        self.text.lines().next().unwrap_or_default()
    }
}

/// The README below `root`.
pub fn text(root: &Path) -> String {
    fs::read_to_string(root.join("README.md")).expect("the README")
}

/// All blocks of the README below `root`, in their order.
pub fn blocks(root: &Path) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut inside: Option<Block> = None;
    for line in text(root).lines() {
        inside = match (inside, line.trim_start().strip_prefix("```")) {
            (None, Some(language)) => Some(Block {
                language: language.to_owned(),
                text: String::new(),
            }),
            (Some(block), Some(_)) => {
                blocks.push(block);
                None
            }
            (Some(mut block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
                Some(block)
            }
            (None, None) => None,
        };
    }
    assert!(inside.is_none(), "the last block has no end");
    blocks
}
