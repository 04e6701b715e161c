//! The setting that says whose pages resumed guests run on.

/// Whose pages resumed guests run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryMode {
    /// Shared ones for several guests of one snapshot, and own ones otherwise.
    Auto,
    /// Own ones.
    Own,
    /// Shared ones, wherever a guest can.
    Shared,
}

impl MemoryMode {
    /// The mode that a word means, or the words that mean one.
    pub(super) fn parse(word: Option<&str>) -> Result<Self, String> {
        let mode = [Self::Auto, Self::Own, Self::Shared].into_iter().find(|mode| word == Some(mode.word()));
        mode.ok_or_else(|| "auto, own or shared".to_owned())
    }

    /// Its word.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Own => "own",
            Self::Shared => "shared",
        }
    }
}
