//! Whatever an API, a picture, a picture's server or whoever finds the admin port sends: time and memory are bounded, it ends
//! as what it is, and the worker goes on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, io::Write, path::Path, time::Duration};

use pixfleet_sandbox::Settings;
use pixfleet_shared::{
    job::{Image, Job, Source},
    result::{ImageResult, Outcome},
};
use pixfleet_tests::{
    fleet::{Fleet, KEY},
    scripted::{Asked, Said, Scripted, answer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// A worker at rest takes about 50 MB; what is sent to it here would take gigabytes.
const MOST_MEMORY: u64 = 300 * 1024 * 1024;
/// Jobs of each kind at once.
const EACH: usize = 8;

/// One attempt and no resending, so that each job ends as what its call was. A provider for each of these paths of the API.
fn settings(api: &str, kinds: &[&str], own: &str) -> String {
    let provider = |kind: &&str| {
        format!(
            "[providers.{kind}]\npreset = 'generic'\nendpoint = '{api}/{kind}'\nambiguous = 'park'\n\
             breaker.failures = 0\nhttp = {{ connect_ms = 1000, total_ms = 2500 }}\n{own}\n"
        )
    };
    kinds.iter().map(provider).collect()
}

const WORKER: &str =
    "[worker.retry]\nattempts = 1\n[worker.fetch]\nallow_private = true\nports = []\ntotal_ms = 2500\n";

fn job(provider: &str, n: usize, source: Source) -> Job {
    let image = Image { id: format!("{provider}-{n}"), source };
    Job::new("b".parse().unwrap(), image, provider.to_owned(), vec!["m".into()])
}

/// Puts the jobs on the queue of a fleet of one worker, and waits for what becomes of them, by provider.
async fn results(fleet: &mut Fleet, jobs: Vec<Job>) -> BTreeMap<String, Vec<ImageResult>> {
    let mut subscriber = fleet.subscribe("b").await;
    let count = jobs.len();
    fleet.queue.enqueue(jobs).await.unwrap();
    let (results, _) = fleet.collect(&mut *subscriber, count).await;
    let mut sorted = BTreeMap::<String, Vec<ImageResult>>::new();
    for result in results.into_values() {
        let kind = result.image.rsplit_once('-').unwrap().0.to_owned();
        sorted.entry(kind).or_default().push(result);
    }
    sorted
}

/// The class of every failure of a kind; all have to be alike.
fn class(results: &BTreeMap<String, Vec<ImageResult>>, kind: &str) -> String {
    let words = results[kind].iter().map(|result| match &result.failure {
        None => "ok".to_owned(),
        Some(failure) => failure.class.clone(),
    });
    let words: Vec<String> = words.collect();
    assert!(words.iter().all(|word| *word == words[0]), "{kind}: {:?}", results[kind]);
    words[0].clone()
}

fn memory_is_bounded(fleet: &Fleet) {
    let peak = fleet.peak_memory(0);
    assert!(peak < MOST_MEMORY, "the worker took {} MB", peak / 1024 / 1024);
}

fn gzip_bomb() -> Vec<u8> {
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let zeros = vec![b' '; 1024 * 1024];
    for _ in 0..512 {
        bomb.write_all(&zeros).unwrap();
    }
    bomb.finish().unwrap()
}

/// What the API says at each path; `good` is how it should be.
fn api(asked: &Asked, bomb: &[u8]) -> Said {
    let chunked =
        |status: &str| format!("HTTP/1.1 {status}\r\ntransfer-encoding: chunked\r\n\r\n").into_bytes();
    let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
    let good = |model: &str| format!("{{\"results\": {{\"{model}\": {{\"label\": \"cat\"}}}}}}");
    match asked.path().split('/').nth(1).unwrap_or_default() {
        "gzip" => answer("200 OK", "content-encoding: gzip\r\n", bomb),
        "headers" => {
            let lines: String = (0..5_000).map(|n| format!("x-header-{n}: {n}\r\n")).collect();
            answer("200 OK", &lines, good("m").as_bytes())
        }
        "line" => answer("200 OK", &format!("x-line: {}\r\n", "x".repeat(4 << 20)), good("m").as_bytes()),
        "endlesshead" => {
            let line = format!("x-line: {}\r\n", "x".repeat(1000)).into_bytes();
            Said::Endless(b"HTTP/1.1 200 OK\r\n".to_vec(), line, Duration::ZERO)
        }
        "drip" => Said::Endless(chunked("200 OK"), b"1\r\n \r\n".to_vec(), Duration::from_millis(50)),
        "chunks" => Said::Endless(chunked("200 OK"), chunk, Duration::ZERO),
        "chunks500" => Said::Endless(chunked("500 Oh"), chunk, Duration::ZERO),
        "length" => {
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000000\r\n\r\n".to_vec();
            Said::Endless(head, vec![b' '; 0x10000], Duration::ZERO)
        }
        "extension" => {
            // The length of a chunk is a line, and what stands behind it has no end.
            let head = [chunked("200 OK").as_slice(), b"1;x="].concat();
            Said::Endless(head, vec![b'x'; 0x10000], Duration::ZERO)
        }
        "noise" => Said::Last(vec![0xff; 1 << 20]),
        "deep" => answer("200 OK", "", "[".repeat(1 << 20).as_bytes()),
        _ => answer("200 OK", "", good("m").as_bytes()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_answers_end_as_what_they_are_within_bounds_and_the_worker_goes_on() {
    let kinds = [
        ("gzip", "ambiguous"),
        ("headers", "ambiguous"),
        ("line", "ambiguous"),
        ("endlesshead", "ambiguous"),
        ("drip", "ambiguous"),
        ("chunks", "ambiguous"),
        ("chunks500", "transient"),
        ("length", "ambiguous"),
        ("extension", "ambiguous"),
        ("noise", "ambiguous"),
        ("deep", "ambiguous"),
        ("good", "ok"),
    ];
    let bomb = gzip_bomb();
    let server = Scripted::start(move |asked, _| api(asked, &bomb)).await;
    let names: Vec<&str> = kinds.iter().map(|(kind, _)| *kind).collect();
    let own = settings(&server.url, &names, "");
    let mut fleet = Fleet::on_one_machine(Settings::default(), &own, WORKER).await;
    fleet.start_worker();
    fleet.ready(0).await;
    let url = |n: usize| Source::Url(format!("http://images.example/{n}.jpg"));
    let jobs = names.iter().flat_map(|kind| (0..EACH).map(move |n| job(kind, n, url(n)))).collect();
    let results = results(&mut fleet, jobs).await;
    for (kind, expected) in kinds {
        assert_eq!(class(&results, kind), expected, "{kind}: {:?}", results[kind]);
        let outcome = match expected {
            "ok" => Outcome::Ok,
            "ambiguous" => Outcome::Ambiguous,
            _ => Outcome::Dead,
        };
        assert!(results[kind].iter().all(|result| result.outcome == outcome), "{kind}");
    }
    memory_is_bounded(&fleet);
}

/// A PNG of this size, with the pixels of nothing but zeros as `data` says.
fn png(width: u32, height: u32, data: &[u8]) -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8; 4], content: &[u8]| {
        png.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
        let tail = [kind.as_slice(), content].concat();
        let mut crc = flate2::Crc::new();
        crc.update(&tail);
        png.extend(tail);
        png.extend(crc.sum().to_be_bytes());
    };
    let header = [width.to_be_bytes().as_slice(), &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    chunk(b"IHDR", &header);
    chunk(b"IDAT", data);
    chunk(b"IEND", b"");
    png
}

fn zlib_zeros(megabytes: usize) -> Vec<u8> {
    let mut zeros = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..megabytes {
        zeros.write_all(&vec![0; 1024 * 1024]).unwrap();
    }
    zeros.finish().unwrap()
}

/// A TIFF of 16-bit RGBA pixels, one strip, that claims to be of this size.
fn tiff(width: u32, height: u32) -> Vec<u8> {
    let entry = |tag: u16, kind: u16, count: u32, value: u32| {
        let mut entry = [tag.to_le_bytes(), kind.to_le_bytes()].concat();
        entry.extend(count.to_le_bytes());
        // A short stands in the first two bytes.
        entry.extend(value.to_le_bytes());
        entry
    };
    const ENTRIES: u32 = 9;
    let bits_at = 8 + 2 + ENTRIES * 12 + 4;
    let entries = [
        entry(256, 4, 1, width),
        entry(257, 4, 1, height),
        entry(258, 3, 4, bits_at),
        entry(259, 3, 1, 1),
        entry(262, 3, 1, 2),
        entry(273, 4, 1, bits_at + 8),
        entry(277, 3, 1, 4),
        entry(278, 4, 1, height),
        entry(279, 4, 1, 64),
    ];
    let mut tiff = b"II*\0\x08\0\0\0".to_vec();
    tiff.extend(u16::try_from(ENTRIES).unwrap().to_le_bytes());
    tiff.extend(entries.concat());
    tiff.extend([0; 4]);
    tiff.extend([16, 0, 16, 0, 16, 0, 16, 0]);
    tiff.extend([0; 64]);
    tiff
}

/// What a picture's server says at each path.
fn pictures(asked: &Asked, bomb: &[u8]) -> Said {
    let file = |bytes: &[u8]| answer("200 OK", "content-type: image/png\r\n", bytes);
    match asked.path().split('/').nth(1).unwrap_or_default() {
        "enormous" => file(&png(100_000, 100_000, &zlib_zeros(1))),
        "bomb" => file(&png(10, 10, bomb)),
        "wide" => file(&png(60_000_000, 1, &zlib_zeros(1))),
        "torn" => file(&png(4_000, 3_000, &zlib_zeros(1))[..600]),
        "tiff" => file(&tiff(200_000, 200_000)),
        "tiff16" => file(&tiff(7_900, 7_900)),
        "gif" => file(
            b"GIF89a\xff\xff\xff\xff\xf0\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;",
        ),
        "bmp" => {
            let mut bmp = b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
            bmp.extend(60_000u32.to_le_bytes());
            bmp.extend(60_000u32.to_le_bytes());
            bmp.extend([1, 0, 24, 0]);
            bmp.extend([0; 24]);
            file(&bmp)
        }
        "drip" => Said::Endless(
            b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n\x89PNG".to_vec(),
            b"x".to_vec(),
            Duration::from_millis(50),
        ),
        "endless" => {
            Said::Endless(b"HTTP/1.1 200 OK\r\n\r\n\x89PNG".to_vec(), vec![0; 0x10000], Duration::ZERO)
        }
        "redirects" => answer("302 Found", "location: /redirects/again\r\n", b""),
        "fractions" => answer("200 OK", "content-encoding: gzip\r\n", bomb),
        _ => file(&png(640, 480, &zlib_zeros(1))),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_pictures_are_told_from_good_ones_within_bounds_and_the_worker_goes_on() {
    let kinds = [
        ("enormous", "rejected"),
        ("wide", "rejected"),
        ("torn", "rejected"),
        ("tiff", "rejected"),
        ("tiff16", "rejected"),
        ("gif", "rejected"),
        ("bmp", "rejected"),
        ("drip", "transient"),
        ("endless", "rejected"),
        ("redirects", "rejected"),
        ("good", "ok"),
    ];
    let bomb = zlib_zeros(512);
    let server = Scripted::start(move |asked, _| pictures(asked, &bomb)).await;
    let settings_of_api = Settings { keys: vec![KEY.into()], ..Settings::default() };
    let own = "fetch = 'always'\nambiguous = 'park'\nprepare = { max_side_px = 100, format = 'jpeg' }";
    let mut fleet = Fleet::on_one_machine(settings_of_api, own, WORKER).await;
    fleet.start_worker();
    fleet.ready(0).await;
    let picture = |kind: &str, n: usize| {
        let source = Source::Url(format!("{}/{kind}/{n}.png", server.url));
        let image = Image { id: format!("{kind}-{n}"), source };
        Job::new("b".parse().unwrap(), image, "sandbox".into(), vec!["m".into()])
    };
    let names = kinds.iter().map(|(kind, _)| *kind).chain(["bomb"]);
    let jobs = names.flat_map(|kind| (0..EACH).map(move |n| picture(kind, n)).collect::<Vec<_>>()).collect();
    let results = results(&mut fleet, jobs).await;
    for (kind, expected) in kinds {
        assert_eq!(class(&results, kind), expected, "{kind}: {:?}", results[kind]);
    }
    // What unpacks into more than the picture needs may be read up to there, or refused.
    let bombs = class(&results, "bomb");
    assert!(["ok", "rejected"].contains(&bombs.as_str()), "{bombs}");
    let of_api = fleet.sandbox.bill().total.calls as usize;
    assert_eq!(of_api, EACH * if bombs == "ok" { 2 } else { 1 }, "only good pictures are paid for");
    memory_is_bounded(&fleet);
}

fn open_files(process: u32) -> usize {
    std::fs::read_dir(Path::new("/proc").join(process.to_string()).join("fd")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_connections_to_the_admin_port_neither_silence_nor_exhaust_the_worker() {
    let mut fleet = Fleet::on_one_machine(Settings::default(), "", "").await;
    fleet.start_worker();
    fleet.ready(0).await;
    let before = open_files(fleet.process(0));
    let mut crowd = Vec::new();
    for n in 0..1_000 {
        let mut stream = TcpStream::connect(fleet.admin(0)).await.unwrap();
        // Some say nothing, some never end what they say, some don't listen.
        let said: &[u8] = match n % 3 {
            0 => b"",
            1 => b"GET /metrics HTTP/1.1\r\nhost: x\r\nx-more: ",
            _ => b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n",
        };
        // Whoever came early was sent away meanwhile.
        let _ = stream.write_all(said).await;
        crowd.push(stream);
        if n % 100 == 99 {
            let page = fleet.page(0, "/readyz").await.expect("an answer");
            assert!(page.starts_with("HTTP/1.1 200"), "after {n} connections: {page}");
            let open = open_files(fleet.process(0));
            assert!(open < before + 100, "{open} files are open, {before} were before");
        }
    }
    let mut endless = TcpStream::connect(fleet.admin(0)).await.unwrap();
    let head = [b"GET /readyz HTTP/1.1\r\nx: ".as_slice(), &vec![b'x'; 1 << 20]].concat();
    let _ = endless.write_all(&head).await;
    let mut said = Vec::new();
    let ended = timeout(Duration::from_secs(10), endless.read_to_end(&mut said)).await;
    assert!(ended.is_ok(), "a head without an end is ended");
    drop(crowd);
    // They are given back as soon as the worker sees that nobody is there any more.
    let given_back = async {
        while open_files(fleet.process(0)) > before + 3 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(timeout(Duration::from_secs(20), given_back).await.is_ok(), "{}", open_files(fleet.process(0)));
    memory_is_bounded(&fleet);
}
