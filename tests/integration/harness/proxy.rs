//! A TCP proxy between a broker and what it needs, that fails as networks do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What becomes of connections: by their number, in the order in which they were made.
#[derive(Debug, Clone, Copy, Default)]
struct Rules {
    /// Those below this one are silent from here on, and stay open.
    frozen_below: u64,
    /// None is let through, and those that were are closed.
    cut: bool,
    /// The time that everything takes in either direction.
    delay: Duration,
}

/// A proxy on a free port, for as long as this lives.
pub struct Proxy {
    pub address: SocketAddr,
    rules: watch::Sender<Rules>,
    made: Arc<AtomicU64>,
}

impl Proxy {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (rules, seen) = watch::channel(Rules::default());
        let made = Arc::new(AtomicU64::new(0));
        let numbers = Arc::clone(&made);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = numbers.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(carry(stream, target, number, seen.clone()));
            }
        });
        Self { address, rules, made }
    }

    /// A proxy to the server of a URL, and the same URL through it.
    pub async fn in_front_of(url: &str) -> (Self, String) {
        let proxy = Self::to(address_of(url)).await;
        let through = at_address(url, proxy.address);
        (proxy, through)
    }

    /// The number of connections that were made so far.
    pub fn connections(&self) -> u64 {
        self.made.load(Ordering::SeqCst)
    }

    /// Every connection breaks, and new ones end at once, until [`Proxy::mend`].
    pub fn cut(&self) {
        self.rules.send_modify(|rules| rules.cut = true);
    }

    /// From here on everything takes this long in either direction.
    pub fn delay(&self, delay: Duration) {
        self.rules.send_modify(|rules| rules.delay = delay);
    }

    /// New connections work again.
    pub fn mend(&self) {
        self.rules.send_modify(|rules| rules.cut = false);
    }

    /// Every connection that is open goes silent; new ones work.
    pub fn freeze(&self) {
        let made = self.made.load(Ordering::SeqCst);
        self.rules.send_modify(|rules| rules.frozen_below = made);
    }
}

/// The address that a URL names.
pub fn address_of(url: &str) -> SocketAddr {
    let url = url::Url::parse(url).expect("a URL");
    let (host, port) = (url.host_str().expect("a host"), url.port().expect("a port"));
    format!("{host}:{port}").parse().expect("an address")
}

/// The same URL at another address.
pub fn at_address(url: &str, address: SocketAddr) -> String {
    let mut url = url::Url::parse(url).expect("a URL");
    url.set_host(Some(&address.ip().to_string())).expect("a host");
    url.set_port(Some(address.port())).expect("a port");
    url.into()
}

async fn carry(
    mut near: TcpStream,
    target: SocketAddr,
    number: u64,
    mut rules: watch::Receiver<Rules>,
) {
    if rules.borrow().cut {
        return;
    }
    let Ok(mut far) = TcpStream::connect(target).await else { return };
    let (mut up, mut down) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let now = *rules.borrow_and_update();
        if now.cut {
            return;
        }
        if number < now.frozen_below {
            // Open, and silent, until something else is decided.
            if rules.changed().await.is_err() {
                return;
            }
            continue;
        }
        tokio::select! {
            read = near.read(&mut up) => match read {
                Ok(read @ 1..) => {
                    tokio::time::sleep(now.delay).await;
                    if far.write_all(&up[..read]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
            read = far.read(&mut down) => match read {
                Ok(read @ 1..) => {
                    tokio::time::sleep(now.delay).await;
                    if near.write_all(&down[..read]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
            changed = rules.changed() => if changed.is_err() {
                return;
            },
        }
    }
}
