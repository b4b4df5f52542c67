//! The JSON Schemas that editors complete and check from.

use serde_json::{Map, Value as Json, json};

use super::model::{Control, Definition, Profile};
use super::render::PLAIN_KEYS;

/// Returns the JSON Schema of `templates/<name>/template.toml`.
///
/// Scalars, lists of scalars and maps may also be an expression in a string. A definition that is
/// abstract or extends another may lack keys: which, only the loader can tell.
#[must_use]
pub fn definition() -> Json {
    let mut schema = schemars::schema_for!(Definition).to_value();
    // `variables` alone uses these, and is plain.
    let plain = ["Variable", "VariableType"];
    let tables = tables(&schema);
    for (key, property) in entries(&mut schema, "properties") {
        if !PLAIN_KEYS.contains(&key.as_str()) {
            allow_expressions(property, &tables);
        }
    }
    for (name, definition) in entries(&mut schema, "$defs") {
        if !plain.contains(&name.as_str()) {
            for (_, property) in entries(definition, "properties") {
                allow_expressions(property, &tables);
            }
        }
    }
    require_unless_inherited(&mut schema);
    finish(schema, "forge template definition")
}

/// Returns the JSON Schema of `builders/<name>.toml`.
#[must_use]
pub fn profile() -> Json {
    finish(schemars::schema_for!(Profile).to_value(), "forge builder profile")
}

/// Returns the JSON Schema of `hardening/controls/<name>.toml`.
#[must_use]
pub fn control() -> Json {
    finish(schemars::schema_for!(Control).to_value(), "forge hardening control")
}

/// Brings a schema into the order that a person reads it in, without the null that TOML lacks.
fn finish(mut schema: Json, title: &str) -> Json {
    remove_nulls(&mut schema);
    let mut ordered = Map::new();
    ordered.insert("$schema".to_owned(), schema["$schema"].take());
    ordered.insert("title".to_owned(), title.into());
    ordered.insert("description".to_owned(), schema["description"].take());
    if let Json::Object(rest) = schema {
        for (key, value) in rest {
            ordered.entry(key).or_insert(value);
        }
    }
    Json::Object(ordered)
}

fn entries<'a>(schema: &'a mut Json, key: &str) -> impl Iterator<Item = (&'a String, &'a mut Json)> {
    schema.get_mut(key).and_then(Json::as_object_mut).into_iter().flatten()
}

/// Returns the references to tables with keys of their own.
fn tables(schema: &Json) -> Vec<String> {
    let definitions = schema["$defs"].as_object().into_iter().flatten();
    definitions
        .filter(|(_, definition)| definition.get("properties").is_some())
        .map(|(name, _)| format!("#/$defs/{name}"))
        .collect()
}

/// Lets a value be an expression as well, and every value inside it.
fn allow_expressions(schema: &mut Json, tables: &[String]) {
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(key).filter(|inner| inner.is_object()) {
            allow_expressions(inner, tables);
        }
    }
    if schema.is_boolean() || is_plain_text(schema) || holds_table(schema, tables) {
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
    let mut options = match all.remove("anyOf") {
        Some(Json::Array(options)) => options,
        _ => vec![Json::Object(std::mem::take(all))],
    };
    options.push(json!({"type": "string", "pattern": r"\{\{"}));
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

/// A table, or a list of them, is written out.
fn holds_table(schema: &Json, tables: &[String]) -> bool {
    let is_table = |schema: &Json| {
        schema["$ref"].as_str().is_some_and(|reference| tables.iter().any(|table| table == reference))
    };
    is_table(schema)
        || is_table(&schema["items"])
        || schema["anyOf"].as_array().is_some_and(|options| options.iter().any(is_table))
}

/// Moves what must be there, and can be inherited, under the condition that nothing is inherited.
fn require_unless_inherited(schema: &mut Json) {
    let mut properties = Map::new();
    for (key, name) in [("template", "Template"), ("source", "Source")] {
        let required = schema["$defs"][name]["required"].take();
        properties.insert(key.to_owned(), json!({"required": required}));
        remove_key(&mut schema["$defs"][name], "required");
    }
    remove_key(&mut schema["$defs"]["Checksums"], "required");
    schema["required"] = json!(["schema"]);
    schema["if"] = json!({"anyOf": [{"required": ["extends"]}, {"required": ["abstract"]}]});
    schema["then"] = true.into();
    schema["else"] = json!({"required": ["template", "source"], "properties": properties});
}

fn remove_key(schema: &mut Json, key: &str) {
    if let Json::Object(entries) = schema {
        entries.remove(key);
    }
}

fn remove_nulls(schema: &mut Json) {
    match schema {
        Json::Array(items) => items.iter_mut().for_each(remove_nulls),
        Json::Object(all) => {
            if let Some(Json::Array(kinds)) = all.get_mut("type") {
                kinds.retain(|kind| kind != "null");
                if let [kind] = kinds.as_slice() {
                    let kind = kind.clone();
                    all.insert("type".to_owned(), kind);
                }
            }
            if let Some(Json::Array(options)) = all.get_mut("anyOf") {
                options.retain(|option| option["type"] != "null");
                if let [Json::Object(only)] = options.as_mut_slice() {
                    let only = std::mem::take(only);
                    all.remove("anyOf");
                    all.extend(only);
                }
            }
            all.values_mut().for_each(remove_nulls);
        }
        _ => {}
    }
}
