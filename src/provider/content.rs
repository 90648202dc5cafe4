//! The content of a response, decoded by what it is and not by what its headers say of it.

use std::io::Read;

use flate2::read::{DeflateDecoder, GzDecoder, ZlibDecoder};

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Decodes content that is compressed, whether or not it is labelled so. Content that ends too early is decoded as
/// far as it goes; the result has at most `most` bytes.
pub(super) fn decode(content_encoding: &str, content: Vec<u8>, most: u64) -> Vec<u8> {
    let labelled = content_encoding.to_ascii_lowercase();
    let decoded = match content.as_slice() {
        [0x1f, 0x8b, ..] => read(GzDecoder::new(content.as_slice()), most),
        [first @ 0x78, second, ..] if (u16::from(*first) << 8 | u16::from(*second)) % 31 == 0 => {
            read(ZlibDecoder::new(content.as_slice()), most)
        }
        _ if labelled.contains("deflate") && !is_text(&content) => {
            read(DeflateDecoder::new(content.as_slice()), most)
        }
        _ => Vec::new(),
    };
    let decoded = if decoded.is_empty() { content } else { decoded };
    match decoded.strip_prefix(BYTE_ORDER_MARK) {
        Some(rest) => rest.to_vec(),
        None => decoded,
    }
}

/// Everything up to the first error.
fn read(decoder: impl Read, most: u64) -> Vec<u8> {
    let mut decoded = Vec::new();
    let _ = decoder.take(most).read_to_end(&mut decoded);
    decoded
}

fn is_text(content: &[u8]) -> bool {
    content.iter().all(|byte| !byte.is_ascii_control() || byte.is_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;

    const JSON: &[u8] = br#"{"access_token":"a","refresh_token":"r","expires_in":3600}"#;
    const MOST: u64 = 1024;

    fn gzip() -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(JSON).expect("memory");
        encoder.finish().expect("memory")
    }

    #[test]
    fn labels_do_not_matter() {
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        zlib.write_all(JSON).expect("memory");
        let zlib = zlib.finish().expect("memory");
        let mut deflate = DeflateEncoder::new(Vec::new(), Compression::default());
        deflate.write_all(JSON).expect("memory");
        let deflate = deflate.finish().expect("memory");
        for (label, content) in [
            ("gzip", gzip()),
            ("", gzip()),
            ("identity", gzip()),
            ("gzip", JSON.to_vec()),
            ("deflate", JSON.to_vec()),
            ("deflate", zlib.clone()),
            ("", zlib),
            ("deflate", deflate),
            ("br", JSON.to_vec()),
        ] {
            assert_eq!(decode(label, content, MOST), JSON, "{label:?}");
        }
    }

    #[test]
    fn what_ends_too_early_is_decoded_as_far_as_it_goes() {
        let whole = gzip();
        assert_eq!(decode("gzip", whole[..whole.len() - 8].to_vec(), MOST), JSON);
        assert_eq!(decode("gzip", whole, 10), JSON[..10]);
        assert_eq!(decode("gzip", vec![0x1f, 0x8b], MOST), [0x1f, 0x8b]);
    }

    #[test]
    fn a_byte_order_mark_is_left_out() {
        assert_eq!(decode("", b"\xef\xbb\xbf{}".to_vec(), MOST), b"{}");
    }
}
