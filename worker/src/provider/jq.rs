//! jq expressions: compiled once, run on answers.
//!
//! Expressions are pure: the functions that read the environment, further input or the clock, print, or end the
//! process are not there. <https://jqlang.org/manual/> describes the language.

use jaq_core::{
    Compiler, Ctx, Vars,
    data::JustLut,
    load::{self, Arena, File, Loader},
    unwrap_valr,
};
use jaq_json::Val;
use serde::Deserialize;
use serde_json::Value;

/// Functions that would make an expression more than a function of its input.
const IMPURE: [&str; 10] =
    ["halt", "halt_error", "env", "input", "inputs", "now", "debug", "debug_empty", "stderr", "stderr_empty"];

/// Most outputs that are read of one expression.
const MAX_OUTPUTS: usize = 10_000;

/// A compiled expression. It may use the variable `$model`.
pub(crate) struct Jq(jaq_core::Filter<JustLut<Val>>);

impl Jq {
    /// Compiles `code`.
    ///
    /// # Errors
    /// The line and column of the expression, and what is wrong there.
    pub(crate) fn compile(code: &str) -> Result<Self, String> {
        let defs = jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs());
        let funs = jaq_core::funs().chain(jaq_std::funs()).chain(jaq_json::funs());
        let arena = Arena::default();
        let modules = Loader::new(defs.filter(|def| !IMPURE.contains(&def.name)))
            .load(&arena, File { code, path: () })
            .map_err(|errors| first(errors, |error| unreadable(code, error)))?;
        Compiler::default()
            .with_funs(funs.filter(|(name, ..)| !IMPURE.contains(name)))
            .with_global_vars(["$model"])
            .compile(modules)
            .map(Self)
            .map_err(|errors| first(errors, |errors| undefined(code, errors)))
    }

    /// The outputs for `input`, in order.
    ///
    /// # Errors
    /// The expression's own error, for example when it looks into a text as if it were an object.
    pub(crate) fn run(&self, input: &Val, model: &str) -> Result<Vec<Value>, String> {
        let vars = Vars::new([Val::from(model.to_owned())]);
        let ctx = Ctx::<JustLut<Val>>::new(&self.0.lut, vars);
        self.0
            .id
            .run((ctx, input.clone()))
            .take(MAX_OUTPUTS)
            .map(|output| match unwrap_valr(output) {
                Ok(value) => to_json(&value),
                Err(error) => Err(bounded(&error.to_string())),
            })
            .collect()
    }

    /// The first output that is not null.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub(crate) fn first(&self, input: &Val, model: &str) -> Result<Option<Value>, String> {
        Ok(self.run(input, model)?.into_iter().find(|value| !value.is_null()))
    }
}

/// A JSON value as jq sees it.
pub(crate) fn input(value: &Value) -> Val {
    Val::deserialize(value).unwrap_or_default()
}

/// jq knows numbers and keys that JSON does not; they are refused here.
fn to_json(value: &Val) -> Result<Value, String> {
    serde_json::from_str(&value.to_string())
        .map_err(|_| "the expression yields something that JSON can't say".to_owned())
}

fn first<E>(errors: load::Errors<&str, (), E>, say: impl Fn(E) -> String) -> String {
    errors.into_iter().next().map_or_else(|| "its beginning".to_owned(), |(_, error)| say(error))
}

fn unreadable(code: &str, error: load::Error<&str>) -> String {
    match error {
        load::Error::Lex(errors) => match errors.first() {
            Some((expect, rest)) => format!("{}: expected {}", place(code, rest), expect.as_str()),
            None => "its beginning".to_owned(),
        },
        load::Error::Parse(errors) => match errors.first() {
            Some((expect, found)) => format!("{}: expected {}", place(code, found), expect.as_str()),
            None => "its beginning".to_owned(),
        },
        load::Error::Io(_) => "an import: modules can't be imported here".to_owned(),
    }
}

fn undefined(code: &str, errors: Vec<jaq_core::compile::Error<&str>>) -> String {
    match errors.first() {
        Some((name, kind)) => format!("{}: undefined {} `{name}`", place(code, name), kind.as_str()),
        None => "its beginning".to_owned(),
    }
}

/// Where `part`, a slice of `code`, begins.
fn place(code: &str, part: &str) -> String {
    let start = (part.as_ptr() as usize).wrapping_sub(code.as_ptr() as usize);
    let before = code.get(..start).unwrap_or(code);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("line {line}, column {column}")
}

fn bounded(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(code: &str, on: Value) -> Result<Vec<Value>, String> {
        Jq::compile(code).unwrap().run(&input(&on), "m1")
    }

    #[test]
    fn an_expression_sees_the_body_and_the_model() {
        let body = json!({"solutions": {"m1": {"score": 4.25, "n": 12345678901u64}}});
        assert_eq!(
            run(".solutions[$model] | .score, .n", body).unwrap(),
            [json!(4.25), json!(12345678901u64)]
        );
    }

    #[test]
    fn the_standard_library_is_there() {
        let code = r#"[.[] | select(test("^a"))] | sort_by(-length) | map({label: .})"#;
        assert_eq!(run(code, json!(["b", "a", "aa"])).unwrap(), [json!([{"label": "aa"}, {"label": "a"}])]);
    }

    #[test]
    fn a_syntax_error_names_its_place() {
        let why = Jq::compile(".a |\n  .b[").err().unwrap();
        assert!(why.starts_with("line 2, column "), "{why}");
        let why = Jq::compile(".a | nonsense").err().unwrap();
        assert!(why.starts_with("line 1, column 6") && why.contains("`nonsense`"), "{why}");
    }

    #[test]
    fn an_expression_can_neither_end_the_process_nor_read_its_environment() {
        for code in [
            "halt",
            "halt(1)",
            "halt_error",
            "env",
            "$ENV",
            "input",
            "now",
            "debug",
            "stderr",
            "import \"a\" as a; .",
        ] {
            assert!(Jq::compile(code).is_err(), "{code}");
        }
    }

    #[test]
    fn an_error_while_running_is_an_error_and_not_a_panic() {
        assert!(run(".a.b", json!("text")).is_err());
        assert!(
            run("nan", json!(null)).is_ok_and(|out| out == [json!(null)]) || run("nan", json!(null)).is_err()
        );
    }

    #[test]
    fn an_endless_expression_is_cut_off() {
        assert_eq!(run("repeat(1)", json!(0)).unwrap().len(), MAX_OUTPUTS);
    }
}
