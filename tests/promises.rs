//! What issue 2 promises in its sections 4 to 9, held against the tests that keep it; and what
//! `docs/failures.md` says of failures, held against the tests that provoke them and forge's own words.
//!
//! `tests/promises.toml` names for each promise the tests that fail when it is broken, and the named
//! checks of the end-to-end build that show it in a real guest. Here is seen to it that all of them
//! exist; a promise that nothing tests yet says why in `gap`, and is printed.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

use std::collections::BTreeSet;
use std::fs;
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::str::Chars;

use forge::diagnosis::Cause;
use serde::Deserialize;

const SECTIONS: [&str; 6] = ["4", "5", "6", "7", "8", "9"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Promises {
    promise: Vec<Promise>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Promise {
    /// The issue's section.
    section: String,
    /// What is promised, short.
    text: String,
    /// The tests that fail when it is broken: `TIER: PATH`, see [`tests_of`].
    #[serde(default)]
    tests: Vec<String>,
    /// Checks of the end-to-end build: of `templates/ubuntu-noble`, or the proof's own.
    #[serde(default)]
    checks: Vec<String>,
    /// Why nothing tests it.
    gap: Option<String>,
}

/// The tests and checks that exist.
struct Known {
    tests: BTreeSet<String>,
    checks: BTreeSet<String>,
}

// What exists --------------------------------------------------------------------------------------

/// A piece of Rust source, as far as it matters here.
#[derive(Debug, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Sign(char),
}

/// Splits Rust source into words, string literals and signs; comments and characters are left out.
fn tokens(source: &str) -> Vec<Token> {
    let mut found = Vec::new();
    let mut rest = source.chars().peekable();
    while let Some(first) = rest.next() {
        match first {
            '/' if rest.peek() == Some(&'/') => while rest.next().is_some_and(|next| next != '\n') {},
            '/' if rest.peek() == Some(&'*') => skip_block_comment(&mut rest),
            '"' => found.push(Token::Text(quoted(&mut rest))),
            '\'' => skip_character(&mut rest),
            _ if is_in_word(first) => {
                let mut word = first.to_string();
                while let Some(next) = rest.next_if(|next| is_in_word(*next)) {
                    word.push(next);
                }
                match raw_text(&word, &mut rest) {
                    Some(text) => found.push(Token::Text(text)),
                    None => found.push(Token::Word(word)),
                }
            }
            _ if first.is_whitespace() => {}
            sign => found.push(Token::Sign(sign)),
        }
    }
    found
}

/// A `$` is a part of a word: `$name` stands for all tests that a macro makes there.
fn is_in_word(character: char) -> bool {
    character.is_alphanumeric() || matches!(character, '_' | '$')
}

fn skip_block_comment(rest: &mut Peekable<Chars<'_>>) {
    let (mut depth, mut before) = (1, '\0');
    rest.next();
    while depth > 0 {
        let Some(next) = rest.next() else { return };
        match (before, next) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                before = next;
                continue;
            }
        }
        before = '\0';
    }
}

fn quoted(rest: &mut Peekable<Chars<'_>>) -> String {
    let mut text = String::new();
    while let Some(next) = rest.next().filter(|next| *next != '"') {
        if next == '\\' {
            text.extend(rest.next());
        } else {
            text.push(next);
        }
    }
    text
}

/// Skips `'x'` and `'\n'`; of a lifetime only the sign is taken.
fn skip_character(rest: &mut Peekable<Chars<'_>>) {
    let mut ahead = rest.clone();
    let escaped = ahead.next() == Some('\\');
    if escaped {
        ahead.next();
        while ahead.next().is_some_and(|next| next != '\'') {}
        *rest = ahead;
    } else if ahead.next() == Some('\'') {
        *rest = ahead;
    }
}

/// Returns the raw string that begins with that word, if one does.
fn raw_text(word: &str, rest: &mut Peekable<Chars<'_>>) -> Option<String> {
    if !matches!(word, "r" | "br" | "cr") {
        return None;
    }
    let after = rest.clone().collect::<String>();
    let marks = "#".repeat(after.chars().take_while(|next| *next == '#').count());
    let body = after[marks.len()..].strip_prefix('"')?;
    let (text, _) = body.split_once(&format!("\"{marks}"))?;
    let length = 2 * marks.len() + 2 + text.chars().count();
    rest.nth(length - 1);
    Some(text.to_owned())
}

/// Returns the paths of the test functions in a file whose module is `module`; ignored ones are none.
fn tests_in(source: &str, module: &str) -> Vec<String> {
    let tokens = tokens(source);
    let mut found = Vec::new();
    let mut modules: Vec<(&str, usize)> = Vec::new();
    let (mut depth, mut is_test, mut is_ignored) = (0_usize, false, false);
    for (at, token) in tokens.iter().enumerate() {
        match (token, &tokens[at + 1..]) {
            (Token::Sign('#'), [Token::Sign('['), inside @ ..]) => {
                let words: Vec<_> = inside.iter().map_while(attribute_word).collect();
                is_test |= words == ["test"] || words.starts_with(&["tokio", ":", ":", "test"]);
                is_ignored |= words.first() == Some(&"ignore");
            }
            (Token::Word(word), [Token::Word(name), Token::Sign('{'), ..]) if word == "mod" => {
                modules.push((name, depth));
            }
            (Token::Word(word), [Token::Word(name), ..]) if word == "fn" => {
                if is_test && !is_ignored {
                    let inner = modules.iter().map(|(name, _)| *name);
                    let parts = [module].into_iter().filter(|part| !part.is_empty()).chain(inner);
                    found.push(parts.chain([name.as_str()]).collect::<Vec<_>>().join("::"));
                }
                (is_test, is_ignored) = (false, false);
            }
            (Token::Sign('{'), _) => depth += 1,
            (Token::Sign('}'), _) => {
                depth = depth.saturating_sub(1);
                modules.retain(|(_, outside)| *outside < depth);
            }
            _ => {}
        }
    }
    found
}

/// Returns a word of an attribute's path; nothing at its end or its arguments.
fn attribute_word(token: &Token) -> Option<&str> {
    match token {
        Token::Word(word) => Some(word),
        Token::Sign(':') => Some(":"),
        _ => None,
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found
}

/// Returns the module of a file in `src/`: `a::b` for `a/b.rs` and `a/b/mod.rs`.
fn module_of(path: &Path) -> String {
    let path = path.with_extension("");
    let parts: Vec<_> = path.iter().map(|part| part.to_str().unwrap()).collect();
    match parts.as_slice() {
        [parents @ .., "mod"] => parents.join("::"),
        ["lib" | "main"] => String::new(),
        parts => parts.join("::"),
    }
}

/// Returns every test as `fast: MODULE::NAME` (in `src/`), `fast: FILE::NAME` (in `tests/`), or
/// `e2e: FILE::NAME` (in `tests/e2e/`, which boots real machines).
fn tests_of(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for folder in ["src", "tests"] {
        for path in rust_files(&root.join(folder)) {
            let module = module_of(path.strip_prefix(root.join(folder)).unwrap());
            let real = module.strip_prefix("e2e::").filter(|_| folder == "tests");
            let (tier, module) = real.map_or(("fast", module.as_str()), |module| ("e2e", module));
            for test in tests_in(&fs::read_to_string(&path).unwrap(), module) {
                assert!(found.insert(format!("{tier}: {test}")), "two tests are called {test}");
            }
        }
    }
    found
}

#[derive(Deserialize)]
struct Template {
    check: Vec<NamedCheck>,
}

#[derive(Deserialize)]
struct NamedCheck {
    name: String,
}

/// Returns the names of a template's checks and of those that the proof makes by itself.
fn checks_of(template: &str, proof: &str) -> BTreeSet<String> {
    let template: Template = toml::from_str(template).unwrap();
    let mut found: BTreeSet<_> = template.check.into_iter().map(|check| check.name).collect();
    let tokens = tokens(proof);
    for (at, token) in tokens.iter().enumerate() {
        // `findings.add("NAME", …)` and `findings.add(&format!("NAME"), …)`.
        if matches!(token, Token::Word(word) if word == "findings")
            && matches!(&tokens[at + 1..], [Token::Sign('.'), Token::Word(word), ..] if word == "add")
        {
            let name = tokens[at + 3..].iter().find(|token| !matches!(token, Token::Sign(_)));
            let text = match name {
                Some(Token::Word(word)) if word != "format" => text_of(&tokens, word),
                _ => first_text(&tokens[at..]),
            };
            found.extend(text);
        }
    }
    found
}

/// Returns the text that a constant or a variable is given: `const NAME: &str = "…"`.
fn text_of(tokens: &[Token], name: &str) -> Option<String> {
    let is_it = |pair: &[Token]| matches!(pair, [Token::Word(how), Token::Word(word)] if (how == "const" || how == "let") && word == name);
    first_text(&tokens[tokens.windows(2).position(is_it)?..])
}

/// Returns the first text in what is near.
fn first_text(tokens: &[Token]) -> Option<String> {
    tokens.iter().take(9).find_map(|token| match token {
        Token::Text(text) => Some(text.clone()),
        _ => None,
    })
}

// What is wrong ------------------------------------------------------------------------------------

fn problems(promises: &[Promise], known: &Known) -> Vec<String> {
    let mut wrong = Vec::new();
    for section in SECTIONS {
        if !promises.iter().any(|promise| promise.section == section) {
            wrong.push(format!("section {section} has no promise"));
        }
    }
    let mut texts = BTreeSet::new();
    for promise in promises {
        let mut say = |what: String| wrong.push(format!("`{}`: {what}", promise.text));
        if promise.text.trim().is_empty() {
            say("it says nothing".to_owned());
        }
        if !texts.insert(&promise.text) {
            say("it is there twice".to_owned());
        }
        if !SECTIONS.contains(&promise.section.as_str()) {
            say(format!("there is no section {}", promise.section));
        }
        match (&promise.gap, promise.tests.is_empty() && promise.checks.is_empty()) {
            (None, true) => say("nothing tests it, and no gap is stated".to_owned()),
            (Some(_), false) => say("it states a gap and names tests".to_owned()),
            (Some(gap), true) if gap.trim().is_empty() => say("its gap has no reason".to_owned()),
            _ => {}
        }
        let named: BTreeSet<_> = promise.tests.iter().chain(&promise.checks).collect();
        if named.len() < promise.tests.len() + promise.checks.len() {
            say("it names something twice".to_owned());
        }
        for test in promise.tests.iter().filter(|test| !known.tests.contains(*test)) {
            say(format!("there is no test `{test}`"));
        }
        for check in promise.checks.iter().filter(|check| !known.checks.contains(*check)) {
            say(format!("there is no check `{check}`"));
        }
        if !promise.checks.is_empty() && !promise.tests.iter().any(|test| test.starts_with("e2e: ")) {
            say("its checks are made by no end-to-end test".to_owned());
        }
    }
    wrong
}

#[test]
fn every_promise_names_tests_that_exist() {
    let read = |name: &str| fs::read_to_string(root().join(name)).unwrap();
    let promises: Promises = toml::from_str(&read("tests/promises.toml")).unwrap();
    let known = Known {
        tests: tests_of(root()),
        checks: checks_of(
            &read("templates/ubuntu-noble/template.toml"),
            &(read("src/builder/prove/look.rs") + &read("src/builder/prove/mod.rs")),
        ),
    };
    let wrong = problems(&promises.promise, &known);
    assert!(wrong.is_empty(), "{wrong:#?}");

    let gaps: Vec<_> = promises.promise.iter().filter_map(|it| Some((it, it.gap.as_ref()?))).collect();
    println!("{} promises, {} of them not tested:", promises.promise.len(), gaps.len());
    for (promise, gap) in gaps {
        println!("  §{} {}\n     {gap}", promise.section, promise.text);
    }
}

/// A row of a table in `docs/failures.md`, by the heads of its columns.
type Row = Vec<(String, String)>;

fn rows(markdown: &str) -> Vec<Row> {
    let cells =
        |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let (mut heads, mut found) = (Vec::new(), Vec::new());
    for line in markdown.lines() {
        match (line.starts_with('|'), heads.is_empty()) {
            (false, _) => heads.clear(),
            (true, true) => heads = cells(line),
            (true, false) if line.starts_with("|---") => {}
            (true, false) => found.push(heads.iter().cloned().zip(cells(line)).collect()),
        }
    }
    found
}

/// Returns all the texts in forge's own source, tests left out, each on one line.
fn words_of_forge() -> Vec<String> {
    let mut found = Vec::new();
    for path in rust_files(&root().join("src")) {
        let source = fs::read_to_string(&path).unwrap();
        let source = source.split("#[cfg(test)]\nmod tests").next().unwrap();
        found.extend(tokens(source).into_iter().filter_map(|token| match token {
            Token::Text(text) => Some(text.split_whitespace().collect::<Vec<_>>().join(" ")),
            _ => None,
        }));
    }
    found
}

fn wrong_rows(rows: &[Row], tests: &BTreeSet<String>, words: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut missing: BTreeSet<_> = Cause::ALL.iter().map(|cause| cause.name()).collect();
    for row in rows {
        let cell = |head: &str| row.iter().find(|(it, _)| it == head).map(|(_, cell)| cell.as_str());
        let mut say = |what: String| wrong.push(format!("`{}`: {what}", row[0].1));
        if let Some(name) = cell("name").map(|name| name.trim_matches('`'))
            && !missing.remove(name)
        {
            say(format!("`{name}` is no cause, or is there twice"));
        }
        let named: Vec<_> = cell("tests").unwrap_or_default().split('`').skip(1).step_by(2).collect();
        if named.is_empty() {
            say("no test provokes it".to_owned());
        }
        for test in named {
            if !["fast", "e2e"].iter().any(|tier| tests.contains(&format!("{tier}: {test}"))) {
                say(format!("there is no test `{test}`"));
            }
        }
        let said = cell("forge says").unwrap_or_default().split('…').map(str::trim);
        for part in said.filter(|part| part.len() > 1 && !words.iter().any(|text| text.contains(part))) {
            say(format!("forge does not say `{part}`"));
        }
    }
    wrong.extend(missing.iter().map(|name| format!("`{name}` has no row")));
    wrong
}

#[test]
fn each_cause_of_a_failure_has_its_row_and_each_row_its_test() {
    let rows = rows(&fs::read_to_string(root().join("docs/failures.md")).unwrap());
    assert!(rows.len() > 50, "only {} rows are found", rows.len());
    let wrong = wrong_rows(&rows, &tests_of(root()), &words_of_forge());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn bad_rows_are_refused() {
    let tests = ["fast: a::x".to_owned(), "e2e: y".to_owned()].into();
    let words = ["nothing came from {address} within {}".to_owned()];
    let wrong = |line: &str| {
        let text =
            format!("text\n\n| what | forge says | name | tests |\n|---|---|---|---|\n{line}\n\n| no |");
        let wrong = wrong_rows(&rows(&text), &tests, &words);
        wrong.into_iter().filter(|it| !it.ends_with("has no row")).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(wrong("| w | nothing came from … within … | `not-confirmed` | `a::x` `y` |"), "");
    for (line, expected) in [
        ("| w | nothing came to … | `not-confirmed` | `y` |", "`w`: forge does not say `nothing came to`"),
        ("| w | … | `unheard-of` | `y` |", "`w`: `unheard-of` is no cause, or is there twice"),
        ("| w | … | `not-confirmed` | `a::z` |", "`w`: there is no test `a::z`"),
        ("| w | … | `not-confirmed` | by hand |", "`w`: no test provokes it"),
        (
            "| w | … | `not-confirmed` | `y` |\n| v | … | `not-confirmed` | `y` |",
            "`v`: `not-confirmed` is no cause, or is there twice",
        ),
    ] {
        assert_eq!(wrong(line), expected, "{line}");
    }
    assert_eq!(wrong_rows(&[], &tests, &words).len(), Cause::ALL.len());
}

#[test]
fn bad_entries_are_refused() {
    let known = Known {
        tests: ["fast: a::tests::x", "e2e: y"].map(str::to_owned).into(),
        checks: ["SSH is all that listens".to_owned()].into(),
    };
    let entry = |text: &str| {
        let promises: Promises = toml::from_str(&format!("[[promise]]\n{text}")).unwrap();
        let wrong = problems(&promises.promise, &known);
        wrong.into_iter().filter(|it| !it.ends_with("has no promise")).collect::<Vec<_>>().join("; ")
    };
    let first = "section = '4'\ntext = 't'\n";
    assert_eq!(entry(&format!("{first}tests = ['fast: a::tests::x']")), "");
    assert_eq!(entry(&format!("{first}tests = ['e2e: y']\nchecks = ['SSH is all that listens']")), "");
    assert_eq!(entry(&format!("{first}gap = 'no time'")), "");
    for (text, wrong) in [
        ("", "nothing tests it, and no gap is stated"),
        ("tests = []", "nothing tests it, and no gap is stated"),
        ("gap = ' '", "its gap has no reason"),
        ("gap = 'no time'\ntests = ['e2e: y']", "it states a gap and names tests"),
        ("tests = ['e2e: y', 'e2e: y']", "it names something twice"),
        ("tests = ['fast: y']", "there is no test `fast: y`"),
        ("tests = ['fast: a::tests']", "there is no test `fast: a::tests`"),
        ("tests = ['e2e: y']\nchecks = ['SSH']", "there is no check `SSH`"),
        (
            "tests = ['fast: a::tests::x']\nchecks = ['SSH is all that listens']",
            "its checks are made by no end-to-end test",
        ),
        (
            "tests = ['e2e: y']\n[[promise]]\nsection = '4'\ntext = 't'\ntests = ['e2e: y']",
            "it is there twice",
        ),
    ] {
        assert_eq!(entry(&format!("{first}{text}")), format!("`t`: {wrong}"), "{text}");
    }
    assert_eq!(entry("section = '3'\ntext = 't'\ngap = 'x'"), "`t`: there is no section 3");
    assert_eq!(entry("section = '4'\ntext = ''\ngap = 'x'"), "``: it says nothing");
    assert_eq!(problems(&[], &known).len(), SECTIONS.len());
    let unknown = toml::from_str::<Promises>(&format!("[[promise]]\n{first}test = ['e2e: y']"));
    assert!(unknown.is_err_and(|error| error.to_string().contains("unknown field `test`")));
}

#[test]
fn test_functions_are_found_where_they_are() {
    let source = r##"
        //! #[test] fn in_a_comment() {}
        /* #[test] /* nested */ fn in_another() {} */
        const TEXT: &str = "} #[test] fn in_a_string() { \" }";
        const RAW: &[u8] = br#"" #[test] fn in_a_raw_string() {"#;
        fn first<'a>(text: &'a str) -> char { if text.len() == 1 { '{' } else { '\'' } }
        #[cfg(test)]
        mod tests {
            fn helper() {}
            #[test]
            #[expect(clippy::x, reason = "y")]
            fn plain() { helper(); }
            #[tokio::test(start_paused = true)]
            async fn waiting() {}
            #[test]
            #[ignore = "slow"]
            fn ignored() {}
            fn after() {}
            mod inner { #[test] fn deep() {} }
            #[test]
            fn last() {}
        }
        macro_rules! many { ($($name:ident)*) => { mod made { $(#[test] fn $name() {})* } }; }
        #[test]
        fn outside() {}
    "##;
    let expected = [
        "a::b::tests::plain",
        "a::b::tests::waiting",
        "a::b::tests::inner::deep",
        "a::b::tests::last",
        "a::b::made::$name",
        "a::b::outside",
    ];
    assert_eq!(tests_in(source, "a::b"), expected);
    assert_eq!(tests_in("#[test]\nfn x() {}", ""), ["x"]);
    for (path, module) in
        [("lib.rs", ""), ("a/mod.rs", "a"), ("a/b.rs", "a::b"), ("a/b/tests.rs", "a::b::tests")]
    {
        assert_eq!(module_of(Path::new(path)), module);
    }
    let checks = checks_of(
        "[[check]]\nname = 'one'\n[[check]]\nname = 'two'",
        "findings.add(\n\"three\", x);\nfindings.add(&format!(\"four {x}\"), y);\nsay(\"five\");",
    );
    assert_eq!(checks, ["one", "two", "three", "four {x}"].map(str::to_owned).into());
}
