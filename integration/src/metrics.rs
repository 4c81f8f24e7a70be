//! Asks a server for its metrics, as Prometheus does.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time,
};

/// How long a condition may take to come true; far more than it needs, so that only one that
/// never does fails.
const PATIENCE: Duration = Duration::from_mins(1);

/// Values by name, with labels as the server writes them: `name{label="value"}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics(BTreeMap<String, String>);

impl Metrics {
    /// Those of the server that tells them at `address`.
    pub async fn of(address: SocketAddr) -> Self {
        let scraped = time::timeout(PATIENCE, scrape(address)).await;
        let scraped = scraped.unwrap_or_else(|_| panic!("no metrics from {address} in time"));
        let text = scraped.unwrap_or_else(|e| panic!("asking {address} for metrics: {e}"));
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        let (_, content) = text.split_once("\r\n\r\n").expect("headers end");
        let samples = content.lines().filter(|line| !line.starts_with('#'));
        let named = samples.map(|line| {
            let sample = line.rsplit_once(' ');
            let (name, value) = sample.unwrap_or_else(|| panic!("`{line}` is no metric"));
            (name.to_owned(), value.to_owned())
        });
        Self(named.collect())
    }

    /// The whole number under that name.
    pub fn get(&self, name: &str) -> Option<u64> {
        let value = self.0.get(name)?;
        let number = value.parse();
        Some(number.unwrap_or_else(|e| panic!("{name} is {value}: {e}")))
    }

    /// Whether there is a metric of that name, whatever its labels where the name gives none.
    pub fn has(&self, name: &str) -> bool {
        let labelled = format!("{name}{{");
        let mut known = self.0.keys();
        known.any(|known| known == name || known.starts_with(&labelled))
    }

    /// Asks until what is told satisfies `met`; panics when it never does.
    pub async fn wait_for(address: SocketAddr, mut met: impl FnMut(&Self) -> bool) -> Self {
        let start = time::Instant::now();
        loop {
            let metrics = Self::of(address).await;
            if met(&metrics) {
                return metrics;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "never came to that: {metrics:#?}"
            );
        }
    }
}

async fn scrape(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut response = String::new();
    // The server closes the connection.
    stream.read_to_string(&mut response).await?;
    Ok(response)
}
