//! Expressions in strings and `*.j2` files: which names they use, and what they come to.
//!
//! minijinja renders; its syntax tree tells beforehand, in every branch, which names are unknown.

mod parts;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::LazyLock;

use minijinja::machinery::Token;
use minijinja::machinery::ast::{Expr, Stmt};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value, escape_formatter};

use self::parts::{bodies, children, expressions, range, span};
use super::diagnostics::{closest, did_you_mean, one_of};

/// Something wrong in a template, with its place in the template's text.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) range: Range<usize>,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

/// Where a template stands; it decides the syntax and the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A string in a definition. `{#` is no comment there: bash has `${#array[@]}`.
    String,
    /// A `*.j2` file that a step uses.
    StepFile,
    /// A `*.j2` file in `http/`, rendered while a build runs.
    SeedFile,
}

/// The names that a template may use: each root with its attributes.
#[derive(Debug, Clone)]
pub(crate) struct Known(BTreeMap<&'static str, BTreeSet<String>>);

impl Known {
    /// Returns the names of a place.
    pub(crate) fn new(place: Place, variables: &BTreeSet<String>) -> Self {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let mut roots = BTreeMap::from([("var", variables.clone())]);
        if place != Place::String {
            roots.insert("template", owned(&["name", "vmid", "release"]));
            roots.insert("machine", MACHINE_KEYS.clone());
        }
        if place == Place::SeedFile {
            roots.insert("forge", owned(&["url", "report_url", "logs_url", "ready_url"]));
        }
        Self(roots)
    }
}

/// The keys of the machine's table, as templates see it.
static MACHINE_KEYS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let machine = serde_json::to_value(super::Machine::default()).expect("a machine is JSON");
    machine.as_object().expect("a machine is a table").keys().cloned().collect()
});

/// The variables that a template uses.
#[derive(Debug, Default, Clone)]
pub(crate) struct Uses {
    pub(crate) names: BTreeSet<String>,
    /// Whether it takes `var` as a whole, so that any variable may matter.
    pub(crate) all: bool,
}

/// A template that parses, with what its syntax tree tells.
#[derive(Debug)]
pub(crate) struct Inspection {
    pub(crate) uses: Uses,
    pub(crate) problems: Vec<Problem>,
    /// The expression, when the template is nothing but one.
    pub(crate) lone: Option<Range<usize>>,
}

/// Tells whether a string is a template at all.
pub(crate) fn is_template(text: &str) -> bool {
    text.contains("{{") || text.contains("{%")
}

fn syntax(place: Place) -> SyntaxConfig {
    let mut builder = SyntaxConfig::builder();
    builder.keep_trailing_newline(true);
    if place == Place::String {
        builder.comment_delimiters("{\u{0}#", "#\u{0}}");
    }
    builder.build().expect("the delimiters differ")
}

fn environment(place: Place) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_syntax(syntax(place));
    environment.set_debug(true);
    // YAML and shell want `true`, not minijinja's `True`.
    environment.set_formatter(|out, state, value| match value.kind() {
        ValueKind::Bool => {
            escape_formatter(out, state, &Value::from(if value.is_true() { "true" } else { "false" }))
        }
        _ => escape_formatter(out, state, value),
    });
    environment.add_filter("toyaml", to_yaml);
    environment.add_filter("shquote", shell_quote);
    environment
}

static STRINGS: LazyLock<Environment<'static>> = LazyLock::new(|| environment(Place::String));
static FILES: LazyLock<Environment<'static>> = LazyLock::new(|| environment(Place::SeedFile));

fn environment_of(place: Place) -> &'static Environment<'static> {
    match place {
        Place::String => &STRINGS,
        Place::StepFile | Place::SeedFile => &FILES,
    }
}

/// The filter `toyaml`: a value as YAML flow, which JSON is.
#[expect(clippy::needless_pass_by_value, reason = "a filter's signature")]
fn to_yaml(value: Value) -> Result<String, minijinja::Error> {
    serde_json::to_string(&value)
        .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// The filter `shquote`: a text as one word of POSIX shell, a list as its words.
#[expect(clippy::needless_pass_by_value, reason = "a filter's signature")]
fn shell_quote(value: Value) -> String {
    let quote = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    match value.as_str() {
        Some(text) => quote(text),
        None => match value.try_iter() {
            Ok(items) => items.map(|item| quote(&item.to_string())).collect::<Vec<_>>().join(" "),
            Err(_) => quote(&value.to_string()),
        },
    }
}

/// Parses a template and finds the unknown names in all of its branches.
pub(crate) fn inspect(source: &str, place: Place, known: &Known) -> Result<Inspection, Problem> {
    refuse_endless(source, place)?;
    let root = minijinja::machinery::parse(source, "template", syntax(place))
        .map_err(|error| problem(source, &error))?;
    let mut inspector = Inspector {
        known,
        locals: BTreeSet::from(["loop", "caller", "range", "dict", "namespace", "debug"]),
        uses: Uses::default(),
        problems: Vec::new(),
    };
    inspector.collect_locals(&root);
    inspector.statement(&root);
    let lone = match &root {
        Stmt::Template(template) => match template.children.as_slice() {
            [Stmt::EmitExpr(_)] => Some(inner(source)),
            _ => None,
        },
        _ => None,
    };
    inspector.problems.sort_by_key(|problem| problem.range.start);
    Ok(Inspection { uses: inspector.uses, problems: inspector.problems, lone })
}

/// The most tokens of one tag: parsers and compilers go as deep as a chain of operators is long.
const TAG_TOKENS_MAX: usize = 1000;

/// The most `elif` of one template, for the same reason.
const ELIFS_MAX: usize = 100;

fn refuse_endless(source: &str, place: Place) -> Result<(), Problem> {
    let (mut in_tag, mut elifs) = (0, 0);
    // What is no token at all, the parser reports.
    for (token, span) in minijinja::machinery::tokenize(source, false, syntax(place)).map_while(Result::ok) {
        in_tag = if matches!(token, Token::TemplateData(_)) { 0 } else { in_tag + 1 };
        if matches!(token, Token::VariableStart | Token::BlockStart) {
            in_tag = 0;
        }
        if in_tag == 1 && matches!(token, Token::Ident("elif")) {
            elifs += 1;
        }
        let (message, help) = if in_tag > TAG_TOKENS_MAX {
            let message = format!("an expression is too long: more than {TAG_TOKENS_MAX} words and signs");
            (message, "split it, or put the data in a variable")
        } else if elifs > ELIFS_MAX {
            (
                format!("a template is too long: more than {ELIFS_MAX} times `elif`"),
                "look it up in a variable of type map",
            )
        } else {
            continue;
        };
        let range = span.start_offset as usize..span.end_offset as usize;
        return Err(Problem { range, message, help: Some(help.to_owned()) });
    }
    Ok(())
}

/// Returns what stands between `{{` and `}}`, which may carry whitespace signs.
fn inner(source: &str) -> Range<usize> {
    let sign = |at: Option<u8>| usize::from(matches!(at, Some(b'-' | b'+')));
    let bytes = source.as_bytes();
    let start = 2 + sign(bytes.get(2).copied());
    let end = source.len() - 2;
    let end = end - sign(end.checked_sub(1).and_then(|at| bytes.get(at).copied()));
    start..end.max(start)
}

/// Renders a template that [`inspect`] found good.
pub(crate) fn render(source: &str, place: Place, context: &Value) -> Result<String, Problem> {
    environment_of(place)
        .render_named_str("template", source, context.clone())
        .map_err(|error| problem(source, &error))
}

/// Evaluates a lone expression, so that it keeps its type.
pub(crate) fn evaluate(source: &str, lone: &Range<usize>, context: &Value) -> Result<Value, Problem> {
    let expression = &source[lone.clone()];
    let shift = |mut found: Problem| {
        found.range = found.range.start + lone.start..found.range.end + lone.start;
        found
    };
    let value = STRINGS
        .compile_expression(expression)
        .and_then(|compiled| compiled.eval(context.clone()))
        .map_err(|error| shift(problem(expression, &error)))?;
    if value.is_undefined() || value.is_none() {
        let message = format!("`{}` has no value", expression.trim());
        return Err(Problem { range: lone.clone(), message, help: None });
    }
    Ok(value)
}

/// Says what minijinja said, with its place.
fn problem(source: &str, error: &minijinja::Error) -> Problem {
    let range = error.range().unwrap_or_else(|| {
        let line = error.line().unwrap_or(1).saturating_sub(1);
        let start = source.split_inclusive('\n').take(line).map(str::len).sum();
        start..source.len()
    });
    let detail = error.detail().unwrap_or_default();
    let word = source.get(range.clone()).unwrap_or_default().trim();
    let (message, help) = match error.kind() {
        ErrorKind::SyntaxError => (format!("template syntax: {detail}"), syntax_help(detail)),

        ErrorKind::UndefinedError if detail.is_empty() => (format!("`{word}` is not defined"), None),
        kind if detail.is_empty() => (kind.to_string(), None),
        _ => (detail.to_owned(), None),
    };
    Problem { range, message, help }
}

/// Says how a template that ends too early goes on.
fn syntax_help(detail: &str) -> Option<String> {
    let help = match detail {
        _ if detail.contains("end of input, expected end of variable") => "close it with `}}`",
        _ if detail.contains("end of input, expected end of block") => {
            "close it: `{% if … %}` with `{% endif %}`, `{% for … %}` with `{% endfor %}`"
        }
        _ if detail.contains(", expected end of variable block") => "an expression ends with `}}`",
        _ => return None,
    };
    Some(help.to_owned())
}

/// Tells whether there is a filter of that name.
fn is_filter(name: &str) -> bool {
    match FILES.empty_state().apply_filter(name, &[]) {
        Ok(_) => true,
        Err(error) => error.kind() != ErrorKind::UnknownFilter,
    }
}

/// Tells whether there is a test of that name.
fn is_test(name: &str) -> bool {
    match FILES.empty_state().perform_test(name, &[]) {
        Ok(_) => true,
        Err(error) => error.kind() != ErrorKind::UnknownTest,
    }
}

/// The filters worth suggesting.
const FILTERS: [&str; 16] = [
    "toyaml", "shquote", "default", "join", "lower", "upper", "replace", "trim", "int", "string", "first",
    "last", "length", "tojson", "indent", "sort",
];

struct Inspector<'a, 'k> {
    known: &'k Known,
    locals: BTreeSet<&'a str>,
    uses: Uses,
    problems: Vec<Problem>,
}

impl<'a> Inspector<'a, '_> {
    /// Notes every name that the template itself sets, wherever it does.
    fn collect_locals(&mut self, statement: &Stmt<'a>) {
        match statement {
            Stmt::ForLoop(part) => self.assign(&part.target),
            Stmt::Set(part) => self.assign(&part.target),
            Stmt::SetBlock(part) => self.assign(&part.target),
            Stmt::WithBlock(part) => part.assignments.iter().for_each(|(target, _)| self.assign(target)),
            Stmt::Macro(part) => {
                self.locals.insert(part.name);
                part.args.iter().for_each(|argument| self.assign(argument));
            }
            Stmt::CallBlock(part) => {
                part.macro_decl.args.iter().for_each(|argument| self.assign(argument));
            }
            _ => {}
        }
        for body in bodies(statement) {
            for inner in body {
                self.collect_locals(inner);
            }
        }
    }

    fn assign(&mut self, target: &Expr<'a>) {
        match target {
            Expr::Var(name) => {
                self.locals.insert(name.id);
            }
            Expr::List(list) => list.items.iter().for_each(|item| self.assign(item)),
            Expr::Tuple(tuple) => tuple.items.iter().for_each(|item| self.assign(item)),
            _ => {}
        }
    }

    fn statement(&mut self, statement: &Stmt<'a>) {
        let refused = match statement {
            Stmt::Include(part) => Some((span(part), "include")),
            Stmt::Import(part) => Some((span(part), "import")),
            Stmt::FromImport(part) => Some((span(part), "from")),
            Stmt::Extends(part) => Some((span(part), "extends")),
            _ => None,
        };
        if let Some((range, word)) = refused {
            let message = format!("`{word}` is not available: each file is rendered by itself");
            self.problems.push(Problem { range, message, help: None });
            return;
        }
        for expression in expressions(statement) {
            self.expression(expression);
        }
        for body in bodies(statement) {
            for inner in body {
                self.statement(inner);
            }
        }
    }

    fn expression(&mut self, expression: &Expr<'a>) {
        match expression {
            Expr::Var(name) => self.root(name.id, range(expression)),
            Expr::GetAttr(part) => match &part.expr {
                Expr::Var(root) => self.attribute(root.id, Some(part.name), range(expression)),
                inner => self.expression(inner),
            },
            Expr::GetItem(part) => match (&part.expr, &part.subscript_expr) {
                (Expr::Var(root), Expr::Const(key)) => {
                    self.attribute(root.id, key.value.as_str(), range(expression));
                }
                (inner, key) => {
                    self.expression(inner);
                    self.expression(key);
                }
            },
            other => {
                self.helper(other);
                for child in children(other) {
                    self.expression(child);
                }
            }
        }
    }

    /// Filters and tests must exist.
    fn helper(&mut self, expression: &Expr<'a>) {
        let (kind, name, there) = match expression {
            Expr::Filter(part) => ("filter", part.name, is_filter(part.name)),
            Expr::Test(part) => ("test", part.name, is_test(part.name)),
            _ => return,
        };
        if !there {
            let help = did_you_mean(name, FILTERS.iter().copied()).filter(|_| kind == "filter");
            let message = format!("unknown {kind} `{name}`");
            self.problems.push(Problem { range: range(expression), message, help });
        }
    }

    /// A root used as a whole, such as `var` in `var | toyaml` or `var[name]`.
    fn root(&mut self, root: &str, range: Range<usize>) {
        self.uses.all |= root == "var" && !self.locals.contains(root);
        self.attribute(root, None, range);
    }

    fn attribute(&mut self, root: &str, name: Option<&str>, range: Range<usize>) {
        if self.locals.contains(root) {
            return;
        }
        let Some(attributes) = self.known.0.get(root) else {
            let help = self.unknown_root_help(root);
            let message = format!("unknown name `{root}`");
            self.problems.push(Problem { range, message, help: Some(help) });
            return;
        };
        let Some(name) = name else { return };
        if root == "var" {
            self.uses.names.insert(name.to_owned());
        }
        if !attributes.contains(name) {
            self.problems.push(unknown_attribute(root, name, attributes, range));
        }
    }

    fn unknown_root_help(&self, root: &str) -> String {
        let variables = &self.known.0["var"];
        if variables.contains(root) {
            return format!("variables are written `var.{root}`");
        }
        match root {
            "forge" => {
                return "`forge` is known only in seed files, which are rendered while a build runs".into();
            }
            "template" | "machine" => {
                return format!("`{root}` is known only in `*.j2` files, not in the definition itself");
            }
            _ => {}
        }
        if let Some(meant) = closest(root, variables.iter().map(String::as_str)) {
            return format!("did you mean `var.{meant}`?");
        }
        let roots: Vec<&str> = self.known.0.keys().copied().collect();
        if roots == ["var"] {
            return "only variables are known here, as `var.<name>`".to_owned();
        }
        did_you_mean(root, roots.iter().copied())
            .unwrap_or_else(|| format!("what is known here begins with {}", one_of(&roots)))
    }
}

fn unknown_attribute(root: &str, name: &str, known: &BTreeSet<String>, range: Range<usize>) -> Problem {
    let meant = closest(name, known.iter().map(String::as_str));
    let (message, otherwise) = if root == "var" {
        (format!("unknown variable `{name}`"), format!("declare it in a table `[variables.{name}]`"))
    } else {
        let all: Vec<&String> = known.iter().collect();
        (format!("`{root}` has no `{name}`"), format!("it has {}", one_of(&all).replace(" or ", " and ")))
    };
    let help = meant.map_or(otherwise, |meant| format!("did you mean `{root}.{meant}`?"));
    Problem { range, message, help: Some(help) }
}

#[cfg(test)]
mod tests {
    use minijinja::value::Serde;

    use super::*;

    fn known(place: Place) -> Known {
        Known::new(place, &["mem", "name", "packages"].map(str::to_owned).into())
    }

    fn problems(source: &str, place: Place) -> Vec<(String, String)> {
        match inspect(source, place, &known(place)) {
            Ok(found) => found
                .problems
                .into_iter()
                .map(|problem| (source[problem.range].to_owned(), problem.message))
                .collect(),
            Err(problem) => {
                vec![(source.get(problem.range).unwrap_or_default().to_owned(), problem.message)]
            }
        }
    }

    #[test]
    fn unknown_names_are_found_in_every_branch() {
        let source =
            "{% if false %}{{ var.nope }}{% else %}{{ forge.urk }}{% endif %}{{ foo }}{{ var['mem'] }}";
        let found = problems(source, Place::SeedFile);
        let expected = [
            ("var.nope", "unknown variable `nope`"),
            ("forge.urk", "`forge` has no `urk`"),
            ("foo", "unknown name `foo`"),
        ];
        let expected: Vec<_> = expected.map(|(at, text)| (at.to_owned(), text.to_owned())).into();
        assert_eq!(found, expected);
    }

    #[test]
    fn names_that_the_template_sets_are_known() {
        let source = "{% for p in var.packages %}{{ loop.index }}{{ p }}{% endfor %}{% set x = 1 %}{{ x }}\
                      {% macro m(a) %}{{ a }}{% endmacro %}{{ m(1) }}{{ range(3) | list }}";
        assert_eq!(problems(source, Place::StepFile), []);
        assert_eq!(problems("{{ forge.url }}", Place::StepFile)[0].1, "unknown name `forge`");
    }

    #[test]
    fn uses_tell_which_variables_matter() {
        let uses = |source: &str| inspect(source, Place::String, &known(Place::String)).unwrap().uses;
        assert_eq!(uses("{{ var.mem }}{{ var['name'] }}").names.len(), 2);
        assert!(!uses("{{ var.mem }}").all);
        assert!(uses("{{ var | toyaml }}").all);
    }

    #[test]
    fn a_lone_expression_keeps_its_type() {
        let context = Value::from(Serde(serde_json::json!({"var": {"mem": 4096, "name": "x"}})));
        for (source, expected) in [
            ("{{ var.mem }}", Value::from(4096)),
            ("{{- var.mem * 2 -}}", Value::from(8192)),
            ("{{ var.mem == 1 }}", Value::from(false)),
            ("{{ [1, 2] }}", Value::from(vec![1, 2])),
        ] {
            let lone = inspect(source, Place::String, &known(Place::String)).unwrap().lone.unwrap();
            assert_eq!(evaluate(source, &lone, &context).unwrap(), expected, "{source}");
        }
        let not_lone = inspect("{{ var.mem }}{{ var.mem }}", Place::String, &known(Place::String)).unwrap();
        assert!(not_lone.lone.is_none());
    }

    #[test]
    fn bash_is_left_alone_in_strings() {
        let source = "echo ${#list[@]} {{ var.name }} {# not a comment #}\n";
        let context = Value::from(Serde(serde_json::json!({"var": {"name": "x"}})));
        let rendered = render(source, Place::String, &context).unwrap();
        assert_eq!(rendered, "echo ${#list[@]} x {# not a comment #}\n");
    }

    #[test]
    fn filters_quote() {
        let context = Value::from(Serde(serde_json::json!({
            "var": {"name": "it's", "list": ["a b", "c"], "map": {"k": [1, "é\n"]}}
        })));
        for (source, expected) in [
            ("{{ var.name | shquote }}", r"'it'\''s'"),
            ("{{ var.list | shquote }}", "'a b' 'c'"),
            ("{{ var.map | toyaml }}", r#"{"k":[1,"é\n"]}"#),
            ("{{ true }} {{ 3 }}", "true 3"),
        ] {
            assert_eq!(render(source, Place::SeedFile, &context).unwrap(), expected);
        }
    }

    #[test]
    fn what_breaks_while_rendering_has_a_place() {
        let context = Value::from(Serde(serde_json::json!({"var": {"mem": 1, "name": "x"}})));
        let source = "a\n{{ var.name.nope.more }}";
        let found = render(source, Place::SeedFile, &context).unwrap_err();
        assert!(source[found.range.clone()].contains("nope"), "{found:?}");
    }

    #[test]
    fn unknown_filters_and_tests_are_found() {
        let found = inspect("{{ var.name | shqote }}", Place::SeedFile, &known(Place::SeedFile)).unwrap();
        assert_eq!(found.problems[0].help.as_deref(), Some("did you mean `shquote`?"));
        let found =
            problems("{% if var.name is emtpy %}{% endif %}{{ var.name is string }}", Place::SeedFile);
        assert_eq!(found, [("emtpy".to_owned(), "unknown test `emtpy`".to_owned())]);
    }

    #[test]
    fn an_endless_expression_is_refused_and_does_not_overflow() {
        for part in ["+1", ".a", "|trim", "~1", "[0]", " if 1 else 1"] {
            for tag in [("{{ var.mem", " }}"), ("{{ \"}}\"", " }}"), ("{% if var.mem", " %}{% endif %}")] {
                let source = format!("{}{}{}", tag.0, part.repeat(60_000), tag.1);
                let problem = inspect(&source, Place::String, &known(Place::String)).unwrap_err();
                assert!(problem.message.contains("too long"), "{part}: {}", problem.message);
            }
        }
        let chain = format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 2 %}".repeat(60_000));
        assert!(inspect(&chain, Place::String, &known(Place::String)).is_err());
        let nested = format!("{}{}", "{% if 1 %}".repeat(60_000), "{% endif %}".repeat(60_000));
        assert!(inspect(&nested, Place::String, &known(Place::String)).is_err());
        let list = format!("{{{{ [{}] }}}}", "1,".repeat(200));
        assert!(inspect(&list, Place::String, &known(Place::String)).is_ok());
    }
}
