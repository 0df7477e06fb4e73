//! What stands in an SQL text, as far as this server must know: where the data of an insert begins, which result format
//! a query names, and whether a query of the read-only pool calls something that reaches outside.
//!
//! What a statement *does* is never judged here: the engine's own parser does that ([`crate::engine::Analysis`]). Words are
//! found with a small scanner that knows comments, strings, quoted names and heredocs; where it could be wrong, the
//! answer is a refusal.

/// One word, quoted thing or sign of an SQL text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Token {
    start: usize,
    end: usize,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Word,
    Quoted,
    Sign(u8),
}

/// Lazy scanner over the bytes of a statement (which may have binary data behind it).
struct Tokens<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Tokens<'a> {
    fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }

    fn skip_blank(&mut self) {
        loop {
            let rest = &self.text[self.at..];
            if rest.first().is_some_and(u8::is_ascii_whitespace) || rest.first() == Some(&0x0b) {
                self.at += 1;
            } else if rest.starts_with(b"--") || rest.starts_with(b"#!") || rest.starts_with(b"# ") {
                self.at += rest.iter().position(|b| *b == b'\n').map_or(rest.len(), |n| n + 1);
            } else if rest.starts_with(b"/*") {
                self.at += find(&rest[2..], b"*/").map_or(rest.len(), |n| n + 4);
            } else {
                return;
            }
        }
    }

    fn quoted_end(&self, quote: u8) -> usize {
        let mut i = self.at + 1;
        while let Some(b) = self.text.get(i) {
            match b {
                b'\\' => i += 2,
                b if *b == quote && self.text.get(i + 1) == Some(&quote) => i += 2,
                b if *b == quote => return i + 1,
                _ => i += 1,
            }
        }
        self.text.len()
    }

    fn heredoc_end(&self) -> Option<usize> {
        let rest = &self.text[self.at..];
        let tag = rest[1..].iter().position(|b| !is_word(*b))? + 2;
        let mark = rest.get(..tag).filter(|m| m.ends_with(b"$"))?;
        Some(self.at + tag + find(&rest[tag..], mark)? + tag)
    }
}

impl Iterator for Tokens<'_> {
    type Item = Token;
    fn next(&mut self) -> Option<Token> {
        self.skip_blank();
        let start = self.at;
        let first = *self.text.get(start)?;
        let (end, kind) = match first {
            b'\'' | b'"' | b'`' => (self.quoted_end(first), Kind::Quoted),
            b'$' if self.heredoc_end().is_some() => {
                (self.heredoc_end().unwrap_or(self.text.len()), Kind::Quoted)
            }
            b if is_word(b) => {
                let len = self.text[start..].iter().position(|b| !is_word(*b));
                (len.map_or(self.text.len(), |n| start + n), Kind::Word)
            }
            b => (start + 1, Kind::Sign(b)),
        };
        self.at = end;
        Some(Token { start, end, kind })
    }
}

fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

fn is(text: &[u8], token: Token, word: &str) -> bool {
    token.kind == Kind::Word && text[token.start..token.end].eq_ignore_ascii_case(word.as_bytes())
}

/// The parts of an insert that carries data: everything but `INSERT … SELECT`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InsertParts<'a> {
    /// The statement up to FORMAT or VALUES.
    pub(crate) head: &'a [u8],
    /// Format of the data.
    pub(crate) format: &'a str,
    /// Data that follows in the same text.
    pub(crate) data: &'a [u8],
}

/// Takes an insert with data apart, so that the data never passes for SQL. `None` for everything else.
pub(crate) fn insert_parts(text: &[u8]) -> Option<InsertParts<'_>> {
    let mut tokens = Tokens::new(text);
    if !is(text, tokens.next()?, "INSERT") {
        return None;
    }
    let mut token = tokens.next()?;
    for word in ["INTO", "TABLE", "FUNCTION"] {
        if is(text, token, word) {
            token = tokens.next()?;
        }
    }
    // `token` is the first word of the target's name, which may itself be a keyword; a path goes on after a dot.
    let mut previous_is_dot = true;
    let mut depth = 0_usize;
    loop {
        match token.kind {
            Kind::Sign(b'(') => depth += 1,
            Kind::Sign(b')') => depth = depth.saturating_sub(1),
            Kind::Sign(b';') if depth == 0 => return None,
            Kind::Word if depth == 0 && !previous_is_dot => {
                if ["SELECT", "WITH", "FROM", "WATCH"].iter().any(|w| is(text, token, w)) {
                    return None;
                }
                if is(text, token, "VALUES") {
                    return Some(InsertParts {
                        head: &text[..token.start],
                        format: "Values",
                        data: &text[token.end..],
                    });
                }
                if is(text, token, "FORMAT") {
                    let name = tokens.next().filter(|t| t.kind == Kind::Word)?;
                    return Some(InsertParts {
                        head: &text[..token.start],
                        format: std::str::from_utf8(&text[name.start..name.end]).ok()?,
                        data: after_format(&text[name.end..]),
                    });
                }
            }
            _ => {}
        }
        previous_is_dot = token.kind == Kind::Sign(b'.');
        token = tokens.next()?;
    }
}

/// Inline data begins behind the blanks and the line end that follow the format's name.
fn after_format(rest: &[u8]) -> &[u8] {
    let blanks = rest.iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\x0c')).count();
    let rest = &rest[blanks..];
    let rest = rest.strip_prefix(b";").unwrap_or(rest);
    let rest = rest.strip_prefix(b"\r").unwrap_or(rest);
    rest.strip_prefix(b"\n").unwrap_or(rest)
}

/// A statement without the `FORMAT name` and the semicolons at its end, and that name.
pub(crate) fn without_format(text: &[u8]) -> (&[u8], Option<&str>) {
    let mut tokens: Vec<Token> = Tokens::new(text).collect();
    while tokens.last().is_some_and(|t| t.kind == Kind::Sign(b';')) {
        tokens.pop();
    }
    let end = tokens.last().map_or(0, |t| t.end);
    if let [.., keyword, name] = tokens.as_slice()
        && is(text, *keyword, "FORMAT")
        && name.kind == Kind::Word
        && tokens.len() > 2
        && let Ok(format) = std::str::from_utf8(&text[name.start..name.end])
    {
        return (&text[..keyword.start], Some(format));
    }
    (&text[..end], None)
}

/// Whether a statement is a query that can stand in parentheses.
pub(crate) fn is_select(text: &[u8]) -> bool {
    let first = Tokens::new(text).find(|t| t.kind != Kind::Sign(b'('));
    first.is_some_and(|t| ["SELECT", "WITH", "FROM"].iter().any(|w| is(text, t, w)))
}

/// Whether a text holds a semicolon that is not at its end.
pub(crate) fn has_inner_semicolon(text: &[u8]) -> bool {
    let mut seen = false;
    for t in Tokens::new(text) {
        if t.kind == Kind::Sign(b';') {
            seen = true;
        } else if seen {
            return true;
        }
    }
    false
}

/// Table functions that only compute; every other one is refused in the read-only pool.
const HARMLESS: [&str; 22] = [
    "numbers",
    "numbers_mt",
    "zeros",
    "zeros_mt",
    "primes",
    "generaterandom",
    "generate_series",
    "generateseries",
    "values",
    "sqlstandardvalues",
    "view",
    "format",
    "null",
    "merge",
    "loop",
    "dictionary",
    "mergetreeindex",
    "mergetreeprojection",
    "fuzzjson",
    "timeseriesdata",
    "timeseriestags",
    "timeseriesmetrics",
];

/// Ordinary functions that read files or run programs.
const OUTSIDE_FUNCTIONS: [&str; 4] = ["file", "catboostevaluate", "filesystem", "executable"];

/// The functions that the read-only pool refuses: made from the engine's own list of table functions.
#[derive(Debug, Clone)]
pub(crate) struct Forbidden(Vec<String>);

impl Forbidden {
    /// `table_functions`: the engine's list, one a line.
    pub(crate) fn new(table_functions: &str) -> Self {
        let mut names: Vec<String> = table_functions.lines().map(|n| n.trim().to_ascii_lowercase()).collect();
        names.extend(["url", "s3", "remote", "mysql", "python"].map(str::to_owned));
        names.extend(OUTSIDE_FUNCTIONS.map(str::to_owned));
        names.retain(|n| !n.is_empty() && !HARMLESS.contains(&n.as_str()));
        names.sort_unstable();
        names.dedup();
        Self(names)
    }

    fn has(&self, name: &str) -> bool {
        self.0.binary_search(&name.to_ascii_lowercase()).is_ok()
    }

    /// The first forbidden function in the output of `EXPLAIN AST`, where the engine's parser names every function.
    pub(crate) fn in_syntax_tree(&self, tree: &str) -> Option<String> {
        tree.lines().find_map(|line| {
            let name = line.trim_start().strip_prefix("Function ")?;
            let name = name.split(" (").next().unwrap_or(name);
            self.has(name).then(|| name.to_owned())
        })
    }

    /// For statements whose tree cannot be had (SHOW, DESCRIBE, EXPLAIN…): any mention of a forbidden name, quoted or
    /// not, in a text with a parenthesis, and any escape that could hide one.
    pub(crate) fn mentioned(&self, text: &[u8]) -> Option<String> {
        if !text.contains(&b'(') {
            return None;
        }
        if text.contains(&b'\\') {
            return Some("an escape sequence".to_owned());
        }
        let words = text.split(|b| !is_word(*b)).filter_map(|w| std::str::from_utf8(w).ok());
        words.filter(|w| self.has(w)).map(str::to_owned).next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(sql: &str) -> Option<(&str, &str, &str)> {
        let s = |b| std::str::from_utf8(b).expect("utf-8");
        insert_parts(sql.as_bytes()).map(|p| (s(p.head), p.format, s(p.data)))
    }

    #[test]
    fn inserts_come_apart() {
        assert_eq!(parts("INSERT INTO t FORMAT ArrowStream"), Some(("INSERT INTO t ", "ArrowStream", "")));
        assert_eq!(
            parts("insert into `a b`.values (x, y) format JSONEachRow\n{}\n\ndrop table t"),
            Some(("insert into `a b`.values (x, y) ", "JSONEachRow", "{}\n\ndrop table t"))
        );
        assert_eq!(parts("insert into t values (1); x"), Some(("insert into t ", "Values", " (1); x")));
        assert_eq!(parts("insert into function file('x') values 1").map(|p| p.1), Some("Values"));
        assert_eq!(
            parts("/* c */ insert -- d\n into format settings a='format x' format CSV 1"),
            Some(("/* c */ insert -- d\n into format settings a='format x' ", "CSV", "1"))
        );
        for other in
            ["insert into t select 1", "insert into t (select 1)", "select 1 format CSV", "", "insert into"]
        {
            assert_eq!(parts(other), None, "{other}");
        }
        assert_eq!(parts("insert into t; drop table t; insert into t format CSV"), None);
    }

    #[test]
    fn formats_at_the_end() {
        assert_eq!(without_format(b"select 1 format CSV ;; "), (&b"select 1 "[..], Some("CSV")));
        assert_eq!(without_format(b"select 1;"), (&b"select 1"[..], None));
        assert_eq!(without_format(b"select 'format CSV'"), (&b"select 'format CSV'"[..], None));
        assert_eq!(without_format(b"select 1 -- format CSV"), (&b"select 1"[..], None));
        assert_eq!(without_format(b""), (&b""[..], None));
    }

    #[test]
    fn semicolons_inside() {
        assert!(has_inner_semicolon(b"select 1; drop table t"));
        for fine in
            ["select 1;", "select ';x'", "select 1 /* ; */ + 1", "select $a$ ;' $a$ + 1;", "select `a;b`"]
        {
            assert!(!has_inner_semicolon(fine.as_bytes()), "{fine}");
        }
    }

    #[test]
    fn forbidden_names_are_found() {
        let f = Forbidden::new("file\nurl\ns3\nnumbers\nremote\n");
        assert_eq!(f.in_syntax_tree("SelectQuery\n  Function numbers (children 1)"), None);
        assert_eq!(f.in_syntax_tree("  Function File (children 1)"), Some("File".into()));
        assert_eq!(f.mentioned(b"describe table `url`('x')"), Some("url".into()));
        assert_eq!(f.mentioned(b"describe table machine"), None);
        assert!(f.mentioned(b"describe table `ur\\x6c`('x')").is_some());
        assert!(is_select(b" ((select 1))") && !is_select(b"show tables"));
    }
}
