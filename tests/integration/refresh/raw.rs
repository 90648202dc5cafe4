//! A listener that answers with whatever bytes a test wants.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub struct Raw {
    pub url: String,
    connections: Arc<AtomicUsize>,
    taken: Arc<AtomicUsize>,
}

impl Raw {
    /// Reads one request a connection, and answers with these bytes; the argument tells how many
    /// connections came before.
    pub async fn answering(answer: impl Fn(usize) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::serving(move |mut stream, before, taken| {
            let bytes = answer(before);
            async move {
                for part in bytes.chunks(16 * 1024) {
                    if stream.write_all(part).await.is_err() {
                        return;
                    }
                    taken.fetch_add(part.len(), Ordering::SeqCst);
                }
                drop(stream.shutdown().await);
            }
        })
        .await
    }

    /// Reads one request a connection, and leaves the rest to `serve`, which counts what was taken.
    pub async fn serving<F>(
        serve: impl Fn(TcpStream, usize, Arc<AtomicUsize>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        let (connections, taken) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let raw = Self { url, connections: Arc::clone(&connections), taken: Arc::clone(&taken) };
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let before = connections.fetch_add(1, Ordering::SeqCst);
                read_request(&mut stream).await;
                tokio::spawn(serve(stream, before, Arc::clone(&taken)));
            }
        });
        raw
    }

    /// The number of connections that there were.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The number of bytes of answers that the other side, or the sockets between, have taken.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }
}

/// Reads up to the end of a form of known length.
pub async fn read_request(stream: &mut TcpStream) -> Vec<u8> {
    let mut request = Vec::new();
    let mut part = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut part).await {
        request.extend(&part[..read]);
        let text = String::from_utf8_lossy(&request).to_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .split_once("content-length: ")
            .map_or("0", |(_, rest)| rest.split("\r\n").next().unwrap_or_default());
        if body.len() >= length.parse().unwrap_or(0) {
            break;
        }
    }
    request
}

/// Sends a request on to a server, and returns its whole response.
pub async fn forward(request: &str, target: SocketAddr) -> String {
    // So that the response ends with its connection.
    let closing = request.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    let mut server = TcpStream::connect(target).await.expect("it listens");
    server.write_all(closing.as_bytes()).await.expect("it reads");
    let mut response = String::new();
    server.read_to_string(&mut response).await.expect("text");
    response
}

/// An answer with a body of known length.
pub fn response(headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("HTTP/1.1 200 OK\r\n{headers}content-length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// `text` and then so many runs of 258 spaces, as gzip (RFC 1952) of one block with fixed codes
/// (RFC 1951 section 3.2.6): a run takes 13 bits.
pub fn gzip(text: &str, runs: usize) -> Vec<u8> {
    let mut bits = Bits::default();
    // The last block, with fixed codes.
    bits.number(0b011, 3);
    for byte in text.bytes() {
        assert!(byte < 144, "a longer code");
        bits.code(0x30 + u32::from(byte), 8);
    }
    if runs > 0 {
        bits.code(0x30 + u32::from(b' '), 8);
    }
    for _ in 0..runs {
        // Length 258, distance 1.
        bits.code(0b1100_0101, 8);
        bits.code(0, 5);
    }
    bits.code(0, 7);
    let spaces = if runs > 0 { 1 + 258 * runs } else { 0 };
    let plain = text.bytes().chain(std::iter::repeat_n(b' ', spaces));
    let (mut crc, mut length) = (u32::MAX, 0_u32);
    for byte in plain {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
        length = length.wrapping_add(1);
    }
    let mut gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    gzip.extend(bits.bytes);
    gzip.extend((!crc).to_le_bytes());
    gzip.extend(length.to_le_bytes());
    gzip
}

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    used: u32,
}

impl Bits {
    fn bit(&mut self, bit: u32) {
        if self.used.is_multiple_of(8) {
            self.bytes.push(0);
        }
        *self.bytes.last_mut().expect("a byte") |= u8::from(bit & 1 == 1) << (self.used % 8);
        self.used = (self.used + 1) % 8;
    }

    /// A number, the lowest bit first.
    fn number(&mut self, value: u32, bits: u32) {
        (0..bits).for_each(|index| self.bit(value >> index));
    }

    /// A code, the highest bit first.
    fn code(&mut self, value: u32, bits: u32) {
        (0..bits).rev().for_each(|index| self.bit(value >> index));
    }
}
