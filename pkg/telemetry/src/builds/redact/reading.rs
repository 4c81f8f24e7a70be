//! The reading of a text as a shell does, as far as the ends of names and values depend on it.

/// Returns whether a name may begin with this character. The dashes of a flag are part of its name.
pub(super) fn is_name_start(c: char) -> bool {
    c.is_alphabetic() || matches!(c, '_' | '-')
}

pub(super) fn is_name_part(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// The state of quotes while a text is read as a shell does.
#[derive(Clone, Copy, Default)]
pub(super) struct Quoting {
    pub(super) open: Option<char>,
    is_escaped: bool,
}

impl Quoting {
    fn advance(&mut self, c: char) {
        match c {
            _ if self.is_escaped => self.is_escaped = false,
            '\\' => self.is_escaped = true,
            '"' | '\'' if self.open.is_none() => self.open = Some(c),
            _ if self.open == Some(c) => self.open = None,
            _ => {}
        }
    }
}

/// The kind of word that a name is in, as far as it is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    Start,
    Plain,
    Path,
    Label,
    Repository,
    /// One that replaces text, such as `s/a/b/`.
    Substitution,
}

/// The place of a name in a text.
pub(super) struct Place {
    pub(super) quoting: Quoting,
    pub(super) word: Word,
    /// Set if the text begins with a dash. Such an argument is no script.
    pub(super) is_flag: bool,
    /// Set if the name is in the first word.
    pub(super) is_first: bool,
    pub(super) last: char,
    before_last: char,
}

impl Place {
    pub(super) fn new(text: &str) -> Self {
        Self {
            quoting: Quoting::default(),
            word: Word::Start,
            is_flag: text.trim_start().starts_with('-'),
            is_first: true,
            last: ' ',
            before_last: ' ',
        }
    }

    pub(super) fn advance(&mut self, text: &str) {
        for c in text.chars() {
            self.quoting.advance(c);
            let is_blank = self.last.is_whitespace();
            self.is_first &= !c.is_whitespace() || is_blank;
            self.word = match (self.word, c) {
                (_, c) if c.is_whitespace() || "\"'=,;()[]{}<>|&".contains(c) => Word::Start,
                (Word::Start, '@') => Word::Repository,
                (Word::Start, ':') if is_blank || self.last == '=' => Word::Label,
                (Word::Start, _) => Word::Plain,
                (_, '/') if self.last == '/' && self.before_last != ':' => Word::Label,
                (Word::Plain, '/') if self.last == 's' && !is_name_part(self.before_last) => {
                    Word::Substitution
                }
                (Word::Plain | Word::Repository, '/') => Word::Path,
                (word, _) => word,
            };
            (self.before_last, self.last) = (self.last, c);
        }
    }

    /// Returns whether the name is in `${...}`. A dash after it is then an operator, not a part of the name.
    pub(super) const fn is_expansion(&self) -> bool {
        self.before_last == '$' && self.last == '{'
    }
}

/// Returns the length of the first word of `text` as a shell reads it, from within `quote`.
pub(super) fn word(text: &str, quote: Option<char>) -> usize {
    let mut quoting = Quoting {
        open: quote,
        is_escaped: false,
    };
    for (at, c) in text.char_indices() {
        if quoting.open.is_none() && !quoting.is_escaped && c.is_whitespace() {
            return at;
        }
        quoting.advance(c);
    }
    text.len()
}

/// Returns the length of the string, list or object, as in JSON, at the start of `text`: all of `text` for anything
/// else. A string ends at a quote with as many backslashes as at its start.
pub(super) fn structure(text: &str) -> usize {
    let (mut depth, mut open, mut backslashes) = (0_usize, None, 0_usize);
    for (at, c) in text.char_indices() {
        if c == '\\' {
            backslashes += 1;
            continue;
        }
        match (open, c) {
            (None, '"' | '\'') => open = Some((c, backslashes)),
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth = depth.saturating_sub(1),
            (None, _) if depth == 0 => break,
            (Some(start), _) if start == (c, backslashes) => open = None,
            _ => {}
        }
        backslashes = 0;
        if depth == 0 && open.is_none() {
            let (value, rest) = text.split_at(at + c.len_utf8());
            let next = rest.trim_start().chars().next();
            let is_end = next.is_none_or(|c| matches!(c, ',' | ']' | '}' | ')'));
            return if is_end { value.len() } else { text.len() };
        }
    }
    text.len()
}
