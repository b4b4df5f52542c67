//! Renders the strings of a definition, and `*.j2` files.

use std::collections::{BTreeMap, BTreeSet};

use minijinja::Value as Rendered;
use minijinja::value::{Serde, ValueKind};
use serde_json::{Value as Json, json};

use super::diagnostics::{Finding, Findings, Span, one_of};
use super::expression::{self, Inspection, Known, Place, Problem};
use super::model::Definition;
use super::tree::{self, Node, Value};
use super::variables::{Resolved, ResolvedVariable, VariableValue, from_json};

/// The top-level keys whose strings are plain: they are needed before variables have values.
pub(crate) const PLAIN_KEYS: [&str; 4] = ["schema", "abstract", "extends", "variables"];

/// Returns what a value becomes in a template.
pub(crate) fn context(value: &Json) -> Rendered {
    Rendered::from(Serde(value))
}

/// Returns `var`: every variable with its value, or with secrets masked.
pub(crate) fn variables_json(variables: &BTreeMap<String, ResolvedVariable>, masked: bool) -> Json {
    variables.iter().map(|(name, variable)| (name.clone(), variable.for_templates(name, masked))).collect()
}

/// Returns what a `*.j2` file may use.
pub(crate) fn file_context(definition: &Definition, variables: &Json, forge: Option<&Json>) -> Json {
    let machine = serde_json::to_value(&definition.machine).expect("a machine is JSON");
    let template = &definition.template;
    let mut context = json!({
        "var": variables,
        "template": {"name": template.name, "vmid": template.vmid, "release": template.release},
        "machine": machine,
    });
    if let Some(forge) = forge {
        context["forge"] = forge.clone();
    }
    context
}

/// Renders a definition's strings in place.
pub(crate) struct Renderer<'a> {
    known: Known,
    /// The texts of the files that the tree comes from, by number.
    texts: &'a BTreeMap<usize, String>,
    unknown: &'a BTreeSet<String>,
    secrets: BTreeSet<String>,
    real: Rendered,
    masked: Rendered,
    /// Two worlds that differ in the secrets only: what differs in them, shows a secret.
    probes: [Rendered; 2],
    findings: &'a mut Findings,
}

impl<'a> Renderer<'a> {
    pub(crate) fn new(
        names: &BTreeSet<String>,
        resolved: &'a Resolved,
        texts: &'a BTreeMap<usize, String>,
        findings: &'a mut Findings,
    ) -> Self {
        let values = &resolved.values;
        let is_secret = |variable: &ResolvedVariable| matches!(variable.value, VariableValue::Secret(_));
        let secrets: BTreeSet<String> =
            values.iter().filter(|(_, variable)| is_secret(variable)).map(|(name, _)| name.clone()).collect();
        let probe = |text: &str| {
            let mut variables = variables_json(values, true);
            for name in &secrets {
                variables[name] = text.into();
            }
            context(&json!({ "var": variables }))
        };
        Self {
            known: Known::new(Place::String, names),
            texts,
            unknown: &resolved.unknown,
            real: context(&json!({ "var": variables_json(values, false) })),
            masked: context(&json!({ "var": variables_json(values, true) })),
            probes: [probe("one value"), probe("quite another")],
            secrets,
            findings,
        }
    }

    /// Renders a whole definition.
    pub(crate) fn definition(&mut self, tree: &mut Node) {
        let Value::Table(entries) = &mut tree.value else { return };
        for entry in entries.iter_mut().filter(|entry| !PLAIN_KEYS.contains(&entry.key.as_str())) {
            self.node(&mut entry.node, &mut vec![entry.key.clone()]);
        }
    }

    fn node(&mut self, node: &mut Node, path: &mut Vec<String>) {
        match &mut node.value {
            Value::String(text) if expression::is_template(text) => {
                let text = std::mem::take(text);
                *node = self.string(&text, node.span, path);
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.node(item, path)),
            Value::Table(entries) => {
                for entry in entries {
                    path.push(entry.key.clone());
                    self.node(&mut entry.node, path);
                    path.pop();
                }
            }
            _ => {}
        }
    }

    fn string(&mut self, text: &str, span: Span, path: &[String]) -> Node {
        let unknown = Node::new(Value::Unknown, span);
        let inspection = match expression::inspect(text, Place::String, &self.known) {
            Ok(inspection) => inspection,
            Err(problem) => {
                self.report(problem, span);
                return unknown;
            }
        };
        let uses = &inspection.uses;
        let waits = (uses.all && !self.unknown.is_empty()) || !uses.names.is_disjoint(self.unknown);
        if !inspection.problems.is_empty() || waits {
            inspection.problems.into_iter().for_each(|problem| self.report(problem, span));
            return unknown;
        }
        let secret = (uses.all && !self.secrets.is_empty()) || !uses.names.is_disjoint(&self.secrets);
        if secret && !may_hold_secret(path) && self.shows_secret(text, &inspection) {
            self.report_secret(&inspection, span, path);
            return unknown;
        }
        match evaluate(text, &inspection, &self.real) {
            Ok(json) => {
                let mut node = from_json(&json, span);
                let masked = (secret && may_hold_secret(path)).then(|| self.masked_text(text, &inspection));
                node.rendered = Some(tree::Rendered { masked });
                node
            }
            Err(mut problem) => {
                if secret {
                    "the expression fails with the secret's value".clone_into(&mut problem.message);
                }
                self.report(problem, span);
                unknown
            }
        }
    }

    fn masked_text(&self, text: &str, inspection: &Inspection) -> String {
        match evaluate(text, inspection, &self.masked) {
            Ok(Json::String(text)) => text,
            _ => "<secret>".to_owned(),
        }
    }

    fn shows_secret(&self, text: &str, inspection: &Inspection) -> bool {
        let [one, other] = &self.probes;
        match (evaluate(text, inspection, one), evaluate(text, inspection, other)) {
            (Ok(one), Ok(other)) => one != other,
            _ => true,
        }
    }

    fn report_secret(&mut self, inspection: &Inspection, span: Span, path: &[String]) {
        let names: Vec<&String> =
            inspection.uses.names.iter().filter(|name| self.secrets.contains(*name)).collect();
        let names = if names.is_empty() { self.secrets.iter().collect() } else { names };
        let message = format!("the secret {} would show in `{}`", one_of(&names), path.join("."));
        self.findings.push(Finding::new(span, message).help(
            "hand it to a script in `env`, or use it in a `*.j2` file; elsewhere only whether it is set may matter",
        ));
    }

    /// Reports a problem at its place in the file, through the string's quotes and escapes.
    fn report(&mut self, problem: Problem, span: Span) {
        let source = self.texts.get(&span.file).and_then(|text| text.get(span.start..span.end)).unwrap_or("");
        let start = tree::source_offset(source, problem.range.start);
        let end = tree::source_offset(source, problem.range.end).max(start);
        self.findings
            .push(Finding::new(span.within(&(start..end)), problem.message).maybe_help(problem.help));
    }
}

/// Tells whether a secret may go there: into the environment of a script.
fn may_hold_secret(path: &[String]) -> bool {
    match path {
        [top, table, env, _] => top == "step" && table == "shell" && env == "env",
        [top, env, _] => top == "seal" && env == "env",
        _ => false,
    }
}

/// Returns what a string comes to: a value of any type when it is one lone expression, else text.
fn evaluate(text: &str, inspection: &Inspection, context: &Rendered) -> Result<Json, Problem> {
    let Some(lone) = &inspection.lone else {
        return expression::render(text, Place::String, context).map(Json::from);
    };
    let value = expression::evaluate(text, lone, context)?;
    match value.kind() {
        ValueKind::Bool
        | ValueKind::Number
        | ValueKind::String
        | ValueKind::Seq
        | ValueKind::Iterable
        | ValueKind::Map => Ok(serde_json::to_value(&value).unwrap_or(Json::Null)),
        kind => Err(Problem {
            range: lone.clone(),
            message: format!("the expression gives {kind}, which is no value for a definition"),
            help: None,
        }),
    }
}
