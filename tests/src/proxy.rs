//! A TCP proxy that plays a bad network: it forwards, holds everything back, or cuts.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    Fair,
    /// Connections stay and nothing comes through, as behind a dead switch.
    Stalled,
    /// Connections are closed and new ones are closed at once.
    Cut,
}

pub struct Proxy {
    port: u16,
    weather: Arc<watch::Sender<Weather>>,
    allowance: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Listens on loopback and forwards to `target` (`host:port`).
    pub async fn start(target: &str) -> Result<Self> {
        let listener =
            TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.context("proxy")?;
        let port = listener.local_addr()?.port();
        let weather = Arc::new(watch::Sender::new(Weather::Fair));
        let allowance = Arc::new(AtomicU64::new(u64::MAX));
        let sky = Sky { weather: weather.clone(), allowance: allowance.clone() };
        let accepting = tokio::spawn(accept(listener, target.to_owned(), sky));
        Ok(Self { port, weather, allowance, accepting })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn set(&self, weather: Weather) {
        self.allowance.store(u64::MAX, Ordering::SeqCst);
        self.weather.send_replace(weather);
    }

    /// Fair until that many bytes have passed in all, both ways and all connections together; then stalled.
    pub fn stall_after(&self, bytes: u64) {
        self.set(Weather::Fair);
        self.allowance.store(bytes, Ordering::SeqCst);
    }

    pub fn weather(&self) -> Weather {
        *self.weather.borrow()
    }
}

/// What all connections are under.
#[derive(Clone)]
struct Sky {
    weather: Arc<watch::Sender<Weather>>,
    allowance: Arc<AtomicU64>,
}

impl Sky {
    /// Counts bytes that pass; the ones over the allowance are the first to be held back.
    fn pass(&self, bytes: usize) {
        let take = |left: u64| if left == u64::MAX { None } else { Some(left.saturating_sub(bytes as u64)) };
        if self
            .allowance
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take)
            .is_ok_and(|left| left <= bytes as u64)
        {
            self.weather.send_replace(Weather::Stalled);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.weather.send_replace(Weather::Cut);
    }
}

async fn accept(listener: TcpListener, target: String, sky: Sky) {
    while let Ok((near, _)) = listener.accept().await {
        if *sky.weather.borrow() == Weather::Cut {
            continue;
        }
        let (target, sky) = (target.clone(), sky.clone());
        tokio::spawn(async move {
            if let Ok(far) = TcpStream::connect(&target).await {
                let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                tokio::select! {
                    () = forward(near_in, far_out, &sky) => {}
                    () = forward(far_in, near_out, &sky) => {}
                }
            }
        });
    }
}

/// Until either side ends or the network is cut. Both halves are dropped then, which closes both connections.
async fn forward(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, sky: &Sky) {
    let mut weather = sky.weather.subscribe();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = tokio::select! {
            cut = weather.wait_for(|w| *w == Weather::Cut) => { drop(cut); return }
            read = from.read(&mut buffer) => read,
        };
        let Ok(bytes @ 1..) = read else { return };
        sky.pass(bytes);
        // What was read is held back through a stall, and lost in a cut.
        match weather.wait_for(|w| *w != Weather::Stalled).await {
            Ok(now) if *now == Weather::Fair => {}
            _ => return,
        }
        if to.write_all(&buffer[..bytes]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_pass_in_fair_weather_wait_in_a_stall_and_stop_at_a_cut() {
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = echo.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = echo.accept().await {
                tokio::spawn(async move {
                    let (mut input, mut output) = stream.split();
                    tokio::io::copy(&mut input, &mut output).await.ok();
                });
            }
        });
        let proxy = Proxy::start(&target).await.unwrap();
        let address = ("127.0.0.1", proxy.port());
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut answer = [0; 4];
        stream.write_all(b"fair").await.unwrap();
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"fair");

        proxy.set(Weather::Stalled);
        stream.write_all(b"held").await.unwrap();
        proxy.set(Weather::Fair);
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"held");

        proxy.stall_after(6);
        stream.write_all(b"last").await.unwrap();
        while proxy.weather() == Weather::Fair {
            tokio::task::yield_now().await;
        }
        proxy.set(Weather::Fair);
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"last");

        proxy.set(Weather::Cut);
        assert_eq!(stream.read(&mut answer).await.unwrap_or(0), 0);
        let mut refused = TcpStream::connect(address).await.unwrap();
        assert_eq!(refused.read(&mut answer).await.unwrap_or(0), 0);
    }
}
