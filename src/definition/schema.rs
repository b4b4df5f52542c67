//! The JSON Schemas that editors complete and check from.

use serde_json::{Map, Value as Json, json};

use super::model::{Definition, Profile};
use super::render::PLAIN_KEYS;

/// Returns the JSON Schema of `templates/<name>/template.toml`.
///
/// Every value may also be an expression in a string, but in the keys that are plain.
#[must_use]
pub fn definition() -> Json {
    let mut schema = schemars::schema_for!(Definition).to_value();
    name(&mut schema, "forge template definition");
    // What the plain keys refer to stays as it is: `variables` alone uses these.
    let plain_definitions = ["Variable", "VariableType"];
    for (key, property) in entries(&mut schema, "properties") {
        if !PLAIN_KEYS.contains(&key.as_str()) {
            allow_expressions(property);
        }
    }
    for (key, schema) in entries(&mut schema, "$defs") {
        if !plain_definitions.contains(&key.as_str()) {
            allow_expressions_inside(schema);
        }
    }
    schema
}

/// Returns the JSON Schema of `builders/<name>.toml`.
#[must_use]
pub fn profile() -> Json {
    let mut schema = schemars::schema_for!(Profile).to_value();
    name(&mut schema, "forge builder profile");
    schema
}

fn name(schema: &mut Json, title: &str) {
    schema["title"] = title.into();
}

fn entries<'a>(schema: &'a mut Json, key: &str) -> impl Iterator<Item = (&'a String, &'a mut Json)> {
    schema.get_mut(key).and_then(Json::as_object_mut).into_iter().flatten()
}

/// Lets every value inside a table's schema be an expression.
fn allow_expressions_inside(schema: &mut Json) {
    for (_, property) in entries(schema, "properties") {
        allow_expressions(property);
    }
}

/// Lets a value be an expression as well, and every value inside it.
fn allow_expressions(schema: &mut Json) {
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(key).filter(|inner| inner.is_object()) {
            allow_expressions(inner);
        }
    }
    if is_plain_text(schema) || schema.is_boolean() {
        return;
    }
    let Json::Object(all) = schema else { return };
    // What an editor shows stays outside the choice.
    let mut outer = Map::new();
    for key in ["description", "default"] {
        if let Some(value) = all.remove(key) {
            outer.insert(key.to_owned(), value);
        }
    }
    let expression = json!({"type": "string", "pattern": r"\{\{"});
    let mut options = match all.remove("anyOf") {
        Some(Json::Array(options)) if all.is_empty() => options,
        Some(options) => {
            all.insert("anyOf".to_owned(), options);
            vec![Json::Object(std::mem::take(all))]
        }
        None => vec![Json::Object(std::mem::take(all))],
    };
    options.push(expression);
    outer.insert("anyOf".to_owned(), options.into());
    *schema = Json::Object(outer);
}

/// Any string is allowed there already.
fn is_plain_text(schema: &Json) -> bool {
    let kind = &schema["type"];
    let has_string =
        kind == "string" || kind.as_array().is_some_and(|kinds| kinds.contains(&"string".into()));
    has_string && ["pattern", "enum", "const"].iter().all(|key| schema.get(key).is_none())
}
