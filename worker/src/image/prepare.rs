//! Makes a picture ready: its format is known, its size is what the provider wants.

use std::{
    io::Cursor,
    sync::{Arc, Condvar, Mutex, PoisonError},
};

use bytes::Bytes;
use image::{
    DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, ImageError as Fault, ImageFormat,
    ImageReader, Limits,
    codecs::{jpeg::JpegEncoder, png::PngEncoder},
    error::{LimitError, LimitErrorKind},
    imageops::FilterType,
    metadata::Orientation,
};
use tokio::sync::Semaphore;

use super::{
    ImageError, Picture,
    preparation::{Format, Preparation},
};

/// Where pictures are decoded and encoded: off the async threads, and not too many at once.
#[derive(Debug)]
pub(super) struct Workshop {
    benches: Arc<Semaphore>,
    max_pixels: u64,
    memory: Arc<Memory>,
}

/// What decoded pictures may take at once, in bytes: as much as the largest one. Many small ones have room side by side.
#[derive(Debug)]
struct Memory {
    most: u64,
    taken: Mutex<u64>,
    given_back: Condvar,
}

/// Room for one decoded picture, until it is dropped.
struct Room<'a>(&'a Memory, u64);

impl Memory {
    fn new(most: u64) -> Self {
        Self { most, taken: Mutex::new(0), given_back: Condvar::new() }
    }

    /// Waits for room; on a thread that may block. Whoever has some is busy with it and waits for nobody. `bytes` is at
    /// most all of it.
    fn take(&self, bytes: u64) -> Room<'_> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.given_back.wait_while(taken, |taken| *taken + bytes > self.most);
        *waited.unwrap_or_else(PoisonError::into_inner) += bytes;
        Room(self, bytes)
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) -= self.1;
        self.0.given_back.notify_all();
    }
}

/// Bytes of a decoded pixel, at eight bits a channel: one with sixteen counts twice.
const PIXEL_BYTES: u64 = 4;

impl Workshop {
    pub(super) fn new(benches: usize, max_pixels: u64) -> Self {
        let benches = match benches {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let memory = Arc::new(Memory::new(max_pixels.saturating_mul(PIXEL_BYTES)));
        Self { benches: Arc::new(Semaphore::new(benches)), max_pixels, memory }
    }

    /// The picture as `preparation` wants it.
    pub(super) async fn prepare(
        &self,
        bytes: Bytes,
        preparation: &Preparation,
    ) -> Result<Picture, ImageError> {
        let content_type = sniff(&bytes)?;
        if preparation.is_nothing() {
            return Ok(Picture { bytes, content_type });
        }
        let gone = |_| ImageError::Transient("the worker is shutting down".into());
        let bench = Arc::clone(&self.benches).acquire_owned().await.map_err(gone)?;
        let (preparation, max_pixels, memory) = (preparation.clone(), self.max_pixels, self.memory.clone());
        let work = tokio::task::spawn_blocking(move || {
            let _bench = bench;
            remake(bytes, &preparation, max_pixels, &memory)
        });
        // A decoder that panics has met a picture that it can't read.
        work.await.unwrap_or_else(|_| Err(ImageError::Rejected("the picture can't be decoded".into())))
    }
}

/// The content type, by the file's first bytes. A text is no picture: most often it is a page that says so.
fn sniff(bytes: &[u8]) -> Result<&'static str, ImageError> {
    if let Ok(format) = image::guess_format(bytes) {
        return Ok(format.to_mime_type());
    }
    match bytes.get(4..12) {
        Some(b"ftypheic" | b"ftypheix" | b"ftypmif1") => return Ok("image/heic"),
        _ if bytes.is_empty() => return Err(ImageError::Rejected("the picture is empty".into())),
        _ => {}
    }
    let head = &bytes[..bytes.len().min(512)];
    let text = head.iter().all(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7e | 0x80..));
    if text {
        Err(ImageError::Rejected("this is a text, not a picture".into()))
    } else {
        Ok("application/octet-stream")
    }
}

fn remake(
    bytes: Bytes,
    preparation: &Preparation,
    max_pixels: u64,
    memory: &Memory,
) -> Result<Picture, ImageError> {
    let reader = ImageReader::new(Cursor::new(bytes.clone())).with_guessed_format();
    let mut reader = reader.map_err(|error| ImageError::Rejected(error.to_string()))?;
    let source = reader.format();
    let mut limits = Limits::default();
    // The picture itself, and what a decoder needs beside it.
    limits.max_alloc = Some(memory.most.saturating_add(16 * 1024 * 1024));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(undecodable)?;
    let (width, height) = decoder.dimensions();
    // Before a pixel is decoded: a small file may say that it is enormous.
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(ImageError::Rejected(format!(
            "the picture has {width} x {height} pixels, above {max_pixels} (worker.fetch.max_pixels)"
        )));
    }
    if decoder.total_bytes() > memory.most {
        return Err(undecodable(Fault::Limits(LimitError::from_kind(LimitErrorKind::InsufficientMemory))));
    }
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let upright = if turns(orientation) { (height, width) } else { (width, height) };
    let size = preparation.size(upright);
    let format = target(preparation.format, source);
    let stands = !preparation.upright || orientation == Orientation::NoTransforms;
    if stands && size == upright && source == Some(format.into()) {
        return Ok(Picture { bytes, content_type: ImageFormat::from(format).to_mime_type() });
    }
    let profile = decoder.icc_profile().ok().flatten().filter(|profile| profile.get(16..20) == Some(b"RGB "));
    let _room = memory.take(decoder.total_bytes());
    let mut picture = DynamicImage::from_decoder(decoder).map_err(undecodable)?;
    picture.apply_orientation(orientation);
    if size != upright {
        picture = picture.resize_exact(size.0, size.1, FilterType::Lanczos3);
    }
    encode(&picture, format, preparation.quality, profile)
}

fn target(wanted: Option<Format>, source: Option<ImageFormat>) -> Format {
    wanted.unwrap_or(if source == Some(ImageFormat::Png) { Format::Png } else { Format::Jpeg })
}

fn turns(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
}

fn encode(
    picture: &DynamicImage,
    format: Format,
    quality: u8,
    profile: Option<Vec<u8>>,
) -> Result<Picture, ImageError> {
    let mut bytes = Vec::new();
    let encoded = match format {
        Format::Jpeg => {
            let mut encoder = JpegEncoder::new_with_quality(&mut bytes, quality);
            if let Some(profile) = profile {
                // The picture is right without it, only its colours a little less so.
                let _ = encoder.set_icc_profile(profile);
            }
            let rgb = on_white(picture);
            encoder.write_image(rgb.as_raw(), rgb.width(), rgb.height(), ExtendedColorType::Rgb8)
        }
        Format::Png => {
            let mut encoder = PngEncoder::new(&mut bytes);
            if let Some(profile) = profile {
                let _ = encoder.set_icc_profile(profile);
            }
            picture.write_with_encoder(encoder)
        }
    };
    encoded.map_err(|error| ImageError::Rejected(format!("the picture can't be encoded: {error}")))?;
    Ok(Picture { bytes: bytes.into(), content_type: ImageFormat::from(format).to_mime_type() })
}

/// What is transparent shows white, not the black that lies below it in most files.
fn on_white(picture: &DynamicImage) -> image::RgbImage {
    if !picture.color().has_alpha() {
        return picture.to_rgb8();
    }
    let rgba = picture.to_rgba8();
    image::RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [r, g, b, a] = rgba.get_pixel(x, y).0.map(u16::from);
        let blend = |c: u16| ((c * a + 255 * (255 - a) + 127) / 255) as u8;
        image::Rgb([blend(r), blend(g), blend(b)])
    })
}

fn undecodable(fault: Fault) -> ImageError {
    ImageError::Rejected(match fault {
        Fault::Limits(_) => {
            "decoding the picture would take too much memory (worker.fetch.max_pixels)".to_owned()
        }
        Fault::Unsupported(_) => "the picture's format is not supported".to_owned(),
        other => format!("the picture can't be decoded: {other}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GenericImageView, Rgb, RgbImage, Rgba, RgbaImage};
    use proptest::prelude::*;

    fn jpeg(width: u32, height: u32) -> Bytes {
        // Red at the top left, blue elsewhere, so that a turn shows.
        let picture = RgbImage::from_fn(width, height, |x, y| {
            if x < width / 2 && y < height / 2 { Rgb([250, 0, 0]) } else { Rgb([0, 0, 250]) }
        });
        let mut bytes = Vec::new();
        JpegEncoder::new_with_quality(&mut bytes, 95).encode_image(&picture).unwrap();
        bytes.into()
    }

    /// The same JPEG with an Exif block that says how it is to be turned.
    fn turned(jpeg: &Bytes, orientation: u8) -> Bytes {
        let tiff =
            [b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".as_slice(), &[orientation, 0, 0, 0, 0, 0, 0]]
                .concat();
        let exif = [b"Exif\0\0".as_slice(), &tiff].concat();
        let length = u16::try_from(exif.len() + 2).unwrap().to_be_bytes();
        [&jpeg[..2], &[0xff, 0xe1], &length, &exif, &jpeg[2..]].concat().into()
    }

    fn png(picture: &DynamicImage) -> Bytes {
        let mut bytes = Vec::new();
        picture.write_with_encoder(PngEncoder::new(&mut bytes)).unwrap();
        bytes.into()
    }

    async fn prepare(bytes: Bytes, preparation: Preparation) -> Result<Picture, ImageError> {
        Workshop::new(1, 1_000_000).prepare(bytes, &preparation).await
    }

    fn decoded(picture: &Picture) -> DynamicImage {
        image::load_from_memory(&picture.bytes).unwrap()
    }

    fn short(side: u32) -> Preparation {
        Preparation { short_side_px: Some(side), format: Some(Format::Jpeg), ..Preparation::default() }
    }

    #[tokio::test]
    async fn a_large_picture_is_scaled_by_its_shorter_side() {
        let picture = prepare(jpeg(400, 200), short(100)).await.unwrap();
        assert_eq!((decoded(&picture).dimensions(), picture.content_type), ((200, 100), "image/jpeg"));
    }

    #[tokio::test]
    async fn a_picture_that_fits_is_not_touched() {
        let small = jpeg(40, 20);
        assert_eq!(prepare(small.clone(), short(100)).await.unwrap().bytes, small);
        assert_eq!(prepare(small.clone(), Preparation::default()).await.unwrap().bytes, small);
        let larger = Preparation { only_if_larger: false, ..short(100) };
        assert_eq!(decoded(&prepare(small, larger).await.unwrap()).dimensions(), (200, 100));
    }

    #[tokio::test]
    async fn an_exact_size_does_not_keep_the_shape_and_another_format_is_encoded_anew() {
        let exact = Preparation {
            width_px: Some(40),
            height_px: Some(24),
            format: Some(Format::Png),
            ..Preparation::default()
        };
        let picture = prepare(jpeg(100, 100), exact).await.unwrap();
        assert_eq!((decoded(&picture).dimensions(), picture.content_type), ((40, 24), "image/png"));
    }

    #[tokio::test]
    async fn a_picture_that_is_encoded_anew_stands_upright() {
        // 6: to be turned a quarter to the right, so that the red corner goes to the top right.
        let lying = turned(&jpeg(64, 32), 6);
        let upright = decoded(&prepare(lying.clone(), short(16)).await.unwrap());
        assert_eq!(upright.dimensions(), (16, 32));
        let (left, right) = (upright.get_pixel(3, 3), upright.get_pixel(12, 3));
        assert!(left[2] > 150 && right[0] > 150, "{left:?} {right:?}");
        assert_eq!(
            prepare(lying.clone(), short(100)).await.unwrap().bytes,
            lying,
            "untouched, it keeps its Exif"
        );
        let without_exif = Preparation { upright: true, ..Preparation::default() };
        let upright = decoded(&prepare(lying, without_exif.clone()).await.unwrap());
        assert_eq!(upright.dimensions(), (32, 64), "an API that does not read Exif gets it turned");
        let standing = jpeg(64, 32);
        assert_eq!(prepare(standing.clone(), without_exif).await.unwrap().bytes, standing);
    }

    #[tokio::test]
    async fn what_is_transparent_becomes_white_in_a_jpeg() {
        let clear = DynamicImage::from(RgbaImage::from_pixel(20, 20, Rgba([0, 0, 0, 0])));
        let picture = prepare(png(&clear), short(20)).await.unwrap();
        assert!(decoded(&picture).get_pixel(5, 5).0[..3].iter().all(|c| *c > 250));
    }

    #[tokio::test]
    async fn a_picture_that_says_it_is_enormous_is_refused_before_it_is_decoded() {
        let mut bomb = png(&DynamicImage::new_luma8(1, 1)).to_vec();
        bomb[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
        let crc = crc(&bomb[12..29]);
        bomb[29..33].copy_from_slice(&crc.to_be_bytes());
        let why = prepare(bomb.into(), short(10)).await.unwrap_err().to_string();
        assert!(why.contains("65536 x 65536") && why.contains("worker.fetch.max_pixels"), "{why}");
        let large = prepare(jpeg(1200, 1000), short(10)).await.unwrap_err();
        assert!(!large.is_transient(), "{large}");
    }

    fn crc(bytes: &[u8]) -> u32 {
        let step =
            |crc: u32, byte: &u8| {
                (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                    if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }
                })
            };
        !bytes.iter().fold(!0, step)
    }

    #[tokio::test]
    async fn a_page_or_a_torn_file_is_rejected() {
        for bytes in [&b"<html>404</html>"[..], b"{\"error\": 1}", b"", &jpeg(64, 64)[..100]] {
            let why = prepare(Bytes::copy_from_slice(bytes), short(10)).await.unwrap_err();
            assert!(!why.is_transient(), "{why}");
        }
        assert!(prepare(Bytes::from_static(b"Not found\n"), Preparation::default()).await.is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_prepared_or_rejected(bytes: Vec<u8>, start in 0usize..4) {
            let heads: [&[u8]; 4] = [b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a"];
            let bytes = [heads[start], &bytes].concat();
            let _ = sniff(&bytes).and_then(|_| remake(bytes.into(), &short(10), 1_000, &Memory::new(4_000)));
        }
    }
}
