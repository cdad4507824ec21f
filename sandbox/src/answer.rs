//! What the API says of an image: a pure function of the image's reference and the model's name.
//!
//! The reference is the image's URL as it was sent, or for an upload the SHA-256 of its bytes in lower-case hex. A
//! test that knows what it enqueued can so check every single result.

use sha2::{Digest, Sha256};

/// What kind of thing a model says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One best label, and the likelier others.
    Prediction,
    /// Everything that is seen in the image.
    Detection,
    /// A grade between 1 and 6.
    Rating,
}

const ROOMS: [&str; 12] = [
    "kitchen",
    "bathroom",
    "bedroom",
    "living_room",
    "dining_room",
    "front_house",
    "backyard",
    "garage",
    "stairs",
    "laundry_room",
    "office",
    "pool",
];
const STYLES: [&str; 6] = ["ranch", "colonial", "modern", "victorian", "craftsman", "mediterranean"];
const FEATURES: [&str; 10] = [
    "hardwood_floor",
    "fireplace",
    "natural_light",
    "coffered_ceiling",
    "beamed_ceiling",
    "kitchen_island",
    "built_in_shelves",
    "stainless_steel",
    "granite_counter",
    "tv",
];
const LOGOS: [&str; 3] = ["logo", "watermark", "phone_number"];
const COMPLIANCE: [&str; 5] = ["people", "text", "license_plate", "screenshot", "collage"];
const APPLIANCES: [&str; 6] = ["oven", "dishwasher", "refrigerator", "microwave", "range_hood", "washer"];

/// The produce that the Tiliter contract recognises: its id (the international PLU code) and its name.
pub const PRODUCTS: [(&str, &str); 12] = [
    ("4011", "Bananas"),
    ("4017", "Apples Granny Smith"),
    ("4131", "Apples Fuji"),
    ("4225", "Avocados Hass"),
    ("4053", "Lemons"),
    ("4048", "Limes"),
    ("4664", "Tomatoes on the vine"),
    ("4065", "Peppers green"),
    ("4593", "Cucumbers"),
    ("4072", "Potatoes russet"),
    ("4093", "Onions yellow"),
    ("4562", "Carrots"),
];

/// The model name under which the Tiliter contract's answers are derived, logged and billed.
pub const TILITER_MODEL: &str = "product_recognition";

/// The shape of what `model` says, by the words in its name.
pub fn shape_of(model: &str) -> Shape {
    let says = |words: &[&str]| words.iter().any(|word| model.contains(word));
    if says(&["condition", "rating", "quality"]) {
        Shape::Rating
    } else if says(&["features", "logo", "appliances", "compliance", "detect"]) {
        Shape::Detection
    } else {
        Shape::Prediction
    }
}

/// The one label that `model` gives `image`: its best prediction, its first detection, or its grade as text.
///
/// Models of the known vendors answer in their own words, any other with `label-<8 hex digits>`.
pub fn label_for(image: &str, model: &str) -> String {
    if shape_of(model) == Shape::Rating {
        return score_for(image, model).to_string();
    }
    let digest = digest(image, model);
    match words_of(model) {
        Some(words) => words[pick(digest, words.len())].to_owned(),
        None if model == TILITER_MODEL => PRODUCTS[pick(digest, PRODUCTS.len())].0.to_owned(),
        None => format!("label-{:08x}", digest >> 32),
    }
}

/// How sure `model` is of its label: from 0.5 up to 1 in millionths, or for a rating the grade itself, 1.1 to 5.9.
pub fn score_for(image: &str, model: &str) -> f64 {
    let digest = digest(image, model);
    if shape_of(model) == Shape::Rating {
        // Never a whole number: 4 and 4.0 are one number and two texts.
        let (whole, tenth) = (1 + digest % 5, 1 + (digest >> 8) % 9);
        return (whole * 10 + tenth) as f64 / 10.0;
    }
    (500_000 + (digest >> 20) % 500_000) as f64 / 1e6
}

/// Up to three different labels, the one of [`label_for`] first: what a detection model sees, or the runners-up.
pub fn labels_for(image: &str, model: &str) -> Vec<String> {
    let first = label_for(image, model);
    let Some(words) = words_of(model) else {
        return vec![first];
    };
    let digest = digest(image, model);
    let start = pick(digest, words.len());
    let count = 1 + pick(digest >> 16, 3);
    (0..count.min(words.len())).map(|i| words[(start + i) % words.len()].to_owned()).collect()
}

fn words_of(model: &str) -> Option<&'static [&'static str]> {
    let table: [(&str, &'static [&'static str]); 6] = [
        ("re_roomtype", &ROOMS),
        ("re_exterior_styles", &STYLES),
        ("re_features", &FEATURES),
        ("re_logo", &LOGOS),
        ("re_compliance", &COMPLIANCE),
        ("re_appliances", &APPLIANCES),
    ];
    table.iter().find(|(prefix, _)| model.starts_with(prefix)).map(|(_, words)| *words)
}

fn pick(digest: u64, len: usize) -> usize {
    (digest % len as u64) as usize
}

pub(crate) fn digest(image: &str, model: &str) -> u64 {
    let mut hash = Sha256::new();
    hash.update(image.as_bytes());
    hash.update([0]);
    hash.update(model.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finalize()[..8]);
    u64::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_image_and_model_always_get_the_same_answer() {
        // Written down: a change here breaks what others have recorded.
        let image = "https://images.example/1.jpg";
        assert_eq!(label_for(image, "re_roomtype_global_v2"), label_for(image, "re_roomtype_global_v2"));
        assert_eq!(label_for(image, "anything"), "label-6c785875");
    }

    #[test]
    fn different_images_get_different_answers() {
        let answers: std::collections::HashSet<_> =
            (0..1_000).map(|i| label_for(&format!("{i}"), "m")).collect();
        assert_eq!(answers.len(), 1_000);
    }

    #[test]
    fn a_grade_is_its_own_label_and_never_a_whole_number() {
        for i in 0..500 {
            let grade = score_for(&i.to_string(), "re_condition_r1r6_global");
            assert!((1.1..=5.9).contains(&grade) && grade.fract() != 0.0, "{grade}");
            assert_eq!(label_for(&i.to_string(), "re_condition_r1r6_global"), grade.to_string());
        }
    }

    #[test]
    fn the_first_of_several_labels_is_the_label() {
        for model in ["re_features_v4", "re_logo", "re_roomtype_global_v2", "mine"] {
            for i in 0..50 {
                let image = i.to_string();
                assert_eq!(labels_for(&image, model)[0], label_for(&image, model));
            }
        }
    }
}
