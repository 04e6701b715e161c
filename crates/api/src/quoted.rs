//! Text of a request in an answer.

/// Characters that are shown of what a request says.
const QUOTED_CHARACTERS_MAX: usize = 100;

/// Text that was sent, in quotation marks, without most of it where it is long.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARACTERS_MAX) {
        Some((end, _)) => format!("{:?} and {} bytes more", &text[..end], text.len() - end),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_word_is_not_said_again_whole() {
        assert_eq!(quoted("a b"), "\"a b\"");
        assert_eq!(quoted(&"ä".repeat(101)), format!("{:?} and 2 bytes more", "ä".repeat(100)));
    }
}
