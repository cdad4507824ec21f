//! What stands in the file as JSON, with its errors as those of a statement.

/// `value` as JSON, in a file.
pub(super) fn json<T: serde::Serialize>(value: &T) -> rusqlite::Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

/// What stands in a file as JSON.
pub(super) fn of_json<T: serde::de::DeserializeOwned>(text: &[u8]) -> rusqlite::Result<T> {
    serde_json::from_slice(text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
    })
}
