//! Pictures to fetch: `/sandbox/images/<name>.jpg` or `.png`, drawn from their name.

use ::image::codecs::{jpeg::JpegEncoder, png::PngEncoder};
use ::image::{Rgb, RgbImage};

use crate::answer::digest;

/// The longest side that is drawn, in pixels.
const LONGEST_SIDE: u32 = 4_096;

/// The media type and the bytes of the picture `file`; `None` when its name ends in neither `.jpg` nor `.png`.
///
/// `query` may hold `width` and `height` in pixels (320 and 240 unless told, at most 4,096 each).
pub(crate) fn picture(file: &str, query: &str) -> Option<(&'static str, Vec<u8>)> {
    let (name, kind) = file.rsplit_once('.')?;
    let side = |wanted: &str, usual: u32| {
        let told = url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == wanted);
        told.and_then(|(_, value)| value.parse().ok()).unwrap_or(usual).clamp(1, LONGEST_SIDE)
    };
    let (width, height) = (side("width", 320), side("height", 240));
    let mut bytes = Vec::new();
    match kind {
        "jpg" | "jpeg" => {
            draw(name, width, height)
                .write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, 85))
                .ok()?;
            Some(("image/jpeg", bytes))
        }
        "png" => {
            draw(name, width, height).write_with_encoder(PngEncoder::new(&mut bytes)).ok()?;
            Some(("image/png", bytes))
        }
        _ => None,
    }
}

/// Two slopes of colour and a checkerboard: it compresses like a photograph of a room, roughly.
fn draw(name: &str, width: u32, height: u32) -> RgbImage {
    let [r, g, b, size, ..] = digest(name, "gallery").to_be_bytes();
    let tile = u32::from(size % 24) + 8;
    RgbImage::from_fn(width, height, |x, y| {
        let slope = |base: u8, at: u32, of: u32| base.wrapping_add((at * 128 / of) as u8);
        let square = if (x / tile + y / tile) % 2 == 0 { 24 } else { 0 };
        Rgb([slope(r, x, width), slope(g, y, height), b ^ square])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_decodes_to_the_size_that_was_asked_and_is_the_same_each_time() {
        for (file, media) in [("a.jpg", "image/jpeg"), ("a.png", "image/png")] {
            let (kind, bytes) = picture(file, "width=64&height=48").unwrap();
            let decoded = ::image::load_from_memory(&bytes).unwrap();
            assert_eq!((kind, decoded.width(), decoded.height()), (media, 64, 48));
            assert_eq!(picture(file, "width=64&height=48").unwrap().1, bytes);
        }
        assert_ne!(picture("a.png", "").unwrap().1, picture("b.png", "").unwrap().1);
    }

    #[test]
    fn another_kind_of_file_is_not_there() {
        assert!(picture("a.gif", "").is_none());
        assert!(picture("a", "").is_none());
    }
}
